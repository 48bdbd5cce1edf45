//! Boots a kernel: `cargo run --example boot -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/number.rs"]
mod number;
#[path = "../shared/outcome.rs"]
mod outcome;

use std::error::Error;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use hyperkit::{Console, Disk, Disks, Exit, HyperKit, PortForward, Vm};
use lexopt::prelude::*;
use number::number;

const HELP: &str = "\
Boots a Linux kernel with hyperkit or QEMU, its console on this terminal.

    cargo run --example boot -- [OPTIONS]

Without --kernel it boots the guest that examples/setup.sh creates.

  --kernel FILE       an x86 bzImage           --initrd FILE      its initial RAM disk
  --cmdline TEXT      kernel command line (default: console=ttyS0 panic=1)
  --cpus N            vCPUs (default: 1)       --memory MIB       memory (default: 1024)
  --bootrom FILE      UEFI or the like, instead of a kernel; without a command line
  --disk FILE         a raw or qcow2 image     --iso FILE         an ISO image
  --disk-size MIB     creates the last --disk with this size if it is missing; alone, a disk in the state directory
  --vpnkit auto|SOCK  network                  --vpnkit-key UUID  for the same address each time
  --forward PORT:PORT forwards a TCP port of 127.0.0.1 (0: any) to the guest's; QEMU, with --vpnkit auto
  --vsock             a vsock device           --vsock-port PORT  with a socket on the host, hyperkit, at most 4
  --vsock-cid CID     (default: 3)             --9p TAG=PATH      a directory (QEMU) or 9p server's socket
  --uuid UUID         the VM's                 --console WHERE    stdio, file (in the state directory) or log
  --gdb PORT          for a debugger           --extra ARGUMENT   for the hypervisor, unchanged, after all others
  --hyperkit PROGRAM  hyperkit or qemu-system-x86_64, by name or path (default: the first that is installed)
  --state-dir DIR     records the VM (default: target/vm)
  --no-state          records nothing

  --background        starts the VM, prints how to reach it, and leaves it running; its console is then a pty with a log
  --shutdown          presses the power button of the VM in the state directory, and kills the hypervisor after 30 s
  --stop              kills the hypervisor
  --pause, --resume   stops the vCPUs, and lets them continue
  --attach            makes this terminal the VM's console; Ctrl-] leaves it, and the VM keeps running. Of two terminals
                      that are attached at once, each gets a part of the output
  --remove            deletes what was created in the state directory; with --keep-disk, keeps the disks
  --arguments         only prints the arguments of the hypervisor: hyperkit, unless --hyperkit says QEMU
  --help              prints this text

Without one of these actions the VM runs in the foreground and ends with this program, also if this program is killed.
Every key goes to the guest, ^C among them. The end of standard input ends neither the VM nor --attach; poweroff in
the guest does, or --stop from elsewhere.
";

const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest");
const STATE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/vm");

#[derive(PartialEq)]
enum Action {
    Run,
    Background,
    Shutdown,
    Stop,
    Pause,
    Resume,
    Attach,
    Remove,
    Arguments,
}

impl Action {
    /// By their flags.
    const ACTIONS: [(&str, Self); 8] = [
        ("background", Self::Background),
        ("shutdown", Self::Shutdown),
        ("stop", Self::Stop),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("attach", Self::Attach),
        ("remove", Self::Remove),
        ("arguments", Self::Arguments),
    ];
}

struct Command {
    description: HyperKit,
    cmdline: String,
    action: Action,
    keep_disk: bool,
}

