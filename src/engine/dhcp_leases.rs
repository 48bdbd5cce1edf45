//! The leases of macOS's DHCP server, which serves vmnet.

use std::net::Ipv4Addr;

/// Where macOS's DHCP server, which serves vmnet, writes down whom it has given which address.
pub(crate) const LEASES: &str = "/var/db/dhcpd_leases";

/// A lease is some 150 bytes; what is longer than this is no such file.
pub(crate) const LONGEST_LEASES: u64 = 16 * 1024 * 1024;

/// The address that was given to this MAC address for the longest.
pub(crate) fn leased(leases: &str, mac: &str) -> Option<Ipv4Addr> {
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
pub(crate) fn bytes(mac: &str) -> Option<[u8; 6]> {
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
}
