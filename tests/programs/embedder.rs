//! A separate crate that depends on this one: the programs of the README, copied unchanged, and a pool of VMs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Signal, kill_process};

use crate::common::{StopOnDrop, file_names, guest, to_pid, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Names for the programs of the README, in its order.
const IN_README: [&str; 3] = ["begin", "end", "talk"];

/// Builds the programs as a separate crate, once, and returns their directory.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(build)
}

fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap().join("embedder");
    let crate_dir = target.join("crate");
    fs::create_dir_all(&crate_dir).unwrap();
    let mut manifest = format!(
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nhyperkit = {{ path = {ROOT:?} }}\n\n\
         [[bin]]\nname = \"pool\"\npath = \"{ROOT}/tests/embedder/pool.rs\"\n"
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
    cargo.args(["build", "--offline", "--quiet", "--target-dir"]).arg(&target).current_dir(&crate_dir);
    assert!(cargo.status().unwrap().success(), "the embedding crate does not build");
    target.join("debug")
}

#[test]
fn readme_programs_start_use_and_shut_down_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("here");
    fs::create_dir(&here).unwrap();
    symlink(guest::guest_file("vmlinuz").ancestors().nth(2).unwrap(), here.join("target")).unwrap();
    let _stop = StopOnDrop(here.join("vm"));
    let program = |name| {
        let mut program = Command::new(programs().join(name));
        program.current_dir(&here).stdout(Stdio::piped());
        program
    };
    let begin = program("begin").output().unwrap();
    assert!(begin.status.success(), "{begin:?}");
    let mut talk = program("talk").spawn().unwrap();
    let mut lines = BufReader::new(talk.stdout.take().unwrap()).lines().map(Result::unwrap);
    // It follows the log after it has received its answer.
    assert!(lines.any(|line| line.contains("is up")));
    let end = program("end").output().unwrap();
    assert!(end.status.success(), "{end:?}");
    lines.for_each(drop);
    assert!(talk.wait().unwrap().success());
    assert_eq!(file_names(&here), ["root.img", "target"]);
    assert_eq!(here.join("root.img").metadata().unwrap().len(), 4096 << 20);
}

/// The running pool program.
struct Pool {
    process: Child,
    words: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Pool {
    fn run(root: &Path) -> Self {
        let mut pool = Command::new(programs().join("pool"));
        pool.arg(root).args([guest::guest_file("vmlinuz"), guest::guest_file("initrd.img")]);
        let mut process = pool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (words, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut pool = Self { process, words, answers: BufReader::new(answers).lines() };
        assert_eq!(pool.answer(), [""; 0]);
        pool
    }

    fn answer(&mut self) -> Vec<String> {
        let lines = self.answers.by_ref().map(Result::unwrap);
        let mut answer: Vec<_> = lines.take_while(|line| line != "ready").collect();
        if self.process.try_wait().is_some() {
            answer.push("the pool has exited".to_owned());
        }
        answer
    }

    fn ask(&mut self, words: &str) -> Vec<String> {
        writeln!(self.words, "{words}").unwrap();
        self.answer()
    }

    /// Returns the PID of each VM and whether it is taken, by name.
    fn list(&mut self) -> BTreeMap<String, (u32, bool)> {
        let entry = |line: String| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next().unwrap();
            (next(), (next().parse().unwrap(), next().parse().unwrap()))
        };
        self.ask("list").into_iter().map(entry).collect()
    }
}

/// Kills all VMs in a directory of state directories on drop.
struct StopAllOnDrop(PathBuf);

impl Drop for StopAllOnDrop {
    fn drop(&mut self) {
        file_names(&self.0).iter().for_each(|name| drop(StopOnDrop(self.0.join(name))));
    }
}

#[test]
fn pool_replaces_dead_vms_survives_a_kill_and_drains() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pool");
    let _stop = StopAllOnDrop(root.clone());
    let mut pool = Pool::run(&root);
    let first = pool.list();
    assert_eq!(first.len(), 3);
    let taken = pool.ask("take").remove(0);
    let [dead, _] = first.keys().filter(|name| **name != taken).collect::<Vec<_>>()[..] else { panic!("{first:?}") };
    kill_process(to_pid(first[dead].0), Signal::KILL).unwrap();
    wait_until("the dead and the taken VM are replaced", || {
        let now = pool.list();
        now.len() == 4 && now[dead].0 != first[dead].0
    });
    let before = pool.list();
    assert_eq!(before[&taken], (first[&taken].0, true));
    assert_eq!(before.values().filter(|(_, taken)| !taken).count(), 3);

    pool.process.kill().unwrap();
    pool.process.wait().unwrap();
    let mut pool = Pool::run(&root);
    assert_eq!(pool.list(), before, "no VM is lost, started again or handed out twice");
    let other = pool.ask("take").remove(0);
    assert!(other != taken && !before[&other].1);
    // The name of a taken VM stays reserved until `done`, even if the VM exits.
    kill_process(to_pid(before[&taken].0), Signal::KILL).unwrap();
    assert!(pool.list().contains_key(&taken));
    assert_eq!(pool.ask(&format!("done {taken}")), [""; 0]);
    assert_eq!(pool.list().len(), 4, "one VM is taken, three are ready");

    drop(pool.words);
    assert!(pool.process.wait().unwrap().success());
    assert_eq!(file_names(&root), [""; 0]);
}
