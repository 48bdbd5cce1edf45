//! Small arm64 kernels on QEMU, at the limits of the memory. Each prints what it finds in memory, and resets the VM when a line is typed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use hyperkit::{Console, Disks, Exit, HyperKit};

use crate::common::arm_image::{ArmImage, DATA};
use crate::common::elf_kernel::sum;
use crate::common::guest::BOOT_TIMEOUT;
use crate::common::{StopOnDrop, TestDir};

const MIB: u64 = 1024 * 1024;
/// Where the memory of QEMU's `virt` begins, and where QEMU loads kernels that begin at a multiple of 2 MiB.
const MEMORY: u64 = 1024 * MIB;
const KERNEL: u64 = MEMORY + 2 * MIB;
/// The first word of a device tree, in the guest's byte order.
const TREE_MAGIC: u64 = 0xedfe_0dd0;

/// Returns the largest accepted value below `high`. `low` must be accepted, and `high` must not.
fn last_accepted(mut low: u64, mut high: u64, is_accepted: impl Fn(u64) -> bool) -> u64 {
    assert!(is_accepted(low) && !is_accepted(high), "{low} to {high}");
    while high - low > 1 {
        let middle = low.midpoint(high);
        *(if is_accepted(middle) { &mut low } else { &mut high }) = middle;
    }
    low
}

/// Returns this many bytes, rounded down to a multiple of 4.
fn content(length: u64) -> Vec<u8> {
    (0..length as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// Boots the kernel of a description, and returns the numbers that it prints.
fn numbers(description: &HyperKit) -> Vec<u64> {
    let _stop = StopOnDrop(description.state_dir.clone().unwrap());
    let vm = description.start("").unwrap();
    vm.wait_for_console("edfe0dd0", BOOT_TIMEOUT).unwrap();
    // QEMU may not read what a console that was closed has sent.
    let console = vm.console().unwrap();
    console.send_line("").unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::Reset));
    let output = String::from_utf8(vm.console_log().unwrap()).unwrap();
    vm.remove(Disks::Keep).unwrap();
    output.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok()).collect()
}

/// What QEMU itself says about a description that `check` refuses.
fn refusal_of_qemu(description: &HyperKit) -> String {
    let mut bare = description.clone();
    bare.state_dir = None;
    let arguments = bare.console(Console::Stdio).arguments("").unwrap();
    let mut qemu = Command::new("qemu-system-aarch64");
    let output =
        qemu.args(["-accel", "tcg", "-cpu", "cortex-a57"]).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// With 1 MiB of memory less, QEMU itself refuses the files. So `check` refuses nothing that would boot.
#[test]
fn largest_accepted_image_and_initrd_arrive_intact() {
    let test_dir = TestDir::new();
    for memory in [8, 65, 66, 300] {
        let description = HyperKit::new().hyperkit("qemu-system-aarch64").state_dir(test_dir.path("vm"));
        let description = description.console(Console::Pty).memory_mib(memory).kernel(test_dir.path("Image"));
        // The headers are enough for the check.
        let size = last_accepted(MIB, memory * MIB, |size| {
            test_dir.write("Image", &ArmImage::new(size).0);
            description.check().is_ok()
        });
        // The rest of the memory that the kernel occupies is empty. The addresses show that nothing else is there.
        let data = content((size - DATA as u64).min(MIB));
        test_dir.write("Image", &ArmImage::with_code(&data, size, (0, 0)).0);
        let tree = (KERNEL + size).next_multiple_of(2 * MIB);
        assert_eq!(numbers(&description), [KERNEL, sum(&data).into(), 0, tree, TREE_MAGIC], "{memory} MiB");
        // One MiB less than the kernel and the device tree need.
        let less = description.clone().memory_mib((size + 2 * MIB) / MIB);
        less.check().unwrap_err();
        let refusal = refusal_of_qemu(&less);
        assert!(refusal.contains("Not enough space for DTB"), "{memory} MiB: {refusal}");

        let initrd = test_dir.path("initrd.img");
        test_dir.write("Image", &ArmImage::new(3 * MIB).0);
        let longest = last_accepted(1, memory * MIB, |length| {
            fs::File::create(&initrd).unwrap().set_len(length).unwrap();
            description.clone().initrd(&initrd).check().is_ok()
        });
        // The end of the longest initrd, which begins at a multiple of 4.
        let end = content(longest.min(MIB) / 4 * 4);
        let before = (longest - end.len() as u64) / 4 * 4;
        let file = fs::File::create(&initrd).unwrap();
        file.set_len(longest).unwrap();
        file.write_all_at(&end, before).unwrap();
        let start = (MEMORY + (memory * MIB / 2).min(128 * MIB)).max(KERNEL + 3 * MIB);
        let data = content(MIB);
        let kernel = ArmImage::with_code(&data, 3 * MIB, (start + before, end.len() as u64));
        test_dir.write("Image", &kernel.0);
        let tree = (start + longest).next_multiple_of(2 * MIB);
        let expected = [KERNEL, sum(&data).into(), sum(&end).into(), tree, TREE_MAGIC];
        assert_eq!(numbers(&description.clone().initrd(&initrd)), expected, "{memory} MiB");
        fs::File::create(&initrd).unwrap().set_len(longest + 1).unwrap();
        let refusal = refusal_of_qemu(&description.initrd(&initrd));
        assert!(refusal.contains("Not enough space for DTB"), "{memory} MiB: {refusal}");
    }
}

/// QEMU unpacks an Image.gz. The header of the Image in it says how much memory the kernel needs.
#[test]
fn packed_image_needs_the_memory_that_its_header_declares() {
    let test_dir = TestDir::new();
    let data = content(MIB);
    let image = test_dir.write("Image", &ArmImage::with_code(&data, 60 * MIB, (0, 0)).0);
    assert!(Command::new("gzip").arg(&image).status().unwrap().success());
    let description = HyperKit::new().hyperkit("qemu-system-aarch64").state_dir(test_dir.path("vm"));
    let description = description.console(Console::Pty).kernel(test_dir.path("Image.gz"));
    description.clone().memory_mib(62).check().unwrap_err();
    let tree = MEMORY + 62 * MIB;
    assert_eq!(numbers(&description.memory_mib(63)), [KERNEL, sum(&data).into(), 0, tree, TREE_MAGIC]);
}
