//! Files that no engine can attach as a disk: each is rejected with the name of its format, before anything is created or changed.
//! With `Disk::raw`, any file is a raw disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::{ConfigError, Disk, QcowOptions};

use crate::common::TestDir;
use crate::common::rejection::{assert_boots, assert_error, only_violation, rejection_with};
use crate::common::tools::run_tool;

const MIB: usize = 1024 * 1024;

/// Asserts that a probed disk with this image is rejected as this format, with and without a size, and stays as it is. As a raw
/// disk it boots.
fn assert_foreign(test_dir: &TestDir, image: &Path, name: &str) {
    let before = fs::read(image).unwrap();
    for disk in
        [Disk::new(image), Disk::new(image).read_only(), Disk::new(image).size_mib(64), Disk::new(image).size_mib(1)]
    {
        let violation = rejection_with(test_dir, "", |d| d.disk(disk.clone()));
        assert_error!(&violation, ConfigError::ForeignImage { path, format } if path == image && *format == name);
        assert!(violation.to_string().contains(name), "{violation}");
        if disk.size_mib.is_some() {
            assert_eq!(only_violation(disk.grow()), violation);
        }
    }
    let as_qcow2 = Disk::qcow2(image, QcowOptions::default());
    let violation = rejection_with(test_dir, "", |d| d.disk(as_qcow2));
    assert_eq!(violation, ConfigError::NotQcow2 { path: image.to_owned() });
    assert_eq!(fs::read(image).unwrap(), before);
    assert_boots(test_dir.description().disk(Disk::raw(image)));
}

#[test]
fn images_of_other_hypervisors_are_rejected_by_name() {
    let test_dir = TestDir::new();
    test_dir.write("raw", &vec![7; 2 * MIB]);
    for (format, options, name) in [
        ("vmdk", "", "vmdk"),
        ("vmdk", "subformat=monolithicFlat", "vmdk"),
        ("vmdk", "subformat=streamOptimized", "vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk"),
        ("vdi", "", "vdi"),
        ("vhdx", "", "vhdx"),
        ("vpc", "subformat=dynamic", "vpc"),
        ("vpc", "subformat=fixed", "vpc"),
        ("qed", "", "qed"),
        ("parallels", "", "parallels"),
        ("qcow", "", "qcow"),
    ] {
        let mut arguments = vec!["convert", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend(["-f", "raw", "raw", "converted"]);
        run_tool("qemu-img", &arguments, &test_dir.dir());
        assert_foreign(&test_dir, &test_dir.path("converted"), name);
        fs::remove_file(test_dir.path("converted")).unwrap();
    }
}

/// A disk of an older Virtual PC has a footer of 511 bytes, and an older Parallels another magic.
#[test]
fn variants_that_qemu_img_does_not_write_are_rejected_by_name() {
    let test_dir = TestDir::new();
    let after = |length: usize, magic: &[u8], total: usize| {
        let mut image = vec![0; total];
        image[length..length + magic.len()].copy_from_slice(magic);
        image
    };
    for (image, name) in [
        (after(MIB, b"conectix", MIB + 511), "vpc"),
        (after(0, b"WithouFreSpacExt", MIB), "parallels"),
        (after(0, b"COWD", MIB), "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n".to_vec(), "vmdk"),
        (b"# a comment\n\nversion=1\nCID=1\n".to_vec(), "vmdk"),
        (after(0, b"BZh91AY&SY", 600), "bzip2"),
        (after(MIB, b"koly\0\0\0\x04", MIB + 512), "dmg"),
    ] {
        assert_foreign(&test_dir, &test_dir.write("image", &image), name);
    }
}

#[test]
fn compressed_images_and_archives_are_rejected_by_name() {
    let test_dir = TestDir::new();
    test_dir.write("raw", &vec![7; MIB]);
    test_dir.write("disk.ovf", b"<Envelope/>");
    // gzip and tar belong to every Debian, xz is installed by the script.
    for (program, arguments, name) in [
        ("gzip", &["-c", "raw"][..], "gzip"),
        ("xz", &["-c", "raw"], "xz"),
        ("xz", &["--format=lzma", "-c", "raw"], "lzma"),
        ("tar", &["-c", "raw"], "tar"),
        ("tar", &["--format=ustar", "-c", "disk.ovf", "raw"], "ova"),
        ("tar", &["--format=gnu", "-c", "disk.ovf", "raw"], "ova"),
    ] {
        let content = run_tool(program, arguments, &test_dir.dir());
        assert_foreign(&test_dir, &test_dir.write("image", &content), name);
    }
    // The beginnings of files by zstd and lz4, which may not be installed.
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0x64, 0, 0][..], &[7; 600]].concat();
    assert_foreign(&test_dir, &test_dir.write("image", &zstd), "zstd");
    let lz4 = [&[0x04, 0x22, 0x4d, 0x18, 0x64, 0x40][..], &[7; 600]].concat();
    assert_foreign(&test_dir, &test_dir.write("image", &lz4), "lz4");
}

