//! What engines require of a boot ROM.

use std::ops::RangeInclusive;

use crate::plan::limits::PAGE;

/// The requirements on a boot ROM.
pub(crate) struct FirmwareRules {
    /// Its length, in bytes; it must be a multiple of pages.
    pub lengths: RangeInclusive<u64>,
    /// The requirement on the length in messages.
    pub length_rule: &'static str,
    pub start: FirmwareStart,
}

/// Where the processor starts.
#[derive(Clone, Copy)]
pub(crate) enum FirmwareStart {
    /// In the last 16 bytes, as on x86.
    End,
    /// In the first 4 bytes, as on arm64.
    Beginning,
}

impl FirmwareStart {
    pub const END_BYTES: u64 = 16;

    /// Whether a processor can start with these bytes. Files of UEFI variables and firmware for other processors have all 00 or all ff
    /// there. On x86, option ROMs end with padding and a checksum, and no code begins with two bytes of ff or of 00. On arm64, neither
    /// word is an instruction, and UEFI firmware for x86 begins with 00.
    pub fn is_code(self, start: [u8; 4]) -> bool {
        let start = match self {
            Self::End => &start[..2],
            Self::Beginning => &start,
        };
        !(start.iter().all(|&byte| byte == 0) || start.iter().all(|&byte| byte == 0xff))
    }

    /// The requirement in messages.
    pub fn rule(self) -> &'static str {
        match self {
            Self::End => "no code in its last 16 bytes",
            Self::Beginning => "no code in its first 4 bytes",
        }
    }
}

/// For hyperkit and q35. The limits on the length are hyperkit's.
pub(crate) static PC: FirmwareRules = FirmwareRules {
    lengths: PAGE..=16 * 1024 * 1024,
    length_rule: "it must be 4 KiB to 16 MiB long, in multiples of 4096 bytes",
    start: FirmwareStart::End,
};

/// For QEMU's `virt`, whose flash is as long as this and takes no shorter file (virt_flash_create in hw/arm/virt.c).
pub(crate) static VIRT: FirmwareRules = FirmwareRules {
    lengths: VIRT_FLASH..=VIRT_FLASH,
    length_rule: "it must be exactly 64 MiB long; lengthen a copy of a shorter one with `truncate -s 64M`",
    start: FirmwareStart::Beginning,
};
const VIRT_FLASH: u64 = 64 * 1024 * 1024;
