//! hyperkit's limits on kernels, initrds and modules: on their headers, and on the memory into which they are loaded. Each
//! limit is tested with the last valid and the first invalid value.

use std::path::{Path, PathBuf};

use hyperkit::{ConfigError, HyperKit, KernelFormat, Multiboot};

use crate::common::rejection::{
    assert_boots, assert_boots_with, assert_error, modify, only_violation, rejection_by_arguments, rejection_with,
    sparse_file, violations_of_start, without_boot_source,
};
use crate::common::{TestDir, bz_image, standin_path};

const MIB: u64 = 1024 * 1024;
const PAGE: u64 = 4096;

/// Returns a kernel that uses memory from 2 MiB to `end` while it unpacks itself, and accepts an initrd anywhere.
fn kernel_that_needs_memory_up_to(end: u64) -> Vec<u8> {
    let mut image = bz_image(2047);
    let init_size = u32::try_from(end - 2 * MIB).unwrap();
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image[0x22c..0x230].fill(0xff);
    image
}

/// hyperkit maps the memory beyond 3 GiB to addresses above 4 GiB, and loads nothing there.
#[test]
fn kernel_and_initrd_have_to_fit_into_low_memory() {
    let test_dir = TestDir::new();
    let kernel = test_dir.path("vmlinuz");
    for (memory, low_memory) in [(4, 4), (3072, 3072), (3073, 3072)] {
        let no_initrd = |description| modify(description, |d| d.initrd = None).memory_mib(memory);
        test_dir.write("vmlinuz", &kernel_that_needs_memory_up_to(low_memory * MIB));
        assert_boots(no_initrd(test_dir.description()));
        test_dir.write("vmlinuz", &kernel_that_needs_memory_up_to(low_memory * MIB + 1));
        assert_error!(
            rejection_with(&test_dir, "", no_initrd),
            ConfigError::DoesNotFit { field: "kernel", path, needed, .. } if path == kernel && needed == low_memory + 1
        );

        let end = 2 * MIB + PAGE;
        test_dir.write("vmlinuz", &kernel_that_needs_memory_up_to(end));
        let most = low_memory * MIB - 1 - end;
        let initrd = sparse_file(most, &test_dir, "initrd.img");
        assert_boots(test_dir.description().memory_mib(memory));
        sparse_file(most + 1, &test_dir, "initrd.img");
        assert_error!(
            rejection_with(&test_dir, "", |d| d.memory_mib(memory)),
            ConfigError::DoesNotFit { field: "initrd", path, needed, .. } if path == initrd && needed == low_memory + 1
        );
    }
}

/// One kernel is not relocatable. The other one accepts an initrd only below 4 MiB.
#[test]
fn fixed_load_address_and_initrd_limit_are_respected() {
    let test_dir = TestDir::new();
    let kernel = test_dir.path("vmlinuz");
    let mut fixed = bz_image(2047);
    fixed[0x234] = 0; // not relocatable
    fixed[0x258..0x260].copy_from_slice(&(64 * MIB).to_le_bytes());
    test_dir.write("vmlinuz", &fixed);
    assert_boots(test_dir.description().memory_mib(66));
    let error = rejection_with(&test_dir, "", |d| d.memory_mib(64));
    assert_error!(error, ConfigError::DoesNotFit { field: "kernel", path, needed: 65, .. } if path == kernel);
    // The reported size also has room for the initrd, so that following the advice does not lead to another error.
    sparse_file(3 * MIB, &test_dir, "initrd.img");
    let error = rejection_with(&test_dir, "", |d| d.memory_mib(64));
    assert_error!(error, ConfigError::DoesNotFit { field: "kernel", path, needed: 68, .. } if path == kernel);
    assert_boots(test_dir.description().memory_mib(68));

    let end = 2 * MIB + PAGE;
    let mut low = kernel_that_needs_memory_up_to(end);
    let last = 4 * MIB - 1;
    low[0x22c..0x230].copy_from_slice(&u32::try_from(last).unwrap().to_le_bytes());
    test_dir.write("vmlinuz", &low);
    let initrd = sparse_file(last - end, &test_dir, "initrd.img");
    assert_boots(test_dir.description().memory_mib(64));
    sparse_file(last - end + 1, &test_dir, "initrd.img");
    let error = rejection_with(&test_dir, "", |d| d.memory_mib(64));
    assert!(error.to_string().contains("the kernel accepts no initrd of this size"), "{error}");
    assert_error!(error, ConfigError::DoesNotFit { field: "initrd", path, needed: u64::MAX, .. } if path == initrd);
}

