//! A multiboot kernel, which is always one for x86.

use std::fs;

use hyperkit::{HyperKit, Multiboot};

use crate::firmware::console_output;

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
