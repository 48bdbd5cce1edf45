//! A VM in another container: a program in a new pid namespace does not see its process.

use std::process::{Command, Output};

use hyperkit::Disk;

use crate::common::example_path;
use crate::common::guest::{Guest, QUIET_CMDLINE};

/// Runs a command of `ctl` in a pid namespace in which no other process is.
fn ctl_in_a_container(guest: &Guest, words: &[&str]) -> Output {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]);
    unshare.arg(example_path("ctl")).args(words).arg(&guest.state_dir).output().unwrap()
}

#[test]
fn vm_of_another_container_is_neither_doubled_nor_removed() {
    let mut guest = Guest::new();
    guest.description = guest.description.clone().disk(Disk::in_state_dir(8));
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    for words in [&["start"][..], &["rm", "--yes"], &["stop"], &["shutdown"], &["pause"]] {
        let output = ctl_in_a_container(&guest, words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains("cannot tell whether a VM is running"),
            "{words:?}: {error}"
        );
    }
    assert!(guest.state_dir.join("disk.img").exists() && guest.state_dir.join("hyperkit.json").exists());
    assert_eq!(guest.description.vm().unwrap().expect("it runs").pid(), vm.pid());
    assert_eq!(vm.try_wait(), None);

    // Afterwards the container can use the directory.
    vm.kill().unwrap();
    let output = ctl_in_a_container(&guest, &["rm", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!guest.state_dir.exists());
}
