//! System calls in a log of strace.

use std::collections::HashMap;

use crate::tracer::Run;

/// Calls that the kernel never lets fail with these errors, or whose failure ends the program inside the standard library or
/// the C library. `close` closes its descriptor also if it fails; strace can only leave it out.
const INFALLIBLE: [&str; 17] = [
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
];

/// A system call of a recorded run.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// Counts the calls with this name in its thread, from 1.
    pub ordinal: usize,
    thread: String,
    /// Whether it belongs to the caller's main thread.
    pub is_main: bool,
    /// Whether the caller was listing all processes.
    pub is_of_list: bool,
    /// The line of the log.
    pub text: String,
}

impl Call {
    pub fn can_fail(&self) -> bool {
        !INFALLIBLE.contains(&self.name.as_str())
    }

    /// Whether it opens a file descriptor.
    pub fn opens(&self) -> bool {
        ["openat", "pidfd_open", "eventfd2", "inotify_init1", "socket", "pipe2"].contains(&self.name.as_str())
            || self.text.contains("F_DUPFD")
    }

    /// Whether a fault for one of them is a fault for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.ordinal) == (&other.name, other.ordinal)
    }

    /// Whether this is that call in another run. The number of processes on the host moves calls that follow a list of all.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.name, self.is_of_list) == (&other.name, other.is_of_list)
    }
}

/// A run without a fault.
#[derive(Debug)]
pub struct Recording {
    pub run: Run,
    pub calls: Vec<Call>,
    /// The first call that names a file of the test. Those before are of the runtime, which ends the program if one fails.
    pub start: usize,
}

/// Reads a log whose lines begin with the thread, which the first line shows for the main thread.
pub fn parse(log: &str) -> Vec<Call> {
    let (mut calls, mut counts) = (Vec::new(), HashMap::<(&str, &str), usize>::new());
    let main = log.split_ascii_whitespace().next().unwrap_or_default();
    let mut list = None; // the descriptor of /proc, while it is open
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(' ').map(|(thread, call)| (thread, call.trim_start())) else {
            continue;
        };
        // The rest of a call during which another thread has made one.
        if let Some(rest) = call.strip_prefix("<... ") {
            let name = rest.split(' ').next().unwrap_or_default();
            let begun = calls.iter_mut().rev().find(|begun: &&mut Call| begun.thread == thread && begun.name == name);
            if let Some(begun) = begun {
                begun.text += rest;
            }
            continue;
        }
        // Not a signal or an exit.
        let Some((name, _)) = call.split_once('(').filter(|_| !call.starts_with(['+', '-'])) else { continue };
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        let is_main = thread == main;
        if is_main && call.starts_with("openat(AT_FDCWD, \"/proc\",") {
            list = call.rsplit_once("= ").map(|(_, descriptor)| format!("close({descriptor})"));
        }
        calls.push(Call {
            name: name.to_owned(),
            thread: thread.to_owned(),
            ordinal: *count,
            is_main,
            is_of_list: is_main && list.is_some(),
            text: call.to_owned(),
        });
        if is_main && list.as_ref().is_some_and(|close| call.starts_with(close.as_str())) {
            list = None;
        }
    }
    calls
}
