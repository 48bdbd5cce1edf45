//! Kills a caller at each system call of `start`, `stop`, `shutdown` and `remove`, makes each system call fail once, and lets
//! the caller run out of file descriptors at each.
//! Afterwards no VM is lost, doubled or mistaken for another, and no data of the user is lost.
//!
//! The callers are the examples `boot` and `ctl`, run under strace, which injects the faults. By default every [`STEP`]th
//! point is tested, and with `FULL=1` each with the stand-in and more with QEMU. `STEP=n` overrides both.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod action;
mod calls;
mod check;
mod tracer;

use std::time::Instant;

use action::{Action, Kind, Site};
use calls::{Call, Recording};
use tracer::{Fault, Run, Status};

/// By default, one point in so many is tested.
const STEP: usize = 16;
/// A start of QEMU takes long.
const STEP_QEMU: usize = 120;
const STEP_QEMU_FULL: usize = 10;
/// A caller that lists all processes makes the same calls for each of them. So many calls of these count as one point.
const CALLS_OF_LIST: usize = 31;
const ERRORS: [&str; 5] = ["EMFILE", "EIO", "ENOMEM", "EACCES", "ENOSPC"];
/// Limits of open file descriptors, beginning with one that is free after the standard streams and the libraries.
const LIMITS: std::ops::Range<u32> = 4..20;
/// How often a point is tried again that moved because there were more or fewer processes on the host than before.
const ATTEMPTS: usize = 4;

/// `default`, or `full` in a full run.
fn step(default: usize, full: usize) -> usize {
    let is_full = std::env::var_os("FULL").is_some_and(|full| !full.is_empty());
    let step = if is_full { full } else { default };
    std::env::var("STEP").map_or(step, |step| step.parse().unwrap()).max(1)
}

/// Which calls get a fault: those of the main thread, or those of the other threads and of children before their `exec`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tracee {
    Main,
    Others,
}

/// Injects each fault at each point of an action, and checks the result. Panics with all findings at the end.
fn inject(action: Action, kind: Kind, step: usize) {
    let (site, began) = (Site::new(action, kind), Instant::now());
    let (mut findings, mut hits, mut moved) = (Vec::new(), 0, 0);
    let faults = [Fault::Kill, Fault::NoDescriptors].into_iter().chain(ERRORS.map(Fault::Error));
    let count = faults.clone().count();
    for (round, fault) in faults.enumerate() {
        for tracee in [Tracee::Main, Tracee::Others] {
            let mut recording = record(&site);
            let points = points(&recording, tracee, fault);
            // Each fault begins at another point, so that together they test more of them.
            for (place, call) in points.iter().enumerate().skip(round * step / count).step_by(step) {
                let mut next = Some(call.clone());
                for attempt in 1..=ATTEMPTS {
                    let Some(call) = next.take() else { break };
                    site.prepare();
                    let run = tracer::inject(&site, &call, fault, tracee);
                    findings.extend(check::check(&site, &run).map(|finding| describe(action, fault, &run, &finding)));
                    if run.hit.is_some_and(|hit| hit.is_like(&call)) {
                        hits += 1;
                    } else if attempt == ATTEMPTS {
                        moved += 1;
                    } else {
                        recording = record(&site);
                        next = self::points(&recording, tracee, fault).get(place).cloned();
                    }
                }
            }
        }
    }
    println!("{action:?}, {kind:?}: {hits} faults in {:?}, and {moved} at another call than intended", began.elapsed());
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    assert!(hits > moved, "most faults were not injected: {hits} were, {moved} not");
}

fn describe(action: Action, fault: Fault, run: &Run, finding: &str) -> String {
    let hit = run.hit.as_ref().map_or("no call".to_owned(), |call| call.text.clone());
    let finding =
        format!("{action:?}, {fault:?} at {hit}\n    {finding}\n    {:?} {}", run.status, run.stderr.trim_end());
    println!("{finding}"); // at once, if the test runs with --nocapture
    finding
}

fn record(site: &Site) -> Recording {
    site.prepare();
    let recording = tracer::record(site);
    if let Some(finding) = check::check(site, &recording.run) {
        panic!("without a fault: {finding}");
    }
    recording
}

