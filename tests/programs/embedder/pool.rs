//! `tests/embedder/pool.rs`: a daemon that keeps VMs ready. Whatever happens to it, no VM is lost or leaked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process};

use super::program;
use crate::common::{StopOnDrop, TestDir, file_names, guest, hypervisors_in, to_pid, wait_until};

/// The directory of a pool, and what its VMs have in common. On drop, all of them are killed.
struct Setup {
    test_dir: TestDir,
    dir: PathBuf,
    size: usize,
    grace: Duration,
    cmdline: String,
    text: &'static str,
}

impl Setup {
    fn new(template: impl FnOnce(&TestDir) -> HyperKit, size: usize, cmdline: &str, text: &'static str) -> Self {
        let test_dir = TestDir::new();
        template(&test_dir).state_dir(test_dir.path("template")).define().unwrap();
        let (dir, cmdline) = (test_dir.path("pool"), cmdline.to_owned());
        Self { test_dir, dir, size, grace: Duration::from_secs(60), cmdline, text }
    }

    fn with_standin(size: usize, cmdline: &str) -> Self {
        Self::new(TestDir::description, size, cmdline, "Linux version")
    }

    fn with_guest(size: usize) -> Self {
        Self::new(|_| guest::description().memory_mib(256), size, guest::QUIET_CMDLINE, "is up")
    }

    /// Starts a daemon.
    fn spawn(&self) -> Pool {
        let mut pool = Command::new(program("pool"));
        pool.arg(&self.dir).arg(self.test_dir.path("template")).arg(self.size.to_string());
        pool.arg(self.grace.as_secs().to_string()).args([&self.cmdline, self.text]);
        let mut process = pool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (process.stdin.take(), process.stdout.take().unwrap());
        Pool { process, requests, answers: BufReader::new(answers).lines() }
    }

    /// Starts a daemon, and waits until it accepts requests.
    fn run(&self) -> Pool {
        let mut pool = self.spawn();
        assert_eq!(pool.answer(), [""; 0]);
        pool
    }

    /// Starts a daemon, and waits until its pool is full.
    fn run_until_full(&self) -> (Pool, BTreeMap<String, (u32, bool)>) {
        let mut pool = self.run();
        let vms = pool.list_until("the pool is full", |vms| vms.len() == self.size);
        (pool, vms)
    }

    fn state_dir(&self, index: usize) -> PathBuf {
        self.dir.join(format!("vm-{index}"))
    }

    fn hypervisors(&self) -> Vec<u32> {
        (0..self.size).flat_map(|index| hypervisors_in(&self.state_dir(index))).collect()
    }

    fn assert_nothing_is_left(&self, when: &str) {
        assert_eq!(self.hypervisors(), [0_u32; 0], "{when}");
        assert_eq!(file_names(&self.dir), [""; 0], "{when}");
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        file_names(&self.dir).iter().for_each(|name| drop(StopOnDrop(self.dir.join(name))));
    }
}

