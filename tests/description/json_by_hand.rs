//! `hyperkit.json` as people and other programs write it: keys in any case, unknown keys, and interfaces of disks that only the
//! recorded arguments contain.

use hyperkit::{Disk, DiskFormat, DiskInterface, HyperKit};
use serde_json::{Value, json};

use crate::common::TestDir;

fn load(json: &str) -> HyperKit {
    serde_json::from_str(json).unwrap()
}

#[test]
fn keys_match_without_regard_to_case() {
    let description = load(
        r#"{ "CPUs": 8, "Memory": 512, "KERNEL": "/k", "Disks": [{ "Path": "/d.img", "SIZE": 3, "Format": "raw", "RO": true }],
             "9P_Sockets": [{ "PATH": "/s", "Tag": "t" }], "Serials": [{ "interactiveconsole": 1, "LOGTORINGBUFFER": true }],
             "Labels": { "Owner": "me", "owner": "you" } }"#,
    );
    assert_eq!((description.cpus, description.memory_mib), (8, 512));
    assert_eq!(description.kernel.as_deref(), Some("/k".as_ref()));
    assert_eq!(description.disks, [Disk::raw("/d.img").size_mib(3).read_only()]);
    assert_eq!(description.shares_9p[0].tag, "t");
    assert!(description.serials.unwrap()[0].log);
    assert_eq!(description.labels.len(), 2, "the caller's own keys are distinguished by case");
    assert_eq!(
        load(r#"{ "di\u017f\u212as": [] }"#).to_string(),
        HyperKit::new().to_string(),
        "Go folds these letters, too"
    );
}

