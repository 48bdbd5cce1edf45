//! ELF kernels that QEMU boots by the PVH protocol: the guest's Linux, and small kernels at the limits of the memory.

use std::fs;

use hyperkit::{Console, Engine, Exit, HyperKit, Kernel};

use crate::common::elf_kernel::{ElfKernel, sum};
use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, guest_file, open_shell, run_in_guest};
use crate::common::platform::PLATFORM;
use crate::common::{StopOnDrop, TestDir};

const MIB: u64 = 1024 * 1024;

/// QEMU says in the boot parameters which version of the protocol it uses. For PVH, Linux itself fills them in, with version
/// 2.12 (init_pvh_bootparams in arch/x86/platform/pvh/enlighten.c).
#[test]
fn packed_and_unpacked_kernel_boot_the_same_guest() {
    let kernels = ["vmlinux", "vmlinuz"].map(guest_file);
    let [vmlinux, vmlinuz] = kernels.map(|kernel| {
        assert!(Kernel::read(&kernel).unwrap().boots_on(Engine::Qemu));
        let guest = Guest::new();
        let vm = guest.description.clone().kernel(&kernel).start(QUIET_CMDLINE).unwrap();
        assert_eq!(vm.description().kernel, Some(kernel));
        let console = open_shell(&vm);
        let files = "/proc/version /proc/cmdline /sys/kernel/boot_params/version";
        let lines = run_in_guest(&console, &format!("cat {files}; dmesg | grep 'Kernel panic\\|BUG:\\|Call Trace'"));
        vm.kill().unwrap();
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!((vmlinux.len(), &vmlinux[..2]), (3, &vmlinuz[..2]));
    assert!(vmlinux[0].starts_with("Linux version"), "{vmlinux:?}");
    assert_eq!(vmlinux[1], QUIET_CMDLINE);
    assert_eq!(vmlinux[2], "0x020c");
    assert_ne!(vmlinuz[2], "0x020c");
}

/// Each kernel ends at the highest address that `check` accepts, and its initrd is as long as `check` accepts. Firmware that
/// used more memory than `check` assumes would overwrite one of them. The kernel prints its checksums and resets the VM.
#[test]
fn largest_accepted_kernel_and_initrd_arrive_intact() {
    let test_dir = TestDir::new();
    let _stop = StopOnDrop(test_dir.path("vm"));
    let data: Vec<u8> = (0..0x4_0000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let describe = |memory: u64| {
        let description = HyperKit::new().hyperkit(PLATFORM.qemu).state_dir(test_dir.path("vm"));
        description.console(Console::Pty).memory_mib(memory).kernel(test_dir.path("vmlinux"))
    };
    for memory in [4, 32, 33, 64, 2048, 4096] {
        // The last value that is accepted, of those from `low`, which is, to `high`, which is not.
        let last = |mut low: u64, mut high: u64, is_accepted: &dyn Fn(u64) -> bool| {
            assert!(is_accepted(low) && !is_accepted(high), "{memory} MiB");
            while high - low > 1 {
                let middle = low.midpoint(high);
                *(if is_accepted(middle) { &mut low } else { &mut high }) = middle;
            }
            low
        };
        let top = memory.min(2048) * MIB;
        // The headers are enough for the check: the data are one word.
        let ends = last(CODE_END + 4, top, &|end| {
            test_dir.write("vmlinux", &ElfKernel::new(&[0; 4], end).0);
            describe(memory).check().is_ok()
        });
        let length = (ends - CODE_END).min(data.len() as u64) as usize / 4 * 4;
        let data = &data[..length];
        test_dir.write("vmlinux", &ElfKernel::new(data, ends).0);
        let initrd = test_dir.path("initrd.img");
        let with_initrd = |length: u64| {
            fs::File::create(&initrd).unwrap().set_len(length).unwrap();
            describe(memory).initrd(&initrd)
        };
        let longest = last(1, top, &|length| with_initrd(length).check().is_ok());
        let description = with_initrd(longest);
        let content: Vec<u8> = (0..longest as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        fs::write(&initrd, &content).unwrap();

        let vm = description.start("").unwrap();
        assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::Reset), "{memory} MiB");
        let output = String::from_utf8(vm.console_log().unwrap()).unwrap();
        let words: Vec<u64> = output.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok()).collect();
        let expected = [sum(data).into(), ends.next_multiple_of(4096), longest, sum(&content).into()];
        assert_eq!(words, expected, "{memory} MiB: {output:?}");
        vm.remove(hyperkit::Disks::Keep).unwrap();
    }
}

/// Where the code of the small kernels ends.
const CODE_END: u64 = MIB + 4096;
