//! The JSON form of a description, which is the format of `hyperkit.json`. Three versions of the format are read, and the
//! first is written.

use std::collections::BTreeMap;

use hyperkit::{ConfigError, Console, Disk, DiskFormat, HyperKit, Network};
use serde_json::{Value, json};

use crate::with_keys;

fn load(json: Value) -> HyperKit {
    serde_json::from_value(json).unwrap()
}

fn full_description() -> HyperKit {
    let description = HyperKit::new()
        .hyperkit("/bin/hyperkit")
        .state_dir("/vm")
        .network(Network::VpnKit("/run/vpnkit.sock".into()))
        .vpnkit_key("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55")
        .uuid("1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55")
        .disk(Disk::raw("/d.img").size_mib(64))
        .iso("/i.iso")
        .vsock(true)
        .vsock_port(2374)
        .vsock_guest_cid(9)
        .socket_9p("/p.sock", "tag")
        .kernel("/k")
        .initrd("/i")
        .cpus(3)
        .memory_mib(512)
        .console(Console::Pty);
    with_keys(&description, json!({ "pid": 17, "arguments": ["-A"], "cmdline": "/bin/hyperkit -A" }))
}

/// Compares the JSON of every field that the Go package of 2017 has.
#[test]
fn json_of_every_field_is_what_go_reads() {
    let form = json!({
        "hyperkit": "/bin/hyperkit", "state_dir": "/vm", "vpnkit_sock": "/run/vpnkit.sock",
        "vpnkit_key": "0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55", "uuid": "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55",
        "disk": "/d.img", "disk_size": 64, "iso": "/i.iso", "vsock": true, "vsock_ports": [2374],
        "vsock_guest_cid": 9, "9p_sockets": [{"path": "/p.sock", "tag": "tag"}], "kernel": "/k", "initrd": "/i",
        "cpus": 3, "memory": 512, "console": 1, "pid": 17, "arguments": ["-A"], "cmdline": "/bin/hyperkit -A"
    });
    assert_eq!(serde_json::to_value(full_description()).unwrap(), form);
    assert_eq!(load(form.clone()), full_description());
    // Without any of the keys, another description is loaded.
    for key in form.as_object().unwrap().keys() {
        let mut less = form.clone();
        less.as_object_mut().unwrap().remove(key);
        assert_ne!(load(less), full_description(), "{key}");
    }
}

#[test]
fn null_empty_and_missing_values_are_unset() {
    let keys = serde_json::to_value(HyperKit::new()).unwrap();
    assert_eq!(load(json!({})), HyperKit::new());
    for unset in [Value::Null, json!("")] {
        let all = keys.as_object().unwrap().keys().map(|key| (key.clone(), unset.clone())).collect();
        assert_eq!(load(Value::Object(all)), HyperKit::new());
    }
}

#[test]
fn lists_of_disks_and_isos_load_and_are_written_only_if_needed() {
    let late_2017 = json!({
        "disks": [{"path": "/a.img", "size": 1, "format": "raw", "driver": "virtio-blk"}, {"path": "/b.img", "size": 0}],
        "iso": ["/a.iso", "/b.iso"],
    });
    let description = load(late_2017.clone());
    assert_eq!(description.disks.len(), 2);
    assert_eq!(description.disks[0].path.as_deref(), Some("/a.img".as_ref()));
    assert_eq!((description.disks[0].size_mib, description.disks[1].size_mib), (Some(1), None));
    assert_eq!(description.isos, ["/a.iso", "/b.iso"].map(std::path::PathBuf::from));
    let written = serde_json::to_value(&description).unwrap();
    // `driver` is not written if it has its default.
    let disks = json!([{"path": "/a.img", "size": 1, "format": "raw"}, {"path": "/b.img", "size": 0}]);
    assert_eq!((&written["disks"], &written["iso"]), (&disks, &late_2017["iso"]));
    assert_eq!(load(written), description);

    let single = load(json!({ "disks": [{"path": "/a.img", "size": 4, "format": "raw"}], "iso": ["/a.iso"] }));
    let written = serde_json::to_value(&single).unwrap();
    assert_eq!(
        (&written["disk"], &written["disk_size"], &written["iso"]),
        (&json!("/a.img"), &json!(4), &json!("/a.iso"))
    );
    assert_eq!(written.get("disks"), None);
}

#[test]
fn disk_without_path_keeps_its_size() {
    let description = HyperKit::new().disk(Disk::in_state_dir(64));
    assert_eq!(load(serde_json::to_value(&description).unwrap()), description);
}

