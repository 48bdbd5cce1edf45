//! Where QEMU loads a kernel and its initrd.

use crate::engine::boot_memory::{BootFiles, KernelMemory, LowMemory, Misfit};
use crate::plan::limits::{PAGE, QEMU_LOW_MEMORY_MIB};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// QEMU leaves this for ACPI tables at the end of the memory, after the initrd (pc_machine_class_init in hw/i386/pc.c).
const ACPI_DATA: u64 = 160 * KIB;
/// SeaBIOS keeps its tables at the end of the memory: in 256 KiB, or in 16 MiB if there are more than 32 MiB (malloc_preinit in
/// SeaBIOS's malloc.c).
const SMALL_TABLES: u64 = 256 * KIB;
const LARGE_TABLES: u64 = 16 * MIB;
const SMALL_MEMORY: u64 = 32 * MIB;
/// SeaBIOS runs below its tables, where it moves itself. With 22 disks and 64 vCPUs it used 172 KiB there.
const FIRMWARE_CODE: u64 = MIB;

/// QEMU puts the code that enters the kernel at the beginning of the memory, in this many bytes. If the kernel would overlap it, QEMU
/// loads the kernel 2 MiB higher (load_aarch64_image in hw/arm/boot.c).
const BOOTLOADER_MAX: u64 = 4 * KIB;
/// The device tree begins at a multiple of this.
const TREE_ALIGNMENT: u64 = 2 * MIB;
/// The initrd begins in the middle of the memory, but at this address if the middle is higher.
const INITRD_START: u64 = 128 * MIB;

/// For q35. QEMU copies a vmlinux to memory before the firmware runs, and a bzImage and an initrd afterwards.
pub(super) fn check_pc(files: &BootFiles, memory_mib: u64) -> Result<(), Misfit> {
    let end = memory_mib.min(QEMU_LOW_MEMORY_MIB) * MIB;
    let tables = if end > SMALL_MEMORY { LARGE_TABLES } else { SMALL_TABLES };
    let initrd_max = end.saturating_sub(ACPI_DATA + 1);
    LowMemory { end, initrd_max, firmware: tables + FIRMWARE_CODE }.check(files)
}

/// For `virt`, whose memory has no gap. QEMU loads the initrd above the kernel, and the device tree above the initrd
/// (arm_setup_direct_kernel_boot in hw/arm/boot.c). The tree is at most 1 MiB long, and the memory is a multiple of that. So the tree fits
/// if it begins within the memory.
pub(super) fn check_virt(files: &BootFiles, memory_mib: u64) -> Result<(), Misfit> {
    let memory = memory_mib.saturating_mul(MIB);
    let shift = match files.kernel {
        KernelMemory::Image { text_offset, .. } if text_offset < BOOTLOADER_MAX => 2 * MIB,
        _ => 0,
    };
    let end = files.kernel.end().saturating_add(shift);
    let initrd = (memory / 2).min(INITRD_START).max(end).checked_next_multiple_of(PAGE);
    let fits = |length: u64| {
        let tree = initrd.and_then(|start| start.checked_add(length)?.checked_next_multiple_of(TREE_ALIGNMENT));
        tree.is_some_and(|tree| tree < memory)
    };
    match files.initrd {
        _ if !fits(0) => Err(Misfit::Kernel),
        Some(length) if !fits(length) => Err(Misfit::Initrd),
        _ => Ok(()),
    }
}
