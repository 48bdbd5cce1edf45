//! The flags of `boot`.

use std::error::Error;

use hyperkit::{Architecture, Console, Disk, HyperKit, PortForward, ShareVirtiofs};
use lexopt::prelude::*;

use crate::ctl_command::ctl_command;
use crate::guest;
use crate::usage::{number, print_help, text, unexpected};

const HELP: &str = "\
Boots a Linux kernel in a VM, with hyperkit or QEMU.

    cargo run --example boot -- [OPTIONS]

Without --background, this terminal is the VM's console. Ctrl-] asks whether to detach (boot ends, the VM runs on), press
the power button, or kill the VM. Every other key goes to the guest, also ^C. `poweroff` in the guest ends the VM. If boot
ends in any way except by detaching, it kills the VM: also by a signal, if the terminal is gone, or if standard output is
a pipe that nobody reads any more.

If standard input is a file or a pipe, boot sends it to the guest's console. The guest may lose input that arrives before
its shell is ready. The end of the input does not end the VM.

What to do:
  --background          starts the VM, prints how to reach it, and leaves it running
  --arguments           only prints the arguments of the program that --hyperkit names; without it, those of hyperkit, or of
                        qemu-system-aarch64 for an arm64 guest
  --help                prints this text
  --verbose             also prints what the hypervisor prints

