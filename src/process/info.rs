//! What the operating system reports about processes: command line, start time, working directory.
//!
//! Linux has files for each process in `/proc`; sysinfo would read all processes to report one. Elsewhere this is sysinfo's
//! report.
//!
//! A function here returns `Ok(None)` only for a process that does not exist or is a zombie. If this program cannot read about
//! a process, that is an error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
pub(super) use system::is_exiting;
pub(crate) use system::{ProcessInfo, identity, is_in_another_pid_namespace, list_all, query, start_time};

impl ProcessInfo {
    /// Whether the process started at the recorded time, within the precision of the clock.
    pub fn started_at(&self, recorded: u64) -> io::Result<bool> {
        Ok(self.start_time()?.is_some_and(|started| recorded.abs_diff(started) <= 2))
    }

    /// Whether the process runs a program that is not a hypervisor, whatever its arguments are. `tail` has the options `-F` and
    /// `-f`, too, which are the pid file and the kernel for hyperkit, and a shell passes any arguments on to its script. A process
    /// can show any name, so the name of the executable counts.
    pub fn is_other_program(&self) -> io::Result<bool> {
        let Some(program) = self.executable()? else { return Ok(false) };
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        // Versions: `python3.11`, `ksh-93`. Linux adds ` (deleted)` after an update.
        let name =
            name.trim_end_matches(" (deleted)").trim_end_matches(|c: char| c.is_ascii_digit() || ".-".contains(c));
        Ok(OTHER_PROGRAMS.split_ascii_whitespace().any(|other| other == name))
    }

    /// Whether this is `program` with `arguments`. The command line of a script begins with its interpreter and its path. Then
    /// the interpreter must be that in the script's first line: `sudo PROGRAM …` and `strace PROGRAM …` are other processes.
    pub fn runs(&self, program: &Path, arguments: &[String]) -> bool {
        let Some(before) = self.command.len().checked_sub(arguments.len()) else { return false };
        let (before, rest) = self.command.split_at(before);
        if !rest.iter().zip(arguments).all(|(argument, wanted)| argument == wanted.as_str()) {
            return false;
        }
        match before {
            // The program itself is not compared: its `argv[0]` can be anything.
            [_] => true,
            [interpreter, .., script] => script == program && is_interpreter(interpreter, program),
            [] => false,
        }
    }
}

/// Shells, interpreters, and programs that read files or watch processes. People and scripts run them with the path of a pid file,
/// or with the arguments of a hypervisor.
const OTHER_PROGRAMS: &str = "ash awk bash bat busybox cat coreutils csh cut dash diff doas egrep emacs entr env expect fgrep find \
    fish fswatch fuser gawk gdb grep head htop inotifywait ksh less lldb lsof ltrace lua luajit mawk mksh more most nano nc ncat \
    nice node nohup nvim osascript perl pgrep php pkill ps python rg rsync ruby scp screen sed setsid sh sleep socat ssh stdbuf \
    strace su sudo tail tclsh tcsh tee time timeout tmux top toybox vi vim vim.basic vim.tiny watch xargs yash zsh";

/// How much Linux reads of a script's first line.
const MAX_SHEBANG_BYTES: u64 = 256;

/// Whether the first line of a script names this interpreter, as its first word or behind `env`.
fn is_interpreter(interpreter: &OsStr, script: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(script).and_then(|file| file.take(MAX_SHEBANG_BYTES).read_to_end(&mut start));
    let line = start.split(|&byte| byte == b'\n').next().and_then(|line| line.strip_prefix(b"#!"));
    let mut words = line.unwrap_or_default().split(u8::is_ascii_whitespace);
    read.is_ok() && words.any(|word| !word.is_empty() && word == interpreter.as_bytes())
}

#[cfg(target_os = "linux")]
mod system {
    use super::*;

    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::time::{Duration, Instant};

    use rustix::io::Errno;
    use rustix::process::{Pid, test_kill_process};

    /// A running process: it exists and is no zombie.
    pub(crate) struct ProcessInfo {
        pub pid: u32,
        /// Program and arguments.
        pub command: Vec<OsString>,
    }

    /// When the process `pid` was started, in seconds since 1970, as precisely as the system clock allows.
    pub(crate) fn start_time(pid: u32) -> io::Result<Option<u64>> {
        let Some(ticks) = stat(pid, 19)?.and_then(|ticks| ticks.parse::<u64>().ok()) else { return Ok(None) };
        Ok(Some(boot_time()? + ticks / rustix::param::clock_ticks_per_second()))
    }

    /// When the system was started, in seconds since 1970. (sysinfo returns the uptime if it cannot read the file.)
    fn boot_time() -> io::Result<u64> {
        let stat = fs::read_to_string("/proc/stat")?;
        let time = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        time.ok_or_else(|| io::Error::other("/proc/stat has no boot time"))
    }

    /// A text that no other process has, later or in another container. The kernel counts the start time in ticks since the boot,
    /// so setting the clock does not change it. `None` if the process is gone, or if the system hides what identifies it.
    pub(crate) fn identity(pid: u32) -> io::Result<Option<String>> {
        let Some(ticks) = stat(pid, 19)? else { return Ok(None) };
        Ok(namespace()?.map(|(boot, namespace)| format!("{boot} {namespace} {pid} {ticks}")))
    }

