//! ELF kernels: which files are refused, and the limits on the memory into which they are loaded. QEMU is never started.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::{Architecture, ConfigError, Engine, HyperKit, Kernel, KernelFormat, Multiboot};

use crate::common::elf_kernel::{
    ALIGNMENT, BYTE_ORDER, CLASS, CODE, ElfKernel, FLAGS, KIND, MACHINE, MEMORY_SIZE, NOTE_ENTRY, NOTE_KIND,
    NOTE_OWNER, OFFSET, PHYSICAL, SEGMENT_COUNT, SEGMENT_SIZE, SIZE, segment,
};
use crate::common::rejection::{
    assert_error, only_violation, rejection_with, sparse_file, violations_of_start, without_boot_source,
};
use crate::common::{TestDir, bz_image, standin_path};

const MIB: u64 = 1024 * 1024;
/// What SeaBIOS uses at the end of the memory: 16 MiB for tables, and 1 MiB for itself.
const FIRMWARE: u64 = 17 * MIB;
/// The tables are smaller if the VM has at most 32 MiB.
const SMALL_FIRMWARE: u64 = MIB + 256 * 1024;
/// QEMU leaves this much of the memory behind the initrd.
const ACPI: u64 = 160 * 1024;

/// Creates a program whose name makes QEMU the engine.
fn qemu(test_dir: &TestDir) -> PathBuf {
    let qemu = test_dir.path("qemu-system-x86_64");
    symlink(standin_path(), &qemu).unwrap();
    qemu
}

/// Returns a kernel that ends at this address.
fn kernel_up_to(end: u64) -> ElfKernel {
    ElfKernel::new(&[1, 2, 3, 4], end)
}

fn good() -> ElfKernel {
    kernel_up_to(2 * MIB)
}

#[test]
fn vmlinux_is_accepted_on_qemu_only() {
    let test_dir = TestDir::new();
    let path = test_dir.write("vmlinux", &good().0);
    let kernel = Kernel::read(&path).unwrap();
    assert_eq!((kernel.path(), kernel.format()), (&*path, KernelFormat::Vmlinux));
    assert_eq!((kernel.architecture(), kernel.cmdline_limit()), (Architecture::X86_64, None));
    assert_eq!(kernel.pvh_entry().map(u64::from), Some(CODE));
    assert!(kernel.boots_on(Engine::Qemu) && !kernel.boots_on(Engine::HyperKit));
    test_dir.description().kernel(&path).hyperkit(qemu(&test_dir)).check().unwrap();

    let error = rejection_with(&test_dir, "", |d| d.kernel(&path));
    let (format, reason) = (Some(KernelFormat::Vmlinux), "hyperkit boots only bzImages");
    assert_eq!(error, ConfigError::InvalidKernel { path, format, reason });
    assert!(error.to_string().contains("hyperkit boots only bzImages: /"), "{error}");
    assert_eq!(error.field(), "kernel");
}

#[test]
fn kernel_reads_the_header_of_a_bz_image() {
    let test_dir = TestDir::new();
    let path = test_dir.write("kernel", &bz_image(100));
    let kernel = Kernel::read(&path).unwrap();
    assert_eq!((kernel.format(), kernel.pvh_entry()), (KernelFormat::BzImage, None));
    assert_eq!(kernel.cmdline_limit(), Some(100));
    assert!(kernel.boots_on(Engine::Qemu) && kernel.boots_on(Engine::HyperKit));

    // A file that lacks its last padding.
    test_dir.write("kernel", &bz_image(100)[..bz_image(100).len() - 1]);
    let kernel = Kernel::read(&path).unwrap();
    assert!(kernel.boots_on(Engine::Qemu) && !kernel.boots_on(Engine::HyperKit));

    let not_found = only_violation(Kernel::read(test_dir.path("none")));
    assert_eq!(not_found, ConfigError::NotFound { field: "kernel", path: test_dir.path("none") });
    let directory = only_violation(Kernel::read(test_dir.dir()));
    assert_eq!(directory, ConfigError::NotAFile { field: "kernel", path: test_dir.dir() });
}

