//! The descendants of a process.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

/// A process that does not die in this time hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills all descendants of this process, which must be the subreaper of those whose parents have exited. Children for which
/// `is_spared` returns true, and their descendants, live on. The caller reaps the others.
pub fn kill_descendants(is_spared: &dyn Fn(Pid) -> bool) {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let descendants = descendants(getpid().as_raw_nonzero().get(), is_spared);
        if descendants.is_empty() || Instant::now() > deadline {
            return;
        }
        for (pid, parent) in descendants {
            kill(pid, parent);
        }
        // A process that was just created is found in the next round.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a process, if it is still the one that has this parent, or that was orphaned since.
fn kill(pid: i32, parent: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let is_same = stat(pid.as_raw_nonzero().get())
                .is_some_and(|stat| [parent, getpid().as_raw_nonzero().get()].contains(&stat.parent));
            if is_same {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        // Linux before 5.3.
        Err(Errno::NOSYS) => drop(kill_process(pid, Signal::KILL)),
        Err(_) => {}
    }
}

struct Stat {
    is_dead: bool,
    parent: i32,
}

/// Reads `PID (NAME) STATE PARENT …`. The name may contain anything.
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut words = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
    let is_dead = matches!(words.next()?, "Z" | "X" | "x");
    Some(Stat { is_dead, parent: words.next()?.parse().ok()? })
}

/// The children of a process, dead or alive.
pub fn children(parent: Pid) -> HashSet<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).filter_map(Pid::from_raw).collect()
}

/// The living descendants with their parents.
fn descendants(ancestor: i32, is_spared: &dyn Fn(Pid) -> bool) -> Vec<(i32, i32)> {
    let is_spared = |pid| Pid::from_raw(pid).is_some_and(is_spared);
    let mut children = HashMap::<i32, Vec<(i32, bool)>>::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push((pid, stat.is_dead));
        }
    }
    let (mut found, mut ancestors) = (Vec::new(), vec![ancestor]);
    while let Some(parent) = ancestors.pop() {
        for (pid, is_dead) in children.remove(&parent).unwrap_or_default() {
            if is_spared(pid) {
                continue;
            }
            ancestors.push(pid);
            if !is_dead {
                found.push((pid, parent));
            }
        }
    }
    found
}
