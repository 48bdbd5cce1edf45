//! Whether a VM runs has three answers: yes, no, and `CannotTell`. If the crate cannot find out, it never answers no, and
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use hyperkit::{Disk, Disks, Error, ErrorKind, Exit, HyperKit, Vm};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::child_process::in_child_process;
use crate::common::{KillOnDrop, StopOnDrop, TestDir, console_output, hypervisors_in, start_vm, wait_until};
use crate::starter::{self, Starter, report};

/// Returns the files of the state directory with their contents.
fn snapshot(test_dir: &TestDir) -> BTreeMap<String, Vec<u8>> {
    test_dir
        .state_files()
        .into_iter()
        .map(|name| (name.clone(), fs::read(test_dir.path("vm").join(name)).unwrap()))
        .collect()
}

/// Asserts that the VM runs and that no file has changed.
fn assert_unchanged(test_dir: &TestDir, vm: &Vm, before: &BTreeMap<String, Vec<u8>>, context: &str) {
    assert_eq!(vm.try_wait(), None, "{context}");
    let after = snapshot(test_dir);
    assert!(after.keys().eq(before.keys()), "{context}: {:?} before, {:?} after", before.keys(), after.keys());
    for (name, content) in before {
        assert!(after[name] == *content, "{context}: {name} has changed");
    }
}

/// The guest prints `quiet` as its last line.
const QUIET_CMDLINE: &str = "guest guest.say=quiet";

/// Waits until the guest has printed its last line, so that its files do not change any more.
fn wait_until_quiet(test_dir: &TestDir) {
    wait_until("the guest is quiet", || console_output(test_dir).ends_with("\nquiet\r\n"));
}

fn start_quiet_vm(test_dir: &TestDir) -> (HyperKit, Vm, StopOnDrop) {
    let started = start_vm(test_dir, QUIET_CMDLINE);
    wait_until_quiet(test_dir);
    started
}

/// Makes all calls that have to find out whether the VM runs, and returns their results in words. Does not call `stop` if
/// it finds the VM.
fn answers(description: &HyperKit) -> Vec<(&'static str, Result<String, Error>)> {
    let vm = description.vm().map(|vm| vm.map(|vm| vm.pid()));
    let stop = if matches!(vm, Ok(Some(_))) { None } else { Some(description.stop()) };
    let mut answers = vec![
        ("is_running", description.is_running().map(|is_running| is_running.to_string())),
        ("vm", vm.map(|pid| format!("{pid:?}"))),
        ("remove", description.remove(Disks::Delete).map(|()| "removed".to_owned())),
        ("define", description.define().map(|()| "defined".to_owned())),
        ("start", description.start("guest").map(|vm| format!("started {}", vm.pid()))),
        ("start_scoped", description.start_scoped("guest").map(|vm| format!("started {}", vm.pid()))),
    ];
    answers.extend(stop.map(|stopped| ("stop", stopped.map(|()| "stopped".to_owned()))));
    answers
}

/// Makes all calls that have to find out whether the VM runs, while it runs. Asserts that none answers no, and returns the
/// kinds of the errors.
fn answers_of_running(description: &HyperKit, pid: u32) -> Vec<ErrorKind> {
    let mut kinds = Vec::new();
    for (call, answer) in answers(description) {
        match answer {
            Ok(answer) => assert!(answer == "true" || answer == format!("Some({pid})"), "{call}: {answer}"),
            Err(error) => {
                let answers_no = matches!(error, Error::StateNotFound { .. } | Error::NotRunning { .. });
                assert!(!answers_no, "{call}: {error:#}");
                kinds.push(error.kind());
            }
        }
    }
    kinds
}

/// Makes a call while this process can open exactly `free` more files.
fn with_free_descriptors<T>(free: usize, call: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..before }).unwrap();
    let mut fill: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    fill.truncate(fill.len().checked_sub(free).expect("too few descriptors are free"));
    let result = call();
    drop(fill);
    setrlimit(Resource::Nofile, before).unwrap();
    result
}

