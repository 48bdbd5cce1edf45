//! Programs in the guest, executed by the agent: `Vm::command`, in the manner of `std::process::Command`.

mod archive;
#[cfg(test)]
mod archive_tests;
mod child;
mod connection;
mod copy;
mod io_thread;
mod link;
#[allow(dead_code, reason = "the agent uses the other half")]
mod protocol;
mod ready_socket;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use child::{GuestChild, GuestReader, GuestStdin};
pub(crate) use link::AgentSlot;
pub use status::{GuestOutput, GuestStatus};

use crate::error::{ConfigError, Error, NotStarted, Result};
use crate::vm::Vm;
use child::Wait;
use link::Attempt;
use protocol::{MAX_REQUEST, Request};
use stream::Stream;

/// How long the agent may take to answer, which includes the boot of the guest.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long outputs that other processes hold open are read after the program's exit.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);
/// The default of `output_limit`.
const OUTPUT_LIMIT: usize = 1024 * 1024 * 1024;

/// # Run programs in the guest
///
/// A small program in the guest, [the agent](crate::guide::agent), executes them. The description needs
/// [`agent(true)`](crate::HyperKit::agent), on hyperkit also [`vsock(true)`](crate::HyperKit::vsock). The guest needs no network.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use std::time::Duration;
/// use hyperkit::{GuestStatus, HyperKit};
///
/// let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
/// let vm = description.start_scoped("console=ttyS0 no_timer_check")?;
///
/// let timeout = Duration::from_secs(300); // an emulated guest on a busy host boots slowly
/// let output = vm.command("uname").arg("-s").agent_timeout(timeout).output()?;
/// assert!(output.status.success());
/// assert_eq!(output.stdout, b"Linux\n");
///
/// let sorted = vm.command("sort").stdin("b\na\n").output()?;
/// assert_eq!(sorted.stdout, b"a\nb\n");
/// let status = vm.command("sh").args(["-c", "kill $$"]).status()?;
/// assert_eq!((status, status.to_string().as_str()), (GuestStatus::Killed(15), "was killed by signal 15"));
/// assert_eq!(status.code(), None); // a signal is no exit code
///
/// std::fs::write("notes.txt", "remember")?;
/// vm.copy_in("notes.txt", "/tmp/notes.txt")?;
/// vm.copy_out("/tmp/notes.txt", "copy.txt")?;
/// assert_eq!(std::fs::read("copy.txt")?, b"remember");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// All commands of a [`Vm`] and its clones share one connection to the agent, which is open while a command runs. Any number
/// of them run at the same time. On QEMU, the agent serves one host program at a time: another one, or another [`Vm`] that
/// [`from_state`](crate::HyperKit::from_state) has found, waits until the first runs no command. On hyperkit, the agent serves many.
///
/// If this program exits or is killed, the agent kills the commands that run, with all their descendants. Processes that a finished
/// command has left running, such as daemons, keep running.
impl Vm {
    /// Returns a command that executes a program in the guest. Nothing happens before [`output`](GuestCommand::output),
    /// [`status`](GuestCommand::status) or [`spawn`](GuestCommand::spawn).
    ///
    /// A name without `/` is searched for on the `PATH` of the command.
    #[doc(alias = "exec")]
    #[doc(alias = "run")]
    pub fn command(&self, program: impl AsRef<OsStr>) -> GuestCommand {
        GuestCommand {
            vm: self.clone(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            env_clear: false,
            current_dir: None,
            uid: None,
            gid: None,
            stdin: Stdin::Bytes(Vec::new()),
            timeout: None,
            agent_timeout: AGENT_TIMEOUT,
            output_grace: OUTPUT_GRACE,
            output_limit: OUTPUT_LIMIT,
            is_copy: false,
        }
    }
}

/// A command for the guest; [`Vm::command`] returns it and has an example.
///
/// Like [`std::process::Command`], it can be executed several times. The program gets
///
/// - the environment of the agent, with the changes of [`env`](Self::env); `PATH` is set if the agent has none;
/// - the current directory `/`, unless [`current_dir`](Self::current_dir) sets another one;
/// - an empty standard input, unless [`stdin`](Self::stdin) or [`stdin_piped`](Self::stdin_piped) sets another one;
/// - the user of the agent, usually root, unless [`uid`](Self::uid) sets another one;
/// - a process group of its own, and no terminal.
#[derive(Clone, Debug)]
#[must_use = "a command does nothing until it is executed"]
pub struct GuestCommand {
    vm: Vm,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    env_clear: bool,
    current_dir: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    stdin: Stdin,
    timeout: Option<Duration>,
    agent_timeout: Duration,
    output_grace: Duration,
    output_limit: usize,
    is_copy: bool,
}

#[derive(Clone, Debug)]
enum Stdin {
    Bytes(Vec<u8>),
    Piped,
}

/// # Set up
///
/// ```no_run
/// # use std::time::Duration;
/// # let vm = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
/// # let vm = vm.start_scoped("console=ttyS0 no_timer_check")?;
/// let output = vm
///     .command("sh")
///     .args(["-c", "pwd; id -u; echo $GREETING"])
///     .env_clear()
///     .envs([("PATH", "/bin"), ("GREETING", "hello")])
///     .current_dir("/tmp")
///     .uid(1000)
///     .gid(1000)
///     .timeout(Duration::from_secs(600))
///     .agent_timeout(Duration::from_secs(300))
///     .output_grace(Duration::from_secs(1))
///     .output_limit(4096)
///     .output()?;
/// assert_eq!(output.stdout, b"/tmp\n1000\nhello\n");
/// # Ok::<(), hyperkit::Error>(())
/// ```
impl GuestCommand {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    pub fn envs(self, variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        variables.into_iter().fold(self, |command, (name, value)| command.env(name, value))
    }

