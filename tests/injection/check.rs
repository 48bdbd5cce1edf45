//! Checks what is left after a caller has got a fault.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hyperkit::{Disks, Error, HyperKit, VmStatus};
use rustix::process::{Signal, kill_process};

use crate::action::{Action, DISK_MIB, Site};
use crate::common::{file_names, hypervisors_in, to_pid, vsock_daemons_in};
use crate::tracer::{HANG, Run, Status};

/// Returns what is wrong, and repairs it.
pub fn check(site: &Site, run: &Run) -> Option<String> {
    let finding = check_all(site, run).err()?;
    for pid in hypervisors_in(&site.state_dir()) {
        let _ = kill_process(to_pid(pid), Signal::KILL);
        while hypervisors_in(&site.state_dir()).contains(&pid) {
            sleep(Duration::from_millis(1));
        }
    }
    let _ = fs::remove_dir_all(site.state_dir());
    Some(finding)
}

fn check_all(site: &Site, run: &Run) -> Result<(), String> {
    if let Status::Panicked | Status::Hung = run.status {
        return Err("it must not panic or hang".into());
    }
    let running = settle(site)?;
    check_result(site, run, running)?;
    check_next_start(site, running)?;
    check_end(site)
}

/// Waits until the library finds what runs.
fn settle(site: &Site) -> Result<Option<u32>, String> {
    let deadline = Instant::now() + HANG;
    loop {
        let truth = hypervisors_in(&site.state_dir());
        if truth.len() > 1 {
            return Err(format!("several hypervisors run: {truth:?}"));
        }
        let answers = answers(site);
        let expected = truth.first().copied();
        if answers.as_ref().is_ok_and(|answers| answers.iter().all(|answer| *answer == expected)) {
            return Ok(expected);
        }
        if Instant::now() > deadline {
            return Err(format!("{truth:?} runs, but the library says {answers:?}"));
        }
        sleep(Duration::from_millis(2));
    }
}

/// The running VM by each call that finds it.
fn answers(site: &Site) -> hyperkit::Result<[Option<u32>; 3]> {
    let by_dir = HyperKit::new().state_dir(site.state_dir());
    let pid = |description: &HyperKit| description.vm().map(|vm| vm.map(|vm| vm.pid()));
    let by_state = match HyperKit::from_state(site.state_dir()) {
        Ok(description) => pid(&description)?,
        Err(Error::StateNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let found = pid(&by_dir)?;
    Ok([found, by_state, if by_dir.is_running()? { found.or(Some(0)) } else { None }])
}

/// Whether the caller's answer is true.
fn check_result(site: &Site, run: &Run, running: Option<u32>) -> Result<(), String> {
    let (is_success, is_failure) = (run.status == Status::Success, run.status == Status::Failure);
    let fail = |finding: &str| Err(format!("{finding}; running: {running:?}"));
    match site.action {
        Action::Start | Action::StartAgain if is_success && running.is_none() => fail("no VM runs after a start"),
        // A caller can also fail when it prints the answer.
        Action::Start | Action::StartAgain if is_failure && running.is_some() && !has_answered(run) => {
            fail("a VM runs after a start that has failed")
        }
        Action::Stop | Action::Shutdown if is_success && running.is_some() => fail("the VM runs on"),
        Action::Remove if is_success && site.state_dir().exists() => fail("the state directory is still there"),
        Action::RemoveRunning if is_success => fail("a running VM was removed"),
        Action::RemoveRunning if running.is_none() => fail("the VM does not run any more"),
        _ => Ok(()),
    }?;
    let keeps_disk = !matches!(site.action, Action::Start | Action::Remove);
    if keeps_disk && !site.has_data() { fail("the disk has lost its data") } else { Ok(()) }
}

fn has_answered(run: &Run) -> bool {
    [&run.stdout, &run.stderr].iter().any(|output| output.contains("runs as process"))
}

/// The next start starts a VM, or reports the one that runs.
fn check_next_start(site: &Site, running: Option<u32>) -> Result<(), String> {
    let began = Instant::now();
    let started = match (site.description().start("console=ttyS0 panic=1 guest"), running) {
        (Ok(vm), _) => vm.pid(),
        (Err(Error::AlreadyRunning { pid, .. }), _) => pid,
        (Err(error), _) => return Err(format!("the next start fails: {error:#}")),
    };
    // The child of a killed starter may have become a hypervisor only now.
    if running.is_some_and(|running| running != started) {
        return Err(format!("{running:?} ran, and the next start reports {started}"));
    }
    if began.elapsed() > HANG {
        return Err(format!("the next start took {:?}", began.elapsed()));
    }
    match hypervisors_in(&site.state_dir())[..] {
        [pid] if pid == started => {}
        ref others => return Err(format!("the next start reports {started}, and {others:?} run")),
    }
    check_answers(site, started)?;
    match site.action {
        Action::Start | Action::Remove => {}
        _ if !site.has_data() => return Err("the disk has lost its data at the next start".into()),
        _ => {}
    }
    match site.disk().metadata() {
        Ok(disk) if site.disk().ends_with("disk.qcow2") || disk.len() == DISK_MIB << 20 => Ok(()),
        disk => Err(format!("the disk is {disk:?}")),
    }
}

/// The hypervisor of a killed starter may still be setting up its devices. It must not exit then.
fn check_answers(site: &Site, pid: u32) -> Result<(), String> {
    let (deadline, description) = (Instant::now() + HANG, HyperKit::new().state_dir(site.state_dir()));
    loop {
        let vm = description.vm().map_err(|error| format!("vm: {error:#}"))?;
        let vm = vm.filter(|vm| vm.pid() == pid).ok_or_else(|| format!("the VM of process {pid} has exited"))?;
        match vm.status() {
            Ok(VmStatus::Exited(exit)) => return Err(format!("the VM of process {pid} {exit}")),
            Ok(_) if site.has_vsock() && vsock_daemons_in(&site.state_dir()).is_empty() => {
                return Err("there is no vsock daemon".into());
            }
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(format!("the VM does not answer: {error:#}")),
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
}

/// The VM can be stopped and removed, and nothing is left.
fn check_end(site: &Site) -> Result<(), String> {
    let description = HyperKit::new().state_dir(site.state_dir());
    description.stop().map_err(|error| format!("stop: {error:#}"))?;
    let left = hypervisors_in(&site.state_dir());
    if !left.is_empty() {
        return Err(format!("{left:?} run after stop"));
    }
    description.remove(Disks::Delete).map_err(|error| format!("remove: {error:#}"))?;
    if site.state_dir().exists() {
        return Err(format!("remove leaves {:?}", file_names(&site.state_dir())));
    }
    let daemons = vsock_daemons_in(&site.state_dir());
    if !daemons.is_empty() {
        return Err(format!("the vsock daemon runs on: {daemons:?}"));
    }
    site.check_user_files()
}