/// More memory than the first 3072 MiB does not help, so the message does not ask for it.
#[test]
fn advice_on_a_file_that_does_not_fit_can_be_followed() {
    let test_dir = TestDir::new();
    let advice = |memory: u64| {
        let violations = violations_of_start(&test_dir, "", |d| d.memory_mib(memory));
        // The host may have less memory, too.
        let is_advice = |violation: &&ConfigError| matches!(violation, ConfigError::DoesNotFit { .. });
        violations.iter().find(is_advice).unwrap_or_else(|| panic!("{violations:?}")).to_string()
    };
    sparse_file(100 * MIB, &test_dir, "initrd.img");
    let message = advice(64);
    let (_, needed) = message.rsplit_once("set `memory_mib` to at least ").unwrap_or_else(|| panic!("{message}"));
    assert_boots(test_dir.description().memory_mib(needed.parse().unwrap()));
    // The kernel's header allows initrds below 2 GiB.
    sparse_file(2048 * MIB, &test_dir, "initrd.img");
    for memory in [64, 3072, 4096] {
        assert!(advice(memory).contains("use a smaller file"), "{}", advice(memory));
        assert!(!advice(memory).contains("set `memory_mib`"));
    }
    test_dir.write("vmlinuz", &kernel_that_needs_memory_up_to(2 * MIB + PAGE));
    sparse_file(3072 * MIB, &test_dir, "initrd.img");
    for memory in [64, 3072, 4096] {
        assert!(advice(memory).ends_with("but only 3072 are below 4 GiB; use a smaller file"), "{}", advice(memory));
    }
}

/// The length in the header is in blocks of 16 bytes. QEMU boots a kernel whose last block is not full, and hyperkit does not.
/// The bzImage of Debian's `memtest86+` is 8 bytes shorter.
#[test]
fn kernel_without_padding_is_accepted_on_qemu_only() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-x86_64");
    std::os::unix::fs::symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU the engine
    let whole = bz_image(2047);
    for (missing, boots_on_qemu) in [(0, true), (8, true), (15, true), (16, false)] {
        let kernel = test_dir.write("vmlinuz", &whole[..whole.len() - missing]);
        let on = |program: &Path| test_dir.description().hyperkit(program).check();
        for (program, boots) in [(&qemu, boots_on_qemu), (&standin_path(), missing == 0)] {
            match boots {
                true => on(program).unwrap(),
                false => {
                    let (path, format) = (kernel.clone(), Some(KernelFormat::BzImage));
                    let expected = ConfigError::InvalidKernel { path, format, reason: "truncated" };
                    assert_eq!(only_violation(on(program)), expected);
                }
            }
        }
    }
}

#[test]
fn kernel_with_nothing_after_its_setup_sectors_is_rejected() {
    let test_dir = TestDir::new();
    let mut image = bz_image(2047);
    image[0x1f4..0x1f8].fill(0); // size of what follows
    test_dir.write("vmlinuz", &image[..2 * 512 + 1]);
    assert_boots(test_dir.description());
    let kernel = test_dir.write("vmlinuz", &image[..2 * 512]);
    let error = rejection_with(&test_dir, "", |d| d);
    assert_error!(error, ConfigError::InvalidKernel { path, reason: "nothing after its setup sectors", .. } if path == kernel);
}

