//! URLs as paths of disk images, as in the Go package: the file that a URL names is attached, or the URL is rejected
//! before anything is created.

use std::fs;
use std::path::Path;

use hyperkit::{
    ConfigError, Disk, DiskFormat, Disks, FlushMode, HyperKit, QcowOptions, create_disk_image, parse_arguments,
};
use serde_json::json;

use crate::common::rejection::{assert_error, only_violation, rejection_with};
use crate::common::{TestDir, file_names};

const MIB: u64 = 1024 * 1024;

/// The options of the URL of a qcow2 image, as the Go package passes them.
const QUERY: &str = "?sync=os&buffered=1";

/// A start that takes a URL for a relative path would create these.
fn assert_nothing_is_in_the_working_directory() {
    assert!(!Path::new("file:").exists() && !Path::new("FILE:").exists());
}

fn flush_mode(disk: &Disk) -> FlushMode {
    let Some(DiskFormat::Qcow2(options)) = &disk.format else { panic!("{disk:?}") };
    options.flush
}

/// Starts and kills a VM with this disk. Returns the disk as it was started.
fn started(test_dir: &TestDir, disk: Disk) -> Disk {
    let _stop = test_dir.stop_on_drop();
    let vm = test_dir.description().disk(disk).start("guest").unwrap();
    vm.kill().unwrap();
    vm.description().disks[0].clone()
}

#[test]
fn image_named_by_a_url_is_attached() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("a b%")).unwrap();
    let image = test_dir.path("a b%/real.qcow2");
    Disk::new(&image).size_mib(2).create().unwrap();
    let encoded = image.to_str().unwrap().replace('%', "%25").replace(' ', "%20");
    for prefix in ["file://", "FILE://", "file://localhost", "file:"] {
        for (query, flush) in [
            (QUERY, FlushMode::Os),
            ("?sync=drive", FlushMode::Drive),
            ("?sync=none", FlushMode::None),
            ("", FlushMode::default()),
        ] {
            let url = format!("{prefix}{encoded}{query}");
            for disk in [Disk::new(&url), Disk::qcow2(&url, QcowOptions::default()), Disk::new(&url).size_mib(2)] {
                let started = started(&test_dir, disk.clone());
                assert_eq!((started.path.as_ref(), flush_mode(&started)), (Some(&image), flush), "{url}");
                let description = test_dir.description().disk(disk);
                let argument =
                    description.arguments("").unwrap().into_iter().find(|a| a.contains("virtio-blk")).unwrap();
                assert!(argument.contains(&format!(",file://{encoded}?sync=")), "{argument}");
                let loaded: HyperKit = serde_json::from_str(&description.to_string()).unwrap();
                assert_eq!(loaded.resolve().unwrap().disks, [started]);
            }
        }
    }
    assert_nothing_is_in_the_working_directory();
}

#[test]
fn raw_image_named_by_a_url_is_attached_created_and_grown() {
    let test_dir = TestDir::new();
    let url = |name: &str| format!("file://{}{QUERY}", test_dir.path(name).display());
    assert_eq!(started(&test_dir, Disk::new(url("a.img")).size_mib(1)).path, Some(test_dir.path("a.img")));
    Disk::raw(url("b.img")).size_mib(1).create().unwrap();
    Disk::raw(url("b.img")).size_mib(2).grow().unwrap();
    create_disk_image(url("c.img"), 3).unwrap();
    Disk::new(url("d.qcow2")).size_mib(1).create().unwrap();
    for (name, mib) in [("a.img", 1), ("b.img", 2), ("c.img", 3)] {
        assert_eq!(test_dir.path(name).metadata().unwrap().len(), mib * MIB);
    }
    assert!(fs::read(test_dir.path("d.qcow2")).unwrap().starts_with(b"QFI\xfb"));
    let missing = rejection_with(&test_dir, "", |d| d.disk(url("none.img")));
    assert_eq!(missing, ConfigError::DiskSizeMissing { path: test_dir.path("none.img") });
    let drive = format!("file://{}?sync=drive", test_dir.path("a.img").display());
    let error = rejection_with(&test_dir, "", |d| d.disk(Disk::raw(drive)));
    assert_error!(error, ConfigError::UnsupportedUrl { reason: "`sync=drive` requires a qcow2 image", .. });
    assert_nothing_is_in_the_working_directory();
}

