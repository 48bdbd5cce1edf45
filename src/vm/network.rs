//! What the host knows of the guest's network: addresses and forwarded ports.

use std::fmt;
use std::net::Ipv4Addr;

use crate::config::{Network, PortForward, Protocol};
use crate::error::Result;
use crate::vm::{CONTROL_TIMEOUT, Vm};

/// Which network card of the guest has an address; see [`Vm::addresses`], which has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NicKind {
    /// The card of [`HyperKit::network`](crate::HyperKit#structfield.network).
    Network,
    /// The card of [`HyperKit::vmnet`](crate::HyperKit#structfield.vmnet).
    Vmnet,
}

impl fmt::Display for NicKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Vmnet => "vmnet",
        })
    }
}

/// # Network
impl Vm {
    /// Returns the IPv4 addresses of the guest, if the host knows them.
    ///
    /// | card | hyperkit | QEMU |
    /// |---|---|---|
    /// | `network` | the preferred address, if one is set | the address that DHCP hands out |
    /// | `vmnet` | the address that macOS's DHCP server leased; requires a `uuid` | the address that DHCP hands out |
    ///
    /// A guest that does not use DHCP has another address, or none yet. The host can connect only to the address on
    /// hyperkit's vmnet. On QEMU, connect to the port that [`host_port`](Self::host_port) returns.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// for (card, address) in vm.addresses()? {
    ///     println!("{card}: {address}");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`](crate::Error::NotRunning).
    #[doc(alias = "ip")]
    pub fn addresses(&self) -> Result<Vec<(NicKind, Ipv4Addr)>> {
        self.check_running()?;
        let description = self.description();
        let known = self.driver().addresses(description);
        let network = known.network.filter(|_| description.network != Network::None);
        let vmnet = known.vmnet.filter(|_| description.vmnet);
        let network = network.map(|address| (NicKind::Network, address));
        Ok(network.into_iter().chain(vmnet.map(|address| (NicKind::Vmnet, address))).collect())
    }

    /// Returns the ports of 127.0.0.1 that are forwarded to the guest, with their actual numbers. On hyperkit there are none.
    ///
    /// QEMU accepts connections to these ports from the start on, even if no program in the guest listens yet.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// for forward in vm.port_forwards()? {
    ///     println!("{forward}"); // such as: tcp 127.0.0.1:40123 -> 22
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`](crate::Error::NotRunning); [`Error::Qmp`](crate::Error::Qmp) if QEMU does not answer;
    /// [`ConfigError::StateDirRequired`](crate::ConfigError::StateDirRequired) on QEMU without a state directory.
    pub fn port_forwards(&self) -> Result<Vec<PortForward>> {
        self.check_running()?;
        self.driver().port_forwards(self.hypervisor(), CONTROL_TIMEOUT)
    }

    /// Returns the port of 127.0.0.1 that leads to TCP port `guest_port` of the guest; `None` if that port is not forwarded.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// use hyperkit::{HyperKit, Network, PortForward};
    ///
    /// let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").network(Network::Nat);
    /// let vm = description.port_forward(PortForward::tcp(0, 22)).start("")?;
    /// println!("ssh -p {} 127.0.0.1", vm.host_port(22)?.ok_or("not forwarded")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`port_forwards`](Self::port_forwards).
    #[doc(alias = "ssh")]
    #[doc(alias = "connect")]
    pub fn host_port(&self, guest_port: u16) -> Result<Option<u16>> {
        let forwards = self.port_forwards()?.into_iter();
        let mut tcp = forwards.filter(|forward| forward.protocol == Protocol::Tcp && forward.guest == guest_port);
        Ok(tcp.next().map(|forward| forward.host))
    }
}
