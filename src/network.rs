//! What is known from outside of the guest's network: its addresses, and the ports of the host that lead to it.

use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::config::{HyperKit, PortForward, VpnKit};
use crate::engine::{Engine, qemu};
use crate::error::{Error, Result};
use crate::state::read_at_most;
use crate::vm::{PATIENCE, Vm};

/// Where macOS's DHCP server, which serves vmnet, writes down whom it has given which address.
const LEASES: &str = "/var/db/dhcpd_leases";
/// A lease is some 150 bytes; what is longer than this is no such file.
const LONGEST_LEASES: u64 = 16 * 1024 * 1024;

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

/// The MAC address that vmnet will give the guest. It follows from the machine's UUID, and only hyperkit's `-M` tells it:
/// of a machine that runs it might not be had any more. Nothing depends on it but [`Vm::addresses`].
pub(crate) fn vmnet_mac(machine: &HyperKit) -> Option<String> {
    let uuid = machine.uuid.as_ref().filter(|_| machine.vmnet && Engine::of_machine(machine) == Engine::HyperKit)?;
    let firmware = machine.arguments.iter().position(|argument| argument == "-f")?;
    let mut hyperkit = Command::new(machine.hyperkit.as_deref()?);
    hyperkit.args(["-A", "-M", "-U", uuid, "-s", "0:0,hostbridge", "-s", "31,lpc", "-s", "1:0,virtio-net"]);
    hyperkit.args(machine.arguments.get(firmware..firmware + 2)?);
    let said = output_of(hyperkit, PATIENCE).inspect_err(|error| {
        log::debug!(target: "hyperkit", "the guest's address will not be known: {error}");
    });
    let mac = said.ok()?.lines().find_map(|line| line.strip_prefix("MAC:").map(str::trim).map(str::to_owned));
    mac.filter(|mac| bytes(mac).is_some())
}

/// What a program prints that has to end in time.
fn output_of(mut command: Command, patience: Duration) -> std::io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut pipe = child.stdout.take();
    let (send, receive) = std::sync::mpsc::channel();
    let reader = std::thread::Builder::new().name("hyperkit-mac".to_owned()).spawn(move || {
        let mut said = String::new();
        let read = pipe.as_mut().map_or(Ok(0), |pipe| pipe.read_to_string(&mut said));
        let _ = send.send(read.map(|_| said));
    });
    let said = reader
        .and_then(|_| receive.recv_timeout(patience).unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())));
    let _ = child.kill(); // it has closed its output, or hangs
    child.wait()?;
    said
}

/// The address that was given to this MAC address for the longest.
fn leased(leases: &str, mac: &str) -> Option<Ipv4Addr> {
    let wanted = bytes(mac)?;
    let lease = |block: &str| {
        let value = |key: &str| block.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        let (_, hardware) = value("hw_address")?.split_once(',')?; // behind its kind, 1 for Ethernet
        let until = u64::from_str_radix(value("lease")?.trim_start_matches("0x"), 16).ok()?;
        let address: Ipv4Addr = value("ip_address")?.parse().ok()?;
        (bytes(hardware)? == wanted).then_some((until, address))
    };
    leases.split('{').filter_map(lease).max().map(|(_, address)| address)
}

/// A MAC address; leading zeros of each byte may be missing.
fn bytes(mac: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{
\tname=one
\tip_address=192.168.64.2
\thw_address=1,a6:5e:4:c1:d8:3b
\tidentifier=1,a6:5e:4:c1:d8:3b
\tlease=0x5d1ce3a7
}
{
\tname=one
\tip_address=192.168.64.7
\thw_address=1,a6:5e:4:c1:d8:3b
\tlease=0x5d1ce3a8
}
{
\tname=other
\tip_address=192.168.64.3
\thw_address=1,a6:5e:4:c1:d8:3c
\tlease=0x6d1ce3a7
}
{
\tname=damaged
\thw_address=1,a6:5e:4
";

    #[test]
    fn an_address_is_found_by_its_mac_without_leading_zeros_and_the_latest_counts() {
        assert_eq!(leased(TEXT, "a6:5e:04:c1:d8:3b"), Some(Ipv4Addr::new(192, 168, 64, 7)));
        assert_eq!(leased(TEXT, "A6:5E:4:C1:D8:3C"), Some(Ipv4Addr::new(192, 168, 64, 3)));
        assert_eq!(leased(TEXT, "a6:5e:04:c1:d8:00"), None);
        assert_eq!(leased("", "a6:5e:04:c1:d8:3b"), None);
        assert_eq!(leased(TEXT, "no address"), None);
    }

    #[test]
    fn a_program_that_prints_no_address_or_hangs_is_no_obstacle() {
        let mut hangs = Command::new("sleep");
        hangs.arg("1000");
        let error = output_of(hangs, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        let mut says = Command::new("echo");
        says.arg("something");
        assert_eq!(output_of(says, Duration::from_secs(60)).unwrap(), "something\n");
    }
}