/// A running daemon. Killed on drop.
struct Pool {
    process: Child,
    requests: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Pool {
    fn answer(&mut self) -> Vec<String> {
        let lines = self.answers.by_ref().map(Result::unwrap);
        let mut answer: Vec<_> = lines.take_while(|line| line != "ready").collect();
        if self.process.try_wait().unwrap().is_some() {
            answer.push("the daemon has exited".to_owned());
        }
        answer
    }

    fn send(&mut self, request: &str) {
        writeln!(self.requests.as_ref().unwrap(), "{request}").unwrap();
    }

    fn ask(&mut self, request: &str) -> Vec<String> {
        self.send(request);
        self.answer()
    }

    /// Returns the process ID of each VM and whether it is taken, by name.
    fn list(&mut self) -> BTreeMap<String, (u32, bool)> {
        let entry = |line: String| {
            let [name, pid, state] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            (name.to_owned(), (pid.parse().unwrap(), state == "taken"))
        };
        self.ask("list").into_iter().map(entry).collect()
    }

    /// Waits until the list fulfils a condition.
    fn list_until(
        &mut self,
        condition: &str,
        holds: impl Fn(&BTreeMap<String, (u32, bool)>) -> bool,
    ) -> BTreeMap<String, (u32, bool)> {
        let deadline = Instant::now() + guest::BOOT_TIMEOUT;
        loop {
            let list = self.list();
            if holds(&list) {
                return list;
            }
            assert!(Instant::now() < deadline, "timed out waiting until {condition}: {list:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(to_pid(self.process.id()), signal).unwrap();
    }

    /// Ends the daemon by SIGTERM.
    fn terminate(mut self) {
        self.signal(Signal::TERM);
        assert!(self.process.wait().unwrap().success());
    }

    /// Kills the daemon, whose VMs run on.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn pool_replaces_dead_vms_survives_a_kill_and_ends_with_its_input() {
    let setup = Setup::with_guest(3);
    let (mut pool, first) = setup.run_until_full();
    let taken = pool.ask("take").remove(0);
    assert_eq!(pool.ask(&format!("run {taken} echo $((6 * 7))")), ["42"]);
    let [dead, _] = first.keys().filter(|name| **name != taken).collect::<Vec<_>>()[..] else { panic!("{first:?}") };
    kill_process(to_pid(first[dead].0), Signal::KILL).unwrap();
    let before = pool.list_until("the dead and the taken VM are replaced", |now| {
        now.len() == 4 && now.get(dead).is_some_and(|vm| vm.0 != first[dead].0)
    });
    assert_eq!(before[&taken], (first[&taken].0, true));
    assert_eq!(before.values().filter(|(_, taken)| !taken).count(), 3);

    pool.kill();
    let mut pool = setup.run();
    let after = pool.list_until("the daemon has attached to all VMs", |now| now.len() >= 4);
    assert_eq!(after, before, "no VM is lost, started again or handed out twice");
    let other = pool.ask("take").remove(0);
    assert!(other != taken && !before[&other].1);
    assert_eq!(pool.ask(&format!("run {other} echo $((6 * 7))")), ["42"]);
    // The name of a taken VM stays reserved until `done`, even if the VM exits.
    kill_process(to_pid(before[&taken].0), Signal::KILL).unwrap();
    assert!(pool.list().contains_key(&taken));
    assert_eq!(pool.ask(&format!("done {taken}")), [""; 0]);
    let vms = pool.list_until("three VMs are ready", |now| now.values().filter(|(_, taken)| !taken).count() == 3);
    assert_eq!(vms.len(), 4, "one VM is taken");

    drop(pool.requests.take());
    assert!(pool.process.wait().unwrap().success());
    setup.assert_nothing_is_left("at the end");
}

#[test]
fn unknown_requests_are_answered_with_an_error() {
    let setup = Setup::with_standin(1, "guest");
    let (mut pool, _) = setup.run_until_full();
    for (request, error) in [
        ("no-such", "error: no such request or VM"),
        ("done vm-0", "error: no such request or VM"),
        ("run vm-0 echo", "error: not taken"),
    ] {
        assert_eq!(pool.ask(request), [error], "{request}");
    }
    pool.terminate();
    setup.assert_nothing_is_left("after SIGTERM");
}

/// Ends a daemon by a signal at several moments of its starts. The times are from the moment at which the first state
/// directory exists.
fn signal_during_starts(setup: &Setup, signal: Signal, moments: impl Iterator<Item = Duration>, after: impl Fn(&str)) {
    for moment in moments {
        let mut pool = setup.spawn();
        while !setup.state_dir(0).exists() {
            assert_eq!(pool.process.try_wait().unwrap(), None, "the daemon has exited");
        }
        std::thread::sleep(moment); // no synchronisation: any moment has to do
        pool.signal(signal);
        let status = pool.process.wait().unwrap();
        assert!(status.success() || status.signal() == Some(Signal::KILL.as_raw()), "{moment:?}: {status}");
        after(&format!("{moment:?} after the start"));
    }
}

#[test]
fn sigterm_during_a_start_leaves_nothing() {
    let setup = Setup::with_standin(3, "guest");
    let moments = (0..20).map(|n| n * Duration::from_micros(700));
    signal_during_starts(&setup, Signal::TERM, moments, |when| setup.assert_nothing_is_left(when));
}

#[test]
fn sigterm_during_a_start_of_qemu_leaves_nothing() {
    let mut setup = Setup::with_guest(2);
    setup.grace = Duration::from_secs(1); // a booting guest does not listen to the power button
    let moments = (0..10).map(|n| n * Duration::from_millis(15));
    signal_during_starts(&setup, Signal::TERM, moments, |when| setup.assert_nothing_is_left(when));
}

#[test]
fn vms_of_a_daemon_that_was_killed_during_a_start_are_found() {
    let setup = Setup::with_standin(3, "guest");
    let moments = (0..20).map(|n| n * Duration::from_micros(700));
    signal_during_starts(&setup, Signal::KILL, moments, |when| {
        let running = setup.hypervisors();
        let (pool, vms) = setup.run_until_full();
        let pids: Vec<_> = vms.values().map(|vm| vm.0).collect();
        assert!(running.iter().all(|pid| pids.contains(pid)), "{when}: {running:?} ran, {pids:?} are in the pool");
        pool.terminate();
        setup.assert_nothing_is_left(when);
    });
}

#[test]
fn sigterm_ends_a_start_that_hangs() {
    let setup = Setup::with_standin(3, "vmm.no-pid-file");
    let mut pool = setup.run();
    wait_until("all hypervisors run", || setup.hypervisors().len() == 3);
    assert_eq!(pool.list(), BTreeMap::new(), "none is ready");
    let start = Instant::now();
    pool.terminate();
    assert!(start.elapsed() < Duration::from_secs(20), "it did not wait until the start times out");
    setup.assert_nothing_is_left("after SIGTERM");
}

#[test]
fn sigterm_ends_the_wait_for_a_guest() {
    let mut setup = Setup::with_standin(3, "guest");
    setup.text = "no such text";
    let mut pool = setup.run();
    wait_until("all VMs run", || (0..3).all(|index| is_running(&setup.state_dir(index))));
    assert_eq!(pool.list(), BTreeMap::new(), "none is ready");
    pool.terminate();
    setup.assert_nothing_is_left("after SIGTERM");
}

fn is_running(dir: &Path) -> bool {
    HyperKit::from_state(dir).is_ok_and(|description| description.is_running().unwrap())
}

#[test]
fn sigterm_ends_a_read_of_the_console() {
    let setup = Setup::with_standin(1, "guest");
    let (mut pool, _) = setup.run_until_full();
    assert_eq!(pool.ask("take"), ["vm-0"]);
    // The stand-in's guest echoes the command, and never runs it.
    pool.send("run vm-0 a-command");
    let log = setup.state_dir(0).join("console-ring");
    wait_until("the guest has echoed the command", || {
        String::from_utf8_lossy(&fs::read(&log).unwrap()).contains("a-command")
    });
    pool.terminate();
    setup.assert_nothing_is_left("after SIGTERM");
}

#[test]
fn all_vms_have_one_grace_period() {
    let mut setup = Setup::with_standin(6, "guest.deaf");
    setup.grace = Duration::from_secs(2);
    let (pool, _) = setup.run_until_full();
    let start = Instant::now();
    pool.terminate();
    let took = start.elapsed();
    assert!(setup.grace <= took && took < 3 * setup.grace, "six VMs that ignore the power button took {took:?}");
    setup.assert_nothing_is_left("after SIGTERM");
}

/// The daemon itself has as many threads for 20 VMs as for 2. The library has one for each VM that the daemon started, which
/// reaps it and reads its output, and none for each VM that the daemon attached to.
#[cfg(target_os = "linux")]
#[test]
fn threads_do_not_grow_with_the_number_of_vms() {
    for size in [2, 20] {
        let setup = Setup::with_standin(size, "guest");
        let (pool, _) = setup.run_until_full();
        wait_for_threads(&pool, &[&["hyperkit-inotif", "pool", "pool"][..], &vec!["hyperkit"; size]].concat());
        pool.kill();
        let (pool, _) = setup.run_until_full();
        wait_for_threads(&pool, &["hyperkit-exits", "pool", "pool"]);
        pool.terminate();
        setup.assert_nothing_is_left("after SIGTERM");
    }
}

/// Waits until a daemon has threads of these names, of which Linux keeps 15 bytes. Threads in which VMs were started end
/// after a second without work.
#[cfg(target_os = "linux")]
fn wait_for_threads(pool: &Pool, names: &[&str]) {
    let mut names = names.to_vec();
    names.sort_unstable();
    let mut threads = Vec::new();
    let deadline = Instant::now() + crate::common::TEST_TIMEOUT;
    while threads != names {
        assert!(Instant::now() < deadline, "the daemon has the threads {threads:?}, not {names:?}");
        std::thread::sleep(Duration::from_millis(20));
        let tasks = fs::read_dir(format!("/proc/{}/task", pool.process.id())).unwrap();
        // A thread may end between the two reads.
        let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        threads = names.map(|name| name.trim_end().to_owned()).collect();
        threads.sort_unstable();
    }
}
