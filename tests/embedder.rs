//! Another crate that depends on this one by path: one program starts the guest, another finds it and ends it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, guest};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the programs in `embedder/` as a crate of their own.
fn build(crate_dir: &Path) -> PathBuf {
    let manifest = format!(
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nhyperkit = {{ path = {ROOT:?} }}\n\n\
         [[bin]]\nname = \"begin\"\npath = \"{ROOT}/tests/embedder/begin.rs\"\n\n\
         [[bin]]\nname = \"end\"\npath = \"{ROOT}/tests/embedder/end.rs\"\n"
    );
    fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
    // The versions that are here already.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap().join("embedder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--offline", "--quiet", "--target-dir"]).arg(&target).current_dir(crate_dir);
    assert!(cargo.status().unwrap().success(), "the embedding crate does not build");
    target.join("debug")
}

#[test]
fn one_program_starts_a_machine_and_another_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("vm");
    let programs = build(dir.path());
    let _end = Ended(state.clone());
    let begin = Command::new(programs.join("begin"))
        .arg(&state)
        .args([guest::file("vmlinuz"), guest::file("initrd.img")])
        .output()
        .unwrap();
    assert!(begin.status.success(), "{begin:?}");
    let end = Command::new(programs.join("end")).arg(&state).output().unwrap();
    assert!(end.status.success(), "{end:?}");
    assert_eq!(begin.stdout, end.stdout, "the same process");
    assert!(!state.exists());
}
