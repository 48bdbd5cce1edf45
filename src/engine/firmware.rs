//! What engines require of a boot ROM.

use std::ops::RangeInclusive;

use crate::plan::limits::PAGE;

/// The requirements on a boot ROM.
pub(crate) struct FirmwareRules {
    /// The accepted lengths, in bytes. A length must also be a multiple of the page size.
    pub lengths: RangeInclusive<u64>,
    /// The requirement on the length, in messages.
    pub length_rule: &'static str,
    pub start: FirmwareStart,
}

/// Where in a boot ROM the CPU starts.
#[derive(Clone, Copy)]
pub(crate) enum FirmwareStart {
    /// In the last 16 bytes, as on x86.
    End,
    /// In the first 4 bytes, as on arm64.
    Beginning,
}

impl FirmwareStart {
    pub const END_BYTES: u64 = 16;

    /// Whether a CPU can start with these bytes. In files of UEFI variables and in firmware for other CPUs, all of them are 00 or ff.
    /// On x86, option ROMs end with padding and a checksum, and no code begins with two bytes of ff or of 00. On arm64, neither four bytes
    /// of 00 nor four of ff are an instruction, and UEFI firmware for x86 begins with 00.
    pub fn is_code(self, start: [u8; 4]) -> bool {
        let start = match self {
            Self::End => &start[..2],
            Self::Beginning => &start,
        };
        !(start.iter().all(|&byte| byte == 0) || start.iter().all(|&byte| byte == 0xff))
    }

    /// The requirement on the start, in messages.
    pub fn rule(self) -> &'static str {
        match self {
            Self::End => "it must have code in its last 16 bytes",
            Self::Beginning => "it must have code in its first 4 bytes",
        }
    }
}

/// For hyperkit and QEMU's `q35`. The limits on the length are hyperkit's.
pub(crate) static PC: FirmwareRules = FirmwareRules {
    lengths: PAGE..=16 * 1024 * 1024,
    length_rule: "it must be 4 KiB to 16 MiB long, in multiples of 4096 bytes",
    start: FirmwareStart::End,
};

/// For QEMU's `virt`. QEMU refuses a file that is shorter than the machine's flash (virt_flash_create in hw/arm/virt.c).
pub(crate) static VIRT: FirmwareRules = FirmwareRules {
    lengths: VIRT_FLASH..=VIRT_FLASH,
    length_rule: "it must be exactly 64 MiB long; lengthen a copy of a shorter one with `truncate -s 64M`",
    start: FirmwareStart::Beginning,
};
const VIRT_FLASH: u64 = 64 * 1024 * 1024;
