//! Another crate that depends on this one by path: one program starts the guest, another finds it and ends it; a third keeps
//! a pool of machines.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::{Ended, eventually, guest, raw};
use rustix::process::{Signal, kill_process};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the programs in `embedder/` as a crate of their own.
fn build(crate_dir: &Path) -> PathBuf {
    let manifest = format!(
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nhyperkit = {{ path = {ROOT:?} }}\n\n\
         [[bin]]\nname = \"begin\"\npath = \"{ROOT}/tests/embedder/begin.rs\"\n\n\
         [[bin]]\nname = \"end\"\npath = \"{ROOT}/tests/embedder/end.rs\"\n\n\
         [[bin]]\nname = \"pool\"\npath = \"{ROOT}/tests/embedder/pool.rs\"\n"
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

/// The pool, spoken to.
struct Pool {
    process: Child,
    words: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Pool {
    fn run(programs: &Path, root: &Path) -> Self {
        let mut pool = Command::new(programs.join("pool"));
        pool.arg(root).args([guest::file("vmlinuz"), guest::file("initrd.img")]);
        let mut process = pool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (words, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut pool = Self { process, words, answers: BufReader::new(answers).lines() };
        assert_eq!(pool.answer(), [""; 0]);
        pool
    }

    fn answer(&mut self) -> Vec<String> {
        let lines = self.answers.by_ref().map(Result::unwrap);
        let mut answer: Vec<_> = lines.take_while(|line| line != "ready").collect();
        if self.process.try_wait().unwrap().is_some() {
            answer.push("it has ended".to_owned());
        }
        answer
    }

    fn ask(&mut self, words: &str) -> Vec<String> {
        writeln!(self.words, "{words}").unwrap();
        self.answer()
    }

    /// The machines by name: pid, and whether they are taken.
    fn list(&mut self) -> BTreeMap<String, (u32, bool)> {
        let entry = |line: String| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next().unwrap();
            (next(), (next().parse().unwrap(), next().parse().unwrap()))
        };
        self.ask("list").into_iter().map(entry).collect()
    }
}

/// Ends all that is in a directory of state directories.
struct AllEnded(PathBuf);

impl Drop for AllEnded {
    fn drop(&mut self) {
        common::names(&self.0).iter().for_each(|name| drop(Ended(self.0.join(name))));
    }
}

#[test]
fn a_pool_hands_out_replaces_the_dead_is_taken_up_after_a_kill_and_drained() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pool");
    let _end = AllEnded(root.clone());
    let programs = build(dir.path());
    let mut pool = Pool::run(&programs, &root);
    let first = pool.list();
    assert_eq!(first.len(), 3);
    let taken = pool.ask("take").remove(0);
    let [dead, _] = first.keys().filter(|name| **name != taken).collect::<Vec<_>>()[..] else { panic!("{first:?}") };
    kill_process(raw(first[dead].0), Signal::KILL).unwrap();
    eventually("the dead is replaced, and the taken", || {
        let now = pool.list();
        now.len() == 4 && now[dead].0 != first[dead].0
    });
    let before = pool.list();
    assert_eq!(before[&taken], (first[&taken].0, true));
    assert_eq!(before.values().filter(|(_, taken)| !taken).count(), 3);

    pool.process.kill().unwrap();
    pool.process.wait().unwrap();
    let mut pool = Pool::run(&programs, &root);
    assert_eq!(pool.list(), before, "none is lost, started again, or handed out twice");
    let other = pool.ask("take").remove(0);
    assert!(other != taken && !before[&other].1);
    // Its name is its taker's until he is done with it, also if it ends.
    kill_process(raw(before[&taken].0), Signal::KILL).unwrap();
    assert!(pool.list().contains_key(&taken));
    assert_eq!(pool.ask(&format!("done {taken}")), [""; 0]);
    assert_eq!(pool.list().len(), 4, "one is taken, three are ready");

    drop(pool.words);
    assert!(pool.process.wait().unwrap().success());
    assert_eq!(common::names(&root), [""; 0]);
}
