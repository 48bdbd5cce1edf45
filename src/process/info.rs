//! What the system says of processes: their command lines, and what else may be asked of them.
//!
//! On Linux that is in `/proc`, where a process has files of its own; sysinfo would read all processes to tell of one.
//! Elsewhere it is sysinfo's.

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) use system::{Seen, look, look_at_all, started};

impl Seen {
    /// Whether it began when it was recorded to have, as far as the clock can tell.
    pub fn began_at(&self, recorded: u64) -> bool {
        self.started().is_some_and(|started| recorded.abs_diff(started) <= 2)
    }

    /// Whether it was started with `arguments`; a script has its interpreter before them.
    pub fn has_arguments(&self, arguments: &[String]) -> bool {
        // Not more of them than that: a program can be told that its name is nothing at all.
        self.command.len() >= arguments.len()
            && self
                .command
                .iter()
                .rev()
                .zip(arguments.iter().rev())
                .all(|(argument, wanted)| argument == wanted.as_str())
    }
}

#[cfg(target_os = "linux")]
mod system {
    use super::*;

    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::ffi::OsStringExt;
    use std::time::{Duration, Instant};

    /// A process that runs: neither gone nor a zombie.
    pub(crate) struct Seen {
        pub pid: u32,
        /// Program and arguments.
        pub command: Vec<OsString>,
    }

    /// When the process `pid` was started: in seconds since 1970, as exact as the system's clock was steady.
    pub(crate) fn started(pid: u32) -> Option<u64> {
        let ticks: u64 = stat(pid, 19)?.parse().ok()?; // since the system's start
        Some(sysinfo::System::boot_time() + ticks / rustix::param::clock_ticks_per_second())
    }

    /// A field of `/proc/PID/stat`, counted from the one behind the process's name, which may hold anything.
    fn stat(pid: u32, field: usize) -> Option<String> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_ascii_whitespace().nth(field).map(str::to_owned)
    }

    impl Seen {
        pub fn started(&self) -> Option<u64> {
            started(self.pid)
        }

        /// What relative paths on its command line are relative to, if it is ours to know.
        pub fn directory(&self) -> Option<PathBuf> {
            fs::read_link(format!("/proc/{}/cwd", self.pid)).ok()
        }
    }

    /// What a process may take to be started. A program can also take its arguments away for good.
    const AWHILE: Duration = Duration::from_millis(200);

    /// The process `pid`, if it runs.
    pub(crate) fn look(pid: u32) -> Option<Seen> {
        look_until(pid, Instant::now() + AWHILE)
    }

    /// All processes that run. Their threads have pids, too, and are not listed.
    pub(crate) fn look_at_all() -> Vec<Seen> {
        let deadline = Instant::now() + AWHILE;
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| look_until(entry.file_name().to_str()?.parse().ok()?, deadline)).collect()
    }

    /// The kernel gives a new program its memory first and its arguments some milliseconds later. Who has started it goes on
    /// in between.
    fn look_until(pid: u32, deadline: Instant) -> Option<Seen> {
        let read = || {
            // The kernel does not say how long it is, and each look into another's memory costs: usually two will do.
            let mut line = Vec::with_capacity(4096);
            File::open(format!("/proc/{pid}/cmdline")).ok()?.read_to_end(&mut line).ok()?;
            Some(line)
        };
        let mut line = read()?;
        while line.is_empty() && is_being_started(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            line = read()?;
        }
        // Each word ends with a NUL. A zombie has none, nor has the kernel itself.
        line.pop()?;
        let command = line.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
        Some(Seen { pid, command })
    }

    /// Whether a process without arguments may still get some: it does not end, and is none of the kernel's own.
    fn is_being_started(pid: u32) -> bool {
        const EXITING_OR_KERNEL: u32 = 0x4 | 0x20_0000; // PF_EXITING and PF_KTHREAD in the kernel's sched.h
        let flags = stat(pid, 6).and_then(|flags| flags.parse::<u32>().ok());
        flags.is_some_and(|flags| flags & EXITING_OR_KERNEL == 0)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

    /// A process that runs: neither gone nor a zombie.
    pub(crate) struct Seen {
        pub pid: u32,
        /// Program and arguments.
        pub command: Vec<OsString>,
        started: u64,
        directory: Option<PathBuf>,
    }

    /// When the process `pid` was started: in seconds since 1970, as exact as the system's clock was steady.
    pub(crate) fn started(pid: u32) -> Option<u64> {
        look(pid)?.started()
    }

    impl Seen {
        pub fn started(&self) -> Option<u64> {
            Some(self.started)
        }

        /// What relative paths on its command line are relative to, if it is ours to know.
        pub fn directory(&self) -> Option<PathBuf> {
            self.directory.clone()
        }
    }

    /// The process `pid`, if it runs.
    pub(crate) fn look(pid: u32) -> Option<Seen> {
        seen(ProcessesToUpdate::Some(&[sysinfo::Pid::from_u32(pid)])).pop()
    }

    /// All processes that run.
    pub(crate) fn look_at_all() -> Vec<Seen> {
        seen(ProcessesToUpdate::All)
    }

    fn seen(which: ProcessesToUpdate<'_>) -> Vec<Seen> {
        let mut system = System::new();
        let what = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).with_cwd(UpdateKind::Always);
        system.refresh_processes_specifics(which, true, what);
        let runs =
            |process: &&sysinfo::Process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
        let seen = |process: &sysinfo::Process| Seen {
            pid: process.pid().as_u32(),
            command: process.cmd().to_vec(),
            started: process.start_time(),
            directory: process.cwd().map(Into::into),
        };
        system.processes().values().filter(runs).map(seen).collect()
    }
}