    /// Removes all environment variables: those of the agent, and those that were set before.
    pub fn env_clear(mut self) -> Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Sets the current directory, a path in the guest.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sets the user ID. The agent must be root for it.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Sets the group ID. The agent must be root for it.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Sets what the program reads from standard input. By default standard input is empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Connects standard input to [`GuestChild::stdin`]. [`output`](Self::output) and [`status`](Self::status) close it at once.
    pub fn stdin_piped(mut self) -> Self {
        self.stdin = Stdin::Piped;
        self
    }

    /// Sets how long the program may run. When the time is up, the agent kills the program with all its descendants, and the
    /// call that waits returns [`Error::CommandTimedOut`]. By default there is no limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long the agent may take to answer before the program starts. This includes the time that the guest takes to
    /// boot, and the time for which another program uses the agent. The default is 60 s.
    pub fn agent_timeout(mut self, timeout: Duration) -> Self {
        self.agent_timeout = timeout;
        self
    }

    /// Sets how long output is still read after the program's exit, if other processes hold it open. Those are processes that
    /// the program has started and left running. The default is 0.5 s. With [`Duration::MAX`], output is read until all of
    /// them have closed it.
    pub fn output_grace(mut self, grace: Duration) -> Self {
        self.output_grace = grace;
        self
    }

    /// Sets how many bytes [`output`](Self::output) reads at most, of standard output and standard error together. The
    /// default is 1 GiB.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }
}

/// # Execute
impl GuestCommand {
    /// Executes the program, waits for its end, and returns how it ended and what it wrote. [`Vm::command`] has an example.
    ///
    /// # Errors
    /// - [`ConfigError::MissingPrerequisite`] if the description has no [`agent`](crate::HyperKit::agent), and other
    ///   [`Error::InvalidConfig`] if an argument or variable cannot be passed;
    /// - [`Error::NotRunning`], [`Error::Replaced`], [`Error::Io`];
    /// - [`Error::AgentNotResponding`] if the agent does not answer in time;
    /// - [`Error::CommandNotStarted`] if the program or the current directory was not found, or the program cannot be executed;
    /// - [`Error::CommandTimedOut`] after [`timeout`](Self::timeout), [`Error::CommandOutputTooLong`];
    /// - [`Error::VmExited`] if the VM exits meanwhile, and [`Error::AgentFailed`] if the agent exits or sends what it must not send.
    pub fn output(&self) -> Result<GuestOutput> {
        self.start(false)?.collect(self.output_limit)
    }

    /// Executes the program, waits for its exit, and returns how it exited. Its output is discarded.
    ///
    /// # Errors
    /// Those of [`output`](Self::output).
    pub fn status(&self) -> Result<GuestStatus> {
        self.start(true)?.wait()
    }

