//! TODO

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hyperkit::{Error, HyperKit};

use crate::common::{Ended, Files, boot, example, machines_in, raw, standin};

#[test]
fn unusual_state_directories() {
    let files = Files::new();
    let long = "long/".repeat(40);
    for name in ["with spaces  and = ; : #", "ünïcødé 虚拟机", "-F", "a\nb", long.trim_end_matches('/')] {
        let dir = files.path(name);
        let _end = Ended(dir.clone());
        let vm = files.machine().state_dir(&dir).start("guest").unwrap();
        let found = HyperKit::from_state(&dir).unwrap();
        assert_eq!((found.is_running(), found.pid), (true, Some(vm.pid())), "{name}");
        let second = files.machine().state_dir(&dir).start("guest");
        assert!(matches!(second, Err(Error::AlreadyRunning { pid }) if pid == vm.pid()), "{name}");
        found.stop().unwrap();
        files.machine().state_dir(&dir).start("guest").unwrap().stop().unwrap();
        found.remove(false).unwrap();
        assert!(!dir.exists(), "{name}");
    }
    // A link to a directory elsewhere: what is removed is what it leads to, and the link is left.
    fs::create_dir(files.path("real")).unwrap();
    symlink(files.path("real"), files.path("link")).unwrap();
    let mut machine = files.machine().state_dir(files.path("link"));
    machine.start("guest").unwrap();
    assert!(HyperKit::from_state(files.path("real")).unwrap().is_running());
    HyperKit::from_state(files.path("link")).unwrap().stop().unwrap();
    assert!(!machine.is_running());
    machine.remove(false).unwrap();
    assert!(!files.path("real").exists());
}

/// Root writes everywhere, so this is tried as somebody else.
#[test]
fn a_state_directory_that_may_not_be_written() {
    let files = Files::new();
    let mode = |name: &str, mode| fs::set_permissions(files.path(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(files.path("vm")).unwrap();
    for (program, name) in [(example("boot"), "boot"), (standin(), "hyperkit")] {
        fs::copy(program, files.path(name)).unwrap();
        mode(name, 0o755);
    }
    mode(".", 0o755);
    mode("vm", 0o555);
    let mut boot = Command::new(files.path("boot"));
    boot.arg("--background").arg("--hyperkit").arg(files.path("hyperkit")).arg("--kernel").arg(files.path("vmlinuz"));
    boot.arg("--state-dir").arg(files.path("vm")).current_dir("/");
    if rustix::process::geteuid().is_root() {
        boot.uid(65534);
    }
    let output = boot.output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        why.contains(&format!(
            "`state_dir` cannot be opened: look at its permissions, or set it to another: {}: Permission denied",
            files.path("vm").display()
        )),
        "{why}"
    );
    assert!(files.state_files().is_empty());
}

/// Nothing can be written: no machine is started, the error says so, and with room the next start works.
#[test]
fn a_full_file_system() {
    let files = Files::new();
    // A process that may write files of no length at all finds every file system full.
    let mut full = Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]);
    let start = boot(&files, "guest");
    full.arg(start.get_program()).args(start.get_args());
    let output = full.output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && why.contains("cannot write") && why.contains("hyperkit.json"), "{why}");
    assert_eq!(files.state_files(), [] as [&str; 0]);
    assert_eq!(machines_in(&files.path("vm")), [] as [u32; 0]);
    files.machine().start("guest").unwrap().stop().unwrap();
}

/// The same on a real one: a small tmpfs, filled to the last byte. It needs a mount namespace, so Linux.
#[cfg(target_os = "linux")]
#[test]
fn a_full_tmpfs() {
    let files = Files::new();
    fs::create_dir(files.path("small")).unwrap();
    let script = "set -e; mount -t tmpfs -o size=64k none \"$1\"; cd \"$1\"; shift
        cat /dev/zero > filler 2>/dev/null || true
        ! \"$@\" || exit 3
        [ ! -s vm/hyperkit.json ] || exit 4
        rm filler; \"$@\"";
    let start = boot(&files, "guest");
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["sh", "-c", script, "sh"]).arg(files.path("small"));
    unshare.arg(start.get_program()).args(start.get_args()).arg("--state-dir").arg(files.path("small/vm"));
    let output = unshare.output().unwrap();
    // It lives on in its namespace, where the state directory is, and is found by its command line.
    let machines = machines_in(&files.path("small/vm"));
    for pid in &machines {
        rustix::process::kill_process(raw(*pid), rustix::process::Signal::KILL).unwrap();
    }
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(machines.len(), 1, "{why}");
}
