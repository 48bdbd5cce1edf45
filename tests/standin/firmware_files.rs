//! Boot ROMs: which files are firmware for x86 or for arm64.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hyperkit::{Architecture, ConfigError};

use crate::common::rejection::{assert_boots, assert_error, rejection_with, rom, without_boot_source};
use crate::common::{TestDir, standin_path};

/// Files of Debian's packages `ovmf` and `seabios`, which QEMU's package and `examples/setup.sh --tests` install.
fn debian_file(path: &str) -> &Path {
    assert!(Path::new(path).exists(), "{path} is missing: run examples/setup.sh --tests first");
    Path::new(path)
}

/// The error for a file without code where an x86 processor starts.
fn no_code(path: impl AsRef<Path>) -> ConfigError {
    let (path, architecture) = (path.as_ref().to_owned(), Architecture::X86_64);
    ConfigError::InvalidBootrom { path, architecture, reason: "it must have code in its last 16 bytes" }
}

#[test]
fn firmware_of_debian_is_accepted() {
    let test_dir = TestDir::new();
    for path in [
        "/usr/share/ovmf/OVMF.fd",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/seabios/bios.bin",
        "/usr/share/seabios/bios-256k.bin",
    ] {
        assert_boots(without_boot_source(test_dir.description()).bootrom(debian_file(path)));
    }
}

#[test]
fn uefi_variables_of_debian_are_rejected() {
    let test_dir = TestDir::new();
    for path in ["/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"] {
        let error = rejection_with(&test_dir, "", |d| without_boot_source(d).bootrom(debian_file(path)));
        assert_eq!(error, no_code(path));
    }
}

/// QEMU's `virt` machine has flash of 64 MiB, and QEMU takes no shorter file. The CPU starts at the beginning of the file.
#[test]
fn firmware_for_arm64_is_accepted_on_its_engine_only() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-aarch64");
    symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU for arm64 the engine
    let firmware = test_dir.path("firmware");
    let write = |start: &[u8], length: u64| {
        fs::write(&firmware, start).unwrap();
        fs::OpenOptions::new().write(true).open(&firmware).unwrap().set_len(length).unwrap();
    };
    let describe = |d| without_boot_source(d).bootrom(&firmware).hyperkit(&qemu);
    let invalid = |architecture, reason| ConfigError::InvalidBootrom { path: firmware.clone(), architecture, reason };
    const JUMP: &[u8] = &[0, 4, 0, 0x14];
    const LENGTH: &str = "it must be exactly 64 MiB long; lengthen a copy of a shorter one with `truncate -s 64M`";
    const FLASH: u64 = 64 << 20;

    write(JUMP, FLASH);
    describe(test_dir.description()).check().unwrap();
    // With firmware, the guest sees the UUID.
    describe(test_dir.description()).uuid("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55").check().unwrap();
    let error = rejection_with(&test_dir, "", |d| without_boot_source(d).bootrom(&firmware));
    assert_eq!(error, no_code(&firmware));
    for length in [4, 4096, 2 << 20, FLASH - 1, FLASH + 1, 2 * FLASH] {
        write(JUMP, length);
        let error = rejection_with(&test_dir, "", describe);
        assert_eq!(error, invalid(Architecture::Arm64, LENGTH), "{length}");
        assert!(error.to_string().contains("; it must be exactly 64 MiB long"), "{error}");
    }
    write(&[], 0);
    assert_eq!(rejection_with(&test_dir, "", describe), invalid(Architecture::Arm64, LENGTH));
    for start in [[0; 4], [0xff; 4]] {
        write(&start, FLASH);
        let error = rejection_with(&test_dir, "", describe);
        assert_eq!(error, invalid(Architecture::Arm64, "it must have code in its first 4 bytes"));
    }
    for x86 in ["/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/seabios/bios-256k.bin"] {
        let error = rejection_with(&test_dir, "", |d| describe(d).bootrom(debian_file(x86)));
        let (path, architecture) = (x86.into(), Architecture::Arm64);
        let reason = "it must have code in its first 4 bytes";
        assert_eq!(error, ConfigError::InvalidBootrom { path, architecture, reason });
    }
}

/// Option ROMs of Debian's `ipxe-qemu` and `seabios`. Those whose length is no multiple of the page size are rejected because of their length.
#[test]
fn option_roms_are_rejected() {
    let test_dir = TestDir::new();
    let mut rejected = 0;
    for dir in ["/usr/lib/ipxe/qemu", "/usr/share/seabios", "/usr/share/qemu"] {
        let files = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let is_option_rom = |path: &std::path::PathBuf| fs::read(path).is_ok_and(|rom| rom.starts_with(b"\x55\xaa"));
        for path in files.filter(|path| path.is_file()).filter(is_option_rom) {
            let error = rejection_with(&test_dir, "", |d| without_boot_source(d).bootrom(&path));
            assert_error!(&error, ConfigError::InvalidBootrom { .. });
            rejected += usize::from(error == no_code(&path));
        }
    }
    assert!(rejected > 0, "no option ROM: run examples/setup.sh --tests first");
}

/// Debian's QEMU_EFI.fd of `qemu-efi-aarch64` ends with zeros. Most option ROMs end with padding and a checksum.
#[test]
fn rom_without_code_where_the_processor_starts_is_rejected() {
    let test_dir = TestDir::new();
    for (end, is_code) in [
        ([0; 16], false),
        ([0xff; 16], false),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x56], false),
        ([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x4e, 0x49, 0x4c, 0xff, 0x2c], false),
        ([0xea, 0x5b, 0xe0, 0, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], true),
        ([0x0f, 0x20, 0xc0, 0xa8, 1, 0x74, 5, 0xe9, 0, 0, 0, 0, 0, 0, 0, 0], true),
        ([0x90; 16], true),
    ] {
        let path = rom(8192, &test_dir, "rom");
        let content = [&[7; 8192 - 16][..], &end].concat();
        fs::write(&path, content).unwrap();
        let with = |d| without_boot_source(d).bootrom(&path);
        match is_code {
            true => assert_boots(with(test_dir.description())),
            false => assert_eq!(rejection_with(&test_dir, "", with), no_code(&path)),
        }
    }
}