/// Contents of disks: a partition table, a GPT, a file system, an ISO image, and zeros.
#[test]
fn content_of_disks_is_raw() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("files")).unwrap();
    test_dir.write("files/a", b"a");
    run_tool("genisoimage", &["-quiet", "-o", "cd.iso", "files"], &test_dir.dir());
    let with = |at: usize, bytes: &[u8]| {
        let mut disk = vec![0; MIB];
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    };
    test_dir.write("mbr", &with(510, b"\x55\xaa"));
    test_dir.write("gpt", &with(512, b"EFI PART"));
    test_dir.write("ext4", &with(1080, b"\x53\xef"));
    test_dir.write("luks", &with(0, b"LUKS\xba\xbe\0\x02"));
    test_dir.write("zeros", &vec![0; MIB]);
    for name in ["cd.iso", "mbr", "gpt", "ext4", "luks", "zeros"] {
        assert_boots(test_dir.description().disk(Disk::new(test_dir.path(name))));
    }
    assert_boots(test_dir.description().iso(test_dir.path("cd.iso")));
}

/// Creates a qcow2 image of 2 MiB, and changes one byte of its header.
fn qcow2_with(test_dir: &TestDir, create: &[&str], at: usize, value: u8) -> PathBuf {
    let _ = fs::remove_file(test_dir.path("image"));
    run_tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], create, &["image", "2M"]].concat(), &test_dir.dir());
    let mut image = fs::read(test_dir.path("image")).unwrap();
    image[at] = value;
    test_dir.write("image", &image)
}

fn assert_unusable(test_dir: &TestDir, image: &Path, why: &str) {
    let before = fs::read(image).unwrap();
    for disk in [Disk::new(image), Disk::qcow2(image, QcowOptions::default())] {
        for disk in [disk.clone(), disk.clone().size_mib(1), disk.clone().size_mib(64)] {
            let violation = rejection_with(test_dir, "", |d| d.disk(disk.clone()));
            assert_error!(&violation, ConfigError::InvalidQcow2 { path, reason } if path == image && *reason == why);
            if disk.size_mib.is_some() {
                assert_eq!(only_violation(disk.grow()), violation);
            }
        }
    }
    assert_eq!(fs::read(image).unwrap(), before);
    assert_boots(test_dir.description().disk(Disk::raw(image)));
}

#[test]
fn unusable_qcow2_images_are_rejected_and_not_changed() {
    let test_dir = TestDir::new();
    // Offsets of QEMU's docs/interop/qcow2.txt: version 7, clusters 23, encryption 35, entries and place of the table of clusters 36
    // to 47, place and clusters of reference counts 48 to 59, snapshots 60 to 71, incompatible features 72 to 79, autoclear
    // features 88 to 95, header length 100 to 103, compression 104.
    for (at, value, reason) in [
        (7, 4, "unknown version"),
        (23, 30, "invalid cluster size"),
        (35, 1, "encrypted"),
        (35, 2, "encrypted"),
        (79, 2, "marked as corrupt"),
        (79, 1 << 5, "unknown incompatible feature"),
        (72, 1, "unknown incompatible feature"),
        (103, 0, "invalid header length"),
        (104, 1, "invalid compression type"),
        (104, 5, "invalid compression type"),
        (79, 1 << 3, "invalid compression type"),
        (79, 1 << 2, "external data without the name of a data file"),
        (95, 1 << 1, "raw external data without a data file"),
        (24, 0x7f, "invalid table of clusters"),
        (39, 0, "invalid table of clusters"),
        (36, 0x40, "invalid table of clusters"),
        (47, 1, "invalid table of clusters"),
        (59, 0, "invalid table of reference counts"),
        (56, 0x40, "invalid table of reference counts"),
        (60, 0xff, "invalid table of snapshots"),
    ] {
        let image = qcow2_with(&test_dir, &[], at, value);
        assert_unusable(&test_dir, &image, reason);
        // QEMU refuses them, too. It opens a corrupt image for reading, and an encrypted one without its content.
        if !["marked as corrupt", "encrypted"].contains(&reason) {
            let mut qemu_io = Command::new("qemu-io");
            let output = qemu_io.args(["-r", "-f", "qcow2", "-c", "quit"]).arg(&image).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{at}: {output:?}");
        }
    }
    for length in [4, 24, 71, 103] {
        let whole = fs::read(qcow2_with(&test_dir, &[], 0, b'Q')).unwrap();
        assert_unusable(&test_dir, &test_dir.write("image", &whole[..length]), "truncated header");
    }
    for length in [112, 512, 65536] {
        let whole = fs::read(qcow2_with(&test_dir, &[], 0, b'Q')).unwrap();
        assert_unusable(&test_dir, &test_dir.write("image", &whole[..length]), "truncated");
    }
}

