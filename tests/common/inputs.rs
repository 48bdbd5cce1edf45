//! Properties that hold for any untrusted input. Tests and fuzz targets provide the input.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use hyperkit::{Console, Engine, HyperKit, parse_arguments};

/// A state file: if it loads, it round-trips, and its description can be displayed and turned into arguments.
pub fn json(bytes: &[u8]) {
    let Ok(description) = serde_json::from_slice::<HyperKit>(bytes) else { return };
    let written = description.to_string();
    let again = serde_json::from_str::<HyperKit>(&written).expect("a written state file loads");
    assert_eq!(again, description, "{written}");
    let is_hyperkit = description.hyperkit.as_ref().is_none_or(|program| Engine::of(program) == Engine::HyperKit);
    if let (Ok(arguments), true) = (description.arguments(""), is_hyperkit && description.extra_arguments.is_empty()) {
        parse_arguments(&arguments).expect("rendered arguments parse");
    }
}

/// A command line, with NUL or newline between its words: if it parses, the result renders to arguments that parse to the same.
pub fn argv(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split(['\0', '\n']).collect();
    let Ok((description, cmdline)) = parse_arguments(&words) else { return };
    let program = description.hyperkit.iter().map(|program| program.to_str().expect("words are UTF-8").to_owned());
    let words: Vec<_> = program.chain(description.arguments(&cmdline).expect("parsed arguments render")).collect();
    let again = parse_arguments(&words).expect("rendered arguments parse");
    assert_eq!(again, (description, cmdline), "{words:?}");
}

/// A pid file next to a state file that records no process: no process that it names is the hypervisor.
pub fn pid_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("the temporary directory is writable");
    fs::write(dir.path().join("hyperkit.json"), HyperKit::new().kernel("/k").to_string())
        .expect("the directory is writable");
    fs::write(dir.path().join("hyperkit.pid"), bytes).expect("the directory is writable");
    let description = HyperKit::from_state(dir.path()).expect("the state file is valid");
    assert_eq!(description.recorded_pid(), None);
    assert!(!description.is_running().unwrap());
}

/// A tty file, or the target of a symlink with its name: it names a pty or nothing.
pub fn tty_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("the temporary directory is writable");
    let (file, description) = (dir.path().join("tty"), HyperKit::new().state_dir(dir.path()).console(Console::Pty));
    let check = || {
        for tty in description.pty_paths().into_iter().flatten() {
            assert!(is_below_dev(&tty), "{tty:?}");
        }
    };
    fs::write(&file, bytes).expect("the directory is writable");
    check();
    fs::remove_file(&file).expect("the directory is writable");
    if symlink(OsStr::from_bytes(bytes), &file).is_ok() {
        check();
    }
}

fn is_below_dev(path: &Path) -> bool {
    let mut rest = path.strip_prefix("/dev").ok().into_iter().flat_map(Path::components).peekable();
    rest.peek().is_some() && rest.all(|component| matches!(component, Component::Normal(_)))
}