/// Deletes or damages what leads to the VM. Then the VM is found by its pid file, by its record, or by its command line.
fn lose_files(test_dir: &TestDir, lost: &str) {
    let json = test_dir.path("vm/hyperkit.json");
    match lost {
        "nothing" => {}
        "pid file" => fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap(),
        "pid file and recorded pid" => {
            fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
            let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
            (state["pid"], state["pid_started"]) = (serde_json::Value::Null, serde_json::Value::Null);
            fs::write(json, state.to_string()).unwrap();
        }
        "state file" => fs::write(json, "damaged").unwrap(),
        "pid file and state file" => {
            fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
            fs::remove_file(json).unwrap();
        }
        _ => unreachable!("{lost}"),
    }
}

const LOST: [&str; 5] = ["nothing", "pid file", "pid file and recorded pid", "state file", "pid file and state file"];

/// Another process starts the VM: threads for a VM of this process would close files during the test.
#[test]
fn running_vm_never_counts_as_exited_without_free_descriptors() {
    const TEST: &str = "cannot_tell::running_vm_never_counts_as_exited_without_free_descriptors";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return starter::start(&arguments);
    }
    in_child_process(TEST, || {
        for lost in LOST {
            let test_dir = TestDir::new();
            let _stop = test_dir.stop_on_drop();
            starter::start_elsewhere(TEST, &test_dir.dir(), QUIET_CMDLINE);
            let description = test_dir.description();
            let vm = description.vm().unwrap().unwrap();
            let _kill = KillOnDrop(&vm);
            wait_until_quiet(&test_dir);
            lose_files(&test_dir, lost);
            let before = snapshot(&test_dir);
            let mut kinds = Vec::new();
            for free in 0.. {
                let context = format!("without {lost}, with {free} descriptors");
                let calls = with_free_descriptors(free, || answers_of_running(&description, vm.pid()));
                assert_unchanged(&test_dir, &vm, &before, &context);
                let list = with_free_descriptors(free, || HyperKit::list(test_dir.dir()));
                // `list` does not find a directory that has neither of the two files.
                if let (Ok(list), true) = (list, lost != "pid file and state file") {
                    assert_eq!(list.len(), 1, "{context}");
                    assert!(!matches!(list[0].vm, Ok(None)), "{context}");
                }
                if calls.iter().all(|kind| *kind == ErrorKind::InUse) {
                    break;
                }
                kinds.extend(calls);
            }
            assert!(kinds.contains(&ErrorKind::CannotTell), "{lost}: {kinds:?}");
            assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
        }
    });
}

/// A VM is started in a new directory, each time with one more free descriptor, until the start succeeds.
#[test]
fn start_that_cannot_tell_leaves_no_directory() {
    in_child_process("cannot_tell::start_that_cannot_tell_leaves_no_directory", || {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let description = test_dir.description().disk(Disk::in_state_dir(1));
        let is_unread = |error: &Error, name: &str| match error {
            Error::Io { action: "read", path, .. } => path.ends_with(name),
            _ => false,
        };
        let mut could_not_tell = 0;
        for free in 0.. {
            match with_free_descriptors(free, || description.start("guest")) {
                Ok(vm) => {
                    vm.kill().unwrap();
                    break;
                }
                Err(error) if error.kind() == ErrorKind::CannotTell || is_unread(&error, "hyperkit.json") => {
                    could_not_tell += 1;
                    assert!(!test_dir.path("vm").exists(), "{error:#}");
                }
                Err(error) => {
                    assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0], "{error:#}");
                    let _ = fs::remove_dir_all(test_dir.path("vm"));
                }
            }
        }
        assert!(could_not_tell > 0);
    });
}

/// A `Vm` has a descriptor of its process, so `try_wait`, `status` and `kill` need no free descriptor.
#[test]
fn handle_of_a_vm_needs_no_free_descriptor() {
    in_child_process("cannot_tell::handle_of_a_vm_needs_no_free_descriptor", || {
        let test_dir = TestDir::new();
        let (_, vm, _stop) = start_vm(&test_dir, "guest");
        with_free_descriptors(0, || {
            assert_eq!(vm.try_wait(), None);
            assert_eq!(vm.status().unwrap(), hyperkit::VmStatus::Running);
            let _ = vm.kill(); // kills the VM, but may find no descriptor for the cleanup
            assert_eq!(vm.try_wait(), Some(Exit::Killed(9)));
        });
        vm.kill().unwrap();
        assert!(!test_dir.path("vm/hyperkit.pid").exists());
        assert_eq!(vm.status().unwrap(), hyperkit::VmStatus::Exited(Exit::Killed(9)));
    });
}

