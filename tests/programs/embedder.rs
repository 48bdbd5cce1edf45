//! A separate crate that depends on this one: the programs of the README, copied unchanged, and those of `tests/embedder`.

mod harness;
mod pool;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::{StopOnDrop, file_names, guest};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Names for the programs of the README, in its order.
const IN_README: [&str; 3] = ["begin", "end", "talk"];

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
         [[test]]\nname = \"vm_tests\"\npath = \"{ROOT}/tests/embedder/vm_tests.rs\"\n"
    );
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let programs: Vec<_> = readme.split("```").filter_map(|block| block.strip_prefix("rust,no_run\n")).collect();
    assert_eq!(programs.len(), IN_README.len());
    for (name, program) in IN_README.iter().zip(programs) {
        manifest += &format!("\n[[bin]]\nname = \"{name}\"\npath = \"{name}.rs\"\n");
        fs::write(crate_dir.join(name).with_extension("rs"), program).unwrap();
    }
    fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
    // The versions that are already downloaded.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--offline", "--quiet", "--bins", "--test", "vm_tests", "--target-dir"]).arg(target_dir());
    cargo.arg("--message-format=json-render-diagnostics").current_dir(&crate_dir).stderr(Stdio::inherit());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "the embedding crate does not build");
    let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let messages = messages.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    messages.filter_map(|message| Some(message["executable"].as_str()?.into())).collect()
}

#[test]
fn readme_programs_start_use_and_shut_down_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("here");
    fs::create_dir(&here).unwrap();
    symlink(guest::guest_file("vmlinuz").ancestors().nth(2).unwrap(), here.join("target")).unwrap();
    let _stop = StopOnDrop(here.join("vm"));
    let command = |name| {
        let mut command = Command::new(program(name));
        command.current_dir(&here).stdout(Stdio::piped());
        command
    };
    let begin = command("begin").output().unwrap();
    assert!(begin.status.success(), "{begin:?}");
    let mut talk = command("talk").spawn().unwrap();
    let mut lines = BufReader::new(talk.stdout.take().unwrap()).lines().map(Result::unwrap);
    // It follows the log after it has received its answer.
    assert!(lines.any(|line| line.contains("is up")));
    let end = command("end").output().unwrap();
    assert!(end.status.success(), "{end:?}");
    lines.for_each(drop);
    assert!(talk.wait().unwrap().success());
    assert_eq!(file_names(&here), ["root.img", "target"]);
    assert_eq!(here.join("root.img").metadata().unwrap().len(), 4096 << 20);
}
