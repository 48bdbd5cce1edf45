//! arm64 kernels: which files are Images, on which engines they boot, and the memory that they need. QEMU is never started.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hyperkit::{Architecture, ConfigError, Engine, HyperKit, Kernel, KernelFormat};

use crate::common::arm_image::{ArmImage, FLAGS, MARK, PE_OFFSET, SECTION_SIZE, SIZE, TEXT_OFFSET};
use crate::common::elf_kernel::ElfKernel;
use crate::common::rejection::{modify, only_violation, rejection_with, sparse_file};
use crate::common::{TestDir, bz_image, standin_path};

const MIB: u64 = 1024 * 1024;
/// An Image.gz whose last bytes are not a length that its header allows.
const WRONG_LENGTH: &str = "truncated, or followed by other data";

/// Creates a program whose name makes QEMU for arm64 the engine.
fn qemu(test_dir: &TestDir) -> PathBuf {
    let qemu = test_dir.path("qemu-system-aarch64");
    symlink(standin_path(), &qemu).unwrap();
    qemu
}

/// Returns the output of a program for this input.
fn filter(command: &str, input: &[u8]) -> Vec<u8> {
    let mut shell = Command::new("sh");
    let mut child = shell.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

fn good() -> ArmImage {
    ArmImage::new(MIB)
}

#[test]
fn image_is_recognized_packed_or_not_and_with_or_without_an_efi_stub() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    // Bytes that gzip cannot pack make it store them, and few bytes make it use the fixed code.
    let noise: Vec<u8> =
        (0..64 * 1024_u32).map(|n| (n.wrapping_mul(n).wrapping_mul(0x9e37_79b9) >> 16) as u8).collect();
    let with_noise = |image: ArmImage| ArmImage([image.0, noise.clone()].concat());
    for image in [good(), ArmImage::without_stub(MIB), with_noise(good()), with_noise(ArmImage::without_stub(MIB))] {
        let packings = ["cat", "gzip -1", "gzip -6", "gzip -9", "gzip -c --name"];
        for (index, command) in packings.into_iter().enumerate() {
            let format = if index == 0 { KernelFormat::Image } else { KernelFormat::ImageGz };
            let path = test_dir.write("Image", &filter(command, &image.0));
            let kernel = Kernel::read(&path).unwrap();
            assert_eq!((kernel.path(), kernel.format()), (&*path, format), "{command}");
            assert_eq!((kernel.architecture(), kernel.pvh_entry()), (Architecture::Arm64, None));
            assert_eq!(kernel.cmdline_limit(), Some(2047));
            assert!(kernel.boots_on(Engine::QemuArm64), "{command}");
            assert!(!kernel.boots_on(Engine::Qemu) && !kernel.boots_on(Engine::HyperKit));
            test_dir.description().kernel(&path).hyperkit(&qemu).check().unwrap();
        }
    }
}

#[test]
fn kernel_and_engine_of_different_architectures_are_named() {
    let test_dir = TestDir::new();
    let qemu_arm64 = qemu(&test_dir);
    let qemu = test_dir.path("qemu-system-x86_64");
    symlink(standin_path(), &qemu).unwrap();
    let files = [
        ("Image", good().0, Architecture::Arm64),
        ("Image.gz", filter("gzip", &good().0), Architecture::Arm64),
        ("bzImage", bz_image(2047), Architecture::X86_64),
        ("vmlinux", ElfKernel::new(&[0; 4], 2 * MIB).0, Architecture::X86_64),
    ];
    for (name, content, architecture) in files {
        let kernel = test_dir.write(name, &content);
        let engines = [(&qemu_arm64, Engine::QemuArm64), (&qemu, Engine::Qemu), (&standin_path(), Engine::HyperKit)];
        for (program, engine) in engines.into_iter().filter(|(_, engine)| engine.architecture() != architecture) {
            let error = rejection_with(&test_dir, "", |d| d.kernel(&kernel).hyperkit(program));
            let path = kernel.clone();
            assert_eq!(error, ConfigError::KernelForOtherArchitecture { path, architecture, engine });
            let message = error.to_string();
            for word in [&architecture.to_string(), &engine.to_string(), kernel.to_str().unwrap()] {
                assert!(message.contains(word), "{message}");
            }
        }
    }
}

