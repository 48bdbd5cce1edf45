//! A machine as arguments of the macOS `hyperkit` command, which has no quoting: a comma always separates.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::{Control, kernel_command_line};
use crate::check::utf8;
use crate::config::{Console, HyperKit, VpnKit};

use crate::error::{Error, Result};
use crate::slots::{Device, layout};
use crate::state::{CONSOLE_RING, PID_FILE, StateDir, TTY};
use crate::vm::Exit;

/// Where Docker Desktop has had its VPNKit socket, newest first, below the home directory.
const VPNKIT_SOCKETS: [&str; 2] =
    ["Library/Containers/com.docker.docker/Data/vpnkit.eth.sock", "Library/Containers/com.docker.docker/Data/s50"];

/// The arguments, in the order of the Go package.
pub(crate) fn arguments(machine: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args = vec!["-A".to_owned(), "-u".to_owned()];
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    let state_dir = machine.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?.unwrap_or_default();

    if !state_dir.is_empty() {
        add("-F", utf8("state_dir", &Path::new(state_dir).join(PID_FILE))?.to_owned());
    }
    add("-c", machine.cpus.to_string());
    add("-m", format!("{}M", machine.memory));
    add("-s", "0:0,hostbridge".to_owned());
    add("-s", "31,lpc".to_owned());

    let mut uuid = machine.uuid.as_ref();
    for (slot, device) in layout(machine)? {
        // The Go package puts the UUID behind the network card and before everything else.
        if !matches!(device, Device::Network(_)) {
            uuid.take().into_iter().for_each(|uuid| add("-U", uuid.clone()));
        }
        let device = match device {
            Device::Network(network) => {
                let path = match network {
                    VpnKit::Socket(path) => path.clone(),
                    _ => vpnkit_sockets().swap_remove(0),
                };
                let key = machine.vpnkit_key.as_ref().map(|key| format!(",uuid={key}")).unwrap_or_default();
                format!("{slot}:0,virtio-vpnkit,path={}{key}", utf8("vpnkit", &path)?)
            }
            Device::Disk { image, index } => {
                format!("{slot}:0,virtio-blk,{}", utf8("disks", &image.place(index, machine.state_dir.as_deref())?)?)
            }
            Device::Vsock { cid, ports } => {
                let ports: Vec<_> = ports.iter().map(u32::to_string).collect();
                let forwards =
                    if ports.is_empty() { String::new() } else { format!(",guest_forwards={}", ports.join(";")) };
                format!("{slot},virtio-sock,guest_cid={cid},path={state_dir}{forwards}")
            }
            Device::Iso(image) => format!("{slot},ahci-cd,{}", utf8("isos", image)?),
            Device::Random => format!("{slot},virtio-rnd"),
            Device::Share(share) => {
                format!("{slot},virtio-9p,path={},tag={}", utf8("sockets_9p", &share.path)?, share.tag)
            }
        };
        add("-s", device);
    }
    add(
        "-l",
        match machine.console {
            Console::Stdio => "com1,stdio".to_owned(),
            Console::File => format!("com1,autopty={state_dir}/{TTY},log={state_dir}/{CONSOLE_RING}"),
            Console::Log => format!("com1,autopty={state_dir}/{TTY},asl"),
        },
    );
    let kernel = machine.kernel.as_deref().ok_or(Error::Missing { field: "kernel" })?;
    let initrd = machine.initrd.as_deref().unwrap_or(Path::new(""));
    let cmdline = kernel_command_line(cmdline);
    add("-f", format!("kexec,{},{},{cmdline}", utf8("kernel", kernel)?, utf8("initrd", initrd)?));
    Ok(args)
}

/// The serial ports come after all other devices, and what they leave in the state directory says so.
pub(crate) fn is_set_up(machine: &HyperKit, state: &StateDir) -> bool {
    let is_there = |name| state.file(name).symlink_metadata().is_ok();
    match machine.console {
        Console::Stdio => true,
        Console::Log => is_there(TTY),
        Console::File => is_there(TTY) && is_there(CONSOLE_RING),
    }
}

/// The signal that hyperkit takes for it. Each of them kills a machine whose guest is not that far: the power button
/// before ACPI is on, the others before the first vCPU runs.
pub(crate) fn signal(what: Control) -> Signal {
    match what {
        Control::PressPowerButton => Signal::TERM,
        Control::Pause => Signal::USR1,
        Control::Resume => Signal::USR2,
    }
}

/// What an exit code other than 0 says.
pub(crate) fn exit(code: i32) -> Exit {
    match code {
        2 => Exit::Reset,
        3 => Exit::TripleFault,
        code => Exit::Failed(code),
    }
}

/// Where the VPNKit of Docker Desktop may listen; at least one place.
pub(crate) fn vpnkit_sockets() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    VPNKIT_SOCKETS.iter().map(|socket| home.join(socket)).collect()
}
