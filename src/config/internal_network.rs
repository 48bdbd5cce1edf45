//! Networks between VMs, without root and without a further process.
//!
//! QEMU sends each frame of the guest to the socket of every other number in the directory, whether a VM runs there or not.
//! `engine/qemu/internal_network.rs` has the arguments.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::json;

/// The VMs of a network.
pub(crate) const NUMBERS: RangeInclusive<u8> = 1..=16;
/// The message about any other number.
pub(crate) const INVALID_NUMBER: &str = "the VM's number must be 1 to 16";
/// The longest name of a socket, with a slash before it.
pub(crate) const LONGEST_SOCKET: &str = "/16.out.sock";

/// A network between VMs of this host, and a VM's number in it; see
/// [`HyperKit::internal_networks`](crate::HyperKit#structfield.internal_networks).
///
/// All VMs whose descriptions name the same directory are on one network, whichever program starts them, and in whatever order.
/// The network is an Ethernet segment: a VM's frames reach the other VMs and nothing else. It has no DHCP server. Give each
/// guest its address yourself, for instance one that ends in the VM's number.
///
/// ```
/// use hyperkit::{HyperKit, InternalNetwork};
///
/// let template = HyperKit::new().hyperkit("qemu-system-x86_64").kernel("vmlinuz");
/// let server = template.clone().state_dir("vms/server").internal_network("vms/net", 1);
/// let client = template.state_dir("vms/client").internal_network("vms/net", 2);
/// assert_eq!(server.internal_networks[0], InternalNetwork::new("vms/net", 1));
/// assert_eq!(client.internal_networks[0].mac(), "02:68:6b:b4:c1:02");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InternalNetwork {
    /// The directory of the network's sockets, at most 91 bytes long. A start creates it with mode 0700 if it is missing. It is
    /// deleted with the last VM's sockets, if nothing else is in it.
    #[serde(rename = "path", serialize_with = "json::lossy")]
    pub dir: PathBuf,
    /// The VM's number in the network, 1 to 16. No two VMs of a network have the same number.
    pub number: u8,
}

impl InternalNetwork {
    /// Describes a network by its directory, and the VM's number in it. The type's page has an example.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, number: u8) -> Self {
        Self { dir: dir.into(), number }
    }

    /// Returns the MAC address of the VM's card on this network. It follows from the last component of the directory's path and
    /// the number, so it is the same after each start. A guest with several cards can find this one by its address.
    /// [`InternalNetwork`] has an example.
    #[must_use]
    pub fn mac(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default().as_encoded_bytes();
        // FNV-1a, folded to 16 bits. Cards of one VM on networks with different names get different addresses.
        let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        let [high, low] = ((hash >> 16) as u16 ^ hash as u16).to_be_bytes();
        // Bit 1 of the first byte marks addresses that no manufacturer assigns.
        format!("02:68:6b:{high:02x}:{low:02x}:{:02x}", self.number)
    }

    /// The socket on which QEMU receives the frames of the other VMs.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_of(&self.dir, self.number)
    }

    /// The sockets of all numbers but this one.
    pub(crate) fn other_sockets(&self) -> impl Iterator<Item = (u8, PathBuf)> {
        NUMBERS.filter(|number| *number != self.number).map(|number| (number, socket_of(&self.dir, number)))
    }

    /// The socket on which QEMU receives the frames of its own guest, to send them to the other VMs.
    pub(crate) fn out_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.out.sock", self.number))
    }

    /// All sockets of the VM.
    pub(crate) fn sockets(&self) -> [PathBuf; 3] {
        [self.socket(), self.out_socket(), self.source_socket()]
    }

    /// The socket from which QEMU sends. Nobody sends to it, but QEMU has no socket without a path.
    pub(crate) fn source_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.src.sock", self.number))
    }
}

fn socket_of(dir: &Path, number: u8) -> PathBuf {
    dir.join(format!("{number}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_limits() {
        assert!(INVALID_NUMBER.ends_with(&format!(" {} to {}", NUMBERS.start(), NUMBERS.end())));
    }

    #[test]
    fn no_socket_name_is_longer_than_the_limit_allows_for() {
        for number in NUMBERS {
            let network = InternalNetwork::new("", number);
            for socket in network.sockets() {
                assert!(socket.as_os_str().len() < LONGEST_SOCKET.len(), "{socket:?}");
            }
            assert_eq!(network.other_sockets().count(), NUMBERS.count() - 1);
        }
    }

    /// Guests are configured with these addresses.
    #[test]
    fn mac_follows_from_the_directorys_name_and_the_number() {
        assert_eq!(InternalNetwork::new("/a/net", 16).mac(), "02:68:6b:b4:c1:10");
        assert_eq!(InternalNetwork::new("net", 1).mac(), "02:68:6b:b4:c1:01");
        assert_ne!(InternalNetwork::new("/a/other", 1).mac(), InternalNetwork::new("/a/net", 1).mac());
    }
}