What to boot:
  --arch amd64|arm64    boots the guest that examples/setup.sh --arch creates (default: the architecture of --kernel or
                        --hyperkit, otherwise the host's)
  --kernel FILE         a Linux kernel: an x86 bzImage, an arm64 Image, or on QEMU a vmlinux for x86 (default: the guest that
                        examples/setup.sh creates)
  --initrd FILE         its initial RAM disk
  --cmdline TEXT        its command line (default: console=ttyS0 panic=1 no_timer_check quiet; for arm64 ttyAMA0). boot
                        adds console=ttyS0 or ttyAMA0 if TEXT has no console=, and panic=1 if it has no panic=. With
                        panic=1, the VM ends after a kernel panic
  --bootrom FILE        UEFI or other firmware instead of a kernel; it takes no command line

The VM:
  --cpus N              vCPUs (default: 1)
  --cpu MODEL           the CPU's model, by its name in QEMU; QEMU only (default: the host's CPU, or if QEMU
                        emulates it, Nehalem,+rdrand or for arm64 cortex-a57)
  --memory MIB          memory (default: 1024)
  --disk FILE           a raw or qcow2 disk image; can be repeated
  --disk-size MIB       the size of a new image, for the --disk before it if that file is missing. Without --disk,
                        creates a disk in the state directory
  --overlay             for the preceding --disk: the guest's writes go to an overlay, which is deleted with the VM; QEMU
                        only
  --iso FILE            an ISO image in a CD drive; can be repeated
  --vpnkit auto         gives the guest a network: QEMU's own, or on hyperkit Docker Desktop's VPNKit
  --vpnkit isolated     a network on which only --forward works; QEMU only
  --vpnkit SOCKET       a network by this socket of a VPNKit; hyperkit only
  --vpnkit-key UUID     the guest gets the same address each time it has this UUID
  --forward HOST:GUEST  forwards a TCP port of 127.0.0.1 (0: any free one) to a port of the guest; QEMU, with --vpnkit
  --vsock               a vsock device, with which programs of host and guest connect without a network
  --vsock-cid CID       the guest's number on vsock (default: 3)
  --vsock-port PORT     creates a socket on the host that leads to this vsock port; hyperkit only; at most 4 times
  --9p TAG=PATH         shares a directory (QEMU), or connects the socket of a 9p server (hyperkit)
  --virtiofs TAG=PATH   shares a directory by virtiofs, which is faster than 9p; QEMU on Linux, with virtiofsd
  --uuid UUID           the VM's UUID
  --console pty         the console is a pty with a log in the state directory (the default)
  --console stdio       the hypervisor itself uses standard input and output; all keys go to the guest, also Ctrl-]
  --console log         the Apple System Log; hyperkit only
  --gdb PORT            lets a debugger connect
  --extra ARGUMENT      an argument for the hypervisor, after all others
  --hyperkit PROGRAM    hyperkit, qemu-system-x86_64 or qemu-system-aarch64, by name or path (default: the first that is
                        installed for the guest's architecture)

The state directory:
  --state-dir DIR       where the VM is recorded (default: target/vm in the repository). The example `ctl` controls it:
                        cargo run --example ctl -- --help
  --no-state            records nothing, so that nothing can attach to the VM; all keys go to the guest
";

const STATE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/vm");
/// Without `no_timer_check`, an x86 kernel panics if an emulated timer interrupt is late, which happens on busy hosts.
const DEFAULT_CMDLINE: &str = "panic=1 no_timer_check quiet";
/// Flags that `boot` had before there was `ctl`, and the commands of `ctl` that do the same.
const IN_CTL: [(&str, &str); 7] = [
    ("attach", "console"),
    ("shutdown", "shutdown"),
    ("stop", "stop"),
    ("pause", "pause"),
    ("resume", "resume"),
    ("remove", "rm"),
    ("keep-disk", "rm --keep-disk"),
];

/// What to do, and with which VM.
pub struct Command {
    pub action: Action,
    pub description: HyperKit,
    /// The architecture of the guest, if the flags name one.
    pub architecture: Option<Architecture>,
    /// `None` for the default.
    pub cmdline: Option<String>,
    pub is_verbose: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Action {
    Foreground,
    Background,
    PrintArguments,
}

/// Returns the command that the flags describe; `None` after printing help. Every error is one of usage.
pub fn parse() -> Result<Option<Command>, Box<dyn Error>> {
    let mut description = HyperKit::new();
    let (mut action, mut cmdline, mut command_of_ctl) = (Action::Foreground, None, None);
    let (mut is_recorded, mut is_verbose, mut architecture) = (true, false, None);
    let mut flags = lexopt::Parser::from_env();
    while let Some(flag) = flags.next()? {
        let name = match flag {
            Long(name) => name,
            Short('h') => "help",
            _ => return Err(flag.unexpected().into()),
        };
        match name {
            "help" => {
                print_help("boot", HELP);
                return Ok(None);
            }
            "verbose" => is_verbose = true,
            "background" | "arguments" if action != Action::Foreground => {
                return Err("--background and --arguments exclude each other".into());
            }
            "background" => action = Action::Background,
            "arguments" => action = Action::PrintArguments,
            "arch" => architecture = Some(guest::architecture(&text(&mut flags, "--arch")?)?),
            "kernel" => description = description.kernel(flags.value()?),
            "initrd" => description = description.initrd(flags.value()?),
            "cmdline" => cmdline = Some(text(&mut flags, "--cmdline")?),
            "bootrom" => description = description.bootrom(flags.value()?),
            "cpus" => description = description.cpus(number(&mut flags, "--cpus")?),
            "cpu" => description = description.cpu(text(&mut flags, "--cpu")?),
            "memory" => description = description.memory_mib(number(&mut flags, "--memory")?),
            "disk" => description = description.disk(flags.value()?),
            "disk-size" => match (number(&mut flags, "--disk-size")?, description.disks.last_mut()) {
                (size, Some(disk)) if disk.size_mib.is_none() => disk.size_mib = Some(size),
                (size, _) => description = description.disk(Disk::in_state_dir(size)),
            },
            "overlay" => match description.disks.last_mut() {
                Some(disk) => disk.overlay = true,
                None => return Err("--overlay follows a --disk".into()),
            },
            "iso" => description = description.iso(flags.value()?),
            "vpnkit" => description = description.vpnkit(flags.value()?),
            "vpnkit-key" => description = description.vpnkit_key(text(&mut flags, "--vpnkit-key")?),
            "forward" => {
                let value = text(&mut flags, "--forward")?;
                let ports = value.split_once(':').and_then(|(host, guest)| host.parse().ok().zip(guest.parse().ok()));
                let (host, guest) = ports.ok_or_else(|| format!("--forward takes HOST:GUEST: {value:?}"))?;
                description = description.port_forward(PortForward::tcp(host, guest));
            }
            "vsock" => description = description.vsock(true),
            "vsock-cid" => description = description.vsock_guest_cid(number(&mut flags, "--vsock-cid")?),
            "vsock-port" => description = description.vsock_port(number(&mut flags, "--vsock-port")?),
            "9p" => {
                let value = text(&mut flags, "--9p")?;
                let (tag, path) = value.split_once('=').ok_or_else(|| format!("--9p takes TAG=PATH: {value:?}"))?;
                description = description.socket_9p(path, tag);
            }
            "virtiofs" => {
                let value = text(&mut flags, "--virtiofs")?;
                let (tag, path) =
                    value.split_once('=').ok_or_else(|| format!("--virtiofs takes TAG=PATH: {value:?}"))?;
                description = description.share_virtiofs(ShareVirtiofs::new(path, tag));
            }
            "uuid" => description = description.uuid(text(&mut flags, "--uuid")?),
            "console" => {
                description.console = Some(match text(&mut flags, "--console")?.as_str() {
                    "pty" => Console::Pty,
                    "stdio" => Console::Stdio,
                    "log" => Console::AppleLog,
                    other => return Err(format!("--console takes pty, stdio or log: {other:?}").into()),
                })
            }
            "gdb" => description = description.gdb_port(number(&mut flags, "--gdb")?),
            "extra" => description = description.extra_argument(text(&mut flags, "--extra")?),
            "hyperkit" => description = description.hyperkit(flags.value()?),
            "state-dir" => description = description.state_dir(flags.value()?),
            "no-state" => is_recorded = false,
            _ => match IN_CTL.into_iter().find(|(old, _)| *old == name) {
                Some(known) => command_of_ctl = Some(known),
                None => return Err(unexpected(flag, HELP).into()),
            },
        }
    }
    if !is_recorded && description.state_dir.is_some() {
        return Err("--no-state and --state-dir exclude each other".into());
    }
    if is_recorded {
        description.state_dir.get_or_insert(STATE_DIR.into());
    }
    if let Some((flag, command)) = command_of_ctl {
        let dir = description.state_dir.unwrap_or_else(|| STATE_DIR.into());
        return Err(format!("`ctl` does what --{flag} did: {}", ctl_command(command, &dir)).into());
    }
    match (action, &description.console) {
        (Action::Background, _) if !is_recorded => {
            return Err("--background requires a record; leave out --no-state".into());
        }
        (_, Some(Console::Pty)) if !is_recorded => {
            return Err("--console pty requires a record; leave out --no-state".into());
        }
        (Action::Background, Some(Console::Stdio)) => {
            return Err("in the --background there is no terminal; leave out --console stdio".into());
        }
        _ => {}
    }
    Ok(Some(Command { action, description, architecture, cmdline, is_verbose }))
}

/// Returns the kernel command line: `line` or the default, with `console=` and `panic=` in front of it if it lacks them. They come first,
/// since what follows ` -- ` is for the init process.
pub fn kernel_cmdline(line: Option<&str>, description: &HyperKit, console: &str) -> String {
    let line = match line {
        None if description.bootrom.is_some() => return String::new(),
        line => line.unwrap_or(DEFAULT_CMDLINE),
    };
    let console = format!("console={console} ");
    let lacks = |setting: &str| !line.split_whitespace().any(|word| word.starts_with(setting));
    let [console, panic] = [("console=", &console[..]), ("panic=", "panic=1 ")]
        .map(|(setting, default)| if lacks(setting) { default } else { "" });
    format!("{console}{panic}{line}")
}
