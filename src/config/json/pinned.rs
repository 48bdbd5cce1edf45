//! The JSON of every field. A new field does not compile before it is pinned here.

use serde_json::{Map, Value, json};

use crate::config::record::{Home, Record};
use crate::{
    Console, Disk, DiskFormat, DiskInterface, FlushMode, HyperKit, InternalNetwork, Multiboot, MultibootModule,
    Network, PortForward, Protocol, QcowOptions, Root, SectorSize, Serial, SerialBackend, Share9p, Share9pSource,
    ShareVirtiofs,
};

fn unknown() -> Map<String, Value> {
    Map::from_iter([("other".to_owned(), json!([1]))])
}

fn every_field() -> HyperKit {
    let qcow = QcowOptions {
        flush: FlushMode::Os,
        compact_after: 1,
        keep_erased: 2,
        runtime_asserts: true,
        stats: Some("tcp:9090".to_owned()),
        tool: Some("/bin/qcow-tool".into()),
    };
    let disk = Disk {
        path: Some("/d.qcow2".into()),
        size_mib: Some(3),
        format: Some(DiskFormat::Qcow2(qcow)),
        interface: DiskInterface::Ahci,
        read_only: true,
        sync: true,
        sector_size: Some(SectorSize { logical: 512, physical: 4096 }),
        trim: true,
        overlay: false,
        unknown: unknown(),
    };
    let overlay = Disk { overlay: true, ..Disk::raw("/base.img") };
    HyperKit {
        hyperkit: Some("/bin/hyperkit".into()),
        argv0: Some("name".to_owned()),
        state_dir: Some("/vm".into()),
        network: Network::VpnKit("/vpnkit.sock".into()),
        vpnkit_key: Some("key".to_owned()),
        vpnkit_preferred_ipv4: Some("192.168.65.10".to_owned()),
        vmnet: true,
        tap: Some("tap0".to_owned()),
        mac: Some("02:00:00:00:00:01".to_owned()),
        port_forwards: vec![PortForward { protocol: Protocol::Udp, host: 4, guest: 5 }],
        internal_networks: vec![InternalNetwork { dir: "/net".into(), number: 16 }],
        uuid: Some("uuid".to_owned()),
        disks: vec![disk, overlay],
        isos: vec!["/a.iso".into(), "/b.iso".into()],
        vsock: true,
        vsock_dir: Some("/vsock".into()),
        vsock_ports: vec![6],
        vsock_guest_cid: 7,
        vhost_device_vsock: Some("/bin/vhost-device-vsock".into()),
        random: false,
        agent: true,
        root: Root::Dir("/root".into()),
        shares_9p: vec![
            Share9p { source: Share9pSource::Path("/9p.sock".into()), tag: "by-path".to_owned() },
            Share9p { source: Share9pSource::Port(8), tag: "by-port".to_owned() },
        ],
        shares_virtiofs: vec![ShareVirtiofs::new("/fs", "fs").read_only(), ShareVirtiofs::new("/fs2", "fs2")],
        virtiofsd: Some("/bin/virtiofsd".into()),
        kernel: Some("/kernel".into()),
        initrd: Some("/initrd".into()),
        bootrom: Some("/rom".into()),
        multiboot: Some(Multiboot {
            kernel: "/multiboot".into(),
            modules: vec![MultibootModule { path: "/module".into(), cmdline: "words".to_owned() }],
        }),
        cpus: 9,
        cpu: Some("max".to_owned()),
        memory_mib: 10,
        console: Some(Console::AppleLog),
        serials: Some(vec![Serial { backend: SerialBackend::Pty, log: true, apple_log: true }, Serial::stdio()]),
        utc: false,
        exit_on_hlt: true,
        exit_on_pause: true,
        x2apic: true,
        msix: false,
        mptable: false,
        core_dumps: true,
        sandbox: false,
        gdb_port: Some(11),
        extra_arguments: vec!["-w".to_owned()],
        labels: [("owner".to_owned(), "me".to_owned())].into(),
        record: Record {
            pid: Some(12),
            arguments: vec!["-A".to_owned()],
            cmdline: "/bin/hyperkit -A".to_owned(),
            pid_started: Some(13),
            pid_identity: Some("13 1:2".to_owned()),
            killed: true,
            vmnet_mac: Some("2:0:0:0:0:1".to_owned()),
            created_disks: vec!["disk.img".to_owned()],
            home: Home::default(), // not written
        },
        unknown: unknown(),
    }
}

