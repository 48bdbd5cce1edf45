//! Controls VMs by their state directories: `cargo run --example ctl -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/ctl_command.rs"]
mod ctl_command;
#[path = "../shared/messages.rs"]
mod messages;
#[path = "../shared/output.rs"]
mod output;
mod query;
#[path = "../shared/shell.rs"]
mod shell;
#[path = "../shared/terminal.rs"]
mod terminal;
#[path = "../shared/usage.rs"]
mod usage;
#[path = "../shared/vms.rs"]
mod vms;

use std::io::{self, BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use attach::{Attachment, Left, Output};
use ctl_command::ctl_command;
use hyperkit::{Console, Disks, Error, ErrorKind, HyperKit, ShutdownOutcome, Vm};
use output::warn;
use serde_json::json;
use usage::{number, print_help, text, unexpected, unknown};

const HELP: &str = "\
Controls the VMs that state directories record.

    cargo run --example ctl -- [--json] COMMAND [DIR ...]

  list [DIR]                   lists the VM in DIR and those in the directories in DIR, one level deep. Without DIR, those in
                               the current directory and those of `exec`, also after SIGKILL of `exec`
  show DIR                     shows one VM: its state, how to reach it, its description and its hypervisor's arguments
  start [--cmdline TEXT] DIR   starts it again in the background, as the last time
  console DIR                  makes this terminal its console. Ctrl-] (byte 29) detaches, the end of input does not.
                               If a second terminal attaches, both print a notice. On QEMU both show all output, on
                               hyperkit each shows a part of it
  log [--follow] DIR           prints its console's output; with --follow or -f, also what follows, until the VM exits
  pause DIR                    stops its vCPUs; on QEMU, list and show then show it as paused
  resume DIR                   lets its vCPUs continue
  shutdown [--grace S] DIR     presses its power button, and kills the hypervisor after S seconds (30)
  stop DIR                     kills the hypervisor at once, without a shutdown
  rm [--keep-disk|--yes] DIR   deletes what was created in the directory, also disks. On a terminal it asks before it
                               deletes a disk, unless there is --yes; elsewhere it does not ask

With several DIRs, an error with one does not stop the others. With --json each answer is a line of JSON.
--help prints this text. The exit status is 1 after an error, and 2 if the command line is wrong.
";

const COMMANDS: [&str; 10] = ["list", "show", "start", "console", "log", "pause", "resume", "shutdown", "stop", "rm"];
/// How long a guest may take to power off, in seconds.
const DEFAULT_GRACE: u64 = 30;
/// After this time, `shutdown` says that it waits.
const NOTICE_DELAY: Duration = Duration::from_secs(1);

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Default)]
struct Options {
    json: bool,
    follow: bool,
    keep_disk: bool,
    yes: bool,
    cmdline: Option<String>,
    grace: Option<u64>,
}

fn main() -> ExitCode {
    match parse().map(|command| command.is_none_or(|(options, words)| execute(&options, &words))) {
        Ok(true) if !HAS_LOST_OUTPUT.load(Ordering::Relaxed) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => usage::refuse("ctl", &*error),
    }
}

/// Returns the options and the other words: a command and at least one directory. `None` after printing help.
fn parse() -> Result<Option<(Options, Vec<PathBuf>)>> {
    use lexopt::prelude::*;
    let (mut options, mut words) = (Options::default(), Vec::<PathBuf>::new());
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print_help("ctl", HELP);
                return Ok(None);
            }
            Long("json") => options.json = true,
            Short('f') | Long("follow") => options.follow = true,
            Long("keep-disk") => options.keep_disk = true,
            Short('y') | Long("yes") => options.yes = true,
            Long("cmdline") => options.cmdline = Some(text(&mut args, "--cmdline")?),
            Long("grace") => options.grace = Some(number(&mut args, "--grace")?),
            Value(word) => words.push(word.into()),
            _ => return Err(unexpected(arg, HELP).into()),
        }
    }
    let command = words.first().map_or("", |word| word.to_str().unwrap_or_default());
    let is_for = |commands: &[&str]| commands.contains(&command);
    for (option, is_set, commands) in [
        ("-f", options.follow, &["log"][..]),
        ("--keep-disk", options.keep_disk, &["rm"]),
        ("--yes", options.yes, &["rm"]),
        ("--cmdline", options.cmdline.is_some(), &["start"]),
        ("--grace", options.grace.is_some(), &["shutdown"]),
    ] {
        if is_set && !is_for(commands) {
            return Err(format!("{option} requires the command {}", commands.join(" or ")).into());
        }
    }
    match words.len() {
        0 => Err("missing command".into()),
        _ if !is_for(&COMMANDS) => Err(unknown("command", &words[0].to_string_lossy(), COMMANDS).into()),
        1 if command == "list" => {
            words.push(".".into());
            words.extend(Some(vms::exec_dir()).filter(|dir| dir.is_dir()));
            Ok(Some((options, words)))
        }
        1 => Err(format!("{command} requires a DIR").into()),
        3.. if is_for(&["list", "console"]) => Err(format!("{command} takes one DIR").into()),
        _ if words.iter().any(|word| word.as_os_str().is_empty()) => Err("DIR is empty".into()),
        _ if command == "console" && options.json => Err("console has no --json".into()),
        _ => Ok(Some((options, words))),
    }
}