#[test]
fn encrypted_image_of_qemu_img_is_rejected() {
    let test_dir = TestDir::new();
    // The other method, luks, measures the speed of the processor first, which fails on a busy host.
    let encrypted = ["--object", "secret,id=key,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=key"];
    let image = qcow2_with(&test_dir, &encrypted, 0, b'Q');
    assert_unusable(&test_dir, &image, "encrypted");
}

/// An engine repairs dirty images when it opens them. Current versions of QEMU have the other features.
#[test]
fn usable_qcow2_images_are_accepted() {
    let test_dir = TestDir::new();
    for options in
        ["compat=0.10", "compat=1.1", "lazy_refcounts=on", "extended_l2=on", "compression_type=zstd", "cluster_size=2M"]
    {
        let image = qcow2_with(&test_dir, &["-o", options], 0, b'Q');
        assert_boots(test_dir.description().disk(Disk::new(&image)));
    }
    let dirty = qcow2_with(&test_dir, &[], 79, 1);
    assert_boots(test_dir.description().disk(Disk::new(dirty)));
    let corrupt = qcow2_with(&test_dir, &[], 79, 2);
    test_dir.description().disk(Disk::new(corrupt).read_only()).check().unwrap();
}

/// The file's length is the disk's size, whatever the guest has written to the disk.
#[test]
fn qcow2_header_in_a_raw_disk_does_not_change_the_size() {
    let test_dir = TestDir::new();
    let image = qcow2_with(&test_dir, &[], 24, 1); // the header says 65536 TiB
    let disk = Disk::raw(&image).size_mib(4);
    disk.grow().unwrap();
    assert_eq!(image.metadata().unwrap().len(), 4 * MIB as u64);
    assert_boots(test_dir.description().disk(disk));
}

#[test]
fn empty_images_and_devices_that_are_not_disks_are_rejected() {
    let test_dir = TestDir::new();
    let empty = test_dir.write("empty", b"");
    for disk in [Disk::new(&empty), Disk::raw(&empty), Disk::raw(&empty).read_only()] {
        let violation = rejection_with(&test_dir, "", |d| d.disk(disk));
        assert_eq!(violation, ConfigError::EmptyFile { field: "disks", path: empty.clone() });
    }
    let violation = rejection_with(&test_dir, "", |d| d.iso(&empty));
    assert_eq!(violation, ConfigError::EmptyFile { field: "isos", path: empty.clone() });
    if cfg!(target_os = "linux") {
        let zero = Path::new("/dev/zero");
        let violation = rejection_with(&test_dir, "", |d| d.disk(Disk::raw(zero)));
        assert_eq!(violation, ConfigError::EmptyFile { field: "disks", path: zero.into() });
        let violation = rejection_with(&test_dir, "", |d| d.iso(zero));
        assert_eq!(violation, ConfigError::EmptyFile { field: "isos", path: zero.into() });
    }
    // With a size, an empty raw image grows.
    assert_boots(test_dir.description().disk(Disk::raw(&empty).size_mib(1)));
    assert_eq!(empty.metadata().unwrap().len(), MIB as u64);
}
