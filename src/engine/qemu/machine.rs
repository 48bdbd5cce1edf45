//! What differs between QEMU's machines for x86-64 and for arm64. Each device has the same PCI slot on both.
//!
//! Tried with QEMU 7.2 and 10.0.

use std::path::Path;

use crate::config::{Architecture, HyperKit};
use crate::engine::Engine;
use crate::engine::boot_memory::{BootFiles, Misfit};
use crate::engine::firmware::{self, FirmwareRules};
use crate::engine::qemu::{boot_memory, names};
use crate::error::ConfigError;
use crate::plan::limits::{MAX_MEMORY_MIB, QEMU_LOW_MEMORY_MIB};

pub(super) struct Machine {
    pub engine: Engine,
    /// The name of the engine in messages.
    pub name: &'static str,
    pub architecture: Architecture,
    /// The programs that a start searches for if the description names none, in this order.
    pub programs: &'static [&'static str],
    /// The beginning of the value of `-machine`.
    pub options: &'static str,
    /// The CPU model if QEMU emulates the CPU.
    pub emulated_cpu: &'static str,
    /// The name of the first serial port in the guest, for `console=` on the kernel command line.
    pub kernel_console: &'static str,
    /// The PCI slot of the second serial port, if the machine itself has only one port.
    pub second_serial_slot: Option<u8>,
    /// Whether the guest can read the UUID if its kernel was booted without firmware.
    pub has_uuid_without_firmware: bool,
    /// Whether it is a PC, which boots multiboot kernels, and has an MPtable and x2APIC.
    pub is_pc: bool,
    /// Checks whether the kernel and the initrd fit into this much memory, in MiB.
    pub check_memory: fn(&BootFiles, u64) -> Result<(), Misfit>,
    /// What the machine requires of a boot ROM.
    pub firmware: &'static FirmwareRules,
    /// The most memory into which kernels are loaded, in MiB.
    pub max_boot_memory_mib: u64,
}

pub(super) static X86_64: Machine = Machine {
    engine: Engine::Qemu,
    name: "QEMU",
    architecture: Architecture::X86_64,
    programs: &["qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm", "kvm", "qemu"],
    // q35 has its LPC bridge in slot 31, as hyperkit has. SATA and SMBus would share that slot; without them all others are free.
    // hyperkit accepts boot ROMs of up to 16 MiB, QEMU by default only of 8 MiB.
    options: "q35,sata=off,smbus=off,max-fw-size=16777216",
    // A model with the instructions of x86-64-v2, which RHEL 9 and others require, and with a source of random numbers. A boot takes
    // 5 % more CPU time than on QEMU's default, which has neither. On `max`, the model with all features that QEMU emulates, a boot
    // is slower.
    emulated_cpu: "Nehalem,+rdrand",
    kernel_console: "ttyS0",
    second_serial_slot: None,
    has_uuid_without_firmware: true,
    is_pc: true,
    check_memory: boot_memory::check_pc,
    firmware: &firmware::PC,
    max_boot_memory_mib: QEMU_LOW_MEMORY_MIB,
};

pub(super) static ARM64: Machine = Machine {
    engine: Engine::QemuArm64,
    name: "QEMU for arm64",
    architecture: Architecture::Arm64,
    programs: &["qemu-system-aarch64", "qemu-kvm", "/usr/libexec/qemu-kvm"],
    // The default interrupt controller serves 8 vCPUs at most. `max` is the newest one that QEMU and the accelerator support.
    options: "virt,gic-version=max",
    // QEMU's default is a 32-bit CPU. On `max` a boot takes four times as long, since QEMU emulates pointer authentication exactly, and
    // Linux before 5.12 does not boot (FEAT_LPA2, QEMU's commit 69b2265d5fe8). The machine passes a random seed to the kernel, so the
    // guest needs no instruction for random numbers.
    emulated_cpu: "cortex-a57",
    kernel_console: "ttyAMA0",
    // In this slot, q35 has its LPC bridge with the serial ports.
    second_serial_slot: Some(31),
    // QEMU passes a device tree to the kernel, which contains no UUID. Firmware passes the UUID in SMBIOS tables.
    has_uuid_without_firmware: false,
    is_pc: false,
    check_memory: boot_memory::check_virt,
    firmware: &firmware::VIRT,
    max_boot_memory_mib: MAX_MEMORY_MIB,
};

/// The error for a feature that the machine lacks. The machine is not known here, so the driver sets the engine with
/// [`Machine::name_engine`].
pub(super) fn unsupported(feature: &'static str) -> ConfigError {
    ConfigError::Unsupported { engine: Engine::Qemu, feature }
}

impl Machine {
    /// The machine that the program of the description emulates.
    pub fn of(description: &HyperKit) -> &'static Self {
        let program = description.hyperkit.as_deref().and_then(Path::file_name).unwrap_or_default();
        match names::program(program.as_encoded_bytes()) {
            Some(names::Program::Arm64) => &ARM64,
            _ => &X86_64,
        }
    }

    /// Sets the engine of an error that [`unsupported`] has returned.
    pub fn name_engine(&self, violation: ConfigError) -> ConfigError {
        match violation {
            ConfigError::Unsupported { feature, .. } => ConfigError::Unsupported { engine: self.engine, feature },
            violation => violation,
        }
    }
}