/// Returns whether all directories were handled without an error.
fn execute(options: &Options, words: &[PathBuf]) -> bool {
    let (command, dirs) = words.split_first().map_or((Path::new(""), words), |(command, dirs)| (command, dirs));
    let (mut success, mut is_empty) = (true, command == Path::new("list"));
    for dir in dirs {
        let done = match command.to_str().unwrap_or_default() {
            "list" => query::list(dir, options).map(|has_vms| is_empty &= !has_vms),
            "show" => query::show(dir, options),
            "log" => query::log(dir, options),
            command => act(command, dir, options),
        };
        if let Err(error) = done {
            match options.json {
                true => {
                    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
                    print(&json!({ "dir": dir, "error": error_line(&*error) }).to_string());
                }
                false => {
                    let text = format!("ctl: {}: {}\n", dir.display(), messages::explain(&*error, false));
                    warn(if stderr().is_terminal() { escaped(&text) } else { text });
                }
            }
            success = false;
        }
    }
    if is_empty && success && !options.json {
        let dirs: Vec<_> = dirs.iter().flat_map(std::fs::canonicalize).map(|dir| dir.display().to_string()).collect();
        warn(format_args!("no VMs in {}; list looks one level deep\n", dirs.join(" and ")));
    }
    success
}

/// An error with its causes.
fn error_line(error: &(dyn std::error::Error + 'static)) -> String {
    error.downcast_ref::<Error>().map_or_else(|| error.to_string(), |error| format!("{error:#}"))
}

/// Whether output could not be written, other than to a reader that has read enough.
static HAS_LOST_OUTPUT: AtomicBool = AtomicBool::new(false);

/// Prints a line. Returns whether more can be printed.
fn try_print(line: &str) -> bool {
    let line = if stdout().is_terminal() { escaped(line) } else { line.to_owned() };
    match writeln!(stdout(), "{line}") {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::BrokenPipe && !HAS_LOST_OUTPUT.swap(true, Ordering::Relaxed) {
                warn(format_args!("ctl: cannot write the output: {error}\n"));
            }
            false
        }
    }
}

fn print(line: &str) {
    try_print(line);
}