    /// Whether the process with this [`identity`] was started since the last boot, in another pid namespace. Such a process may be
    /// hidden from this one.
    pub(crate) fn is_in_another_pid_namespace(identity: &str) -> io::Result<bool> {
        let mut words = identity.split(' ').map(str::to_owned);
        let theirs = words.next().zip(words.next());
        Ok(namespace()?.zip(theirs).is_some_and(|(ours, theirs)| ours.0 == theirs.0 && ours.1 != theirs.1))
    }

    /// The identifiers of the system's boot and of the pid namespace. `None` if the system hides them.
    fn namespace() -> io::Result<Option<(String, String)>> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        match boot.and_then(|boot| Ok((boot, fs::read_link("/proc/self/ns/pid")?))) {
            Ok((boot, namespace)) => Ok(Some((boot.trim_ascii().to_owned(), namespace.display().to_string()))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A field of `/proc/PID/stat`, counted from the one after the process's name, which may contain anything.
    fn stat(pid: u32, field: usize) -> io::Result<Option<String>> {
        let Some(stat) = unless_gone(pid, fs::read(format!("/proc/{pid}/stat")))? else { return Ok(None) };
        let stat = String::from_utf8_lossy(&stat);
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
        Ok(fields.and_then(|mut fields| fields.nth(field).map(str::to_owned)))
    }

    /// `None` if the process is gone. ESRCH proves that. ENOENT does not: hidden files and a missing `/proc` give it, too. Then
    /// `kill(pid, 0)` decides.
    fn unless_gone<T>(pid: u32, read: io::Result<T>) -> io::Result<Option<T>> {
        let error = match read {
            Ok(content) => return Ok(Some(content)),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => Ok(None),
            Some(Errno::NOENT) => {
                let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let exists = raw.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH));
                // Checked again: the process may have exited meanwhile, or its entry may have appeared.
                if exists && !Path::new(&format!("/proc/{pid}")).exists() && is_alive(raw) {
                    Err(error)
                } else {
                    Ok(None)
                }
            }
            _ => Err(error),
        }
    }

    fn is_alive(pid: Option<Pid>) -> bool {
        pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
    }

    impl ProcessInfo {
        pub fn start_time(&self) -> io::Result<Option<u64>> {
            start_time(self.pid)
        }

        /// The file that the process executes.
        pub(super) fn executable(&self) -> io::Result<Option<PathBuf>> {
            unless_gone(self.pid, fs::read_link(format!("/proc/{}/exe", self.pid)))
        }

        /// A path by which this program reaches what the process calls `path`. It may see other mounts.
        pub fn reach(&self, path: &Path) -> io::Result<Option<PathBuf>> {
            let (dir, rest) = match path.strip_prefix("/") {
                Ok(rest) => ("root", rest),
                Err(_) => ("cwd", path),
            };
            let dir = PathBuf::from(format!("/proc/{}/{dir}", self.pid));
            // Only this tells whether the system lets this program look.
            Ok(unless_gone(self.pid, fs::read_link(&dir))?.map(|_| dir.join(rest)))
        }
    }

    /// How long an `exec` may take on a busy host until the process has its new arguments. A program can also remove its
    /// arguments, and then they never come, but that is rare.
    const EXEC_TIMEOUT: Duration = Duration::from_secs(2);
    /// The least time for each process when all are listed. All together may take [`EXEC_TIMEOUT`].
    const MIN_EXEC_TIMEOUT: Duration = Duration::from_millis(100);

    /// The process `pid`, if it runs.
    pub(crate) fn query(pid: u32) -> io::Result<Option<ProcessInfo>> {
        query_until(pid, Instant::now() + EXEC_TIMEOUT)
    }