/// Returns the header of a multiboot kernel.
fn multiboot(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum].into_iter().chain([0; 9]).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn multiboot_header_is_validated() {
    const HAS_ADDRESSES: u32 = 1 << 16;
    let test_dir = TestDir::new();
    // An ELF file with one loadable segment (address, length). The segment's header follows the ELF header.
    let elf_with = |elf_machine: u8, segment: [u32; 2]| {
        let mut elf = [&b"\x7fELF\x01"[..], &[0; 13], &[elf_machine, 0], &[0; 32], &[1, 0, 0, 0], &[0; 28]].concat();
        (elf[28], elf[42], elf[44]) = (52, 32, 1);
        elf[64..68].copy_from_slice(&segment[0].to_le_bytes());
        elf[68..72].copy_from_slice(&segment[1].to_le_bytes());
        elf
    };
    let elf = |elf_machine: u8| elf_with(elf_machine, [0x10_0000, 64]);
    let after = |length: usize, flags| [vec![0; length], multiboot(flags), vec![0]].concat();
    let in_elf = |elf_machine, flags| [elf(elf_machine), multiboot(flags), vec![0]].concat();
    // A kernel of one page. The three addresses are of the header, and of the start and the end of the loaded part.
    let with_addresses = |addresses: [u32; 3]| {
        let mut kernel = multiboot(HAS_ADDRESSES);
        kernel.resize(PAGE as usize, 0);
        kernel[12..24].copy_from_slice(&addresses.map(u32::to_le_bytes).concat());
        kernel
    };
    const OUTSIDE: &str = "its load addresses are outside of the file";
    let with_kernel = |d| without_boot_source(d).multiboot(Multiboot::new(test_dir.path("kernel")));

    let last = 8192 - 48 - 4; // the last position that hyperkit searches: in the first 8 KiB, but not at the end of the file
    for good in [after(0, HAS_ADDRESSES | 0b11), after(last, HAS_ADDRESSES), in_elf(3, 0b11), in_elf(62, HAS_ADDRESSES)]
        .into_iter()
        .chain(
            [[0x1_0000, 0x1_0000, 0x1_1000], [0x1_0000, 0x1_0000, 0x1_0000], [0x1_0000, 0x1_0800, 0]]
                .map(with_addresses),
        )
    {
        test_dir.write("kernel", &good);
        assert_boots_with(with_kernel(test_dir.description()), "any,length");
    }

    let mut wrong_sum = multiboot(HAS_ADDRESSES + 1);
    wrong_sum[8] ^= 1;
    let no_header = "no multiboot header";
    let bad = [
        (Vec::new(), no_header),
        (multiboot(HAS_ADDRESSES), no_header), // at the end of the file
        (after(last + 4, HAS_ADDRESSES), no_header),
        (after(2, HAS_ADDRESSES), no_header),
        ([wrong_sum, vec![0; 4]].concat(), no_header),
        (after(0, HAS_ADDRESSES | 0b100), "requires features that hyperkit lacks"),
        (after(0, HAS_ADDRESSES | 0x8000), "requires features that hyperkit lacks"),
        (after(0, 0), "neither an ELF file nor a header with load addresses"),
        (in_elf(62, 0), "64-bit ELF file"),
        (with_addresses([0x1_0000, 0x1_0000, 0xfff0]), OUTSIDE),
        (with_addresses([0x1_0000, 0x1_0000, 0x1_1001]), OUTSIDE),
        (with_addresses([0x1_1001, 0x1_0000, 0]), OUTSIDE),
        (with_addresses([0x1_0000, 0x1_1001, 0]), OUTSIDE),
        ([elf_with(3, [0x10_0000, 1000]), multiboot(0), vec![0]].concat(), "truncated"),
        ([&b"\x7fELF"[..], &[0; 48], &multiboot(0), &[0]].concat(), "no loadable segment"),
    ];
    for (image, why) in bad {
        let kernel = test_dir.write("kernel", &image);
        let error = rejection_with(&test_dir, "", with_kernel);
        assert_error!(error, ConfigError::NotMultiboot { path, reason } if path == kernel && reason == why);
    }
}