/// QEMU 7.2 refuses some of these, and boots the others into nothing. An alignment of 0 makes it crash.
#[test]
fn unusable_vmlinux_is_rejected() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let (code, note, data) = (segment(0), segment(1), segment(2));
    let note_at = |at: usize| 0x2000 + at;
    let word = |value: u64| value.to_le_bytes();
    let cut = |length: usize| ElfKernel(good().0[..length].to_vec());
    let with_multiboot = good().with(0x800, &[0x02, 0xb0, 0xad, 0x1b, 0, 0, 0, 0, 0xfe, 0x4f, 0x52, 0xe4]);
    let no_segments = good().with(SEGMENT_COUNT, &[0]);
    let all_below = good().with(data + PHYSICAL, &word(0xf0000));
    let kernels = [
        (good().with(MACHINE, &[183]), "for arm64, where QEMU boots only an Image"),
        (good().with(MACHINE, &[243]), "for another architecture"), // RISC-V
        (good().with(BYTE_ORDER, &[2]), "for another architecture"),
        (good().with(CLASS, &[1]), "32-bit"),
        (good().with(MACHINE, &[3]), "32-bit"),
        (good().with(KIND, &[1]), "an object file or a module"),
        (good().with(KIND, &[4]), "a core dump"),
        (good().with(KIND, &[9]), "not an executable"),
        (good().with(FLAGS, &[4]), "inconsistent header"),
        (with_multiboot, "a multiboot kernel, which the field `multiboot` boots"),
        (cut(64), "truncated"),
        (cut(segment(3) - 1), "truncated"),
        (cut(0x3003), "truncated"),
        (good().with(SEGMENT_SIZE, &[32]), "truncated"),
        (cut(0x3000).with(SEGMENT_COUNT, &[100]).with(segment(99), &[1]).with(segment(99) + SIZE, &[1]), "truncated"),
        (good().with(SEGMENT_COUNT, &[101]), "too many segments"),
        (good().with(data + OFFSET, &word(u64::MAX)), "truncated"),
        (good().with(note + OFFSET, &word(0x3000)), "truncated"),
        (no_segments, "no loadable segment"),
        (good().with(data + SIZE, &word(3)).with(data + MEMORY_SIZE, &word(2)), "inconsistent header"),
        (good().with(data + PHYSICAL, &word(u64::MAX)), "inconsistent header"),
        (all_below, "its segments are below 1 MiB, where the firmware is"),
        (good().with(data + PHYSICAL, &word(CODE + 0xfff)), "its segments overlap"),
        (good().with(data + PHYSICAL, &word(CODE)), "its segments overlap"),
        (good().with(note + ALIGNMENT, &word(0)), "inconsistent header"),
        (good().with(note, &[6]), "no PVH entry"), // a segment of another kind
        (good().with(note_at(NOTE_KIND), &[17]), "no PVH entry"),
        (good().with(note_at(NOTE_OWNER), b"GNU"), "no PVH entry"),
        (good().with(note_at(4), &[3]), "no PVH entry"), // the length of the address
        (good().with(note + SIZE, &word(19)), "no PVH entry"),
        (good().with(note + ALIGNMENT, &word(32)), "no PVH entry"), // the address would be after the end
        (good().with(note_at(NOTE_ENTRY), &word(0)), "its PVH entry is outside of its segments"),
        (good().with(note_at(NOTE_ENTRY), &word(CODE + 0x1000)), "its PVH entry is outside of its segments"),
        (good().with(code + SIZE, &word(0)), "its PVH entry is outside of its segments"),
    ];
    for (kernel, expected) in kernels {
        let path = test_dir.write("vmlinux", &kernel.0);
        let error = rejection_with(&test_dir, "", |d| d.kernel(&path).hyperkit(&qemu));
        let format = Some(KernelFormat::Vmlinux);
        assert_eq!(error, ConfigError::InvalidKernel { path: path.clone(), format, reason: expected });
        match Kernel::read(&path) {
            Ok(kernel) => assert!(expected == "no PVH entry" && kernel.pvh_entry().is_none()),
            Err(read) => assert_eq!(read.violations(), [error]),
        }
    }
}

