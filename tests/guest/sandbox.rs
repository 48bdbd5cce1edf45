//! QEMU's sandbox, and who may use the files of a VM.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::{Command, Stdio};

use crate::common::guest::{Guest, QUIET_CMDLINE, guest_file, qemu_in_mount_namespace, setup_file};
use crate::common::platform::PLATFORM;
use crate::common::{example_path, file_names};

/// The number of filters through which the system calls of a process pass.
fn seccomp_filters(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    filters.expect("the kernel has no seccomp").trim().parse().unwrap()
}

#[test]
fn qemu_runs_in_its_sandbox_unless_that_is_turned_off() {
    let own = seccomp_filters(std::process::id());
    let guest = Guest::new();
    let description = guest.description.clone().vsock(true);
    let description = description.vhost_device_vsock(setup_file("target/tools/bin", "vhost-device-vsock"));
    let script = qemu_in_mount_namespace(guest.state_dir.parent().unwrap(), "");
    let sandboxed = [PLATFORM.qemu.into(), script].into_iter().chain(PLATFORM.qemu_script.map(Into::into));
    let sandboxed = sandboxed.map(|program| (description.clone().hyperkit(program), true));
    for (description, is_sandboxed) in sandboxed.chain([(description.clone().sandbox(false), false)]) {
        let vm = description.start(QUIET_CMDLINE).unwrap();
        assert_eq!(seccomp_filters(vm.pid()) > own, is_sandboxed, "{:?}", vm.description().recorded_arguments());
        vm.kill().unwrap();
        let vm = description.start_scoped(QUIET_CMDLINE).unwrap();
        assert_eq!(seccomp_filters(vm.pid()) > own, is_sandboxed, "{:?}", vm.description().recorded_arguments());
    }
}

/// The directory is open to others, and the umask hides nothing.
#[test]
fn files_of_a_vm_are_for_its_owner_only() {
    let guest = Guest::new();
    fs::DirBuilder::new().mode(0o755).create(&guest.state_dir).unwrap();
    let mut boot = Command::new("sh");
    boot.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(example_path("boot"));
    boot.args(["--background", "--disk-size", "4", "--vsock", "--hyperkit", PLATFORM.qemu, "--state-dir"]);
    boot.arg(&guest.state_dir).arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    let tools = setup_file("target/tools", "bin");
    let path =
        std::env::join_paths([tools].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let output = boot.env("PATH", path.unwrap()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let files = file_names(&guest.state_dir);
    for expected in ["console-ring", "events.sock", "qmp.sock", "tty", "v.sock"] {
        assert!(files.iter().any(|file| file == expected), "{expected} is not in {files:?}");
    }
    for file in files {
        let mode = fs::symlink_metadata(guest.state_dir.join(&file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
}
