//! Boot sources other than a Linux kernel: UEFI from a boot ROM, and a multiboot kernel.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hyperkit::{Console, Exit, HyperKit, Multiboot};

use crate::common::StopOnDrop;
use crate::common::guest::{BOOT_TIMEOUT, Report, create_iso_from, guest_file};

/// From Debian's package `ovmf`.
const UEFI: &str = "/usr/share/ovmf/OVMF.fd";

/// Boots a VM until it powers off, and returns its console output.
fn console_output(dir: &Path, description: HyperKit, cmdline: &str) -> String {
    let state = dir.join("vm");
    let _stop = StopOnDrop(state.clone());
    let description =
        description.hyperkit("qemu-system-x86_64").state_dir(&state).memory_mib(256).console(Console::Pty);
    let vm = description.start(cmdline).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::PowerOff));
    String::from_utf8_lossy(&fs::read(state.join("console-ring")).unwrap()).into_owned()
}

/// The firmware finds no boot loader, so it starts its shell. The shell runs the script on the CD, which starts the kernel
/// as an EFI program.
#[test]
fn uefi_boots_a_kernel_from_a_cd() {
    assert!(Path::new(UEFI).exists(), "{UEFI} is missing: run examples/setup.sh --tests first");
    let dir = tempfile::tempdir().unwrap();
    let cd = dir.path().join("cd");
    fs::create_dir(&cd).unwrap();
    fs::copy(guest_file("vmlinuz"), cd.join("vmlinuz.efi")).unwrap();
    fs::copy(guest_file("initrd.img"), cd.join("initrd.img")).unwrap();
    let script = "vmlinuz.efi console=ttyS0 initrd=\\initrd.img panic=1 quiet no_timer_check hyperkit.report\r\n";
    fs::write(cd.join("startup.nsh"), script).unwrap();
    let cd = create_iso_from(&cd, &dir.path().join("cd.iso"));

    let report = Report::parse(console_output(dir.path(), HyperKit::new().bootrom(UEFI).iso(cd), "").as_bytes());
    assert_eq!(report.single("firmware"), "uefi");
    assert_eq!(report.single("cmdline"), script.trim_end());
    assert_eq!(report["pci"][1], "0000:00:01.0 0x8086 0x2922 0x1100 0x010601");
}

/// QEMU accepts at most 8 MiB, unless an option allows more. The ROM contains a single jump, so nothing boots.
#[test]
fn largest_boot_rom_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("vm");
    let _stop = StopOnDrop(state.clone());
    let rom = dir.path().join("rom");
    let file = fs::File::create(&rom).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&[0xe9], (16 << 20) - 16).unwrap();
    let description =
        HyperKit::new().bootrom(rom).hyperkit("qemu-system-x86_64").state_dir(state).console(Console::Pty);
    description.start("").unwrap().kill().unwrap();
}

/// Returns a kernel that prints its command line, then the command line and content of each module, and powers off.
fn kernel() -> Vec<u8> {
    // The multiboot header: magic; flags (load addresses follow, modules are aligned to pages); checksum; the addresses of
    // header, load, end, bss and entry; video mode.
    let header: [u32; 12] = [0x1bad_b002, 0x1_0003, 0xe451_4ffb, 0x10_0000, 0x10_0000, 0, 0, 0x10_0030, 0, 0, 0, 0];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(CODE).collect()
}

/// The kernel's 32-bit code, loaded at 0x100030. `%ebx` is the address of the boot information, which contains the command
/// line (at offset 16), the number of modules (20) and the list of modules (24). Each entry of the list has 16 bytes:
/// start, end, command line.
#[rustfmt::skip]
const CODE: [u8; 94] = [
    0xbc, 0x00, 0x00, 0x09, 0x00,       //         mov  $0x90000, %esp
    0x8b, 0x73, 0x10,                   //         mov  16(%ebx), %esi
    0xe8, 0x3c, 0x00, 0x00, 0x00,       //         call line
    0x8b, 0x4b, 0x14,                   //         mov  20(%ebx), %ecx
    0x8b, 0x7b, 0x18,                   //         mov  24(%ebx), %edi
    0x85, 0xc9,                         // module: test %ecx, %ecx
    0x74, 0x24,                         //         jz   off
    0x8b, 0x77, 0x08,                   //         mov  8(%edi), %esi
    0xe8, 0x2a, 0x00, 0x00, 0x00,       //         call line
    0x8b, 0x37,                         //         mov  0(%edi), %esi
    0x3b, 0x77, 0x04,                   // byte:   cmp  4(%edi), %esi
    0x73, 0x08,                         //         jae  next
    0xac,                               //         lodsb
    0xe8, 0x2b, 0x00, 0x00, 0x00,       //         call put
    0xeb, 0xf3,                         //         jmp  byte
    0xb0, 0x0a,                         // next:   mov  $'\n', %al
    0xe8, 0x22, 0x00, 0x00, 0x00,       //         call put
    0x83, 0xc7, 0x10,                   //         add  $16, %edi
    0x49,                               //         dec  %ecx
    0xeb, 0xd8,                         //         jmp  module
    0xba, 0x04, 0x06, 0x00, 0x00,       // off:    mov  $0x604, %edx     ACPI's power management of q35:
    0x66, 0xb8, 0x00, 0x20,             //         mov  $0x2000, %ax     sleep, off
    0x66, 0xef,                         //         out  %ax, %dx
    0xf4,                               // stop:   hlt
    0xeb, 0xfd,                         //         jmp  stop
    0xac,                               // line:   lodsb
    0x84, 0xc0,                         //         test %al, %al
    0x74, 0x07,                         //         jz   end
    0xe8, 0x04, 0x00, 0x00, 0x00,       //         call put
    0xeb, 0xf4,                         //         jmp  line
    0xb0, 0x0a,                         // end:    mov  $'\n', %al
    0xba, 0xf8, 0x03, 0x00, 0x00,       // put:    mov  $0x3f8, %edx     com1
    0xee,                               //         out  %al, %dx
    0xc3,                               //         ret
];

#[test]
fn multiboot_kernel_gets_its_modules() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (kernel, first, second) = (path("kernel"), path("first"), path("second"));
    fs::write(&kernel, self::kernel()).unwrap();
    fs::write(&first, "content of the first").unwrap();
    fs::write(&second, "content of the second").unwrap();
    let description =
        HyperKit::new().multiboot(Multiboot::new(&kernel).module(&first, "an argument; another").module(&second, ""));
    let lines = [
        format!("{kernel} some=words, more"),
        format!("{first} an argument; another"),
        "content of the first".to_owned(),
        second,
        "content of the second".to_owned(),
    ];
    assert_eq!(console_output(dir.path(), description, "some=words, more"), lines.join("\n") + "\n");
}