    /// Starts the program, and returns when it runs.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// # let vm = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
    /// # let vm = vm.start_scoped("console=ttyS0 no_timer_check")?;
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    ///
    /// let mut cat = vm.command("cat").stdin_piped().agent_timeout(Duration::from_secs(300)).spawn()?;
    /// println!("process {} in the guest", cat.id());
    /// let (mut stdin, mut stdout) = (cat.stdin.take().ok_or("no stdin")?, cat.stdout.take().ok_or("no stdout")?);
    /// stdin.write_all(b"hello")?;
    /// let mut answer = [0; 5];
    /// stdout.read_exact(&mut answer)?;
    /// assert_eq!(&answer, b"hello");
    /// assert_eq!(cat.try_wait()?, None);
    /// drop(stdin); // the end of its standard input
    /// assert!(cat.wait()?.success());
    ///
    /// let mut sleep = vm.command("sleep").arg("1000").spawn()?;
    /// sleep.signal(15)?;
    /// assert_eq!(sleep.wait_timeout(Duration::from_secs(300))?.ok_or("it still runs")?.signal(), Some(15));
    /// let mut sleep = vm.command("sleep").arg("1000").spawn()?;
    /// sleep.kill()?;
    /// assert_eq!(sleep.wait_with_output()?.status.signal(), Some(9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`output`](Self::output), except those that need the end of the program.
    pub fn spawn(&self) -> Result<GuestChild> {
        self.start(false)
    }

    fn start(&self, is_discarded: bool) -> Result<GuestChild> {
        let request = self.request()?;
        let name = self.program.to_string_lossy().into_owned();
        let deadline = Instant::now().checked_add(self.agent_timeout);
        let connection = self.vm.connect_agent(Attempt { program: &name, timeout: self.agent_timeout, deadline })?;
        let (stdin, is_piped) = match &self.stdin {
            Stdin::Bytes(bytes) => (bytes.clone(), false),
            Stdin::Piped => (Vec::new(), true),
        };
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut stream = Stream::new(stdin, !is_piped, deadline);
        stream.outputs.iter_mut().for_each(|output| output.is_discarded = is_discarded);
        let number = connection.execute(&request, stream);
        let wait = Wait { vm: self.vm.clone(), connection, number, name, timeout: self.timeout.unwrap_or_default() };
        GuestChild::new(wait, is_piped, !is_discarded).map_err(|error| self.with_current_dir(error))
    }

    /// Adds the path of the current directory to the error that concerns it. The agent does not send the path back.
    fn with_current_dir(&self, error: Error) -> Error {
        match (error, &self.current_dir) {
            (Error::CommandNotStarted { program, reason: reason @ NotStarted::CurrentDir, source }, Some(dir)) => {
                let source = io::Error::new(source.kind(), format!("{}: {source}", dir.display()));
                Error::CommandNotStarted { program, reason, source }
            }
            (error, _) => error,
        }
    }

    fn request(&self) -> Result<Vec<u8>> {
        let bytes = |text: &OsStr| match text.as_bytes().contains(&0) {
            false => Ok(text.as_bytes().to_vec()),
            true => Err(ConfigError::ForbiddenCharacter {
                field: "command",
                value: text.to_string_lossy().into_owned(),
                character: '\0',
            }),
        };
        let variable = |(name, value): &(OsString, OsString)| {
            let (name, value) = (bytes(name)?, bytes(value)?);
            if name.is_empty() || name.contains(&b'=') {
                let value = String::from_utf8_lossy(&name).into_owned();
                return Err(ConfigError::ForbiddenCharacter { field: "command", value, character: '=' });
            }
            Ok([&name[..], b"=", &value].concat())
        };
        let argv = std::iter::once(&self.program).chain(&self.args).map(|text| bytes(text));
        let request = Request {
            argv: argv.collect::<Result<_, _>>()?,
            env: self.env.iter().map(variable).collect::<Result<_, _>>()?,
            env_clear: self.env_clear,
            cwd: bytes(self.current_dir.as_deref().unwrap_or(Path::new("")).as_os_str())?,
            uid: self.uid,
            gid: self.gid,
            grace_ms: self.output_grace.as_millis().try_into().unwrap_or(u32::MAX),
            is_copy: self.is_copy,
        };
        let request = request.encode();
        if request.len() > MAX_REQUEST {
            let value = self.program.to_string_lossy().into_owned();
            let too_long = ConfigError::TooLong { field: "command", value, length: request.len(), limit: MAX_REQUEST };
            return Err(Error::from(too_long));
        }
        Ok(request)
    }
}
