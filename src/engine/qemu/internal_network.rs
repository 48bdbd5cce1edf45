//! A card on a network between VMs, from QEMU's own parts: `dgram` sockets and hubs. Tried with QEMU 7.2, the first with `dgram`.
//!
//! A hub passes a frame to all its ports but the one from which it came. If one hub connected card and other VMs, a frame of VM 1
//! would circulate forever: VM 2 would pass it on to VM 3, and VM 3 to VM 2. So receiving and sending are separate:
//!
//! ```text
//! card -- hub A -- io: sends to N.out.sock, receives at N.sock
//!            `- drain
//! out: receives at N.out.sock -- hub B -- to1: sends to 1.sock
//!                                    `--- to3: sends to 3.sock …
//! ```
//!
//! A frame that comes in at `N.sock` reaches the card and the drain, and neither sends it on. Hub B gets only the card's frames.
//! Nobody sends to the sockets of `to1`, …, all of which are bound at `N.src.sock`, one after the other.
//!
//! QEMU must always read `N.sock`. When the socket's queue is full (11 frames by `net.unix.max_dgram_qlen`), the senders get EAGAIN.
//! They wait until their own sockets are writable, which these are at once, so each sender uses a whole CPU of the host. A card that
//! the guest has not set up accepts no frames, and then QEMU would stop reading. The drain, a port without a peer, accepts all frames.
//! QEMU reads nothing while the VM is paused: see [`set_link_requests`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::HyperKit;
use crate::config::internal_network::InternalNetwork;
use crate::error::ConfigError;
use crate::plan::slots::{Device, layout};
use crate::plan::text::utf8;
use crate::sys::path::canonical;

/// The beginning of QEMU's warnings about these hubs, which are not connected in the usual way.
pub(super) const HUB_WARNING: &str = "warning: hub ";

/// The backend of the card in this slot, which is `net{slot}`.
pub(super) fn arguments(network: &InternalNetwork, slot: u8) -> Result<Vec<String>, ConfigError> {
    let (hub_a, hub_b) = (2 * slot, 2 * slot + 1);
    let text = |path: PathBuf| utf8("internal_networks", &path).map(str::to_owned);
    let (own, out, source) = (text(network.socket())?, text(network.out_socket())?, text(network.source_socket())?);
    let port = |id: &str, hub: u8| format!("hubport,id={id}-port,hubid={hub},netdev={id}");
    let dgram = |id: &str, local: &str, remote: &str| {
        format!("dgram,id={id},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}")
    };
    let (io, from_card) = (io_id(slot), format!("net{slot}-out"));
    let mut netdevs = vec![
        format!("hubport,id=net{slot},hubid={hub_a}"),
        format!("hubport,id=net{slot}-drain,hubid={hub_a}"),
        dgram(&io, &own, &out),
        port(&io, hub_a),
        dgram(&from_card, &out, &source),
        port(&from_card, hub_b),
    ];
    for (number, socket) in network.other_sockets() {
        let id = format!("net{slot}-to{number}");
        netdevs.extend([dgram(&id, &source, &text(socket)?), port(&id, hub_b)]);
    }
    Ok(netdevs)
}

/// Whether QEMU with this command line receives the frames of other VMs at this socket, by whatever path it names the network's
/// directory. The path of the socket to which it sends them has another name.
pub(super) fn receives_frames_at(command: &[OsString], socket: &Path) -> bool {
    let dir = |path: &Path| path.parent().map(canonical);
    let is_socket = |path: &Path| {
        path == socket || (path.file_name() == socket.file_name() && path.is_absolute() && dir(path) == dir(socket))
    };
    let options = command.iter().flat_map(|word| word.as_bytes().split(|byte| *byte == b','));
    options
        .filter_map(|option| option.strip_prefix(b"local.path="))
        .any(|path| is_socket(Path::new(OsStr::from_bytes(path))))
}

fn io_id(slot: u8) -> String {
    format!("net{slot}-io")
}

/// A command of QMP with its arguments.
pub(super) type Request = (&'static str, Value);

/// Connects or disconnects the sockets on which frames come in. QEMU reads and drops the frames of a disconnected socket, also while
/// the VM is paused. The guest does not notice, since a hub is between the socket and the card.
pub(super) fn set_link_requests(description: &HyperKit, up: bool) -> Result<Vec<Request>, ConfigError> {
    let networks = layout(description)?.into_iter().filter(|(_, device)| matches!(device, Device::InternalNetwork(_)));
    Ok(networks.map(|(slot, _)| ("set_link", json!({ "name": io_id(slot), "up": up }))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symlink may lead to the network's directory.
    #[test]
    fn vm_receives_frames_at_its_own_socket_by_any_path_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("net")).unwrap();
        std::os::unix::fs::symlink("net", path("link")).unwrap();
        for (vm, other) in [("net", "link"), ("link", "net"), ("net", "net"), ("gone", "gone")] {
            let network = InternalNetwork::new(path(vm), 1);
            let command: Vec<OsString> = arguments(&network, 3).unwrap().into_iter().map(Into::into).collect();
            let receives = |number| receives_frames_at(&command, &InternalNetwork::new(path(other), number).socket());
            assert!(receives(1), "{vm} {other}");
            assert!(!receives(2) && !receives(16), "{vm} {other}");
        }
        let elsewhere = InternalNetwork::new(path("elsewhere"), 1).socket();
        let command = arguments(&InternalNetwork::new(path("net"), 1), 3).unwrap();
        assert!(!receives_frames_at(&command.into_iter().map(Into::into).collect::<Vec<_>>(), &elsewhere));
    }
}
