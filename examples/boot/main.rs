//! Boots a kernel: `cargo run --example boot -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/number.rs"]
mod number;
#[path = "../shared/told.rs"]
mod told;

use std::error::Error;
use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use hyperkit::{Console, Disk, Exit, HyperKit, PortForward, Shutdown, VpnKit};
use lexopt::prelude::*;
use number::number;

const HELP: &str = "\
Boots a Linux kernel with hyperkit or QEMU, its console on this terminal.

    cargo run --example boot -- [OPTIONS]

Without --kernel it boots the guest that examples/setup.sh makes.

  --kernel FILE       an x86 bzImage           --initrd FILE      its initial RAM disk
  --cmdline TEXT      kernel command line (default: console=ttyS0 panic=1)
  --cpus N            vCPUs (default: 1)       --memory MIB       memory (default: 1024)
  --bootrom FILE      UEFI or the like, in place of a kernel; there is no command line then
  --disk FILE         a raw or qcow2 image     --iso FILE         an ISO image
  --disk-size MIB     size to make the last --disk with if it is missing; alone, a disk in the state directory
  --vpnkit auto|SOCK  network                  --vpnkit-key UUID  for a lasting address
  --forward PORT:PORT of 127.0.0.1 (0: any) to the guest's, by TCP; QEMU, with --vpnkit auto
  --vsock             a vsock device           --vsock-port PORT  forwarded by hyperkit, 4 at most
  --vsock-cid CID     (default: 3)             --9p TAG=PATH      a directory (QEMU) or 9p server's socket
  --uuid UUID         the machine's            --console WHERE    stdio, file (in the state directory) or log
  --gdb PORT          for a debugger           --extra ARGUMENT   for the program, as it is, behind all others
  --hyperkit PROGRAM  hyperkit or qemu-system-x86_64, by name or path (default: what is there)
  --state-dir DIR     remembers the machine (default: target/vm)
  --no-state          remember nothing

  --background        start it, say how to reach it, and leave it running; its console is then a file
  --shutdown          press the power button of the machine in the state directory; after 30 s pull the plug
  --stop              pull the plug
  --pause, --resume   stop its processors, and let them go on
  --attach            this terminal becomes its console; Ctrl-] leaves it, and the machine runs on. Of two terminals that
                      are attached at once each gets a part of what it says
  --remove            forget it, and delete what was made for it; with --keep-disk, not its disks
  --arguments         only print what the program would be called with; hyperkit, unless --hyperkit says QEMU
  --help              this text

Every key goes to the guest, ^C among them. The end of standard input ends neither a machine nor --attach; poweroff in the guest
does, or --stop from elsewhere.
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
    machine: HyperKit,
    cmdline: String,
    action: Action,
    keep_disk: bool,
}