/// hyperkit loads the kernel and then its modules, each at the next page boundary, and after them the command lines, 28 bytes of
/// information, and 16 bytes for each module. This VM has 4 MiB of memory.
#[test]
fn multiboot_kernel_and_modules_have_to_fit_into_memory() {
    let test_dir = TestDir::new();
    let mut kernel = [multiboot(1 << 16), vec![0]].concat();
    let mut load_at = |address: u32| {
        for field in [12, 16] {
            kernel[field..field + 4].copy_from_slice(&address.to_le_bytes()); // the addresses of the header and of the loaded part
        }
        test_dir.write("kernel", &kernel)
    };
    let with = |d: HyperKit| {
        let multiboot = Multiboot::new(test_dir.path("kernel")).module(test_dir.path("m"), "words");
        without_boot_source(d).memory_mib(4).multiboot(multiboot)
    };
    load_at(0x20_0000);
    let module = sparse_file(2 * MIB - 2 * PAGE, &test_dir, "m");
    assert_boots_with(with(test_dir.description()), "");
    for length in [2 * MIB - 2 * PAGE + 1, 2 * MIB - PAGE, 2 * MIB - PAGE + 1] {
        sparse_file(length, &test_dir, "m");
        let error = rejection_with(&test_dir, "", with);
        assert_error!(error, ConfigError::DoesNotFit { field: "multiboot", path, needed: 5, .. } if path == module);
    }
    // The last page has to hold the rest.
    sparse_file(2 * MIB - 2 * PAGE, &test_dir, "m");
    let with_cmdline = |length: usize| {
        let paths = [test_dir.path("kernel"), module.clone()].map(|path| path.as_os_str().len()).iter().sum::<usize>();
        "x".repeat(PAGE as usize - 16 - 28 - paths - " words\0".len() - " \0".len() - length)
    };
    assert_boots_with(with(test_dir.description()), &with_cmdline(3)); // rounded up to a multiple of 4
    assert_boots_with(with(test_dir.description()), &with_cmdline(0));
    let error = rejection_with(&test_dir, &format!("{}x", with_cmdline(0)), with);
    assert_error!(error, ConfigError::DoesNotFit { field: "multiboot", path, needed: 5, .. } if path == module);
    let kernel = load_at(0x4000_0000);
    let error = rejection_with(&test_dir, "", with);
    assert_error!(error, ConfigError::DoesNotFit { field: "multiboot", path, needed: 1025, .. } if path == kernel);
}