/// A text without control sequences, which a guest can print and which file names can contain. A terminal answers some of them,
/// and the next program would read the answer.
fn escaped(text: &str) -> String {
    let escape = |character: char| match character {
        '\t' | '\n' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Returns the description in a state directory, and the VM if it runs. A running VM is also found if the state file is
/// damaged or missing; its description is then incomplete.
fn find(dir: &Path) -> hyperkit::Result<(HyperKit, Option<Vm>)> {
    match HyperKit::from_state(dir) {
        Err(error) if error.kind() == ErrorKind::State => match HyperKit::new().state_dir(dir).vm()? {
            Some(vm) => Ok((vm.description().clone(), Some(vm))),
            None => Err(error),
        },
        description => {
            let description = description?;
            let vm = description.vm()?;
            Ok((description, vm))
        }
    }
}

/// Does something to one VM, and prints the result.
fn act(command: &str, dir: &Path, options: &Options) -> Result<()> {
    let (mut description, vm) = match find(dir) {
        Err(Error::DamagedState { .. }) if command == "rm" => (HyperKit::new().state_dir(dir), None),
        found => found?,
    };
    let mut done = json!({ "dir": description.state_dir, "done": command });
    let running = || vm.as_ref().ok_or_else(|| format!("VM not running; start it: {}", ctl_command("start", dir)));
    let result = match command {
        "start" => {
            if description.serials.is_none() && description.console == Some(Console::Stdio) {
                description.console = None; // in the background there is no terminal
            }
            let last = description.recorded_kernel_cmdline().unwrap_or_default();
            let vm = description.start(options.cmdline.as_ref().unwrap_or(&last))?;
            done["pid"] = vm.pid().into();
            format!("runs as process {}", vm.pid())
        }
        "rm" => {
            let disks = query::created_disks(&description);
            let (names, sizes): (Vec<_>, Vec<_>) =
                disks.iter().map(|(name, size)| (name, format!("{name} ({size})"))).unzip();
            if !options.keep_disk {
                done["disks"] = json!(names);
            }
            match sizes.join(", ") {
                sizes if sizes.is_empty() => {
                    description.remove(Disks::Delete)?;
                    "was removed".to_owned()
                }
                sizes if options.keep_disk => {
                    description.remove(Disks::Keep)?;
                    format!("was removed, except {sizes}")
                }
                sizes => {
                    let asks = !options.yes && !options.json && vm.is_none() && stdin().is_terminal();
                    if asks && !is_confirmed(&format!("{}: delete the VM with {sizes}? [y/N] ", dir.display()))? {
                        return Err("nothing was removed".into());
                    }
                    description.remove(Disks::Delete)?;
                    format!("was removed, with {sizes}")
                }
            }
        }
        "console" => console(running()?)?.to_owned(),
        "pause" => running()?.pause().map(|()| "is paused".to_owned())?,
        "resume" => running()?.resume().map(|()| "was resumed".to_owned())?,
        _ => match &vm {
            None => "was not running".to_owned(),
            Some(vm) if command == "stop" => vm.kill().map(|()| "was killed".to_owned())?,
            Some(vm) => shutdown(vm, options)?.to_owned(),
        },
    };
    done["said"] = result.as_str().into();
    print(&if options.json { done.to_string() } else { format!("{}: {result}", dir.display()) });
    Ok(())
}

/// Asks a question, to which `y` is yes.
fn is_confirmed(question: &str) -> Result<bool> {
    warn(escaped(question));
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Makes this terminal the console until the escape key is typed or the VM exits. Returns which, as a predicate.
fn console(vm: &Vm) -> Result<&'static str> {
    terminal::restore_on_signal(false)?;
    let pid = vm.pid();
    warn(format_args!("Attached to the console of process {pid}; Ctrl-] leaves it. Return may show a prompt.\n"));
    let left = Attachment::new(vm, Output::FromNow)?.pass_keys()?;
    Ok(match left {
        Left::Exited => "exited",
        Left::Escaped => {
            warn("\n"); // after the output of the guest
            "still runs"
        }
    })
}

/// Shuts a VM down, and says that it waits if that takes a while. Returns the outcome as a predicate. How a VM exited that
/// another program had started is not known, so this does not name the exit.
fn shutdown(vm: &Vm, options: &Options) -> Result<&'static str> {
    let grace = Duration::from_secs(options.grace.unwrap_or(DEFAULT_GRACE));
    let (done, is_done) = channel::<()>();
    let outcome = thread::scope(|scope| {
        // Without a thread, only the notice is missing.
        let _ = thread::Builder::new().spawn_scoped(scope, move || {
            let is_late = is_done.recv_timeout(NOTICE_DELAY) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            let left = grace.saturating_sub(NOTICE_DELAY).as_secs();
            if is_late && left > 0 && stderr().is_terminal() {
                warn(format_args!("waiting for the guest to power off; killing it in {left} s\n"));
            }
        });
        let outcome = vm.shutdown(grace);
        drop(done);
        outcome
    })?;
    Ok(match outcome {
        ShutdownOutcome::AlreadyExited(_) => "was not running",
        ShutdownOutcome::Graceful(_) => "powered off",
        ShutdownOutcome::Forced(_) => "did not power off and was killed",
        _ => "exited",
    })
}
