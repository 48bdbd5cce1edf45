//! Disk images that another QEMU uses.

use hyperkit::{ConfigError, Console, Disk, Disks, Error, HyperKit, QcowOptions, create_disk_image};

use crate::common::StopOnDrop;
use crate::common::guest::{QUIET_CMDLINE, description};
use crate::common::rejection::only_violation;
use crate::common::tools::run_tool;

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
            description.start(QUIET_CMDLINE)
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

/// QEMU locks backing files, too. Its error would come after the start has created files.
#[test]
fn backing_file_in_use_by_qemu_is_rejected_before_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (base, top) = (dir.join("base.img"), dir.join("top.qcow2"));
    create_disk_image(&base, 1).unwrap();
    run_tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.img", "top.qcow2"], &dir);
    let describe = |name: &str, disk: Disk| description().state_dir(dir.join(name)).disk(disk).console(Console::Pty);
    let writer = describe("writer", Disk::raw(&base));
    let overlay = describe("overlay", Disk::qcow2(&top, QcowOptions::default()));
    let _stops = ["writer", "overlay"].map(|name| StopOnDrop(dir.join(name)));
    // On other systems, QEMU takes no locks.
    if cfg!(target_os = "linux") {
        for (first, second, other) in [(&writer, &overlay, "overlay"), (&overlay, &writer, "writer")] {
            let vm = first.start(QUIET_CMDLINE).unwrap();
            let started = second.start(QUIET_CMDLINE);
            assert!(matches!(started, Err(Error::DiskInUse { ref path }) if *path == base), "{started:?}");
            assert!(!dir.join(other).exists());
            vm.kill().unwrap();
            first.remove(Disks::Keep).unwrap();
        }
    }
    let both = overlay.disk(Disk::raw(&base)).check();
    assert!(matches!(only_violation(both), ConfigError::DuplicateDisk { path } if path == base));
}
