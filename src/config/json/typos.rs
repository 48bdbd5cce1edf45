//! Keys of `hyperkit.json` that are probably misspelled. Unknown keys are kept, since a later version may know them. A known key in
//! another case is not unknown.

use serde_json::{Map, Value};

/// The keys of a description. Those of the record are not written by hand.
pub(super) const KEYS: &[&str] = &[
    "9p_sockets",
    "agent",
    "argv0",
    "bootrom",
    "console",
    "core_dumps",
    "cpu",
    "cpus",
    "disk",
    "disk_size",
    "disks",
    "exit_on_hlt",
    "exit_on_pause",
    "extra_arguments",
    "gdb_port",
    "hyperkit",
    "initrd",
    "internal_networks",
    "iso",
    "kernel",
    "labels",
    "mac",
    "memory",
    "mptable",
    "msix",
    "multiboot",
    "port_forwards",
    "random",
    "root",
    "sandbox",
    "serials",
    "state_dir",
    "tap",
    "utc",
    "uuid",
    "vhost_device_vsock",
    "virtiofs",
    "virtiofsd",
    "vmnet",
    "vpnkit_key",
    "vpnkit_preferred_ipv4",
    "vpnkit_sock",
    "vpnkit_uuid",
    "vsock",
    "vsock_dir",
    "vsock_guest_cid",
    "vsock_ports",
    "x2apic",
];

/// The unknown keys that are nearly known ones, with those.
pub(crate) fn misspelled(unknown: &Map<String, Value>) -> Vec<(&str, &'static str)> {
    let nearest = |key: &str| KEYS.iter().find(|known| is_near(&key.to_lowercase(), known)).copied();
    unknown.keys().filter_map(|key| Some((key.as_str(), nearest(key)?))).collect()
}

/// Whether one letter is missing, added, another one, or exchanged with the next.
fn is_near(key: &str, known: &str) -> bool {
    let (key, known) = (key.as_bytes(), known.as_bytes());
    let same = key.iter().zip(known).take_while(|(one, other)| one == other).count();
    let (key, known) = (&key[same..], &known[same..]);
    match (key, known) {
        ([], rest) | (rest, []) => rest.len() <= 1,
        ([a, b, key @ ..], [c, d, known @ ..]) if (a, b) == (d, c) && key == known => true,
        _ => key[1..] == known[1..] || key[1..] == *known || *key == known[1..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_in_one_letter_are_misspelled() {
        for (key, known) in [
            ("memroy", "memory"),
            ("memor", "memory"),
            ("cup", "cpu"),
            ("cpuss", "cpus"),
            ("kernal", "kernel"),
            ("Memroy", "memory"),
            ("nitrd", "initrd"),
            ("visk", "disk"),
        ] {
            let unknown = [(key.to_owned(), Value::Null)].into_iter().collect();
            assert_eq!(misspelled(&unknown), [(key, known)]);
        }
        let others = ["owner", "later", "mem", "", "created", "pid"].map(|key| (key.to_owned(), Value::Null));
        assert_eq!(misspelled(&others.into_iter().collect()), []);
    }
}
