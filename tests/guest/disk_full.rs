//! The file system of a disk's image is full.

use std::fs;

use hyperkit::{Disk, Exit, ShutdownOutcome, VmStatus};

use crate::common::TEST_TIMEOUT;
use crate::common::child_process::in_child_process;
use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, open_shell, qemu_in_mount_namespace, run_in_guest};
use crate::log_lines::log_lines;

/// By default QEMU stops the vCPUs, so that the guest freezes.
#[test]
fn guest_gets_io_errors_and_the_log_a_warning() {
    in_child_process("disk_full::guest_gets_io_errors_and_the_log_a_warning", || {
        let warnings = log_lines(log::Level::Warn);

        let mut guest = Guest::new();
        let dir = guest.state_dir.parent().unwrap().to_owned();
        let images = dir.join("images");
        fs::create_dir(&images).unwrap();
        fs::create_dir(dir.join("small")).unwrap();
        // QEMU sees the images in a file system of 8 MiB.
        let qemu = qemu_in_mount_namespace(
            &dir,
            "cd \"$(dirname \"$0\")\"\nmount -t tmpfs -o size=8m none small\ncp --sparse=always images/* small\n\
             mount --bind small images",
        );
        let names = ["raw.img", "a.qcow2", "sata.img"];
        let [raw, qcow2, sata] = names.map(|name| Disk::new(images.join(name)).size_mib(32));
        guest.description = guest.description.clone().hyperkit(qemu).disk(raw).disk(qcow2).disk(sata.ahci());
        let vm = guest.description.start(QUIET_CMDLINE).unwrap();
        let console = open_shell(&vm);
        for (disk, name) in ["vda", "vdb", "sda"].iter().zip(names) {
            let written = run_in_guest(&console, &format!("dd if=/dev/zero of=/dev/{disk} bs=1M count=16 conv=fsync"));
            assert!(written.contains("Input/output error"), "{disk}: {written}");
            assert_eq!(vm.status().unwrap(), VmStatus::Running, "{disk}");
            let warning = warnings.recv_timeout(TEST_TIMEOUT).unwrap();
            let expected = format!(
                "{}: cannot write {}, so the guest gets an I/O error: No space left on device",
                guest.state_dir.display(),
                images.join(name).display()
            );
            assert_eq!(warning, expected);
        }
        assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    });
}
