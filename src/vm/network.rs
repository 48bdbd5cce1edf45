//! What is known from outside of the guest's network: its addresses, and the ports of the host that lead to it.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::config::{PortForward, VpnKit};
use crate::engine::Engine;
use crate::engine::dhcp_leases::{LEASES, LONGEST_LEASES, leased};
use crate::engine::qemu;
use crate::error::{Error, Result};
use crate::sys::file::read_at_most;
use crate::vm::{PATIENCE, Vm};

/// A network card of the guest that has an address; see [`Vm::addresses`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Card {
    /// That of [`HyperKit::vpnkit`](HyperKit#structfield.vpnkit).
    VpnKit,
    /// That of [`HyperKit::vmnet`](HyperKit#structfield.vmnet).
    Vmnet,
}

impl Vm {
    /// The IPv4 addresses of the guest, as far as they are known from outside; those that are not are left out.
    ///
    /// | card | hyperkit | QEMU |
    /// |---|---|---|
    /// | VPNKit | the preferred address, if one is set | what DHCP gives it |
    /// | vmnet | what macOS's DHCP server has given it; needs a `uuid` | what DHCP gives it |
    ///
    /// A guest that does not ask by DHCP has another, or none yet. Only vmnet's on hyperkit can be reached from the host;
    /// with QEMU [`port_forwards`](Self::port_forwards) leads there.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// for (card, address) in vm.addresses()? {
    ///     println!("{card:?}: {address}");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::StateDirRequired`]; those of [`HyperKit::from_state`].
    pub fn addresses(&self) -> Result<Vec<(Card, Ipv4Addr)>> {
        if self.try_wait()?.is_some() {
            return Err(Error::NotRunning);
        }
        let machine = self.state.as_ref().ok_or(Error::StateDirRequired { field: "addresses" })?.load()?;
        let (vpnkit, vmnet) = match self.engine {
            Engine::HyperKit => {
                let leases = read_at_most(Path::new(LEASES), LONGEST_LEASES).unwrap_or_default();
                let lease = machine.vmnet_mac.as_deref().and_then(|mac| leased(&String::from_utf8_lossy(&leases), mac));
                (machine.vpnkit_preferred_ipv4.as_ref().and_then(|address| address.parse().ok()), lease)
            }
            Engine::Qemu => (Some(qemu::vpnkit_address(&machine)), Some(qemu::VMNET_ADDRESS)),
        };
        let vpnkit = vpnkit.filter(|_| machine.vpnkit != VpnKit::None).map(|address| (Card::VpnKit, address));
        let vmnet = vmnet.filter(|_| machine.vmnet).map(|address| (Card::Vmnet, address));
        Ok(vpnkit.into_iter().chain(vmnet).collect())
    }

    /// The ports of 127.0.0.1 that lead to the guest, each with the number it has. They are there from the start on, also
    /// before the guest listens. On hyperkit there are none.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// use hyperkit::{HyperKit, PortForward, VpnKit};
    ///
    /// let mut machine = HyperKit::new().state_dir("vm").kernel("vmlinuz").vpnkit(VpnKit::Auto);
    /// machine.port_forwards = vec![PortForward::tcp(0, 22)];
    /// let ssh = machine.start("")?.port_forwards()?[0].host;
    /// println!("ssh -p {ssh} 127.0.0.1");
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Qmp`] if QEMU does not say; [`Error::StateDirRequired`] with QEMU and no state
    /// directory.
    pub fn port_forwards(&self) -> Result<Vec<PortForward>> {
        if self.try_wait()?.is_some() {
            return Err(Error::NotRunning);
        }
        self.engine.port_forwards(self, PATIENCE)
    }
}