/// The Go package passes an empty format to hyperkit, which treats the image as raw. Such a format must not be probed: the
/// guest may have written a qcow2 header that names files of the host.
#[test]
fn go_disk_with_empty_format_is_raw() {
    let disks = |disk: Value| load(json!({ "disks": [disk] })).disks;
    assert_eq!(disks(json!({"path": "/a.img", "format": ""})), [Disk::raw("/a.img")]);
    assert_eq!(disks(json!({"path": "/a.img"})), [Disk::new("/a.img")]);
    let mut nowhere = HyperKit::new().disk(Disk::default());
    nowhere.disks[0].format = Some(DiskFormat::Raw);
    assert_eq!(
        load(serde_json::to_value(&nowhere).unwrap()),
        nowhere,
        "a raw disk without a path is loaded differently"
    );
}

#[test]
fn unknown_keys_are_preserved() {
    let description = load(json!({ "argv0": "vm", "serials": [], "vmnet": true, "cpus": 2 }));
    let written = serde_json::to_value(&description).unwrap();
    assert_eq!((&written["argv0"], &written["serials"], &written["vmnet"]), (&json!("vm"), &json!([]), &json!(true)));
    assert_eq!(written["cpus"], 2);
}

/// These values could get lost or change their type when they are read and written.
#[test]
fn unusual_values_are_preserved_or_unset() {
    assert_eq!(load(json!({"iso": [""]})), HyperKit::new());
    assert_eq!(load(json!({"iso": [null, "/a.iso"]})), HyperKit::new().iso("/a.iso"));
    let error = serde_json::from_value::<HyperKit>(json!({"iso": 5})).unwrap_err();
    assert_eq!(error.to_string(), "`iso`: expected a path or a list of paths");
    assert_eq!(load(json!({"pid_started": ""})), HyperKit::new());
    let state = r#"{"later":7.777777777777777e96,"disks":[{"path":"/a","format":2,"driver":["x"]}]}"#;
    let description: HyperKit = serde_json::from_str(state).unwrap();
    let written = description.to_string();
    assert_eq!(serde_json::from_str::<HyperKit>(&written).unwrap(), description);
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!((&written["disks"][0]["format"], &written["disks"][0]["driver"]), (&json!(2), &json!(["x"])));
    let error = description.kernel("/k").arguments("").unwrap_err();
    let keys = [r#"disks.driver: ["x"]"#, "disks.format: 2"];
    assert_eq!(error.violations(), keys.map(|key| ConfigError::UnknownSetting { key: key.to_owned() }));
}

#[test]
fn vpnkit_auto_and_each_console_round_trip() {
    for console in [Console::Stdio, Console::Pty, Console::AppleLog] {
        let description = HyperKit::new().network(Network::Nat).console(console);
        assert_eq!(load(serde_json::to_value(&description).unwrap()), description);
    }
}

/// Go has no unset console. It reads `null` as 0, which is stdio.
#[test]
fn unset_console_is_null() {
    let unset = HyperKit::new().kernel("/k");
    let written = serde_json::to_value(&unset).unwrap();
    assert_eq!(written.get("console"), Some(&Value::Null));
    assert_eq!(load(written), unset);
    assert_eq!(load(json!({ "console": 0 })).console, Some(Console::Stdio));
    assert_eq!(load(json!({ "serials": [] })).console, None);
}

#[test]
fn labels_round_trip_and_are_written_only_if_set() {
    let labels = [("", ""), ("owner", "me"), ("pid", "17"), ("\u{e9}\n", "\"\0")];
    let description = labels.iter().fold(HyperKit::new(), |description, (key, value)| description.label(*key, *value));
    let written = serde_json::to_value(&description).unwrap();
    assert_eq!(written["labels"], json!(labels.into_iter().collect::<BTreeMap<_, _>>()));
    assert_eq!(load(written), description);
    assert_eq!(description.label("owner", "you").labels["owner"], "you", "the second value does not replace the first");
    assert_eq!(serde_json::to_value(HyperKit::new()).unwrap().get("labels"), None);
    assert!(serde_json::from_value::<HyperKit>(json!({ "labels": { "number": 1 } })).is_err());
}

#[test]
fn invalid_json_values_are_rejected() {
    for damaged in
        [json!([]), json!("x"), json!({"cpus": "two"}), json!({"cpus": -1}), json!({"console": 3}), json!({"disks": 1})]
    {
        assert!(serde_json::from_value::<HyperKit>(damaged.clone()).is_err(), "{damaged}");
    }
}

#[test]
fn display_prints_the_json() {
    assert_eq!(serde_json::from_str::<HyperKit>(&full_description().to_string()).unwrap(), full_description());
}