/// QEMU 7.2 checks none of this, and starts a VM with each of these files.
#[test]
fn unusable_image_is_rejected() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let word = |value: u64| value.to_le_bytes();
    let cut = |length: usize| ArmImage(good().0[..length].to_vec());
    let kernels = [
        (cut(63), "truncated"),
        (cut(64), "truncated"),
        (cut(80), "truncated"),
        (cut(260), "truncated"),
        (cut(4095), "truncated"),
        (good().with(PE_OFFSET, &[0xff; 4]), "truncated"),
        (good().with(SECTION_SIZE, &[1, 0x0c]), "truncated"),
        (good().with(FLAGS, &[0b1011]), "big-endian"),
        (good().with(SIZE, &word(0)), "no length in its header, as before Linux 3.17"),
        (good().with(SIZE, &word(4095)), "longer than its header says"),
        (good().with(SIZE, &word(1 << 41)), "inconsistent header"),
        (good().with(TEXT_OFFSET, &word(u64::MAX)), "inconsistent header"),
    ];
    for (kernel, reason) in kernels {
        for (format, content) in
            [(KernelFormat::Image, kernel.0.clone()), (KernelFormat::ImageGz, filter("gzip", &kernel.0))]
        {
            let path = test_dir.write("Image", &content);
            let reason = match reason {
                "truncated" | "longer than its header says" if format == KernelFormat::ImageGz => WRONG_LENGTH,
                _ => reason,
            };
            let error = rejection_with(&test_dir, "", |d| d.kernel(&path).hyperkit(&qemu));
            assert_eq!(error, ConfigError::InvalidKernel { path: path.clone(), format: Some(format), reason });
            assert_eq!(only_violation(Kernel::read(&path)), error);
        }
    }
}

/// Linux hangs and prints nothing on a CPU that lacks the size of its pages, such as `cortex-a57`.
#[test]
fn kernel_with_pages_of_16_kib_needs_a_cpu_that_has_them() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let kernel = good().with(FLAGS, &[0b1100]);
    for content in [kernel.0.clone(), filter("gzip", &kernel.0)] {
        let path = test_dir.write("Image", &content);
        // An accelerator that is no KVM and no HVF, on all hosts.
        let emulated = |d: HyperKit| d.kernel(&path).hyperkit(&qemu).extra_argument("-accel").extra_argument("tcg");
        let error = rejection_with(&test_dir, "", emulated);
        assert!(matches!(error, ConfigError::Unsupported { engine: Engine::QemuArm64, .. }), "{error:?}");
        assert!(error.to_string().contains("16 KiB (`kernel`)"), "{error}");
        emulated(test_dir.description()).cpu("cortex-a76").check().unwrap();
    }
    for flags in [0b1000, 0b1010, 0b1110] {
        let path = test_dir.write("Image", &good().with(FLAGS, &[flags]).0);
        test_dir.description().kernel(&path).hyperkit(&qemu).check().unwrap();
    }
}

