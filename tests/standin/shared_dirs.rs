//! Directories of the host that QEMU opens: the guest's root, shared directories, and those of networks.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use hyperkit::{ConfigError, Disks, HyperKit, Root};

use crate::common::child_process::as_other_user;
use crate::common::rejection::{assert_error, rejection_with};
use crate::common::{TestDir, make_fifo};

/// QEMU would fail only after files were created.
#[test]
fn directory_that_cannot_be_read_is_rejected_as_root_and_as_share() {
    as_other_user("shared_dirs::directory_that_cannot_be_read_is_rejected_as_root_and_as_share", || {
        let test_dir = TestDir::new();
        let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
        let dir = test_dir.path("dir");
        fs::create_dir_all(dir.join("inside")).unwrap();
        let set_mode = |mode| fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        for (mode, path) in [(0o000, dir.clone()), (0o000, dir.join("inside")), (0o311, dir.clone())] {
            set_mode(mode);
            let share = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).share_dir(&path, "tag"));
            assert_error!(share, ConfigError::Inaccessible { field: "shares_9p", path: it, .. } if it == path);
            let with_root = |d: HyperKit| d.hyperkit(&qemu).agent(true).root(Root::Dir(path.clone()));
            let root = rejection_with(&test_dir, "", with_root);
            assert_error!(root, ConfigError::Inaccessible { field: "root", path: it, .. } if it == path);
        }
        set_mode(0o700);
    });
}

/// Opening the FIFO would block.
#[test]
fn remove_does_not_wait_for_a_fifo_in_place_of_a_networks_directory() {
    let test_dir = TestDir::new();
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let description = test_dir.description().hyperkit(qemu).internal_network(test_dir.path("net"), 1);
    description.define().unwrap();
    make_fifo(&test_dir.path("net"));
    description.remove(Disks::Keep).unwrap();
    assert!(!test_dir.path("vm").exists() && test_dir.path("net").exists());
}