    fn query_until(pid: u32, deadline: Instant) -> io::Result<Option<ProcessInfo>> {
        let Some(mut line) = read_cmdline(pid)? else { return Ok(None) };
        if line.is_empty() {
            // The kernel gives a new program its memory first and its arguments some milliseconds later, while its starter
            // may continue.
            while line.is_empty() && is_in_exec(pid)? && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
                let Some(again) = read_cmdline(pid)? else { return Ok(None) };
                line = again;
            }
        }
        // Each word ends with a NUL. A zombie has no words, nor has the kernel itself.
        if line.pop().is_none() {
            return Ok(None);
        }
        let command = line.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
        Ok(Some(ProcessInfo { pid, command }))
    }

    fn read_cmdline(pid: u32) -> io::Result<Option<Vec<u8>>> {
        unless_gone(pid, File::open(format!("/proc/{pid}/cmdline")).and_then(read_proc))
    }

    /// All running processes. Threads have pids, too, and are not listed, nor are processes of other users that the system
    /// hides (`hidepid=1`): they cannot write to a state directory of ours, and would otherwise block every start.
    pub(crate) fn list_all() -> io::Result<Vec<ProcessInfo>> {
        let deadline = Instant::now() + EXEC_TIMEOUT;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match query_until(pid, deadline.max(Instant::now() + MIN_EXEC_TIMEOUT)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                process => found.extend(process?),
            }
        }
        // A `/proc` that does not list this process belongs to another pid namespace.
        match found.iter().any(|process| process.pid == std::process::id()) {
            true => Ok(found),
            false => Err(io::Error::other("/proc does not list this process")),
        }
    }

    /// Reads a file of `/proc`, whose length the kernel does not report. A short read is the last one, and each read of
    /// another process's memory is expensive.
    fn read_proc(mut file: File) -> io::Result<Vec<u8>> {
        let (mut content, mut length) = (vec![0; 4096], 0);
        loop {
            length += file.read(&mut content[length..])?;
            if length < content.len() {
                content.truncate(length);
                return Ok(content);
            }
            content.resize(2 * length, 0);
        }
    }

    /// Flags of the kernel's sched.h.
    const PF_EXITING: u32 = 0x4;
    const PF_KTHREAD: u32 = 0x20_0000;

    fn flags(pid: u32) -> io::Result<Option<u32>> {
        Ok(stat(pid, 6)?.and_then(|flags| flags.parse().ok()))
    }

    /// Whether a process without arguments may still get some: it is not exiting, and is not one of the kernel's own.
    fn is_in_exec(pid: u32) -> io::Result<bool> {
        Ok(flags(pid)?.is_some_and(|flags| flags & (PF_EXITING | PF_KTHREAD) == 0))
    }

    /// Whether a process is exiting, or has exited and was not reaped.
    pub(crate) fn is_exiting(pid: u32) -> bool {
        matches!(flags(pid), Ok(Some(flags)) if flags & PF_EXITING != 0)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

    /// A running process: it exists and is no zombie.
    pub(crate) struct ProcessInfo {
        pub pid: u32,
        /// Program and arguments.
        pub command: Vec<OsString>,
        start_time: u64,
        working_dir: Option<PathBuf>,
        executable: Option<PathBuf>,
    }

    /// When the process `pid` was started, in seconds since 1970, as precisely as the system clock allows.
    pub(crate) fn start_time(pid: u32) -> io::Result<Option<u64>> {
        query(pid)?.map_or(Ok(None), |process| process.start_time())
    }

    /// A text that no other process has. A process ID is not used again within a second.
    pub(crate) fn identity(pid: u32) -> io::Result<Option<String>> {
        Ok(start_time(pid)?.map(|started| format!("{pid} {started}")))
    }

    /// There are no pid namespaces.
    pub(crate) fn is_in_another_pid_namespace(_: &str) -> io::Result<bool> {
        Ok(false)
    }

    impl ProcessInfo {
        pub fn start_time(&self) -> io::Result<Option<u64>> {
            Ok(Some(self.start_time))
        }

        /// The file that the process executes.
        #[expect(clippy::unnecessary_wraps, reason = "on Linux, it can fail")]
        pub(super) fn executable(&self) -> io::Result<Option<PathBuf>> {
            Ok(self.executable.clone())
        }

        /// A path by which this program reaches what the process calls `path`. `None` if the system does not report its working
        /// directory.
        pub fn reach(&self, path: &Path) -> io::Result<Option<PathBuf>> {
            Ok(match path.is_absolute() {
                true => Some(path.to_owned()),
                false => self.working_dir.as_ref().map(|dir| dir.join(path)),
            })
        }
    }

    /// The process `pid`, if it runs.
    pub(crate) fn query(pid: u32) -> io::Result<Option<ProcessInfo>> {
        match refresh(ProcessesToUpdate::Some(&[sysinfo::Pid::from_u32(pid)])).pop() {
            // macOS hides the arguments of other users' processes.
            Some(process) if process.command.is_empty() => Err(io::ErrorKind::PermissionDenied.into()),
            process => Ok(process),
        }
    }

    /// All running processes whose arguments the system reports.
    pub(crate) fn list_all() -> io::Result<Vec<ProcessInfo>> {
        match refresh(ProcessesToUpdate::All) {
            processes if processes.is_empty() => Err(io::Error::other("the system lists no processes")),
            processes => Ok(processes.into_iter().filter(|process| !process.command.is_empty()).collect()),
        }
    }

    fn refresh(which: ProcessesToUpdate<'_>) -> Vec<ProcessInfo> {
        let mut system = System::new();
        let what = ProcessRefreshKind::nothing()
            .with_cmd(UpdateKind::Always)
            .with_cwd(UpdateKind::Always)
            .with_exe(UpdateKind::Always);
        system.refresh_processes_specifics(which, true, what);
        let runs =
            |process: &&sysinfo::Process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
        let info = |process: &sysinfo::Process| ProcessInfo {
            pid: process.pid().as_u32(),
            command: process.cmd().to_vec(),
            start_time: process.start_time(),
            working_dir: process.cwd().map(Into::into),
            executable: process.exe().map(Into::into),
        };
        system.processes().values().filter(runs).map(info).collect()
    }
}
