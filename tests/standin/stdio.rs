//! A console on stdio where standard input and output are not one terminal. hyperkit uses descriptor 0 for both directions.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hyperkit::{Console, HyperKit};
use rustix::fs::OFlags;
use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::common::{KillProcessOnDrop, TEST_TIMEOUT, TestDir, to_pid, wait_until};
use crate::starter;

/// A starter whose standard output is the file `out` of the test's directory.
fn spawn(test: &str, test_dir: &TestDir, arguments: &[&str], stdin: Stdio) -> KillProcessOnDrop {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let out = File::create(test_dir.path("out")).unwrap();
    let dir = test_dir.dir();
    let arguments = [&[dir.to_str().unwrap()], arguments].concat();
    let command = starter::with_test(&mut command, test, &arguments).stdin(stdin).stdout(out).stderr(Stdio::null());
    KillProcessOnDrop::spawn(command)
}

fn output(test_dir: &TestDir) -> String {
    String::from_utf8_lossy(&fs::read(test_dir.path("out")).unwrap()).into_owned()
}

fn on_stdio(arguments: &[String]) -> HyperKit {
    starter::description_in(&arguments[0]).console(Console::Stdio)
}

fn assert_succeeds(child: &mut Child) {
    assert!(child.wait().unwrap().success());
}

#[test]
fn output_reaches_stdout_whatever_stdin_is() {
    const TEST: &str = "stdio::output_reaches_stdout_whatever_stdin_is";
    const PRINTED: &str = "\r\non-the-console\r\n";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let mut description = on_stdio(&arguments);
        if arguments[1] == "scoped" {
            let vm = description.start_scoped("guest.say=on-the-console").unwrap();
            let out = Path::new(&arguments[0]).join("out");
            wait_until("the output is there", || String::from_utf8_lossy(&fs::read(&out).unwrap()).contains(PRINTED));
            return drop(vm);
        }
        if arguments[1] == "without state directory" {
            description.state_dir = None;
        }
        description.run("guest.say=on-the-console guest.exit=0").unwrap();
        return println!("after the run");
    }
    for mode in ["run", "without state directory", "scoped"] {
        for kind in ["nothing", "pipe", "file", "closed"] {
            let test_dir = TestDir::new();
            let _stop = test_dir.stop_on_drop();
            let file = test_dir.write("in", b"input\n");
            let stdin = match kind {
                "nothing" => Stdio::null(),
                "file" => File::open(file).unwrap().into(),
                _ => Stdio::piped(),
            };
            let mut child = spawn(TEST, &test_dir, &[mode], stdin);
            let pipe = child.0.stdin.take().filter(|_| kind == "pipe"); // otherwise its end is closed
            assert_succeeds(&mut child.0);
            drop(pipe);
            let output = output(&test_dir);
            assert!(output.contains(PRINTED), "{output}");
            // All of it comes before `run` returns, and nothing of the hypervisor's own messages.
            assert!(mode == "scoped" || output.split(PRINTED).nth(1).unwrap().contains("after the run"), "{output}");
            assert!(!output.contains("linkname"), "{output}");
        }
    }
}

/// The caller's streams are restored, and all threads end, also if nobody reads standard output.
#[test]
fn closed_stdout_neither_stops_nor_blocks_the_vm() {
    const TEST: &str = "stdio::closed_stdout_neither_stops_nor_blocks_the_vm";
    if let Some(arguments) = starter::arguments_of(TEST) {
        starter::wait_for_test();
        let exit = on_stdio(&arguments).run("guest.say=unread guest.exit=2").unwrap();
        #[cfg(target_os = "linux")]
        wait_until("the threads have ended", || {
            let names = fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = names.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            !names.map(|name| name.trim().to_owned()).any(|name| name.starts_with("hyperkit-std"))
        });
        assert!(!rustix::fs::fcntl_getfl(std::io::stdin()).unwrap().contains(OFlags::NONBLOCK));
        fs::write(Path::new(&arguments[0]).join("exit"), exit.to_string()).unwrap();
        std::process::exit(0);
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let dir = test_dir.dir();
    starter::with_test(&mut command, TEST, &[dir.to_str().unwrap()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = KillProcessOnDrop::spawn(command.stderr(Stdio::null()));
    // The harness has printed the name of the test before.
    child.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    drop(child.0.stdout.take());
    child.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_succeeds(&mut child.0);
    assert_eq!(fs::read_to_string(test_dir.path("exit")).unwrap(), "requested a reset");
}

/// The terminal is not the caller's controlling one.
#[test]
fn output_reaches_a_file_if_stdin_is_a_terminal() {
    const TEST: &str = "stdio::output_reaches_a_file_if_stdin_is_a_terminal";
    if let Some(arguments) = starter::arguments_of(TEST) {
        on_stdio(&arguments).run("guest").unwrap();
        return;
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let stdin = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty()).unwrap();
    let mut child = spawn(TEST, &test_dir, &[], stdin.into());
    wait_until("the guest is up", || output(&test_dir).contains("Command line"));
    File::from(terminal.try_clone().unwrap()).write_all(b"typed\n").unwrap();
    wait_until("the guest has the input", || output(&test_dir).contains("typed"));
    let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    vm.shutdown(TEST_TIMEOUT).unwrap();
    assert_succeeds(&mut child.0);
}

#[test]
fn output_of_a_background_vm_reaches_stdout_after_its_starter_has_ended() {
    const TEST: &str = "stdio::output_of_a_background_vm_reaches_stdout_after_its_starter_has_ended";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let pid = on_stdio(&arguments).start("guest").unwrap().pid();
        return fs::write(Path::new(&arguments[0]).join("pid"), pid.to_string()).unwrap();
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    assert_succeeds(&mut spawn(TEST, &test_dir, &[], Stdio::null()).0);
    wait_until("the guest is up", || output(&test_dir).contains("Command line"));
    let pid = fs::read_to_string(test_dir.path("pid")).unwrap().parse().unwrap();
    kill_process(to_pid(pid), Signal::TERM).unwrap();
    wait_until("the guest's last output is there", || output(&test_dir).contains("power button"));
}
