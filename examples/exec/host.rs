//! Runs a program of the host, with the host's files.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::{Architecture, Error as VmError, GuestChild, GuestCommand, GuestStatus, HyperKit, Root, Serial, Vm};
use rustix::io::Errno;

use crate::command_line::{HostOptions, Options};
use crate::failure::{before_start, while_running};
use crate::input::Input;
use crate::kernel_initrd::for_kernel;
use crate::output::warn;
use crate::output_copy::copy;
use crate::run_dir::RunDir;
use crate::shell::quoted;
use crate::signals::EndingSignal;
use crate::{Ended, environment, guest};

/// The kernel command line after `console=`. With an emulated CPU, a guest boots 0.1 s faster with `cryptomgr.notests`, and 0.3 s faster
/// with `mitigations=off`. The mitigations would protect nothing: the VM runs one program, which may be root in the guest. Without
/// `no_timer_check`, an x86 kernel panics if an emulated timer interrupt is late, which happens on busy hosts.
const CMDLINE: &str = "quiet panic=-1 no_timer_check cryptomgr.notests mitigations=off";
/// How long `exec` still copies output after a timeout of the program. The reader of the output may hang.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest command in a label.
const LABEL_LENGTH: usize = 200;

/// What happens while the program runs.
enum Event {
    /// The program has ended.
    Exited(hyperkit::Result<GuestStatus>),
    /// An output has ended, or the named one cannot be written to.
    OutputEnded(Result<(), (&'static str, Errno)>),
    Signal(i32),
}

/// Runs the program in a VM that lasts as long as this call.
pub fn run(
    options: &Options,
    host: &HostOptions,
    kernel: Option<&Path>,
    input: &Input,
    ending: &EndingSignal,
) -> Result<Ended, Box<dyn Error>> {
    let mut description = options.description.clone();
    description.kernel = kernel.map(Into::into);
    let engine = guest::engine(options.architecture, &description)?;
    if Some(engine.architecture()) != Architecture::host() {
        return Err(format!("--host-root runs programs of this host, not of {} guests", engine.architecture()).into());
    }
    let (guest_kernel, guest_initrd) = guest::kernel_and_host_root(engine)?;
    let kernel = kernel.unwrap_or(&guest_kernel);
    let own_initrd = for_kernel(kernel, &guest_kernel, &guest_initrd.with_file_name("hyperkit-agent"))?;
    let initrd = own_initrd.as_ref().map_or(&guest_initrd, |initrd| &initrd.path);
    let dir = RunDir::new()?;
    let description = describe(options, host)?.state_dir(dir.path()).kernel(kernel).initrd(initrd);
    let vm = description.start_scoped(&format!("console={} {CMDLINE}", engine.kernel_console()))?;
    let (sender, events) = channel();
    let (signalled, signalled_vm) = (sender.clone(), Vm::clone(&vm));
    ending.on_signal(move |signal| {
        let _ = signalled.send(Event::Signal(signal));
        let _ = signalled_vm.kill();
    });
    let spawned = command(&vm, options, host)?.spawn();
    let modules = own_initrd.map(|initrd| format!(" ({})", initrd.modules)).unwrap_or_default();
    let ended = match spawned {
        Ok(child) => follow(child, input, sender, &events).map_err(|error| while_running(&*error, &vm)),
        Err(error) => Err(before_start(&error, &modules, &vm)),
    };
    match ending.signal() {
        Some(signal) => Ok(Ended::Signalled(signal)),
        None => Ok(ended?),
    }
}

fn describe(options: &Options, host: &HostOptions) -> Result<HyperKit, Box<dyn Error>> {
    let words: Vec<_> =
        options.command.iter().map(|word| String::from_utf8_lossy(&quoted(word)).into_owned()).collect();
    let label = words.join(" ").chars().take(LABEL_LENGTH).collect::<String>();
    let description = options.description.clone().agent(true).serial(Serial::none().log()).label("exec", label);
    // A tag has at most 31 bytes, so it does not contain the path.
    let mut description = description.root(Root::Host);
    for (index, dir) in host.shares.iter().enumerate() {
        let path = fs::canonicalize(dir).map_err(|error| format!("--share {}: {error}", dir.display()))?;
        if path == Path::new("/") {
            return Err("--share /: the program could change every file of the host".into());
        }
        if !path.is_dir() {
            return Err(format!("--share {}: not a directory", dir.display()).into());
        }
        description = description.share_dir(path, format!("share{index}"));
    }
    Ok(description)
}

fn command(vm: &Vm, options: &Options, host: &HostOptions) -> Result<GuestCommand, Box<dyn Error>> {
    let (program, arguments) = options.command.split_first().ok_or("no program")?;
    let dir = std::env::current_dir().map_err(|error| format!("cannot find the current directory: {error}"))?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let command = vm.command(program).args(arguments).current_dir(dir).uid(uid.as_raw()).gid(gid.as_raw());
    let command = command.env_clear().envs(environment::for_program(&host.env)).stdin_piped();
    let command = command.agent_timeout(host.boot_timeout);
    Ok(match host.timeout {
        Some(timeout) => command.timeout(timeout),
        None => command,
    })
}

/// Passes input and output on until the program has ended.
fn follow(
    mut child: GuestChild,
    input: &Input,
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Ended, Box<dyn Error>> {
    // The threads are not joined: one that waits for the terminal or for a full pipe lasts until this program ends.
    let input = input.clone();
    if let Some(stdin) = child.stdin.take() {
        spawn(move || input.pass_on(stdin))?;
    }
    let stdout = (child.stdout.take(), "standard output", rustix::stdio::stdout());
    let stderr = (child.stderr.take(), "standard error", rustix::stdio::stderr());
    let mut open_outputs = 2;
    for (output, name, to) in [stdout, stderr] {
        let sender = sender.clone();
        spawn(move || {
            let copied = output.map_or(Ok(()), |output| copy(output, to));
            let _ = sender.send(Event::OutputEnded(copied.map_err(|error| (name, error))));
        })?;
    }
    spawn(move || drop(sender.send(Event::Exited(child.wait()))))?;
    let (mut status, mut deadline) = (None, None);
    while status.is_none() || open_outputs > 0 {
        let left = deadline.map(|deadline: Instant| deadline.saturating_duration_since(Instant::now()));
        match events.recv_timeout(left.unwrap_or(Duration::MAX)) {
            Ok(Event::Exited(exited)) => {
                deadline = exited.is_err().then(|| Instant::now() + OUTPUT_TIMEOUT);
                status = Some(exited);
            }
            Ok(Event::OutputEnded(Ok(()))) => open_outputs -= 1,
            Ok(Event::OutputEnded(Err((_, Errno::PIPE)))) => return Ok(Ended::Unread),
            Ok(Event::OutputEnded(Err((name, error)))) => return Err(format!("cannot write to {name}: {error}").into()),
            Ok(Event::Signal(signal)) => return Ok(Ended::Signalled(signal)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    match status.ok_or("the program's end was lost")? {
        Ok(GuestStatus::Exited(code)) => Ok(Ended::Status(code.try_into().unwrap_or(u8::MAX))),
        Ok(GuestStatus::Killed(signal)) => Ok(Ended::Status(128 + u8::try_from(signal).unwrap_or(0))),
        Err(VmError::CommandTimedOut { timeout, .. }) => {
            warn(format_args!("exec: timed out after {} s\n", timeout.as_secs()));
            Ok(Ended::TimedOut)
        }
        Err(error) => Err(error.into()),
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().spawn(run).map(drop)
}