/// The owner of another note may be longer, so that it is aligned. Of several segments with notes, one may lack PVH's.
#[test]
fn pvh_note_is_found_behind_other_notes() {
    let test_dir = TestDir::new();
    let name = |owner: &[u8], kind: u32, content: &[u8]| {
        let lengths = [owner.len() as u32, content.len() as u32, kind].map(u32::to_le_bytes).concat();
        let pad = |part: &[u8]| [part, &vec![0; part.len().next_multiple_of(4) - part.len()]].concat();
        [lengths, pad(owner), pad(content)].concat()
    };
    let entry = (CODE + 2).to_le_bytes();
    let notes = [name(b"Linux\0", 0x100, b"6.1"), name(b"GNU\0", 3, &[7; 20]), name(b"Xen\0", 18, &entry)].concat();
    let mut kernel = good().with(segment(1) + SIZE, &(notes.len() as u64).to_le_bytes());
    kernel.put(0x2000, &notes);
    let path = test_dir.write("vmlinux", &kernel.0);
    assert_eq!(Kernel::read(&path).unwrap().pvh_entry(), Some(CODE as u32 + 2));
    // The data become a segment of notes, too.
    let other = name(b"Xen\0", 6, b"linux\0");
    let mut kernel = kernel.with(segment(2), &[4]).with(segment(2) + SIZE, &(other.len() as u64).to_le_bytes());
    kernel.put(segment(2) + ALIGNMENT, &4_u64.to_le_bytes());
    kernel.0.truncate(0x3000);
    kernel.0.extend(other);
    test_dir.write("vmlinux", &kernel.0);
    assert_eq!(Kernel::read(&path).unwrap().pvh_entry(), Some(CODE as u32 + 2));
}

/// A sparse file of 1 TiB is one segment of notes.
#[test]
fn huge_segment_of_notes_is_not_read_as_a_whole() {
    let test_dir = TestDir::new();
    let length = 1_u64 << 40;
    let kernel = good().with(segment(1) + SIZE, &(length - 0x2000).to_le_bytes());
    let path = test_dir.write("vmlinux", &kernel.0);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    assert_eq!(Kernel::read(&path).unwrap().pvh_entry().map(u64::from), Some(CODE));
}

/// SeaBIOS runs after QEMU has copied the kernel, and overwrites it at the end of the memory. The guest tests boot the
/// accepted ones.
#[test]
fn vmlinux_has_to_end_before_the_memory_of_the_firmware() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    for (memory, limit, needed) in [
        (4, 4 * MIB - SMALL_FIRMWARE, 5),
        (32, 32 * MIB - SMALL_FIRMWARE, 48), // with more memory, the tables need more, too
        (33, 33 * MIB - FIRMWARE, 34),
        (48, 48 * MIB - FIRMWARE, 49),
        (2047, 2047 * MIB - FIRMWARE, 2048),
        (2048, 2048 * MIB - FIRMWARE, 2049),
        (8192, 2048 * MIB - FIRMWARE, 2049),
    ] {
        let check = |end: u64| {
            let kernel = test_dir.write("vmlinux", &kernel_up_to(end).0);
            let description = HyperKit::new().hyperkit(&qemu).state_dir(test_dir.path("vm")).memory_mib(memory);
            description.kernel(kernel).check()
        };
        check(limit).unwrap();
        let path = test_dir.path("vmlinux");
        assert_eq!(
            only_violation(check(limit + 1)),
            ConfigError::DoesNotFit { field: "kernel", path, needed, max: 2048 }
        );
    }
}