/// gzip writes the length of what it has packed at the end. QEMU gives up at 256 MiB, and then boots the file as it is.
#[test]
fn truncated_or_too_long_image_gz_is_rejected() {
    let test_dir = TestDir::new();
    let packed = filter("gzip", &ArmImage::new(1 << 30).0);
    let reason_with = |content: &[u8]| match only_violation(Kernel::read(test_dir.write("Image.gz", content))) {
        ConfigError::InvalidKernel { format: Some(KernelFormat::ImageGz), reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    let with_length = |length: u32| [&packed[..packed.len() - 4], &length.to_le_bytes()].concat();
    assert_eq!(reason_with(&with_length(4095)), WRONG_LENGTH);
    assert_eq!(reason_with(&with_length((1 << 30) + 1)), WRONG_LENGTH);
    assert_eq!(reason_with(&[&packed[..], &[0; 4]].concat()), WRONG_LENGTH);
    assert_eq!(reason_with(&[&packed[..], &[0xff; 4]].concat()), WRONG_LENGTH);
    assert_eq!(reason_with(&with_length((256 << 20) + 1)), "longer than 256 MiB when unpacked");
    Kernel::read(test_dir.write("Image.gz", &with_length(256 << 20))).unwrap();
    // This part of the file ends before the header of the Image, so nothing shows that it is one.
    let header_only = only_violation(Kernel::read(test_dir.write("Image.gz", &packed[..20])));
    assert!(matches!(header_only, ConfigError::CompressedKernel { format: "gzip", .. }), "{header_only:?}");
}

#[test]
fn kernels_of_other_formats_are_named() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = vec![0; 4096];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    for (content, reason) in [
        (with(0x24, &[0x18, 0x28, 0x6f, 0x01]), "a zImage for 32-bit ARM"),
        (with(0, &[0x27, 0x05, 0x19, 0x56]), "a uImage of U-Boot"),
        (with(0, b"MZ\0\0zimg"), "an EFI zboot image with an unknown compression"),
        (with(MARK, b"ARM"), "no boot header"),
        (Vec::new(), "file too short"),
    ] {
        let path = test_dir.write("kernel", &content);
        for program in [&qemu, &standin_path()] {
            let error = rejection_with(&test_dir, "", |d| d.kernel(&path).hyperkit(program));
            assert_eq!(error, ConfigError::InvalidKernel { path: path.clone(), format: None, reason });
            assert!(error.to_string().contains("an Image for arm64"), "{error}");
        }
    }
}

/// The command in the error unpacks the Image.
#[test]
fn efi_zboot_image_is_rejected_with_a_command_that_unpacks_it() {
    let test_dir = TestDir::new();
    for (name, command) in [("gzip", "gzip"), ("xz", "xz"), ("lzma", "xz --format=lzma")] {
        let payload = filter(command, &good().0);
        let mut file = vec![0; 1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ\0\0zimg");
        put(8, &1000_u32.to_le_bytes());
        put(12, &(payload.len() as u32).to_le_bytes());
        put(24, name.as_bytes());
        file.extend(payload);
        file.extend([7; 500]);
        let path = test_dir.write("kernel", &file);
        let error = only_violation(Kernel::read(&path));
        let ConfigError::CompressedKernel { field: "kernel", format: "EFI zboot", unpack, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(error.to_string().contains(unpack), "{error}");
        assert_eq!(filter(unpack, &file), good().0, "{unpack}");
    }
}

/// QEMU loads the kernel at its text offset, or 2 MiB higher if that is below 4 KiB. It puts the device tree above the kernel, at a
/// multiple of 2 MiB.
#[test]
fn image_and_device_tree_have_to_fit_into_memory() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let check = |memory: u64, size: u64, text_offset: u64| {
        let image = ArmImage::new(size).with(TEXT_OFFSET, &text_offset.to_le_bytes());
        let kernel = test_dir.write("Image", &image.0);
        modify(test_dir.description(), |d| d.initrd = None).hyperkit(&qemu).kernel(kernel).memory_mib(memory).check()
    };
    let path = test_dir.path("Image");
    for (text_offset, start) in [(0, 2 * MIB), (4095, 2 * MIB + 4095), (4096, 4096), (0x8_0000, 0x8_0000)] {
        // The tree is at 64 MiB, and then at 66 MiB.
        for memory in [65, 66] {
            check(memory, 64 * MIB - start, text_offset).unwrap();
            let (path, max) = (path.clone(), (1 << 43) - 1);
            let expected = ConfigError::DoesNotFit { field: "kernel", path, needed: 67, max };
            assert_eq!(only_violation(check(memory, 64 * MIB - start + 1, text_offset)), expected, "{start}");
        }
    }
    // The kernel ends above 4 GiB, where a PC's memory has a gap.
    check(8193, 8190 * MIB, 0).unwrap();
}

/// QEMU loads the initrd in the middle of the memory, at 128 MiB at most, and not below the end of the kernel.
#[test]
fn initrd_of_an_image_has_to_fit_behind_the_kernel() {
    let test_dir = TestDir::new();
    let qemu = qemu(&test_dir);
    let check = |memory: u64, size: u64, initrd: u64| {
        let kernel = test_dir.write("Image", &ArmImage::new(size).0);
        let initrd = sparse_file(initrd, &test_dir, "initrd.img");
        test_dir.description().hyperkit(&qemu).kernel(kernel).initrd(initrd).memory_mib(memory).check()
    };
    for (memory, size, most, needed) in [
        (64, MIB, 30 * MIB, 65), // from 32 MiB to the tree at 62 MiB
        (65, MIB, 64 * MIB - 65 * MIB / 2, 67),
        (64, 40 * MIB, 20 * MIB, 65), // from 42 MiB on
        (256, MIB, 126 * MIB, 257),   // from 128 MiB on
        (1024, MIB, 894 * MIB, 1025),
        (1024, 199 * MIB, 821 * MIB, 1025), // from 201 MiB on
    ] {
        check(memory, size, most).unwrap_or_else(|error| panic!("{memory}: {error}"));
        let (path, max) = (test_dir.path("initrd.img"), (1 << 43) - 1);
        let expected = ConfigError::DoesNotFit { field: "initrd", path, needed, max };
        assert_eq!(only_violation(check(memory, size, most + 1)), expected, "{memory}");
        // The advice can be followed.
        for more in [0, 1, 2, 3, 64] {
            check(needed + more, size, most + 1).unwrap();
        }
    }
}

/// On hyperkit, the crate adds `earlyprintk=serial`, which counts. For an Image it adds nothing.
#[test]
fn command_line_of_an_image_has_at_most_2047_bytes() {
    let test_dir = TestDir::new();
    let (kernel, qemu) = (test_dir.write("Image", &good().0), qemu(&test_dir));
    let describe = |d: HyperKit| d.kernel(&kernel).hyperkit(&qemu);
    let error = rejection_with(&test_dir, &"x".repeat(2048), describe);
    assert_eq!(error, ConfigError::CommandLineTooLong { length: 2048, limit: 2047 });
}