fn main() -> ExitCode {
    let _ = log::set_logger(&Logger).map(|()| log::set_max_level(log::LevelFilter::Info));
    match parse().and_then(execute) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("boot: {}", told::told(&*error));
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Command>, Box<dyn Error>> {
    let mut machine = HyperKit::new();
    let mut cmdline = None;
    let (mut action, mut keep_disk, mut console, mut remember) = (Action::Run, false, None, true);
    let mut flags = lexopt::Parser::from_env();
    while let Some(flag) = flags.next()? {
        let Long(name) = flag else { return Err(flag.unexpected().into()) };
        match name {
            "help" => {
                print!("{HELP}");
                return Ok(None);
            }
            "kernel" => machine = machine.kernel(flags.value()?),
            "initrd" => machine = machine.initrd(flags.value()?),
            "cmdline" => cmdline = Some(flags.value()?.string()?),
            "cpus" => machine = machine.cpus(number(&mut flags, "--cpus")?),
            "memory" => machine = machine.memory(number(&mut flags, "--memory")?),
            "bootrom" => machine = machine.bootrom(flags.value()?),
            "disk" => machine = machine.disk(Disk::new(flags.value()?)),
            "disk-size" => match (number(&mut flags, "--disk-size")?, machine.disks.last_mut()) {
                (size, Some(disk)) if disk.size.is_none() => disk.size = Some(size),
                (size, _) => machine = machine.disk(Disk::in_state_dir(size)),
            },
            "iso" => machine = machine.iso(flags.value()?),
            "vpnkit" => machine = machine.vpnkit(vpnkit(flags.value()?)),
            "vpnkit-key" => machine = machine.vpnkit_key(flags.value()?.string()?),
            "forward" => {
                let value = flags.value()?.string()?;
                let ports =
                    value.split_once(':').and_then(|(host, guest)| Some((host.parse().ok()?, guest.parse().ok()?)));
                let (host, guest) = ports.ok_or("--forward takes PORT:PORT")?;
                machine = machine.port_forward(PortForward::tcp(host, guest));
            }
            "gdb" => machine = machine.gdb_port(number(&mut flags, "--gdb")?),
            "extra" => machine = machine.extra_argument(flags.value()?.string()?),
            "vsock" => machine = machine.vsock(true),
            "vsock-port" => machine = machine.vsock_port(number(&mut flags, "--vsock-port")?),
            "vsock-cid" => machine = machine.vsock_guest_cid(number(&mut flags, "--vsock-cid")?),
            "9p" => {
                let value = flags.value()?.string()?;
                let (tag, path) = value.split_once('=').ok_or("--9p takes TAG=PATH")?;
                machine = machine.socket_9p(path, tag);
            }
            "uuid" => machine = machine.uuid(flags.value()?.string()?),
            "console" => {
                console = Some(match flags.value()?.string()?.as_str() {
                    "stdio" => Console::Stdio,
                    "file" => Console::File,
                    "log" => Console::Log,
                    _ => return Err("--console takes stdio, file or log".into()),
                })
            }
            "hyperkit" => machine = machine.hyperkit(flags.value()?),
            "state-dir" => machine = machine.state_dir(flags.value()?),
            "no-state" => remember = false,
            "keep-disk" => keep_disk = true,
            _ => match Action::ACTIONS.into_iter().find(|(known, _)| *known == name) {
                Some((_, wanted)) if action == Action::Run => action = wanted,
                Some((name, _)) => return Err(format!("--{name} is one action too many").into()),
                None => return Err(flag.unexpected().into()),
            },
        }
    }
    if !remember && machine.state_dir.is_some() {
        return Err("--no-state and --state-dir exclude each other".into());
    }
    if remember {
        machine.state_dir.get_or_insert(STATE_DIR.into());
    }
    machine.console = console.unwrap_or(if action == Action::Background { Console::File } else { Console::Stdio });
    let has_rom = machine.bootrom.is_some();
    let cmdline = cmdline.unwrap_or_else(|| if has_rom { String::new() } else { "console=ttyS0 panic=1".to_owned() });
    if machine.kernel.is_none() && !has_rom && matches!(action, Action::Run | Action::Background | Action::Arguments) {
        let guest = Path::new(GUEST);
        if !guest.join("vmlinuz").exists() {
            return Err("no guest in target/guest: run examples/setup.sh, or give --kernel and --initrd".into());
        }
        machine = machine.kernel(guest.join("vmlinuz"));
        machine.initrd.get_or_insert(guest.join("initrd.img"));
    }
    Ok(Some(Command { machine, cmdline, action, keep_disk }))
}

fn vpnkit(value: OsString) -> VpnKit {
    if value == "auto" { VpnKit::Auto } else { VpnKit::Socket(value.into()) }
}

fn execute(command: Option<Command>) -> Result<ExitCode, Box<dyn Error>> {
    let Some(Command { mut machine, cmdline, action, keep_disk }) = command else { return Ok(ExitCode::SUCCESS) };
    let dir = machine.state_dir.clone().unwrap_or_default();
    match action {
        Action::Run => {
            let exit = machine.run(&cmdline)?;
            eprintln!("boot: the machine {exit}");
            return Ok(if exit == Exit::PowerOff { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Background => {
            let vm = machine.start(&cmdline)?;
            println!("The machine runs as process {}, remembered in {}.", vm.pid(), dir.display());
            for forward in vm.port_forwards()? {
                println!("  {forward}");
            }
            how_to_reach(&machine, &dir);
        }
        Action::Shutdown | Action::Stop | Action::Pause | Action::Resume | Action::Attach => {
            let Some(vm) = HyperKit::from_state(&dir)?.vm()? else {
                println!("The machine was not running.");
                let is_fine = matches!(action, Action::Shutdown | Action::Stop);
                return Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            };
            let what = match action {
                Action::Shutdown => match vm.shutdown(Duration::from_secs(30))? {
                    Shutdown::Plug(_) => "did not power off, and is stopped",
                    _ => "has powered off",
                },
                Action::Stop => vm.stop().map(|()| "is stopped")?,
                Action::Pause => vm.pause().map(|()| "is paused")?,
                Action::Attach => attach::attach(&vm)?,
                _ => vm.resume().map(|()| "goes on")?,
            };
            println!("The machine {what}.");
        }
        Action::Remove => {
            HyperKit::from_state(&dir)?.remove(keep_disk)?;
            println!("The machine is forgotten.");
        }
        Action::Arguments => {
            // Whoever reads may have had enough.
            let _ = writeln!(stdout(), "{}", machine.arguments(&cmdline)?.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn how_to_reach(machine: &HyperKit, dir: &Path) {
    println!("  console: cargo run --example boot -- --attach --state-dir {}", dir.display());
    for pty in machine.ttys().into_iter().flatten() {
        println!("  or: screen {}", pty.display());
    }
    if machine.console == Console::File {
        println!("  what it said so far: cargo run --example ctl -- log {}", dir.display());
    }
    for (what, flag) in [("power button", "--shutdown"), ("plug", "--stop"), ("forget it", "--remove")] {
        println!("  {what}: cargo run --example boot -- {flag} --state-dir {}", dir.display());
    }
}

/// What hyperkit or QEMU prints, on standard error.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The machine may have the terminal in raw mode, where a newline alone does not return to the margin.
        let end = if stderr().is_terminal() { "\r\n" } else { "\n" };
        let _ = write!(stderr(), "boot: {}{end}", record.args());
    }

    fn flush(&self) {}
}
