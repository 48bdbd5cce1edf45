//! vsock for a QEMU guest: the `vhost-device-vsock` program, which serves unix sockets of the host as hyperkit does, or
//! the host kernel's `/dev/vhost-vsock`, which only sockets of the family AF_VSOCK reach.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use crate::config::HyperKit;
use crate::engine::driver::{Daemon, DaemonSocket};
use crate::engine::qemu::machine::unsupported;
use crate::error::ConfigError;
use crate::plan::text::utf8;
use crate::state::{StateDir, VHOST_SOCKET, VSOCK_SOCKET};
use crate::sys::find_program::first_program;

const KERNEL_DEVICE: &str = "/dev/vhost-vsock";
const DAEMON: &str = "vhost-device-vsock";
/// The daemon's buffer for each connection, in bytes. A guest with Linux 6.12 splits a packet above 32 KiB into several pieces of
/// memory, of which vhost-device-vsock 0.3 takes only the first. With a smaller buffer the guest never sends such a packet.
const TX_BUFFER_BYTES: &str = "32000";

/// The path of the daemon, if the VM needs one and it is installed.
pub(super) fn find_daemon(description: &HyperKit) -> Result<Option<PathBuf>, ConfigError> {
    match &description.vhost_device_vsock {
        _ if !description.vsock => Ok(None),
        Some(program) => first_program(&[program])
            .map(Some)
            .map_err(|searched| ConfigError::ToolNotFound { field: "vhost_device_vsock", searched }),
        // The daemon comes first: `/dev/vhost-vsock` serves no sockets on the host.
        None => Ok(first_program(&[Path::new(DAEMON)]).ok()),
    }
}

/// Whether the guest's vsock device is the daemon, which shares the guest's memory.
pub(super) fn uses_daemon(description: &HyperKit) -> bool {
    description.vsock && description.vhost_device_vsock.is_some()
}

/// Checks whether this host can provide vsock.
pub(super) fn check_host(description: &HyperKit) -> Result<(), ConfigError> {
    let opens = || OpenOptions::new().read(true).write(true).open(KERNEL_DEVICE).is_ok();
    match &description.vhost_device_vsock {
        Some(_) if description.state_dir.is_none() => Err(ConfigError::StateDirRequired { field: "vsock" }),
        Some(_) if cfg!(target_os = "linux") => Ok(()),
        None if opens() => Ok(()),
        _ => {
            Err(unsupported("vsock without access to /dev/vhost-vsock (`vsock`); on Linux install vhost-device-vsock"))
        }
    }
}

/// Refuses calls that need sockets on the host, which only the daemon serves.
pub(super) fn check_has_daemon(description: &HyperKit) -> Result<(), ConfigError> {
    match description.vhost_device_vsock {
        Some(_) => Ok(()),
        None => Err(unsupported(
            "unix sockets for `vsock` with /dev/vhost-vsock; install vhost-device-vsock, or use AF_VSOCK and the \
             guest's CID",
        )),
    }
}

/// QEMU's argument for the daemon, in addition to the device.
pub(super) fn chardev(state_dir: &str) -> String {
    format!("socket,id=vsock,path={state_dir}/{VHOST_SOCKET}")
}

/// The daemon of a VM, if it needs one.
pub(super) fn daemon(description: &HyperKit, state: &StateDir) -> Result<Option<Daemon>, ConfigError> {
    let Some(program) = description.vhost_device_vsock.clone().filter(|_| description.vsock) else { return Ok(None) };
    let sockets = vec![state.file(VHOST_SOCKET), description.vsock_sockets_dir().join(VSOCK_SOCKET)];
    let [socket, uds] = [utf8("state_dir", &sockets[0])?, utf8("vsock_dir", &sockets[1])?];
    let cid = description.vsock_guest_cid.to_string();
    let arguments = ["--guest-cid", &cid, "--socket", socket, "--uds-path", uds, "--tx-buffer-size", TX_BUFFER_BYTES];
    let arguments = arguments.map(str::to_owned).to_vec();
    Ok(Some(Daemon { program, arguments, socket: DaemonSocket::Created(sockets) }))
}