const FORM: &str = r#"{
"hyperkit": "/bin/hyperkit", "argv0": "name", "state_dir": "/vm", "vpnkit_sock": "/vpnkit.sock",
"vpnkit_key": "key", "vpnkit_preferred_ipv4": "192.168.65.10", "vmnet": true, "tap": "tap0",
"mac": "02:00:00:00:00:01", "port_forwards": [{ "protocol": "udp", "host": 4, "guest": 5 }],
"internal_networks": [{ "path": "/net", "number": 16 }], "uuid": "uuid",
"disk": "", "disk_size": 0,
"disks": [{
    "path": "/d.qcow2", "size": 3, "format": "qcow", "driver": "ahci-hd", "ro": true, "sync": true,
    "sectorsize": "512/4096", "trim": true, "OnFlush": "os", "CompactAfter": 1, "KeepErased": 2,
    "RuntimeAsserts": true, "Stats": "tcp:9090", "QcowToolPath": "/bin/qcow-tool", "other": [1]
}, { "path": "", "size": 0, "format": "overlay", "base": "/base.img", "base_format": "raw" }],
"iso": ["/a.iso", "/b.iso"], "vsock": true, "vsock_dir": "/vsock", "vsock_ports": [6], "vsock_guest_cid": 7,
"vhost_device_vsock": "/bin/vhost-device-vsock", "random": false, "agent": true, "root": "/root",
"9p_sockets": [{ "path": "/9p.sock", "tag": "by-path" }, { "path": "", "port": 8, "tag": "by-port" }],
"virtiofs": [{ "path": "/fs", "tag": "fs", "ro": true }, { "path": "/fs2", "tag": "fs2" }], "virtiofsd": "/bin/virtiofsd",
"kernel": "/kernel", "initrd": "/initrd", "bootrom": "/rom",
"multiboot": { "kernel": "/multiboot", "modules": [{ "path": "/module", "cmdline": "words" }] },
"cpus": 9, "cpu": "max", "memory": 10, "console": 2,
"serials": [
    { "InteractiveConsole": 2, "LogToRingBuffer": true, "LogToASL": true },
    { "InteractiveConsole": 1, "LogToRingBuffer": false, "LogToASL": false }
],
"utc": false, "exit_on_hlt": true, "exit_on_pause": true, "x2apic": true, "msix": false, "mptable": false,
"core_dumps": true, "sandbox": false, "gdb_port": 11, "extra_arguments": ["-w"], "labels": { "owner": "me" }, "pid": 12, "arguments": ["-A"],
"cmdline": "/bin/hyperkit -A", "pid_started": 13, "pid_identity": "13 1:2", "killed": true, "vmnet_mac": "2:0:0:0:0:1", "made_disks": ["disk.img"], "other": [1]
}"#;

fn form() -> Value {
    serde_json::from_str(FORM).unwrap()
}

#[test]
fn every_field_has_its_json() {
    assert_eq!(serde_json::to_value(every_field()).unwrap(), form());
    assert_eq!(serde_json::from_value::<HyperKit>(form()).unwrap(), every_field());
}

#[test]
fn root_directory_named_host_is_not_read_as_the_hosts_root() {
    for (root, json) in
        [(Root::Host, "host"), (Root::Dir("/host".into()), "/host"), (Root::Dir("./host".into()), "./host")]
    {
        assert_eq!(serde_json::to_value(&root).unwrap(), json);
        assert_eq!(serde_json::from_value::<Root>(json.into()).unwrap(), root);
    }
    assert_eq!(serde_json::to_value(Root::Dir("host".into())).unwrap(), "./host");
    assert_eq!(HyperKit::new().root(Root::Initrd), HyperKit::new());
}

/// Without a key, or with `null` or `""` as its value, the description is another one; except for the two keys of the first
/// generation that the list of disks replaces.
#[test]
fn every_key_matters_and_can_be_unset() {
    for key in form().as_object().unwrap().keys().filter(|key| !["disk", "disk_size"].contains(&key.as_str())) {
        for unset in [None, Some(Value::Null), Some(json!(""))] {
            let mut less = form();
            match unset {
                None => drop(less.as_object_mut().unwrap().remove(key)),
                Some(unset) => less[key] = unset,
            }
            let description: HyperKit = serde_json::from_value(less).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_ne!(description, every_field(), "{key}");
        }
    }
}

/// Changes the case of each letter of each key, except of labels and of keys that are not known.
fn with_other_case(value: &Value) -> Value {
    let other_case = |key: &str| -> String {
        key.chars().map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }).collect()
    };
    match value {
        Value::Object(object) => {
            let change = |(key, value): (&String, &Value)| match key.as_str() {
                "other" | "owner" => (key.clone(), value.clone()),
                _ => (other_case(key), with_other_case(value)),
            };
            Value::Object(object.iter().map(change).collect())
        }
        Value::Array(list) => list.iter().map(with_other_case).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_key_is_read_in_any_case() {
    assert_eq!(serde_json::from_value::<HyperKit>(with_other_case(&form())).unwrap(), every_field());
    let record: Record = serde_json::from_value(with_other_case(&form())).unwrap();
    assert_eq!(record, every_field().record);
    let disk: Disk = serde_json::from_value(with_other_case(&form()["disks"][0])).unwrap();
    assert_eq!(disk, every_field().disks[0]);
}

/// Defaults are not written, except for the keys that the first generation always has.
#[test]
fn a_plain_description_is_of_the_first_generation() {
    let description = HyperKit::new().disk(Disk::raw("/d.img").size_mib(64)).iso("/i.iso").kernel("/k");
    let written = serde_json::to_value(description).unwrap();
    let mut keys: Vec<_> = written.as_object().unwrap().keys().map(String::as_str).collect();
    let mut first = [
        "hyperkit",
        "state_dir",
        "vpnkit_sock",
        "vpnkit_key",
        "uuid",
        "disk",
        "iso",
        "vsock",
        "vsock_ports",
        "vsock_guest_cid",
        "9p_sockets",
        "kernel",
        "initrd",
        "cpus",
        "memory",
        "disk_size",
        "console",
        "pid",
        "arguments",
        "cmdline",
    ];
    keys.sort_unstable();
    first.sort_unstable();
    assert_eq!(keys, first);
}
