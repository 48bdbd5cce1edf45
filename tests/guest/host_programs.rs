//! The host's programs in a guest: `Root::Host` and `Root::Dir`.

use std::env;
use std::process::{Command, Output};

use hyperkit::{GuestCommand, GuestStatus, HyperKit, Root, Vm};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, guest_file};

/// Returns the guest's description with a root directory of the host.
fn with_root(description: &HyperKit, root: Root) -> HyperKit {
    description.clone().initrd(guest_file("host-root.img")).agent(true).root(root).memory_mib(1024)
}

fn command(vm: &Vm, program: &str) -> GuestCommand {
    vm.command(program).env("PATH", env::var_os("PATH").unwrap()).agent_timeout(BOOT_TIMEOUT).timeout(BOOT_TIMEOUT)
}

/// Asserts that a program gives the same output and status in the guest as on the host.
fn assert_same(vm: &Vm, program: &str, args: &[&str]) {
    let Output { status, stdout, stderr } = Command::new(program).args(args).current_dir("/").output().unwrap();
    let guest = command(vm, program).args(args).output().unwrap();
    let texts = |bytes: &[u8]| bytes.escape_ascii().to_string();
    assert_eq!((texts(&guest.stdout), texts(&guest.stderr)), (texts(&stdout), texts(&stderr)), "{program} {args:?}");
    assert_eq!(guest.status, GuestStatus::Exited(status.code().unwrap()), "{program} {args:?}");
}

#[test]
fn programs_of_the_host_run_as_on_the_host() {
    let guest = Guest::new();
    let vm = with_root(&guest.description, Root::Host).start(QUIET_CMDLINE).unwrap();
    for (program, args) in [
        ("cat", &["/etc/passwd"][..]),
        ("bash", &["-c", "diff <(seq 3) <(seq 4 | tac | tac); echo $?; ls /no/such; exit 3"]),
        ("python3", &["-c", "import ssl, sys, json; print(sys.version, json.dumps([1])); sys.exit(5)"]),
        ("sh", &["-c", "ls -l /etc | sort | sha256sum"]),
    ] {
        assert_same(&vm, program, args);
    }
}
