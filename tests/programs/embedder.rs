//! A separate crate that depends on this one: the program of the README, copied unchanged, and those of `tests/embedder`.

mod harness;
mod pool;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::{StopOnDrop, file_names, guest};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Returns the path of a program of the separate crate, after building it once.
fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(build);
    // Test programs have a hash after their name.
    let is_named = |path: &&PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    built.iter().find(is_named).unwrap_or_else(|| panic!("no program {name}: {built:?}")).clone()
}

/// Where the tests of the separate crate put their files.
fn tmp_dir() -> PathBuf {
    target_dir().join("tmp")
}

fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("embedder")
}

fn build() -> Vec<PathBuf> {
    let crate_dir = target_dir().join("crate");
    fs::create_dir_all(&crate_dir).unwrap();
    let mut manifest = format!(
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nhyperkit = {{ path = {ROOT:?} }}\n\
         tokio = {{ version = \"1\", features = [\"io-util\", \"macros\", \"net\", \"rt\", \"signal\", \"sync\", \"time\"] }}\n\n\
         [[bin]]\nname = \"pool\"\npath = \"{ROOT}/tests/embedder/pool.rs\"\n\n\
         [[test]]\nname = \"vm_tests\"\npath = \"{ROOT}/examples/howto/vm_tests.rs\"\n\n\
         [[test]]\nname = \"failing_tests\"\npath = \"{ROOT}/tests/embedder/failing_tests.rs\"\n"
    );
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let programs: Vec<_> = readme.split("```").filter_map(|block| block.strip_prefix("rust,no_run\n")).collect();
    let [program] = programs[..] else { panic!("{} programs in README.md", programs.len()) };
    manifest += "\n[[bin]]\nname = \"readme\"\npath = \"readme.rs\"\n";
    fs::write(crate_dir.join("readme.rs"), program).unwrap();
    fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
    // The versions that are already downloaded.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--offline", "--quiet", "--bins", "--test", "vm_tests", "--test", "failing_tests"]);
    cargo.arg("--target-dir").arg(target_dir());
    cargo.arg("--message-format=json-render-diagnostics").current_dir(&crate_dir).stderr(Stdio::inherit());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "the embedding crate does not build");
    let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let messages = messages.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    messages.filter_map(|message| Some(message["executable"].as_str()?.into())).collect()
}

#[test]
fn readme_program_boots_asks_and_shuts_down_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let (here, repository) = (dir.path().join("mine"), dir.path().join("hyperkit"));
    fs::create_dir(&here).unwrap();
    fs::create_dir(&repository).unwrap();
    symlink(guest::guest_file("vmlinuz").ancestors().nth(2).unwrap(), repository.join("target")).unwrap();
    let _stop = StopOnDrop(here.join("vm"));
    let output = Command::new(program("readme")).current_dir(&here).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "graceful: the VM powered off\n");
    assert_eq!(file_names(&here), ["data.img"]);
    assert_eq!(here.join("data.img").metadata().unwrap().len(), 64 << 20);
}
