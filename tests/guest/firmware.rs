//! Boot ROMs: UEFI starts a kernel.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hyperkit::{Architecture, Console, Disk, Exit, HyperKit};

use crate::common::StopOnDrop;
use crate::common::guest::{BOOT_TIMEOUT, REPORT_CMDLINE, Report, create_iso_from, guest_file};
use crate::common::platform::PLATFORM;
use crate::devices::{AHCI, BLOCK, RANDOM, bus};

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

/// Boots a VM until it powers off, and returns its console output.
pub fn console_output(dir: &Path, description: HyperKit, cmdline: &str) -> String {
    let state = dir.join("vm");
    let _stop = StopOnDrop(state.clone());
    let description = description.hyperkit(PLATFORM.qemu).state_dir(&state).memory_mib(256).console(Console::Pty);
    let vm = description.start(cmdline).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::PowerOff));
    String::from_utf8_lossy(&fs::read(state.join("console-ring")).unwrap()).into_owned()
}

/// The firmware finds no boot loader, so it starts its shell. The shell runs the script on the CD, which starts the kernel
/// as an EFI program. Debian 12's firmware for arm64 has no driver for AHCI, so there the CD is a virtio disk with sectors of a CD.
#[test]
fn uefi_boots_a_kernel_from_a_cd() {
    let uefi = PLATFORM.uefi;
    assert!(Path::new(uefi).exists(), "{uefi} is missing: run examples/setup.sh --tests first");
    let dir = tempfile::tempdir().unwrap();
    let cd = dir.path().join("cd");
    fs::create_dir(&cd).unwrap();
    fs::copy(guest_file("vmlinuz"), cd.join("vmlinuz.efi")).unwrap();
    fs::copy(guest_file("initrd.img"), cd.join("initrd.img")).unwrap();
    let script = format!("vmlinuz.efi initrd=\\initrd.img {REPORT_CMDLINE}\r\n");
    fs::write(cd.join("startup.nsh"), &script).unwrap();
    let cd = create_iso_from(&cd, &dir.path().join("cd.iso"));

    let description = HyperKit::new().bootrom(uefi).uuid(UUID);
    let (description, kind) = match PLATFORM.architecture {
        Architecture::Arm64 => (description.disk(Disk::raw(cd).read_only().sector_size(2048, 2048)), BLOCK),
        _ => (description.iso(cd), AHCI),
    };
    let report = Report::parse(console_output(dir.path(), description, "").as_bytes());
    assert_eq!(report.single("firmware"), "uefi");
    assert_eq!(report.single("cmdline"), script.trim_end());
    assert_eq!(report.single("uuid"), UUID);
    assert_eq!(report["pci"], bus(&[kind, RANDOM], 1));
}

/// For x86-64, QEMU accepts at most 8 MiB, unless an option allows more. The ROM contains almost nothing, so nothing boots.
#[test]
fn largest_boot_rom_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("vm");
    let _stop = StopOnDrop(state.clone());
    let rom = dir.path().join("rom");
    let file = fs::File::create(&rom).unwrap();
    let size = PLATFORM.boot_rom_mib << 20;
    file.set_len(size).unwrap();
    // For arm64, code starts at the beginning. For x86-64, it starts 16 bytes before the end, where this is a jump.
    for position in [0, size - 16] {
        file.write_all_at(&[0xe9], position).unwrap();
    }
    let description = HyperKit::new().bootrom(rom).hyperkit(PLATFORM.qemu).state_dir(state).console(Console::Pty);
    description.start("").unwrap().kill().unwrap();
}
