//! Boots a kernel: `cargo run --example boot -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/ctl_command.rs"]
mod ctl_command;
mod flags;
#[path = "../shared/guest.rs"]
mod guest;
#[path = "../shared/messages.rs"]
mod messages;
#[path = "../shared/output.rs"]
mod output;
#[path = "../shared/shell.rs"]
mod shell;
#[path = "../shared/terminal.rs"]
mod terminal;
#[path = "../shared/unread.rs"]
mod unread;
#[path = "../shared/usage.rs"]
mod usage;

use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::thread;
use std::time::Duration;

use attach::{Attachment, Left, Output};
use ctl_command::ctl_command;
use flags::{Action, Command};
use hyperkit::{Console, Engine, Error, Exit, HyperKit, Vm};
use output::{print, warn};
use unread::when_unread;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MENU: &str = "boot: (d)etach, (p)ower button, (k)ill; any other key continues:";
/// How long the guest may take to power off before it is killed.
const GRACE: Duration = Duration::from_secs(30);
/// How long the hypervisor may take to exit after it has closed the console.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = match flags::parse() {
        Ok(Some(command)) => command,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return usage::refuse("boot", &*error),
    };
    let level = if command.is_verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn };
    let _ = log::set_logger(&Logger).map(|()| log::set_max_level(level));
    execute(command).unwrap_or_else(|error| {
        warn(format_args!("boot: {}\n", messages::explain(&*error, true)));
        ExitCode::FAILURE
    })
}

