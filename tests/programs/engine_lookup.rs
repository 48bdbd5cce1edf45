//! Lookup of the hypervisor and of VPNKit's socket.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::guest::guest_file;
use crate::common::vpnkit::{Handshake, listen_as_vpnkit};
use crate::common::{TestDir, example_path, standin_path, write_executable};

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// hyperkit's names come before QEMU's, and the error lists every searched path.
#[test]
fn default_hypervisor_is_looked_up_in_order() {
    let test_dir = TestDir::new();
    let bin = test_dir.path("bin");
    fs::create_dir(&bin).unwrap();
    let run = || -> Output {
        let mut boot = Command::new(example_path("boot"));
        boot.env("PATH", &bin).arg("--kernel").arg(test_dir.path("vmlinuz")).args(["--cmdline", "guest.exit=0"]);
        boot.arg("--state-dir").arg(test_dir.path("vm")).stdin(Stdio::null()).output().unwrap()
    };
    let absolute = ["/usr/local/bin/hyperkit", "/Applications/Docker.app/Contents/Resources/bin/hyperkit"];
    if absolute.iter().any(|program| Path::new(program).exists()) {
        panic!("this test needs a host without hyperkit");
    }
    let nothing = run();
    let why = text(&nothing.stderr);
    assert!(!nothing.status.success());
    for name in ["hyperkit", "com.docker.hyperkit", "qemu-system-x86_64", "qemu-kvm", "kvm", "qemu"] {
        assert!(why.contains(bin.join(name).to_str().unwrap()), "{why}");
    }
    assert!(absolute.iter().all(|place| why.contains(place)) && why.contains("/usr/libexec/qemu-kvm"), "{why}");

    // Scripts that only report that they were called.
    for name in ["qemu", "kvm", "qemu-kvm", "qemu-system-x86_64"] {
        let script = format!("#!/bin/sh\necho called as {name}\nexit 9\n");
        test_dir.write_executable(&format!("bin/{name}"), script.as_bytes());
        let called = run();
        assert_eq!(text(&called.stdout), format!("called as {name}\n"));
        assert!(text(&called.stderr).contains("failed with exit code 9"), "{called:?}");
    }

    for name in ["com.docker.hyperkit", "hyperkit"] {
        symlink(standin_path(), bin.join(name)).unwrap();
        let ran = run();
        assert!(ran.status.success(), "{ran:?}");
        let json: Value = serde_json::from_slice(&fs::read(test_dir.path("vm/hyperkit.json")).unwrap()).unwrap();
        assert_eq!(json["hyperkit"].as_str().map(PathBuf::from), Some(bin.join(name)));
    }
}

/// Which kernels boot and how much memory they need depends on the engine, so without one nothing can be said about that.
#[test]
fn missing_hypervisor_is_not_reported_as_a_mistake_in_the_kernel() {
    let test_dir = TestDir::new();
    let kernel = guest_file("vmlinux");
    let words = ["--memory", "32", "--kernel", kernel.to_str().unwrap()];
    for (example, more) in [("boot", &["--no-state"][..]), ("exec", &["--host-root", "--", "true"])] {
        let mut program = Command::new(example_path(example));
        program.args(words).args(more).env("PATH", test_dir.dir()).env("HOME", test_dir.dir());
        let output = program.env_remove("XDG_STATE_HOME").stdin(Stdio::null()).output().unwrap();
        let why = text(&output.stderr);
        assert!(!output.status.success() && why.contains("no hypervisor found: ") && !why.contains("kernel"), "{why}");
    }
}

/// Runs as another user, since root can read every file.
#[test]
fn unreadable_kernel_is_an_error() {
    let test_dir = TestDir::new();
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let boot = test_dir.path("boot");
    write_executable(&boot, &fs::read(example_path("boot")).unwrap());
    let hyperkit = test_dir.path("hyperkit");
    write_executable(&hyperkit, &fs::read(standin_path()).unwrap());
    let locked = test_dir.path("vmlinuz");
    [(test_dir.dir().as_path(), 0o755), (&boot, 0o755), (&hyperkit, 0o755), (&locked, 0o000)]
        .into_iter()
        .for_each(|(path, mode)| set_mode(path, mode));
    let mut command = Command::new(&boot);
    command.arg("--hyperkit").arg(&hyperkit).arg("--kernel").arg(&locked).arg("--no-state").current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65534);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let why = text(&output.stderr);
    assert!(why.contains(&format!("cannot access `--kernel`: {}: Permission denied", locked.display())), "{why}");
}

/// The newer name of the socket comes first.
#[test]
fn vpnkit_auto_looks_up_the_socket_in_the_home_directory() {
    let test_dir = TestDir::new();
    let data = test_dir.path("Library/Containers/com.docker.docker/Data");
    fs::create_dir_all(&data).unwrap();
    let run = || {
        let mut boot = Command::new(example_path("boot"));
        boot.env("HOME", test_dir.dir())
            .arg("--hyperkit")
            .arg(standin_path())
            .arg("--kernel")
            .arg(test_dir.path("vmlinuz"));
        boot.arg("--state-dir").arg(test_dir.path("vm")).args(["--vpnkit", "auto", "--cmdline", "guest.exit=0"]);
        let output = boot.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (ran, why) = run();
    assert!(!ran && why.contains("vpnkit.eth.sock, ") && why.contains("Data/s50"), "{why}");
    for name in ["s50", "vpnkit.eth.sock"] {
        listen_as_vpnkit(&data.join(name), Handshake::All);
        let (ran, why) = run();
        assert!(ran, "{why}");
        let json: Value = serde_json::from_slice(&fs::read(test_dir.path("vm/hyperkit.json")).unwrap()).unwrap();
        assert_eq!(json["vpnkit_sock"].as_str().map(PathBuf::from), Some(data.join(name)));
    }
}
