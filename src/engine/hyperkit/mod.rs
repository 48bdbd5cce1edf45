//! The macOS `hyperkit` command: how it is told of a machine, what its signals do and what its exit codes mean.

mod arguments;
mod parse;
pub(crate) mod vmnet;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::config::HyperKit;
use crate::engine::{Control, Engine};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::plan::serial_ports::{Line, ports};
use crate::plan::slots::{Device, Network, layout};
use crate::process::look_at_all;
use crate::state::StateDir;
use crate::state::tty_file::pty_in;
use crate::sys::file::inode;

pub(crate) use arguments::arguments;
pub(crate) use parse::command_line;
pub use parse::parse_arguments;

/// The options that take no value.
pub(crate) const SWITCHES: &[char] = &['b', 'e', 'h', 'v', 'u', 'w', 'x', 'M', 'A', 'C', 'H', 'P', 'W'];

/// Where Docker Desktop has had its VPNKit socket, newest first, below the home directory.
const VPNKIT_SOCKETS: [&str; 2] =
    ["Library/Containers/com.docker.docker/Data/vpnkit.eth.sock", "Library/Containers/com.docker.docker/Data/s50"];

/// Refuses what QEMU can do and hyperkit cannot.
pub(crate) fn supports(machine: &HyperKit) -> Result<()> {
    let no = |feature| Err(Error::Unsupported { engine: Engine::HyperKit, feature });
    if !machine.port_forwards.is_empty() {
        return no("ports of 127.0.0.1 that lead to the guest (`port_forwards`; VPNKit has ways of its own)");
    }
    let first = layout(machine)?.first().map(|(_, device)| *device);
    if machine.mac.is_some() && !matches!(first, Some(Device::Network(Network::Tap(_)))) {
        return no("a MAC address for anything but a tap (`mac`; that of vmnet follows from `uuid`)");
    }
    Ok(())
}

/// Whether a hyperkit uses a qcow2 image, unless both only read. It does not lock them, but has them on its command line;
/// from the Go package as they are, where this crate escapes what has a meaning in URLs.
pub(crate) fn uses_qcow2(path: &Path, read_only: bool) -> bool {
    let Some(image) = inode(path) else { return false };
    let uses_it = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        let Some((path, options)) = argument.split_once(",file://").and_then(|(_, url)| url.split_once('?')) else {
            return false;
        };
        let both_read = read_only && options.split(',').any(|option| option == "ro");
        let is_it = |path: &str| inode(Path::new(path)) == Some(image);
        !both_read && (is_it(path) || parse::unescaped(path).is_some_and(|path: String| is_it(&path)))
    };
    look_at_all().iter().any(|seen| seen.command.iter().any(uses_it))
}

/// The serial ports come after all other devices, and what they leave in the state directory says so.
pub(crate) fn is_set_up(machine: &HyperKit, state: &StateDir) -> bool {
    ports(machine).unwrap_or_default().iter().all(|port| {
        // It is made first, and written then.
        let names_its_pty = !matches!(port.line, Line::Tty(name) if pty_in(&state.file(name)).is_none());
        names_its_pty && port.log.is_none_or(|name| state.file(name).exists())
    })
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
