//! The architecture of the guests that a test program boots, and what differs between the two.

use std::path::PathBuf;

use hyperkit::{Architecture, HyperKit};

use super::guest::setup_file;

/// What tests know of a machine of QEMU and of the guest that `examples/setup.sh` creates for it.
pub struct Platform {
    pub architecture: Architecture,
    /// QEMU's program.
    pub qemu: &'static str,
    /// The directory of the guest on hosts of another architecture.
    foreign_guest_dir: &'static str,
    /// The kernel that most tests boot: the one that needs no unpacking by an emulated CPU.
    pub kernel: &'static str,
    /// The C compiler for the guest on hosts of another architecture.
    cross_compiler: &'static str,
    /// A kernel command line with which the guest boots to a shell.
    pub cmdline: &'static str,
    /// One with which the guest reports its devices and powers off.
    pub report_cmdline: &'static str,
    /// The names of the serial ports in the guest.
    pub serial_ports: [&'static str; 2],
    /// What the guest's report contains as firmware if QEMU boots the kernel.
    pub firmware: &'static str,
    /// The PCI device in slot 0, as in the guest's report: vendor, device, subsystem device, class.
    pub host_bridge: &'static str,
    /// The PCI device in slot 31, if the VM has one serial port, and if it has two.
    pub slot_31: [Option<&'static str>; 2],
    /// The size of the largest boot ROM, in MiB.
    pub boot_rom_mib: u64,
    /// The UEFI firmware that `examples/setup.sh --tests` installs.
    pub uefi: &'static str,
    /// Whether the guest can read the UUID if QEMU boots the kernel.
    pub has_uuid_without_firmware: bool,
    /// Words in the guest's `/proc/cpuinfo` if the description names no CPU.
    pub default_cpu: &'static str,
    /// A CPU model with features, words to look for in `/proc/cpuinfo`, and those of them that are found.
    pub other_cpu: [&'static str; 3],
    /// A script of Debian that executes QEMU.
    pub qemu_script: Option<&'static str>,
}

const X86_64: Platform = Platform {
    architecture: Architecture::X86_64,
    qemu: "qemu-system-x86_64",
    foreign_guest_dir: "target/guest-amd64",
    kernel: "vmlinux",
    cross_compiler: "x86_64-linux-gnu-gcc",
    cmdline: "console=ttyS0 panic=1 quiet no_timer_check",
    report_cmdline: "console=ttyS0 panic=1 quiet no_timer_check hyperkit.report",
    serial_ports: ["ttyS0", "ttyS1"],
    firmware: "bios",
    host_bridge: "0x8086 0x29c0 0x1100 0x060000",
    slot_31: [Some("0x8086 0x2918 0x1100 0x060100"); 2], // the LPC bridge
    boot_rom_mib: 16,
    uefi: "/usr/share/ovmf/OVMF.fd",
    has_uuid_without_firmware: true,
    // x86-64-v2, which RHEL 9 requires, for instance, and a random number generator.
    default_cpu: "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 rdrand",
    other_cpu: ["core2duo,+popcnt,-sse3", "T7700 ssse3 popcnt pni rdrand sse4_2", "T7700 ssse3 popcnt"],
    qemu_script: Some("kvm"),
};

const ARM64: Platform = Platform {
    architecture: Architecture::Arm64,
    qemu: "qemu-system-aarch64",
    foreign_guest_dir: "target/guest-arm64",
    kernel: "vmlinuz",
    cross_compiler: "aarch64-linux-gnu-gcc",
    cmdline: "console=ttyAMA0 panic=1 quiet no_timer_check",
    report_cmdline: "console=ttyAMA0 panic=1 quiet no_timer_check hyperkit.report",
    serial_ports: ["ttyAMA0", "ttyS0"],
    firmware: "device-tree",
    host_bridge: "0x1b36 0x0008 0x1100 0x060000",
    slot_31: [None, Some("0x1b36 0x0002 0x1100 0x070002")], // the second serial port
    boot_rom_mib: 64,
    uefi: "/usr/share/AAVMF/AAVMF_CODE.fd",
    has_uuid_without_firmware: false,
    default_cpu: "fp asimd aes sha2 crc32",
    // `atomics` and pointer authentication (`paca`) are newer than the default CPU.
    other_cpu: ["max,pauth-impdef=on,sve=off", "atomics paca sve", "atomics paca"],
    qemu_script: None,
};

/// The platform of this test program: arm64 in the program `guest_arm64`, x86-64 in all others.
pub const PLATFORM: Platform = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"guest_arm64" => ARM64,
    _ => X86_64,
};

/// The platform that is not [`PLATFORM`].
pub const OTHER_PLATFORM: Platform = match PLATFORM.architecture {
    Architecture::Arm64 => X86_64,
    _ => ARM64,
};

impl Platform {
    /// The directory in which `examples/setup.sh` creates the guest.
    pub fn guest_dir(&self) -> &'static str {
        // On hosts of a third architecture, the script creates the guest for x86-64 by default.
        let is_native = self.architecture == Architecture::host().unwrap_or(Architecture::X86_64);
        if is_native { "target/guest" } else { self.foreign_guest_dir }
    }

    /// Returns the path of a file of the guest, such as `initrd.img`.
    pub fn guest_file(&self, name: &str) -> PathBuf {
        setup_file(self.guest_dir(), name)
    }

    /// Returns the description of a VM on QEMU that boots the guest.
    pub fn description(&self) -> HyperKit {
        let (kernel, initrd) = (self.guest_file(self.kernel), self.guest_file("initrd.img"));
        HyperKit::new().hyperkit(self.qemu).kernel(kernel).initrd(initrd)
    }

    /// The compiler for programs that run in the guest.
    pub fn compiler(&self) -> &'static str {
        if Architecture::host() == Some(self.architecture) { "cc" } else { self.cross_compiler }
    }
}
