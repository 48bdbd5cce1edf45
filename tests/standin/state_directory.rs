//! Unusual and unwritable state directories, and full file systems.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hyperkit::{Disks, Error, HyperKit};
use serde_json::Value;

use crate::common::{StopOnDrop, TestDir, boot_command, example_path, hypervisors_in, standin_path};

/// Changes the state file of the VM.
pub fn edit_state(test_dir: &TestDir, change: impl FnOnce(&mut Value)) {
    let path = test_dir.path("vm/hyperkit.json");
    let mut state = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut state);
    fs::write(path, state.to_string()).unwrap();
}

#[test]
fn unusual_names_and_symlinks_of_state_directories_work() {
    let test_dir = TestDir::new();
    let long = "long/".repeat(40);
    for name in ["with spaces  and = ; : #", "ünïcødé 虚拟机", "-F", "a\nb", long.trim_end_matches('/')] {
        let dir = test_dir.path(name);
        let _stop = StopOnDrop(dir.clone());
        let vm = test_dir.description().state_dir(&dir).start("guest").unwrap();
        let found = HyperKit::from_state(&dir).unwrap();
        assert_eq!(found.recorded_pid(), Some(vm.pid()), "{name}");
        assert_eq!(found.vm().unwrap().unwrap().pid(), vm.pid(), "{name}");
        let second = test_dir.description().state_dir(&dir).start("guest");
        assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{name}");
        found.stop().unwrap();
        test_dir.description().state_dir(&dir).start("guest").unwrap().kill().unwrap();
        found.remove(Disks::Delete).unwrap();
        assert!(!dir.exists(), "{name}");
    }
    // If the state directory is a symlink, `remove` deletes the directory to which it leads, and keeps the symlink.
    fs::create_dir(test_dir.path("real")).unwrap();
    symlink(test_dir.path("real"), test_dir.path("link")).unwrap();
    let description = test_dir.description().state_dir(test_dir.path("link"));
    description.start("guest").unwrap();
    assert!(HyperKit::from_state(test_dir.path("real")).unwrap().is_running().unwrap());
    HyperKit::from_state(test_dir.path("link")).unwrap().stop().unwrap();
    assert!(!description.is_running().unwrap());
    description.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("real").exists());
}

/// The directory is open to others, and the umask hides nothing.
#[test]
fn files_of_a_vm_are_for_its_owner_only() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    fs::set_permissions(test_dir.path("vm"), fs::Permissions::from_mode(0o755)).unwrap();
    let _stop = test_dir.stop_on_drop();
    let boot = boot_command(&test_dir, "guest");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(boot.get_program()).args(boot.get_args()).arg("--vsock");
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let files = test_dir.state_files();
    for expected in ["connect", "console-ring", "hyperkit.pid", "tty"] {
        assert!(files.iter().any(|file| file == expected), "{expected} is not in {files:?}");
    }
    for file in files {
        let mode = fs::symlink_metadata(test_dir.path("vm").join(&file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
}

/// If the test runs as root, it runs `boot` as another user, since root can write everywhere.
#[test]
fn unwritable_state_directory_is_an_error() {
    let test_dir = TestDir::new();
    let mode = |name: &str, mode| fs::set_permissions(test_dir.path(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(test_dir.path("vm")).unwrap();
    for (program, name) in [(example_path("boot"), "boot"), (standin_path(), "hyperkit")] {
        test_dir.write_executable(name, &fs::read(program).unwrap());
    }
    mode(".", 0o755);
    mode("vm", 0o555);
    let mut boot = Command::new(test_dir.path("boot"));
    boot.arg("--background")
        .arg("--hyperkit")
        .arg(test_dir.path("hyperkit"))
        .arg("--kernel")
        .arg(test_dir.path("vmlinuz"));
    boot.arg("--state-dir").arg(test_dir.path("vm")).current_dir("/");
    if rustix::process::geteuid().is_root() {
        boot.uid(65534);
    }
    let output = boot.output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        why.contains(&format!("cannot access `--state-dir`: {}: Permission denied", test_dir.path("vm").display())),
        "{why}"
    );
    assert!(test_dir.state_files().is_empty());
}

/// No file can be written, so the start fails and says why. The next start, without that limit, succeeds.
#[test]
fn failed_state_file_write_starts_no_vm() {
    let test_dir = TestDir::new();
    // With a file size limit of 0, every write fails as on a full file system.
    let mut full = Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]);
    let start = boot_command(&test_dir, "guest");
    full.arg(start.get_program()).args(start.get_args());
    let output = full.output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && why.contains("cannot write") && why.contains("hyperkit.json"), "{why}");
    assert_eq!(test_dir.state_files(), [] as [&str; 0]);
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [] as [u32; 0]);
    test_dir.description().start("guest").unwrap().kill().unwrap();
}

/// Starts a VM on a small tmpfs by a shell script. Mounting it without root requires a mount namespace, which only Linux has.
#[cfg(target_os = "linux")]
fn on_small_file_system(test_dir: &TestDir, script: &str) -> std::process::Output {
    fs::create_dir(test_dir.path("small")).unwrap();
    let script = format!("set -e; mount -t tmpfs -o size=64k none \"$1\"; cd \"$1\"; shift; {script}");
    let start = boot_command(test_dir, "guest");
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["sh", "-c", &script, "sh"]).arg(test_dir.path("small"));
    unshare.arg(start.get_program()).args(start.get_args()).arg("--state-dir").arg(test_dir.path("small/vm"));
    unshare.output().unwrap()
}

/// The space is enough for some of the files of a start, and then for all.
#[cfg(target_os = "linux")]
#[test]
fn start_on_a_nearly_full_file_system_says_so() {
    let test_dir = TestDir::new();
    let script = "why=$(mktemp); for pages in 1 2 3 4 5 6 7 8; do
            rm -rf vm; rm -f filler; head -c $((65536 - 4096 * pages)) /dev/zero > filler
            if \"$@\" 2> $why; then kill $(cat vm/hyperkit.pid); echo started; rm $why; exit; fi
            grep -q -e 'No space left' -e 'less than 1 MiB' $why || { cat $why; exit 3; }
            echo failed
        done";
    let output = on_small_file_system(&test_dir, script);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("failed") && text.contains("started"), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn full_file_system_starts_no_vm_until_there_is_space() {
    let test_dir = TestDir::new();
    let script = "cat /dev/zero > filler 2>/dev/null || true
        ! \"$@\" || exit 3
        [ ! -s vm/hyperkit.json ] || exit 4
        rm filler; \"$@\"";
    let output = on_small_file_system(&test_dir, script);
    // The state directory exists only in the namespace, so the hypervisor is found by its command line.
    let hypervisors = hypervisors_in(&test_dir.path("small/vm"));
    for pid in &hypervisors {
        rustix::process::kill_process(crate::common::to_pid(*pid), rustix::process::Signal::KILL).unwrap();
    }
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(hypervisors.len(), 1, "{why}");
}
