//! State directories in which something is wrong, or which are unusual.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{Ended, Files, boot, example, machines_in, standin, started};
use hyperkit::{Error, HyperKit};

/// What `hyperkit.json` can be besides what was written: none of it panics or is taken for a machine.
fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    let wrong =
        [r#"{"cpus":"two"}"#, r#"{"pid":-1}"#, r#"{"pid":1e99}"#, "[]", "null", "\"\"", "\0", "{\"disks\":[[]]}"];
    let deep = "[".repeat(100_000);
    cut.chain(wrong.map(|text| text.as_bytes().to_vec())).chain([deep.into_bytes(), vec![0xff; 1000]]).collect()
}

#[test]
fn a_damaged_state_file_is_an_error_and_no_obstacle() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    vm.stop().unwrap();
    let whole = fs::read(files.path("vm/hyperkit.json")).unwrap();
    for (count, content) in damaged(&whole).into_iter().enumerate() {
        files.write("vm/hyperkit.json", &content);
        match HyperKit::from_state(files.path("vm")) {
            Err(Error::DamagedState { path, .. }) => assert_eq!(path, files.path("vm/hyperkit.json")),
            other => panic!("{count}: {other:?}"),
        }
        if count % 97 == 0 || content.is_empty() {
            machine.clone().start("guest").unwrap().stop().unwrap();
        }
    }
    // It may be gone, too, or more than one cares to read.
    fs::File::create(files.path("vm/hyperkit.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(HyperKit::from_state(files.path("vm")), Err(Error::Io { .. })));
    machine.clone().start("guest").unwrap().stop().unwrap();
    fs::remove_file(files.path("vm/hyperkit.json")).unwrap();
    fs::create_dir(files.path("vm/hyperkit.json")).unwrap();
    assert!(matches!(HyperKit::from_state(files.path("vm")), Err(Error::Io { .. })));
    match machine.clone().start("guest") {
        Err(Error::Io { path, .. }) => assert_eq!(path, files.path("vm/hyperkit.json")),
        other => panic!("{other:?}"),
    }
    assert_eq!(machines_in(&files.path("vm")), [] as [u32; 0]);
}

#[test]
fn beside_a_live_machine_a_damaged_state_file_lets_no_second_one_in() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    let whole = fs::read(files.path("vm/hyperkit.json")).unwrap();
    for content in damaged(&whole).into_iter().step_by(61) {
        files.write("vm/hyperkit.json", &content);
        assert!(matches!(machine.clone().start("guest"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    }
    fs::remove_file(files.path("vm/hyperkit.json")).unwrap();
    assert!(matches!(machine.clone().start("guest"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    fs::remove_file(files.path("vm/hyperkit.pid")).unwrap();
    let without_memory = files.machine().start("guest");
    assert!(matches!(without_memory, Err(Error::AlreadyRunning { pid }) if pid == vm.pid()), "{without_memory:?}");
    assert!(machine.is_running());
    machine.stop().unwrap();
}

#[test]
fn a_damaged_pid_file_is_no_obstacle_and_loses_no_machine() {
    let contents: [&[u8]; 10] =
        [b"", b"\n", b"garbage", b"-1", b"0", b"1", b"99999999999999999999", b"\xff\xfe", b"12 34", &[b'1'; 10_000]];
    let files = Files::new();
    let (mut machine, vm, _end) = started(&files, "guest");
    for content in contents {
        files.write("vm/hyperkit.pid", content);
        assert!(machine.is_running(), "{content:?}");
        assert!(matches!(files.machine().start("guest"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    }
    vm.stop().unwrap();
    for content in contents {
        files.write("vm/hyperkit.pid", content);
        assert!(!machine.is_running(), "{content:?}");
        machine.start("guest").unwrap().stop().unwrap();
    }
    // With and without a newline.
    let vm = machine.start("guest").unwrap();
    let mut forgotten = machine.clone();
    forgotten.pid = None;
    forgotten.arguments.clear();
    files.write("vm/hyperkit.json", forgotten.to_string().as_bytes());
    for newline in ["", "\n"] {
        files.write("vm/hyperkit.pid", format!("{}{newline}", vm.pid()).as_bytes());
        assert_eq!(HyperKit::from_state(files.path("vm")).unwrap().pid, Some(vm.pid()));
    }
    vm.stop().unwrap();
}

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
        rustix::process::kill_process(common::raw(*pid), rustix::process::Signal::KILL).unwrap();
    }
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(machines.len(), 1, "{why}");
}

/// Names that lead out of the directory are none of disks that were made in it.
#[test]
fn what_a_state_file_claims_to_have_made_elsewhere_is_not_deleted() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest");
    vm.stop().unwrap();
    let precious = files.write("precious", b"precious");
    let path = files.path("vm/hyperkit.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state["made_disks"] = serde_json::json!(["../precious", precious.to_str().unwrap()]);
    fs::write(&path, state.to_string()).unwrap();
    HyperKit::from_state(files.path("vm")).unwrap().remove(false).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(!files.path("vm").exists());
}