fn main() -> ExitCode {
    let _ = log::set_logger(&Logger).map(|()| log::set_max_level(log::LevelFilter::Info));
    match parse().and_then(execute) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Command>, Box<dyn Error>> {
    let mut description = HyperKit::new();
    let mut cmdline = None;
    let (mut action, mut keep_disk, mut is_recorded) = (Action::Run, false, true);
    let mut flags = lexopt::Parser::from_env();
    while let Some(flag) = flags.next()? {
        let Long(name) = flag else { return Err(flag.unexpected().into()) };
        match name {
            "help" => {
                print!("{HELP}");
                return Ok(None);
            }
            "kernel" => description = description.kernel(flags.value()?),
            "initrd" => description = description.initrd(flags.value()?),
            "cmdline" => cmdline = Some(flags.value()?.string()?),
            "cpus" => description = description.cpus(number(&mut flags, "--cpus")?),
            "memory" => description = description.memory_mib(number(&mut flags, "--memory")?),
            "bootrom" => description = description.bootrom(flags.value()?),
            "disk" => description = description.disk(flags.value()?),
            "disk-size" => match (number(&mut flags, "--disk-size")?, description.disks.last_mut()) {
                (size, Some(disk)) if disk.size_mib.is_none() => disk.size_mib = Some(size),
                (size, _) => description = description.disk(Disk::in_state_dir(size)),
            },
            "iso" => description = description.iso(flags.value()?),
            "vpnkit" => description = description.vpnkit(flags.value()?),
            "vpnkit-key" => description = description.vpnkit_key(flags.value()?.string()?),
            "forward" => {
                let value = flags.value()?.string()?;
                let ports =
                    value.split_once(':').and_then(|(host, guest)| Some((host.parse().ok()?, guest.parse().ok()?)));
                let (host, guest) = ports.ok_or("--forward takes PORT:PORT")?;
                description = description.port_forward(PortForward::tcp(host, guest));
            }
            "gdb" => description = description.gdb_port(number(&mut flags, "--gdb")?),
            "extra" => description = description.extra_argument(flags.value()?.string()?),
            "vsock" => description = description.vsock(true),
            "vsock-port" => description = description.vsock_port(number(&mut flags, "--vsock-port")?),
            "vsock-cid" => description = description.vsock_guest_cid(number(&mut flags, "--vsock-cid")?),
            "9p" => {
                let value = flags.value()?.string()?;
                let (tag, path) = value.split_once('=').ok_or("--9p takes TAG=PATH")?;
                description = description.socket_9p(path, tag);
            }
            "uuid" => description = description.uuid(flags.value()?.string()?),
            "console" => {
                description.console = Some(match flags.value()?.string()?.as_str() {
                    "stdio" => Console::Stdio,
                    "file" => Console::Pty,
                    "log" => Console::AppleLog,
                    _ => return Err("--console takes stdio, file or log".into()),
                })
            }
            "hyperkit" => description = description.hyperkit(flags.value()?),
            "state-dir" => description = description.state_dir(flags.value()?),
            "no-state" => is_recorded = false,
            "keep-disk" => keep_disk = true,
            _ => match Action::ACTIONS.into_iter().find(|(known, _)| *known == name) {
                Some((_, wanted)) if action == Action::Run => action = wanted,
                Some((name, _)) => return Err(format!("--{name} is a second action").into()),
                None => return Err(flag.unexpected().into()),
            },
        }
    }
    if !is_recorded && description.state_dir.is_some() {
        return Err("--no-state and --state-dir exclude each other".into());
    }
    if is_recorded {
        description.state_dir.get_or_insert(STATE_DIR.into());
    }
    let has_rom = description.bootrom.is_some();
    let cmdline = cmdline.unwrap_or_else(|| if has_rom { String::new() } else { "console=ttyS0 panic=1".to_owned() });
    if description.kernel.is_none()
        && !has_rom
        && matches!(action, Action::Run | Action::Background | Action::Arguments)
    {
        let guest = Path::new(GUEST);
        if !guest.join("vmlinuz").exists() {
            return Err("no guest in target/guest: run examples/setup.sh, or give --kernel and --initrd".into());
        }
        description = description.kernel(guest.join("vmlinuz"));
        description.initrd.get_or_insert(guest.join("initrd.img"));
    }
    Ok(Some(Command { description, cmdline, action, keep_disk }))
}

fn execute(command: Option<Command>) -> Result<ExitCode, Box<dyn Error>> {
    let Some(Command { description, cmdline, action, keep_disk }) = command else { return Ok(ExitCode::SUCCESS) };
    let dir = description.state_dir.clone().unwrap_or_default();
    match action {
        Action::Run => {
            let exit = description.run(&cmdline)?;
            eprintln!("boot: the VM {exit}");
            return Ok(if exit == Exit::PowerOff { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Background => print_access(&description.start(&cmdline)?, &dir)?,
        Action::Shutdown | Action::Stop | Action::Pause | Action::Resume | Action::Attach => {
            let Some(vm) = HyperKit::from_state(&dir)?.vm()? else {
                println!("The VM was not running.");
                let is_fine = matches!(action, Action::Shutdown | Action::Stop);
                return Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            };
            let result = match action {
                Action::Shutdown => outcome::describe(vm.shutdown(Duration::from_secs(30))?),
                Action::Stop => vm.kill().map(|()| "was killed")?,
                Action::Pause => vm.pause().map(|()| "is paused")?,
                Action::Attach => attach::attach(&vm)?,
                _ => vm.resume().map(|()| "was resumed")?,
            };
            println!("The VM {result}.");
        }
        Action::Remove => {
            HyperKit::from_state(&dir)?.remove(if keep_disk { Disks::Keep } else { Disks::Delete })?;
            println!("The VM was removed.");
        }
        Action::Arguments => {
            // The reader may have closed the pipe.
            let _ = writeln!(stdout(), "{}", description.arguments(&cmdline)?.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints how to reach and end a VM that runs in the background.
fn print_access(vm: &Vm, dir: &Path) -> Result<(), Box<dyn Error>> {
    println!("The VM runs as process {}, recorded in {}.", vm.pid(), dir.display());
    for forward in vm.port_forwards()? {
        println!("  {forward}");
    }
    println!("  console: cargo run --example boot -- --attach --state-dir {}", dir.display());
    for pty in vm.description().pty_paths().into_iter().flatten() {
        println!("  or: screen {}", pty.display());
    }
    if vm.description().console == Some(Console::Pty) {
        println!("  console log: cargo run --example ctl -- log {}", dir.display());
    }
    for (action, flag) in [("power button", "--shutdown"), ("kill the hypervisor", "--stop"), ("remove", "--remove")] {
        println!("  {action}: cargo run --example boot -- {flag} --state-dir {}", dir.display());
    }
    Ok(())
}

/// Prints the output of the hypervisor on standard error.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The hypervisor may have put the terminal into raw mode, where a newline alone does not return to the margin.
        let end = if stderr().is_terminal() { "\r\n" } else { "\n" };
        let _ = write!(stderr(), "boot: {}{end}", record.args());
    }

    fn flush(&self) {}
}