fn execute(command: Command) -> Result<ExitCode> {
    let Command { action, mut description, architecture, cmdline, .. } = command;
    let has_program = description.hyperkit.is_some();
    let engine = match guest::engine(architecture, &description)? {
        // Without a program, `HyperKit::arguments` returns those of hyperkit.
        Engine::Qemu if action == Action::PrintArguments && !has_program => Engine::HyperKit,
        engine => engine,
    };
    if description.kernel.is_none() && description.bootrom.is_none() {
        let (kernel, initrd) = guest::kernel_and_initrd(engine)?;
        description = description.kernel(kernel);
        description.initrd.get_or_insert(initrd);
    }
    // A start finds the program by the kernel's architecture. A boot ROM does not show its architecture, and `--arguments` starts nothing.
    let needs_program = action == Action::PrintArguments || (description.bootrom.is_some() && architecture.is_some());
    if needs_program && !has_program {
        description = match engine {
            Engine::Qemu => description.hyperkit("qemu-system-x86_64"),
            Engine::QemuArm64 => description.hyperkit("qemu-system-aarch64"),
            _ => description,
        };
    }
    let cmdline = flags::kernel_cmdline(cmdline.as_deref(), &description, engine.kernel_console());
    match action {
        Action::Background => print_access(&description.start(&cmdline)?)?,
        Action::PrintArguments => {
            // The reader may have closed the pipe.
            let _ = writeln!(stdout(), "{}", description.arguments(&cmdline)?.join("\n"));
        }
        Action::Foreground => {
            description.check()?; // before anything is said
            let is_attachable =
                description.state_dir.is_some() && description.console.is_none_or(|it| it == Console::Pty);
            let is_attached = is_attachable && stdin().is_terminal();
            terminal::restore_on_signal(!is_attached)?;
            let exit = match is_attached {
                true => run_attached(&description, &cmdline)?,
                false => Some(run(&description, &cmdline)?),
            };
            if let Some(exit) = exit {
                warn(format_args!("boot: the VM {exit}\n"));
                return Ok(if exit == Exit::PowerOff { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the VM with its console on standard input and output, until it exits.
fn run(description: &HyperKit, cmdline: &str) -> Result<Exit> {
    let pid = std::process::id();
    warn(format_args!("boot: `poweroff` in the guest ends the VM, and so does, from elsewhere: kill {pid}\n"));
    when_unread(|| {
        terminal::restore();
        warn("boot: nobody reads the output any more, so the VM is killed\n");
        exit(1); // which kills the VM
    });
    Ok(description.run(cmdline)?)
}

/// Runs the VM with its console on a pty, to which this terminal is attached, until it exits; `None` if it was detached.
fn run_attached(description: &HyperKit, cmdline: &str) -> Result<Option<Exit>> {
    warn("boot: starting a VM. Ctrl-] asks how to leave it, `poweroff` in the guest ends it.\n");
    let vm = match description.start_scoped(cmdline) {
        Err(Error::HypervisorFailed { exit, .. }) if exit.is_guest() => return exited_early(description, exit),
        vm => vm?,
    };
    if vm.description().recorded_arguments().windows(2).any(|pair| pair == ["-accel", "tcg"]) {
        warn("boot: without KVM, QEMU emulates the CPU; the guest boots in some seconds\n");
    }
    let mut terminal = match Attachment::new(&vm, Output::FromStart) {
        Ok(terminal) => terminal,
        // A hypervisor that exits closes the console first.
        Err(error) => match vm.wait_timeout(EXIT_TIMEOUT) {
            Some(exit) => return exited_early(description, exit),
            None => return Err(error),
        },
    };
    while let Left::Escaped = terminal.pass_keys()? {
        match terminal.ask(MENU) {
            Some(b'd') if vm.try_wait().is_none() => {
                drop(terminal);
                print_access(&vm.keep())?;
                return Ok(None);
            }
            Some(b'p') => {
                let grace = GRACE.as_secs();
                warn(format_args!("boot: pressed the power button; the guest has {grace} s, then it is killed\r\n"));
                let vm = Vm::clone(&vm);
                thread::spawn(move || vm.shutdown(GRACE));
            }
            Some(b'k') => vm.kill()?,
            _ => {}
        }
    }
    drop(terminal);
    let exit = vm.wait();
    let log_tail = vm.log_tail();
    if let Some((_, reason)) = log_tail.console.lines().find_map(|line| line.split_once("Kernel panic - not syncing: "))
    {
        warn(format_args!("boot: the guest's kernel has panicked: {}\n", reason.trim_end()));
    }
    if let Exit::Failed(_) = exit {
        warn(format_args!("boot: the hypervisor's output: {}\n", log_tail.hypervisor));
    }
    Ok(Some(exit))
}

/// The guest was faster than the start, and its output is only in the log.
fn exited_early(description: &HyperKit, exit: Exit) -> Result<Option<Exit>> {
    stdout().write_all(&description.console_log()?)?;
    Ok(Some(exit))
}

/// Prints how to reach and end a VM that runs in the background.
fn print_access(vm: &Vm) -> Result<()> {
    let dir = vm.state_dir().unwrap_or(Path::new(""));
    let mut text = format!("The VM runs as process {}, recorded in {}.\n", vm.pid(), dir.display());
    // The VM runs, also if not all about it can be found out.
    let failed = |error: Error| warn(format_args!("boot: {error:#}\n"));
    for forward in vm.port_forwards().map_err(failed).unwrap_or_default() {
        text += &format!("  port:         {forward}\n");
    }
    for pty in vm.description().pty_paths().map_err(failed).unwrap_or_default() {
        text += &format!("  console:      {}\n", ctl_command("console", dir));
        text += &format!("  or:           screen {}\n", pty.display());
    }
    if vm.description().console == Some(Console::Pty) {
        text += &format!("  console log:  {}\n", ctl_command("log", dir));
    }
    for (what, command) in [("power button:", "shutdown"), ("kill:", "stop"), ("then delete:", "rm")] {
        text += &format!("  {what:<13} {}\n", ctl_command(command, dir));
    }
    print(text).map_err(|error| format!("the VM runs as process {}, but {error}", vm.pid()).into())
}

/// Prints warnings of the library, and with `--verbose` the output of the hypervisor, on standard error.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The terminal may be in raw mode, where a newline alone does not return to the margin.
        let end = if stderr().is_terminal() { "\r\n" } else { "\n" };
        let _ = write!(stderr(), "boot: {}{end}", record.args());
    }

    fn flush(&self) {}
}
