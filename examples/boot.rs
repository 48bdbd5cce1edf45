//! Boots a kernel: `cargo run --example boot -- --help`.

use std::error::Error;
use std::ffi::OsString;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hyperkit::{Console, Disk, Exit, HyperKit, VpnKit};
use lexopt::prelude::*;

const HELP: &str = "\
Boots a Linux kernel with hyperkit or QEMU, its console on this terminal.

    cargo run --example boot -- [OPTIONS]

Without --kernel it boots the guest that examples/setup.sh makes.

  --kernel FILE       an x86 bzImage           --initrd FILE      its initial RAM disk
  --cmdline TEXT      kernel command line (default: console=ttyS0 panic=1)
  --cpus N            vCPUs (default: 1)       --memory MIB       memory (default: 1024)
  --disk FILE         a raw image              --disk-size MIB    size to make the last --disk with if it is
  --iso FILE          an ISO image                                missing; alone, a disk in the state directory
  --vpnkit auto|SOCK  network                  --vpnkit-key UUID  for a lasting address
  --vsock             a vsock device           --vsock-port PORT  forwarded by hyperkit, 4 at most
  --vsock-cid CID     (default: 3)             --9p TAG=PATH      a directory (QEMU) or 9p server's socket
  --uuid UUID         the machine's            --console WHERE    stdio, file (in the state directory) or log
  --hyperkit PROGRAM  hyperkit or qemu-system-x86_64, by name or path (default: what is there)
  --state-dir DIR     remembers the machine (default with --background, --stop and --remove: target/vm)

  --background        start it, say how to reach it, and leave it running
  --stop              pull the plug of the machine in the state directory
  --remove            forget it, and delete what was made for it; with --keep-disk, not its disks
  --arguments         only print what the program would be called with
  --help              this text
";

const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest");
const STATE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/vm");

#[derive(PartialEq)]
enum Action {
    Run,
    Background,
    Stop,
    Remove,
    Arguments,
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
            let mut message = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            eprintln!("boot: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Command>, Box<dyn Error>> {
    let mut machine = HyperKit::new();
    let mut cmdline = "console=ttyS0 panic=1".to_owned();
    let (mut action, mut keep_disk, mut console) = (Action::Run, false, None);
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
            "cmdline" => cmdline = flags.value()?.string()?,
            "cpus" => machine = machine.cpus(flags.value()?.parse()?),
            "memory" => machine = machine.memory(flags.value()?.parse()?),
            "disk" => machine = machine.disk(Disk::raw(flags.value()?)),
            "disk-size" => match (flags.value()?.parse()?, machine.disks.last_mut()) {
                (size, Some(disk)) if disk.size.is_none() => disk.size = Some(size),
                (size, _) => machine = machine.disk(Disk::in_state_dir(size)),
            },
            "iso" => machine = machine.iso(flags.value()?),
            "vpnkit" => machine = machine.vpnkit(vpnkit(flags.value()?)),
            "vpnkit-key" => machine = machine.vpnkit_key(flags.value()?.string()?),
            "vsock" => machine = machine.vsock(true),
            "vsock-port" => machine = machine.vsock_port(flags.value()?.parse()?),
            "vsock-cid" => machine = machine.vsock_guest_cid(flags.value()?.parse()?),
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
            "background" => action = Action::Background,
            "stop" => action = Action::Stop,
            "remove" => action = Action::Remove,
            "keep-disk" => keep_disk = true,
            "arguments" => action = Action::Arguments,
            _ => return Err(flag.unexpected().into()),
        }
    }
    if action != Action::Run && action != Action::Arguments && machine.state_dir.is_none() {
        machine = machine.state_dir(STATE_DIR);
    }
    machine.console = console.unwrap_or(if action == Action::Background { Console::File } else { Console::Stdio });
    if machine.kernel.is_none() && action != Action::Stop && action != Action::Remove {
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
            how_to_reach(&machine, &dir);
        }
        Action::Stop => {
            let machine = HyperKit::from_state(&dir)?;
            let was_running = machine.is_running();
            machine.stop()?;
            println!("{}", if was_running { "The machine is stopped." } else { "The machine was not running." });
        }
        Action::Remove => HyperKit::from_state(&dir)?.remove(keep_disk)?,
        Action::Arguments => machine.arguments(&cmdline)?.iter().for_each(|argument| println!("{argument}")),
    }
    Ok(ExitCode::SUCCESS)
}

fn how_to_reach(machine: &HyperKit, dir: &Path) {
    let tty = dir.join("tty");
    // Older hyperkits make a symlink to the pty, newer ones and this crate a file that names it.
    let pty = std::fs::read_link(&tty).or_else(|_| std::fs::read_to_string(&tty).map(PathBuf::from));
    if let Ok(pty) = pty {
        println!("  console: screen {}", pty.display());
    }
    if machine.console == Console::File {
        println!("  what it said so far: cat {}", dir.join("console-ring").display());
    }
    println!("  stop it: cargo run --example boot -- --stop --state-dir {}", dir.display());
    println!("  and forget it: cargo run --example boot -- --remove --state-dir {}", dir.display());
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
        eprint!("boot: {}{end}", record.args());
    }

    fn flush(&self) {}
}