/// The calls at which this fault is injected.
fn points(recording: &Recording, tracee: Tracee, fault: Fault) -> Vec<Call> {
    let can_fail = |call: &&Call| match fault {
        Fault::Kill => true,
        Fault::Error(_) => call.can_fail(),
        Fault::NoDescriptors => call.opens(),
    };
    let of_main = |call: &Call| recording.calls.iter().any(|main| main.is_main && main.is_same(call));
    let of_tracee = recording.calls[recording.start..].iter().filter(|call| match tracee {
        Tracee::Main => call.is_main,
        // strace counts for each thread. Otherwise the main thread would get the fault first.
        Tracee::Others => !call.is_main && !of_main(call),
    });
    let (listing, others): (Vec<_>, Vec<_>) = of_tracee.filter(can_fail).partition(|call| call.is_of_list);
    others.into_iter().chain(listing.into_iter().step_by(CALLS_OF_LIST)).cloned().collect()
}

#[test]
fn start() {
    inject(Action::Start, Kind::Standin, step(STEP, 1));
}

#[test]
fn start_again() {
    inject(Action::StartAgain, Kind::Standin, step(STEP, 1));
}

#[test]
fn stop() {
    inject(Action::Stop, Kind::Standin, step(STEP, 1));
}

#[test]
fn shutdown() {
    inject(Action::Shutdown, Kind::Standin, step(STEP, 1));
}

#[test]
fn remove() {
    inject(Action::Remove, Kind::Standin, step(STEP, 1));
}

#[test]
fn remove_of_a_running_vm() {
    inject(Action::RemoveRunning, Kind::Standin, step(STEP, 1));
}

#[test]
fn start_of_qemu() {
    inject(Action::Start, Kind::Qemu, step(STEP_QEMU, STEP_QEMU_FULL));
}

#[test]
fn stop_of_qemu() {
    inject(Action::Stop, Kind::Qemu, step(STEP_QEMU, STEP_QEMU_FULL));
}

#[test]
fn shutdown_of_qemu() {
    inject(Action::Shutdown, Kind::Qemu, step(STEP_QEMU, STEP_QEMU_FULL));
}

#[test]
fn remove_of_a_running_qemu() {
    inject(Action::RemoveRunning, Kind::Qemu, step(STEP_QEMU, STEP_QEMU_FULL));
}

#[test]
fn start_of_qemu_with_vsock() {
    inject(Action::Start, Kind::QemuWithVsock, step(STEP_QEMU, STEP_QEMU_FULL));
}

/// With too few, a program cannot find out what runs. From some number on, it can. A start is not tested, since the hypervisor
/// would have the same limit.
#[test]
fn callers_with_few_file_descriptors() {
    for action in [Action::Stop, Action::Shutdown, Action::Remove, Action::RemoveRunning] {
        let site = Site::new(action, Kind::Standin);
        let mut statuses = Vec::new();
        for limit in LIMITS {
            site.prepare();
            let run = tracer::limit_descriptors(&site, limit);
            let finding = check::check(&site, &run);
            assert_eq!(finding, None, "{action:?} with {limit} descriptors: {run:?}");
            statuses.push(run.status);
        }
        assert_eq!(statuses.first(), Some(&Status::Failure), "{action:?}");
        assert_eq!(statuses.last(), Some(&action.status_without_fault()), "{action:?}");
    }
}

/// The child of a killed starter still becomes a hypervisor. Until then it holds the lock of the state directory.
#[test]
fn starter_that_is_killed_before_the_exec_of_its_child() {
    let starts = [Action::Start, Action::StartAgain].map(|action| (action, Kind::Standin));
    for (action, kind) in starts.into_iter().chain([(Action::Start, Kind::Qemu), (Action::Start, Kind::QemuWithVsock)])
    {
        let site = Site::new(action, kind);
        // Only the child makes these calls.
        for name in ["setpgid", "dup2", "execve"] {
            site.prepare();
            let run = tracer::kill_while_child_waits(&site, name);
            let finding = check::check(&site, &run);
            assert_eq!(finding, None, "{action:?}, {kind:?}, killed while its child was before {name}");
        }
    }
}