/// Each kernel is loaded at 2 MiB into 4 MiB of memory: the whole file, the part that its header specifies, or its ELF
/// segments.
#[test]
fn end_of_multiboot_kernel_is_computed_from_header_or_segments() {
    let test_dir = TestDir::new();
    let mut addressed = [vec![0; PAGE as usize], multiboot(1 << 16), vec![0]].concat();
    let mut put = |address: u32, at: usize| {
        addressed[at..at + 4].copy_from_slice(&address.to_le_bytes());
        addressed.clone()
    };
    put(0x20_1000, 0x100c); // address of the header
    let whole = put(0x20_0000, 0x1010);
    let part = put(0x30_0000, 0x1014);
    // Each segment: kind, offset, address, length. The segment headers are longer than ELF requires.
    let elf = |segments: &[[u32; 4]]| {
        let header = [&b"\x7fELF\x01"[..], &[0; 13], &[3, 0], &[0; 8], &[52, 0, 0, 0], &[0; 10], &[40, 0]].concat();
        let count = [segments.len() as u8, 0, 0, 0, 0, 0, 0, 0];
        let segment = |[kind, offset, address, length]: &[u32; 4]| {
            [*kind, *offset, 0, *address, *length, 0, 0, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes)
        };
        let segments = segments.iter().flat_map(segment);
        header.into_iter().chain(count).chain(segments).chain(multiboot(0)).chain([0]).collect::<Vec<u8>>()
    };
    let (far, load) = ([4, 0x7000_0000, 0x7000_0000, 64], [1, 0, 0x20_0000, 64]);
    let long = |mut kernel: Vec<u8>| {
        kernel.resize(2 * MIB as usize, 0);
        kernel
    };
    let apart = elf(&[load, [1, 0, 0x10_0000, 64]]);
    // A page after the module is for command lines and information.
    for (kernel, room) in [
        (whole, 2 * MIB - 3 * PAGE),
        (long(part), MIB - PAGE),
        (elf(&[far, load]), 2 * MIB - 2 * PAGE),
        (long(apart.clone()), 2 * MIB - 2 * PAGE),
    ] {
        test_dir.write("kernel", &kernel);
        let with = |d: HyperKit| {
            without_boot_source(d)
                .memory_mib(4)
                .multiboot(Multiboot::new(test_dir.path("kernel")).module(test_dir.path("m"), ""))
        };
        sparse_file(room, &test_dir, "m");
        assert_boots(with(test_dir.description()));
        sparse_file(room + 1, &test_dir, "m");
        assert_error!(rejection_with(&test_dir, "", with), ConfigError::DoesNotFit { field: "multiboot", .. });
    }
    // hyperkit copies all segments as one piece, which would be longer than this file.
    let kernel = test_dir.write("kernel", &apart);
    let with_kernel = |d| without_boot_source(d).multiboot(Multiboot::new(&kernel));
    let error = rejection_with(&test_dir, "", with_kernel);
    assert_error!(
        error,
        ConfigError::NotMultiboot { reason: "its segments are further apart in memory than in the file", .. }
    );
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"");
    with_kernel(test_dir.description().hyperkit(qemu)).check().unwrap();
    let mut cut = elf(&[load]);
    cut[28..32].copy_from_slice(&[0, 0, 1, 0]);
    let kernel = test_dir.write("kernel", &cut);
    let error = rejection_with(&test_dir, "", |d| without_boot_source(d).multiboot(Multiboot::new(&kernel)));
    assert_error!(error, ConfigError::NotMultiboot { reason: "truncated", .. });
}

#[test]
fn multiboot_modules_are_validated() {
    let test_dir = TestDir::new();
    let kernel = test_dir.write("k:e;rnel", &[multiboot(1 << 16), vec![0]].concat());
    let module = test_dir.write("mo dule", b"module");
    let with =
        |d, path: &Path, cmdline: &str| without_boot_source(d).multiboot(Multiboot::new(&kernel).module(path, cmdline));
    assert_boots(with(test_dir.description(), &module, "a; b"));
    for forbidden in [',', ':', ';', '\0'] {
        let path = PathBuf::from(format!("/a{forbidden}b"));
        let error = rejection_by_arguments(|d| with(d, &path, ""));
        assert_error!(error, ConfigError::ForbiddenCharacter { field: "multiboot", character, .. } if character == forbidden);
    }
    for forbidden in [',', ':', '\0'] {
        let error = rejection_by_arguments(|d| with(d, &module, &format!("a{forbidden}b")));
        assert_error!(error, ConfigError::ForbiddenCharacter { field: "multiboot", character, .. } if character == forbidden);
    }
    let error = rejection_with(&test_dir, "", |d| with(d, &test_dir.path("none"), ""));
    assert_error!(error, ConfigError::NotFound { field: "multiboot", path } if path == test_dir.path("none"));
    let empty = test_dir.write("empty", b"");
    let error = rejection_with(&test_dir, "", |d| with(d, &empty, ""));
    assert_error!(error, ConfigError::EmptyFile { field: "multiboot", path } if path == empty);
}
