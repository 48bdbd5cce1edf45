//! TODO

use std::time::Duration;

use hyperkit::{Error, Exit, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::{Files, LONG, eventually, machines_in, raw, said, standin, started};

#[test]
fn run_tells_how_the_guest_ended() {
    for (code, exit) in
        [(0, Exit::PowerOff), (2, Exit::Reset), (3, Exit::TripleFault), (1, Exit::Failed(1)), (100, Exit::Failed(100))]
    {
        let files = Files::new();
        match files.machine().run(&format!("vmm.say=working guest.exit={code}")) {
            Ok(ended) => assert!(ended == exit && code != 1 && code != 100),
            Err(Error::ProgramFailed { exit: ended, last_words }) => {
                assert!(ended == exit && (code == 1 || code == 100));
                assert!(last_words.program.contains("working"), "{last_words}");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!files.path("vm/hyperkit.pid").exists());
        assert!(said(&files).contains(&format!("guest.exit={code}")));
    }
}

#[test]
fn signals_end_it_as_they_do() {
    // SIGTERM is the power button, once the guest listens; before that it kills, as others do: here one that
    // neither a script ignores for what it starts in the background, nor Rust's std has a handler for in the stand-in.
    for (guest, signal, exit) in [
        ("guest", Signal::TERM, Exit::PowerOff),
        ("guest.no-acpi", Signal::TERM, Exit::Killed(15)),
        ("guest", Signal::ALARM, Exit::Killed(14)),
        ("guest", Signal::KILL, Exit::Killed(9)),
    ] {
        let files = Files::new();
        let (_, vm, _end) = started(&files, guest);
        eventually("the guest is up", || said(&files).contains("Command line"));
        kill_process(raw(vm.pid()), signal).unwrap();
        assert_eq!(vm.wait_timeout(LONG).unwrap(), Some(exit));
        assert_eq!(files.path("vm/hyperkit.pid").exists(), exit != Exit::PowerOff);
    }
}

#[test]
fn a_program_that_dies_at_its_start_is_an_error_with_its_last_words() {
    let files = Files::new();
    let mut machine = files.machine();
    let before = machine.clone();
    match machine.start("vmm.die-early=7") {
        Err(Error::ProgramFailed { exit: Exit::Failed(7), last_words }) => {
            assert_eq!(last_words.program, "dying early")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(machine, before);
    assert!(!files.path("vm/hyperkit.pid").exists());
    assert!(!HyperKit::from_state(files.path("vm")).unwrap().is_running());
    machine.start("guest").unwrap().stop().unwrap();
}

#[test]
fn programs_that_die_around_their_pid_file() {
    for (guest, exit) in
        [("vmm.die-early=7", Exit::Failed(7)), ("vmm.half-pid-file", Exit::Killed(6)), ("vmm.die=8", Exit::Failed(8))]
    {
        let files = Files::new();
        match files.machine().start(guest) {
            Err(Error::ProgramFailed { exit: how, .. }) => assert_eq!(how, exit, "{guest}"),
            other => panic!("{guest}: {other:?}"),
        }
        assert_eq!(machines_in(&files.path("vm")), [] as [u32; 0]);
        files.machine().start("guest").unwrap().stop().unwrap();
    }
}

#[test]
fn a_program_that_closes_its_output_is_kept_hold_of() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "vmm.no-stdout");
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    vm.stop().unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
}

/// A stand-in that asks for a reset the first two times: the third time, what it looks for is there.
#[test]
fn resets_are_run_through() {
    let files = Files::new();
    let script = files.write(
        "hyperkit",
        format!(
            "#!/bin/sh\ncd {dir}\n[ -e second ] && exec {standin} \"$@\"\n[ -e first ] && : > second\n: > first\n\
             for last; do :; done\nwhile [ $# -gt 0 ]; do [ \"$1\" = -F ] && printf %s $$ > \"$2\"; shift; done\nexit 2\n",
            dir = files.dir().display(),
            standin = standin().display(),
        )
        .as_bytes(),
    );
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut machine = files.machine().hyperkit(script);
    assert_eq!(machine.run_through_resets("guest.exit=0").unwrap(), Exit::PowerOff);
    assert!(files.path("first").exists() && files.path("second").exists());
    assert!(said(&files).contains("guest.exit=0"));
}

#[test]
fn a_bad_end_carries_the_last_words_of_program_and_guest() {
    let files = Files::new();
    let mut machine = files.machine();
    match machine.run("vmm.say=from-the-program guest.say=from-the-guest guest.exit=1") {
        Err(Error::ProgramFailed { exit: Exit::Failed(1), last_words }) => {
            assert!(last_words.program.contains("from-the-program"), "{last_words}");
            assert!(last_words.console.ends_with("\nfrom-the-guest"), "{last_words}");
            assert!(last_words.to_string().contains("console: "), "{last_words}");
        }
        other => panic!("{other:?}"),
    }
    let (_, vm, _end) = started(&files, "guest.say=still-there");
    eventually("the guest has spoken", || said(&files).contains("still-there"));
    vm.stop().unwrap();
    assert!(vm.last_words().console.ends_with("still-there"), "also after the end");
}