#[test]
fn changed_description_is_written_with_the_usual_keys() {
    let written: Value = serde_json::from_str(&load(r#"{ "CPUs": 8, "Owner": 1 }"#).to_string()).unwrap();
    assert_eq!((&written["cpus"], &written["Owner"]), (&json!(8), &json!(1)));
    assert!(written.get("CPUs").is_none());
}

/// As in Go, also if the two are the same key in different cases. `null` changes nothing.
#[test]
fn last_of_duplicate_keys_counts() {
    for (json, cpus) in [
        (r#"{ "cpus": 2, "cpus": 3 }"#, 3),
        (r#"{ "cpus": 2, "CPUs": 3 }"#, 3),
        (r#"{ "CPUs": 3, "cpus": 2 }"#, 2),
        (r#"{ "CPUS": 3, "cpus": 2, "Cpus": 4 }"#, 4),
        (r#"{ "cpus": 3, "CPUs": null }"#, 3),
    ] {
        assert_eq!(load(json).cpus, cpus, "{json}");
    }
    let disk = |json: &str| load(&format!(r#"{{ "disks": [{json}] }}"#)).disks[0].size_mib;
    assert_eq!(disk(r#"{ "path": "/d", "size": 1, "Size": 2 }"#), Some(2));
    assert_eq!(disk(r#"{ "path": "/d", "Size": 2, "size": 1 }"#), Some(1));
}

#[test]
fn record_in_another_case_is_read() {
    let test_dir = TestDir::new();
    std::fs::create_dir(test_dir.path("vm")).unwrap();
    test_dir.write("vm/hyperkit.json", br#"{ "kernel": "/k", "Pid": 7, "Arguments": ["-A"], "PID": 8 }"#);
    let description = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!((description.recorded_pid(), description.recorded_arguments()), (Some(8), &["-A".to_owned()][..]));
    assert!(matches!(description.is_running(), Ok(false)));
}

#[test]
fn unknown_keys_are_kept() {
    let unknown = r#"{"a":null,"b":[null,{"X":null}],"big":18446744073709551615,"CPU_s":1,"float":0.1,"neg":-9223372036854775808}"#;
    let mut unknown: Value = serde_json::from_str(unknown).unwrap();
    let keys = unknown.as_object_mut().unwrap();
    for (key, value) in keys.iter() {
        let description = load(&json!({ key: value, "disks": [{ "path": "/d", key: value }] }).to_string());
        let written: Value = serde_json::from_str(&description.to_string()).unwrap();
        assert_eq!((written.get(key), written["disks"][0].get(key)), (Some(value), Some(value)));
    }
}

/// Numbers under unknown keys are read as 64-bit numbers.
#[test]
fn unknown_numbers_keep_their_value_and_not_their_digits() {
    for (number, written) in [
        ("18446744073709551615", "18446744073709551615"),
        ("0.1", "0.1"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("2.50", "2.5"),
        ("12345678901234567890123", "1.2345678901234568e+22"),
    ] {
        let description = load(&format!(r#"{{ "later": {number} }}"#));
        assert!(description.to_string().contains(&format!(r#""later":{written}"#)), "{number}: {description}");
    }
}

/// A state of the Go package with these disks, whose arguments have these devices.
fn go_state(disks: Value, devices: &[&str]) -> HyperKit {
    let arguments =
        devices.iter().enumerate().flat_map(|(at, device)| ["-s".to_owned(), format!("{}:0,{device}", at + 1)]);
    let arguments: Vec<_> = ["-A".to_owned(), "-u".to_owned()].into_iter().chain(arguments).collect();
    let state = json!({
        "hyperkit": "/hyperkit", "argv0": "", "state_dir": "/vm", "vpnkit_uuid": "", "disks": disks, "iso": null, "kernel": "/k",
        "console": 1, "serials": null, "pid": 7, "arguments": arguments, "cmdline": "",
    });
    serde_json::from_value(state).unwrap()
}

/// From 2017-11-23 to 2020-03-06, the Go package attached a disk with `trim` as `ahci-hd`. The guest's `sda` must not become
/// `vda`.
#[test]
fn trimmed_disk_of_older_go_states_is_a_sata_disk() {
    let raw = json!({ "path": "/a.img", "size": 1, "format": "", "trim": true });
    let qcow =
        json!({ "path": "/b c.qcow2", "size": 1, "format": "", "trim": true, "OnFlush": "os", "CompactAfter": 0 });
    let plain = json!({ "path": "/d.img", "size": 1, "format": "", "trim": false });
    let qcow_argument =
        |driver: &str| format!("{driver},file:///b c.qcow2?sync=os&buffered=1,format=qcow,qcow-config=discard=true");
    let old = go_state(
        json!([raw, qcow, plain]),
        &["ahci-hd,/a.img", &qcow_argument("ahci-hd"), "virtio-blk,/d.img", "ahci-cd,/x.iso"],
    );
    let interfaces = |description: &HyperKit| description.disks.iter().map(|disk| disk.interface).collect::<Vec<_>>();
    use DiskInterface::{Ahci, VirtioBlk};
    assert_eq!(interfaces(&old), [Ahci, Ahci, VirtioBlk]);
    assert!(old.disks[0].trim && matches!(old.disks[1].format, Some(DiskFormat::Qcow2(_))));
    let arguments = old.arguments("").unwrap().join(" ");
    assert!(
        arguments.contains("1:0,ahci-hd,/a.img") && arguments.contains("2:0,ahci-hd,file:///b%20c.qcow2"),
        "{arguments}"
    );
    // It stays so when the state is written and read.
    assert_eq!(load(&old.to_string()).disks, old.disks);

    let new = go_state(json!([raw, qcow]), &["virtio-blk,/a.img", &qcow_argument("virtio-blk")]);
    assert_eq!(interfaces(&new), [VirtioBlk, VirtioBlk]);
    // Without arguments the interface is that of the later package. A driver that was set by hand counts.
    assert_eq!(interfaces(&go_state(json!([raw]), &[])), [VirtioBlk]);
    let by_hand = json!({ "path": "/a.img", "size": 1, "driver": "virtio-blk", "trim": true });
    assert_eq!(interfaces(&go_state(json!([by_hand]), &["ahci-hd,/a.img"])), [VirtioBlk]);
}

/// The description that this crate wrote says which interface a disk has, whatever the arguments of the last start were.
#[test]
fn arguments_do_not_change_the_disks_of_this_crate() {
    let mut state = serde_json::to_value(HyperKit::new().disk(Disk::raw("/a.img").trim())).unwrap();
    state["arguments"] = json!(["-s", "1:0,ahci-hd,/a.img"]);
    let description: HyperKit = serde_json::from_value(state).unwrap();
    assert_eq!(description.disks[0].interface, DiskInterface::VirtioBlk);
}