#[test]
fn initrd_has_to_fit_above_the_kernel_on_qemu() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let mut bz = bz_image(2047); // needs memory from 2 MiB to 47 MiB
    bz[0x260..0x264].copy_from_slice(&(45 * MIB as u32).to_le_bytes());
    for kernel in [kernel_up_to(47 * MIB).0, bz] {
        let kernel = test_dir.write("kernel", &kernel);
        let check = |initrd: u64| {
            let initrd = sparse_file(initrd, &test_dir, "initrd.img");
            test_dir.description().hyperkit(&qemu).kernel(&kernel).initrd(initrd).memory_mib(64).check()
        };
        let most = 17 * MIB - ACPI - 1;
        check(most).unwrap();
        let path = test_dir.path("initrd.img");
        let expected = ConfigError::DoesNotFit { field: "initrd", path, needed: 65, max: 2048 };
        assert_eq!(only_violation(check(most + 1)), expected);
    }
}

/// QEMU has at most 2 GiB below 4 GiB. Hence more memory does not help.
#[test]
fn advice_for_qemu_is_within_its_limits() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let kernel = test_dir.write("vmlinux", &kernel_up_to(20 * MIB).0);
    let with = |d: HyperKit, memory| d.kernel(&kernel).hyperkit(&qemu).memory_mib(memory);
    sparse_file(100 * MIB, &test_dir, "initrd.img");
    let error = rejection_with(&test_dir, "", |d| with(d, 64));
    assert_error!(error, ConfigError::DoesNotFit { field: "initrd", needed: 121, .. });
    with(test_dir.description(), 121).check().unwrap();
    sparse_file(2048 * MIB, &test_dir, "initrd.img");
    let message = violations_of_start(&test_dir, "", |d| with(d, 4096))[0].to_string();
    assert!(message.contains("use a smaller file"), "{message}");
}

/// Linux truncates a longer line silently. Only bzImages boot on hyperkit, which gets `earlyprintk=serial`.
#[test]
fn command_line_of_a_vmlinux_has_at_most_2047_bytes() {
    let test_dir = TestDir::new();
    let kernel = test_dir.write("vmlinux", &good().0);
    let qemu = qemu(&test_dir);
    let error = rejection_with(&test_dir, &"x".repeat(2048), |d| d.kernel(&kernel).hyperkit(&qemu));
    assert_eq!(error, ConfigError::CommandLineTooLong { length: 2048, limit: 2047 });
}

#[test]
fn compressed_kernel_is_named_with_its_format() {
    let test_dir = TestDir::new();
    test_dir.write("plain", &[good().0, vec![0; 2000]].concat());
    for (format, compress, unpack) in
        [("gzip", "gzip", "gzip -dc"), ("xz", "xz", "xz -dc"), ("lzma", "xz --format=lzma", "xz --format=lzma -dc")]
    {
        let shell = |line: String| {
            assert!(Command::new("sh").args(["-c", &line]).current_dir(test_dir.dir()).status().unwrap().success());
        };
        shell(format!("{compress} -c plain >kernel"));
        let path = test_dir.path("kernel");
        let of = |field| {
            let (path, unpack) = (path.clone(), unpack.to_owned());
            ConfigError::CompressedKernel { field, path, format, unpack }
        };
        let error = rejection_with(&test_dir, "", |d| d.kernel(&path));
        assert_eq!(error, of("kernel"));
        assert!(error.to_string().contains(&format!("; unpack it with `{unpack}`")), "{error}");
        assert_eq!(only_violation(Kernel::read(&path)), error);
        let error = rejection_with(&test_dir, "", |d| without_boot_source(d).multiboot(Multiboot::new(&path)));
        assert_eq!(error, of("multiboot"));
        shell(format!("{unpack} kernel >vmlinux"));
        assert!(Kernel::read(test_dir.path("vmlinux")).unwrap().boots_on(Engine::Qemu));
    }
    assert!(Path::new(&test_dir.path("vmlinux")).exists());
}