#[test]
fn urls_in_state_files_lead_to_the_same_images() {
    let test_dir = TestDir::new();
    let image = test_dir.path("real.img");
    create_disk_image(&image, 1).unwrap();
    let url = format!("file://{}", image.display());
    fs::create_dir(test_dir.path("vm")).unwrap();
    for disks in [json!({ "disk": url }), json!({ "disks": [{ "path": url, "size": 1 }] })] {
        let mut state = serde_json::to_value(test_dir.description()).unwrap();
        // The Go package records paths as it got them, and a relative one shows what all others are relative to.
        state["state_dir"] = "vm".into();
        state.as_object_mut().unwrap().extend(disks.as_object().unwrap().clone());
        test_dir.write("vm/hyperkit.json", state.to_string().as_bytes());
        let loaded = HyperKit::from_state(test_dir.path("vm")).unwrap();
        assert_eq!(loaded.resolve().unwrap().disks[0].path.as_ref(), Some(&image));
        let vm = loaded.start("guest").unwrap();
        vm.kill().unwrap();
        vm.remove(Disks::Keep).unwrap();
        fs::create_dir_all(test_dir.path("vm")).unwrap();
    }
    test_dir.description().disk(&*url).define().unwrap();
    assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap().disks[0].path, Some(image));
}

#[test]
fn urls_in_arguments_are_read() {
    let line =
        |disk: &str| ["-A", "-s", "0:0,hostbridge", "-s", "31,lpc", "-s", disk, "-f", "kexec,/k,,x"].map(str::to_owned);
    for device in [
        "1:0,virtio-blk,file:///a%20b.img",
        "1:0,ahci-hd,FILE:/a%20b.img",
        "1:0,virtio-blk,file:///a%20b.img?sync=os,ro",
    ] {
        let (description, cmdline) = parse_arguments(&line(device)).unwrap();
        assert_eq!(description.disks[0].path.as_deref(), Some(Path::new("/a b.img")));
        assert!(description.extra_arguments.is_empty());
        assert!(description.arguments(&cmdline).unwrap().iter().any(|argument| argument.contains(",/a b.img")));
    }
    for url in ["http://host/a", "file:///a%2", "nbd://host/a", "file://host/a"] {
        let error = parse_arguments(&line(&format!("1:0,virtio-blk,{url}"))).unwrap_err();
        assert!(error.to_string().contains(url), "{error}");
    }
}

#[test]
fn unsupported_urls_are_rejected_before_anything_is_created() {
    let test_dir = TestDir::new();
    let files = file_names(Path::new("."));
    for url in [
        "http://host/a.img",
        "https://host/a.qcow2",
        "nbd://host/a",
        r#"json:{"driver":"file"}"#,
        "file://host/a.img",
        "file:a.img",
        "file:///a%2",
        "file:///a.img#b",
        "file:///a.img?mode=ro",
        "file:///a.img?buffered=0",
    ] {
        for disk in [Disk::new(url), Disk::raw(url).size_mib(1), Disk::qcow2(url, QcowOptions::default()).size_mib(1)] {
            let error = rejection_with(&test_dir, "", |d| d.disk(disk.clone()));
            assert_error!(&error, ConfigError::UnsupportedUrl { field: "disks", url: u, .. } if u == Path::new(url));
            assert_eq!(only_violation(test_dir.description().disk(disk.clone()).arguments("")), error);
            assert_eq!(only_violation(test_dir.description().disk(disk.clone()).define()), error);
            if disk.size_mib.is_some() {
                assert_eq!(only_violation(disk.create()), error);
                assert_eq!(only_violation(disk.grow()), error);
            }
        }
        assert_error!(only_violation(create_disk_image(url, 1)), ConfigError::UnsupportedUrl { .. });
    }
    assert!(!test_dir.path("vm").exists());
    assert_eq!(file_names(Path::new(".")), files);
}

#[test]
fn paths_with_colons_are_no_urls() {
    let test_dir = TestDir::new();
    for name in ["a:b.img", "nbd:a", "json:a", "file:", "http:"] {
        let path = test_dir.path(name);
        assert_eq!(started(&test_dir, Disk::raw(&path).size_mib(1)).path, Some(path.clone()));
        assert_eq!(path.metadata().unwrap().len(), MIB);
    }
    let arguments = test_dir.description().disk(Disk::raw("a:b.img")).arguments("").unwrap();
    assert!(arguments.iter().any(|argument| argument.ends_with(",a:b.img")), "{arguments:?}");
}