/// Called in a starter: makes all calls that have to find out whether the VM runs, and reports their results.
pub fn answer_in_starter(arguments: &[String]) {
    for (call, answer) in answers(&serde_json::from_str(&arguments[0]).unwrap()) {
        match answer {
            Ok(answer) => report(format!("{call}: {answer}")),
            Err(error) => report(format!("{call} failed: {:?}: {error:#}", error.kind())),
        }
    }
    report("end");
}

/// Makes the calls in a starter that has less access. Asserts that all of them fail, and returns the errors.
pub fn check_refusals(description: &HyperKit, mut command: Command, test: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let mut starter = Starter::spawn_with(command.arg(program), test, &[&description.to_string()]);
    let reports: Vec<_> = std::iter::from_fn(|| Some(starter.report()).filter(|report| report != "end")).collect();
    assert!(starter.wait().success());
    assert_eq!(reports.len(), 7, "{reports:?}");
    assert!(reports.iter().all(|report| report.contains(" failed: ")), "{reports:#?}");
    reports
}

/// A container, or the mount namespace of a service, may have no `/proc`.
#[test]
fn running_vm_never_counts_as_exited_without_proc() {
    const TEST: &str = "cannot_tell::running_vm_never_counts_as_exited_without_proc";
    if let Some(arguments) = starter::arguments_of(TEST) {
        assert!(!Path::new("/proc/self").exists());
        return answer_in_starter(&arguments);
    }
    for lost in LOST {
        let test_dir = TestDir::new();
        let (description, vm, _stop) = start_quiet_vm(&test_dir);
        let _kill = KillOnDrop(&vm);
        lose_files(&test_dir, lost);
        let before = snapshot(&test_dir);
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs none /proc && exec \"$@\"").arg("sh");
        let refusals = check_refusals(&description, command, TEST);
        assert!(refusals[0].starts_with("is_running failed: CannotTell"), "{lost}: {}", refusals[0]);
        assert_unchanged(&test_dir, &vm, &before, lost);
    }
}

/// The calls fail as for another user. If the test runs as root, the starter lacks root's right to read everything.
#[test]
fn running_vm_never_counts_as_exited_if_its_state_directory_is_unreadable() {
    const TEST: &str = "cannot_tell::running_vm_never_counts_as_exited_if_its_state_directory_is_unreadable";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return answer_in_starter(&arguments);
    }
    for unreadable in ["vm", "vm/hyperkit.json", "vm/hyperkit.pid"] {
        let test_dir = TestDir::new();
        let (description, vm, _stop) = start_quiet_vm(&test_dir);
        let before = snapshot(&test_dir);
        let path = test_dir.path(unreadable);
        let permissions = path.metadata().unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-dac_override,-dac_read_search"]);
            command
        } else {
            Command::new("env")
        };
        check_refusals(&description, command, TEST);
        fs::set_permissions(&path, permissions).unwrap();
        assert_unchanged(&test_dir, &vm, &before, unreadable);
        vm.kill().unwrap();
    }
}

/// After a reboot, the number in the stale pid file may be the ID of a thread of another program.
#[test]
fn start_succeeds_if_the_stale_pid_file_names_a_thread() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
    let (send, thread) = std::sync::mpsc::channel();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            send.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
            let _ = wait.recv();
        });
        let thread: u32 = thread.recv().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert_ne!(thread, std::process::id());
        test_dir.write("vm/hyperkit.pid", thread.to_string().as_bytes());
        let json: serde_json::Value = serde_json::from_str(&vm.description().to_string()).unwrap();
        for recorded in [json["pid"].clone(), thread.into()] {
            let mut json = json.clone();
            json["pid"] = recorded;
            test_dir.write("vm/hyperkit.json", json.to_string().as_bytes());
            assert!(!description.is_running().unwrap());
        }
        let again = description.start("guest");
        drop(end);
        again.unwrap().kill().unwrap();
    });
}
