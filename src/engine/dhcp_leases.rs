//! The leases of macOS's DHCP server, which serves vmnet.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::sys::file::read_at_most;

const LEASES_FILE: &str = "/var/db/dhcpd_leases";
/// A lease has some 150 bytes; a longer file is something else.
const MAX_LEASES_BYTES: u64 = 16 * 1024 * 1024;

/// The address that is leased to this MAC address, if any.
pub(crate) fn leased_address(mac: &str) -> Option<Ipv4Addr> {
    let leases = read_at_most(Path::new(LEASES_FILE), MAX_LEASES_BYTES).ok()?;
    find_lease(&String::from_utf8_lossy(&leases), mac)
}

/// The address of the lease for this MAC address that ends last.
fn find_lease(leases: &str, mac: &str) -> Option<Ipv4Addr> {
    let wanted = mac_bytes(mac)?;
    let lease = |block: &str| {
        let value = |key: &str| block.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        let (_, hardware) = value("hw_address")?.split_once(',')?; // after its kind, 1 for Ethernet
        let end = u64::from_str_radix(value("lease")?.trim_start_matches("0x"), 16).ok()?;
        let address: Ipv4Addr = value("ip_address")?.parse().ok()?;
        (mac_bytes(hardware)? == wanted).then_some((end, address))
    };
    leases.split('{').filter_map(lease).max().map(|(_, address)| address)
}

/// The bytes of a MAC address, in which leading zeros may be missing.
pub(crate) fn mac_bytes(mac: &str) -> Option<[u8; 6]> {
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
    fn the_latest_lease_of_a_mac_without_leading_zeros_is_found() {
        assert_eq!(find_lease(TEXT, "a6:5e:04:c1:d8:3b"), Some(Ipv4Addr::new(192, 168, 64, 7)));
        assert_eq!(find_lease(TEXT, "A6:5E:4:C1:D8:3C"), Some(Ipv4Addr::new(192, 168, 64, 3)));
        assert_eq!(find_lease(TEXT, "a6:5e:04:c1:d8:00"), None);
        assert_eq!(find_lease("", "a6:5e:04:c1:d8:3b"), None);
        assert_eq!(find_lease(TEXT, "no address"), None);
    }
}
