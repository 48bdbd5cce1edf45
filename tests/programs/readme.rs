//! The README's commands, as they stand, in a repository of their own: a directory with links to the files of this one. So they use
//! another `target/vm` than the user of this repository does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::HyperKit;

use crate::common::StopOnDrop;
use crate::common::guest::{BOOT_TIMEOUT, guest_file};
use crate::pty::{Running, Terminal};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What a build and a boot may take on a busy host.
const BUILD_TIMEOUT_SECONDS: u64 = 600;

/// Creates the repository. It stays, so that the next run of the tests has less to build.
fn repository() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let repository = target.join("readme/hyperkit");
    let _ = HyperKit::new().state_dir(repository.join("target/vm")).stop();
    for name in ["hyperkit", "hyperkit/target"] {
        fs::create_dir_all(target.join("readme").join(name)).unwrap();
    }
    let guest = guest_file("vmlinuz").parent().unwrap().canonicalize().unwrap();
    let links = ["Cargo.toml", "Cargo.lock", "README.md", "src", "examples", "tests", "benches"];
    let links = links.map(|name| (repository.join(name), Path::new(ROOT).canonicalize().unwrap().join(name)));
    for (link, file) in links.into_iter().chain([(repository.join("target/guest"), guest)]) {
        let _ = fs::remove_file(&link);
        symlink(file, link).unwrap();
    }
    repository
}

/// The commands in the README, without comments.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let blocks = readme.split("```").filter_map(|block| block.strip_prefix("sh\n"));
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap().trim_end().to_owned());
    lines.collect()
}

fn run(terminal: &Terminal, repository: &Path, command: &str) -> Running {
    let mut sh = Command::new("sh");
    sh.args(["-c", command]).current_dir(repository).env("CARGO_NET_OFFLINE", "true");
    // Cargo sets these for tests, and would build the examples for this repository.
    for name in ["CARGO_TARGET_DIR", "CARGO_MANIFEST_DIR"] {
        sh.env_remove(name);
    }
    terminal.lend(&mut sh)
}

#[test]
fn readme_commands_run_as_they_stand() {
    let repository = repository();
    let _stop = StopOnDrop(repository.join("target/vm"));
    let mut terminal = Terminal::new();
    let mut ran = 0;
    for command in commands() {
        // `cargo test` cannot run itself, and CI runs this command first.
        if command == "examples/setup.sh --tests && cargo test" {
            continue;
        }
        let mut running = run(&terminal, &repository, &command);
        let example = command.split("--example ").nth(1).unwrap_or_else(|| panic!("unknown command: {command}"));
        match example.split(" -- ").collect::<Vec<_>>()[..] {
            ["boot"] => {
                terminal.expect_within("is up.", BUILD_TIMEOUT_SECONDS);
                terminal.expect_within("# ", BOOT_TIMEOUT.as_secs());
                terminal.type_keys("poweroff\r");
                terminal.expect_within("boot: the VM powered off", BOOT_TIMEOUT.as_secs());
            }
            ["boot", "--help"] => terminal.expect("--state-dir DIR"),
            ["boot", background] if background.starts_with("--background") => terminal.expect("target/vm"),
            ["ctl", "list target"] => terminal.expect_within("running", BUILD_TIMEOUT_SECONDS),
            ["ctl", "console target/vm"] => {
                terminal.expect("Ctrl-]");
                terminal.type_keys("\r");
                terminal.expect_within("# ", BOOT_TIMEOUT.as_secs());
                terminal.type_keys("\x1d");
                terminal.expect("still runs");
            }
            ["ctl", "shutdown target/vm"] => terminal.expect_within("powered off", BOOT_TIMEOUT.as_secs()),
            ["ctl", "rm target/vm"] => {
                terminal.expect("delete the VM with disk.img (64 MiB)?");
                terminal.type_keys("y\n");
                terminal.expect("removed");
                assert!(!repository.join("target/vm").exists());
            }
            ["exec", "examples/exec/hello.sh a b"] => {
                terminal.expect_within("arguments: a b", BUILD_TIMEOUT_SECONDS);
            }
            ["exec", "--host-root", "uname -a"] => terminal.expect_within("Linux vm ", BUILD_TIMEOUT_SECONDS),
            _ => panic!("the test does not know what to expect of {command}"),
        }
        assert!(running.0.wait().unwrap().success(), "{command}: {}", terminal.output);
        ran += 1;
    }
    assert_eq!(ran, 9, "commands in the README");
}
