//! The descendants of a process.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

/// A process that does not die in this time hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills all descendants of this process, which must be the subreaper of those whose parents have exited. Another thread reaps
/// them.
pub fn kill_descendants() {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let descendants = descendants(getpid().as_raw_nonzero().get());
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

/// The living descendants with their parents.
fn descendants(ancestor: i32) -> Vec<(i32, i32)> {
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
            ancestors.push(pid);
            if !is_dead {
                found.push((pid, parent));
            }
        }
    }
    found
}
