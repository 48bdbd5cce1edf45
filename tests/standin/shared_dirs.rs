//! Directories of the host that QEMU opens: the guest's root, shared directories, and those of networks.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

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

/// The agent would not find its port, so each command would wait until its timeout.
#[test]
fn share_that_would_hide_the_guests_own_proc_sys_or_dev_is_rejected() {
    let test_dir = TestDir::new();
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let refused = |root: Root, share: &Path| {
        let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).agent(true).root(root).share_dir(share, "tag"));
        assert_error!(&error, ConfigError::Unsupported { feature, .. } if feature.contains("shares_9p"));
    };
    let root = test_dir.path("root");
    for dir in ["proc", "sys", "dev", "dev/shm", "etc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let link = test_dir.path("link");
    symlink("/dev", &link).unwrap();
    if cfg!(target_arch = "x86_64") {
        for share in [Path::new("/proc"), Path::new("/sys/"), Path::new("/dev/../dev"), &link] {
            refused(Root::Host, share);
        }
    }
    for share in ["proc", "sys", "dev", "dev/shm/.."] {
        refused(Root::Dir(root.clone()), &root.join(share));
    }
    let with = |share: &Path| test_dir.description().hyperkit(&qemu).agent(true).share_dir(share, "tag");
    for share in ["dev/shm", "etc"] {
        with(&root.join(share)).root(Root::Dir(root.clone())).check().unwrap();
    }
    with(Path::new("/dev")).check().unwrap(); // the guest mounts it where it likes
}
