//! What has to hold of whatever comes in from outside. The tests and the fuzzer bring the bytes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use hyperkit::{Console, Engine, HyperKit, parse_arguments};

/// A state file: what loads is written so that it loads again, and can be shown and rendered.
pub fn json(bytes: &[u8]) {
    let Ok(machine) = serde_json::from_slice::<HyperKit>(bytes) else { return };
    let written = machine.to_string();
    let again = serde_json::from_str::<HyperKit>(&written).expect("what was written loads");
    assert_eq!(again, machine, "{written}");
    let speaks_hyperkit = machine.hyperkit.as_ref().is_none_or(|program| Engine::of(program) == Engine::HyperKit);
    if let (Ok(arguments), true) = (machine.arguments(""), speaks_hyperkit && machine.extra_arguments.is_empty()) {
        parse_arguments(&arguments).expect("what was rendered parses");
    }
}

/// A command line, of words between NUL or newline: what parses is rendered so that it parses to the same again.
pub fn argv(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split(['\0', '\n']).collect();
    let Ok((machine, cmdline)) = parse_arguments(&words) else { return };
    let program = machine.hyperkit.iter().map(|program| program.to_str().expect("it was a word").to_owned());
    let words: Vec<_> = program.chain(machine.arguments(&cmdline).expect("what parses is rendered")).collect();
    let again = parse_arguments(&words).expect("what was rendered parses");
    assert_eq!(again, (machine, cmdline), "{words:?}");
}

/// A pid file beside a state file: whatever process it names, none is the machine.
pub fn pid_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("there is room");
    fs::write(dir.path().join("hyperkit.json"), HyperKit::new().kernel("/k").to_string()).expect("it is ours");
    fs::write(dir.path().join("hyperkit.pid"), bytes).expect("it is ours");
    let machine = HyperKit::from_state(dir.path()).expect("the state file is good");
    assert_eq!(machine.pid, None);
    assert!(!machine.is_running());
}

/// A tty file, or where a link of that name leads: it names a pty, or none.
pub fn tty_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("there is room");
    let (file, machine) = (dir.path().join("tty"), HyperKit::new().state_dir(dir.path()).console(Console::File));
    let look = || {
        for tty in machine.ttys().into_iter().flatten() {
            assert!(is_below_dev(&tty), "{tty:?}");
        }
    };
    fs::write(&file, bytes).expect("it is ours");
    look();
    fs::remove_file(&file).expect("it is ours");
    if symlink(OsStr::from_bytes(bytes), &file).is_ok() {
        look();
    }
}

fn is_below_dev(path: &Path) -> bool {
    let mut rest = path.strip_prefix("/dev").ok().into_iter().flat_map(Path::components).peekable();
    rest.peek().is_some() && rest.all(|component| matches!(component, Component::Normal(_)))
}
