//! Disk images that another QEMU uses.

use hyperkit::{Console, Disk, Disks, Error, HyperKit};

use crate::common::StopOnDrop;
use crate::common::guest::description;

/// QEMU locks its images, with different locks for writing and for reading only.
#[test]
fn image_in_use_by_qemu_is_rejected_before_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (first, second) = (dir.join("first"), dir.join("second"));
    let _stops = (StopOnDrop(first.clone()), StopOnDrop(second.clone()));
    for shared in [Disk::raw(dir.join("shared.img")).size_mib(1), Disk::new(dir.join("shared.qcow2")).size_mib(1)] {
        let start = |state: &std::path::Path, disk: Disk| {
            let description = description().state_dir(state).disk(disk).console(Console::Pty);
            description.start("console=ttyS0")
        };
        let vm = start(&first, shared.clone()).unwrap();
        for disk in [shared.clone(), shared.clone().read_only()] {
            // A read-only disk is refused only on Linux: on other systems there are no locks but QEMU's own.
            if cfg!(target_os = "linux") || !disk.read_only {
                match start(&second, disk) {
                    Err(Error::DiskInUse { path }) => assert_eq!(Some(path), shared.path),
                    other => panic!("{other:?}"),
                }
                assert!(!second.exists());
            }
        }
        vm.kill().unwrap();
        // Read-only disks can share an image, but not with a disk that can be written to.
        let readers = [&first, &second].map(|state| start(state, shared.clone().read_only()).unwrap());
        assert!(matches!(start(&dir.join("third"), shared.clone()), Err(Error::DiskInUse { .. })));
        readers.iter().for_each(|vm| vm.kill().unwrap());
        HyperKit::from_state(&second).unwrap().remove(Disks::Delete).unwrap();
    }
}
