//! Whether a kernel and its initrd fit into the guest's memory.

use crate::plan::limits::PAGE;

/// The kernel and the initrd, which an engine loads into the guest's memory before it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootFiles {
    pub kernel: KernelMemory,
    /// The length of the initrd, in bytes.
    pub initrd: Option<u64>,
}

/// The memory that a kernel needs, by its header. All numbers are bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KernelMemory {
    /// The engine loads the kernel after the firmware has run. The kernel unpacks itself up to the address `end`. `initrd_max` is the
    /// highest address that the initrd may have.
    BzImage { end: u64, initrd_max: u64 },
    /// QEMU loads the kernel before the firmware runs. The kernel ends at the address `end`.
    Vmlinux { end: u64 },
    /// QEMU loads the kernel `text_offset` bytes above a multiple of 2 MiB. The kernel occupies `size` bytes.
    Image { text_offset: u64, size: u64 },
}

impl KernelMemory {
    /// The address at which the kernel ends, if it is loaded as low as possible.
    pub fn end(&self) -> u64 {
        match *self {
            Self::BzImage { end, .. } | Self::Vmlinux { end } => end,
            Self::Image { text_offset, size } => text_offset.saturating_add(size),
        }
    }

    /// Whether the kernel accepts an initrd of this length, if there is enough memory.
    pub fn accepts_initrd(&self, length: u64) -> bool {
        match *self {
            Self::BzImage { end, initrd_max } => fits_below(initrd_max, length, end),
            Self::Vmlinux { .. } | Self::Image { .. } => true,
        }
    }
}

/// The file that does not fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Misfit {
    Kernel,
    Initrd,
}

/// The memory of a PC below 4 GiB, into which kernels are loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowMemory {
    /// Its length, in bytes.
    pub end: u64,
    /// The highest address that an initrd may have. The engines load it as high as possible.
    pub initrd_max: u64,
    /// The length of the part at its end that the firmware uses after a vmlinux has been loaded, in bytes.
    pub firmware: u64,
}

impl LowMemory {
    pub fn check(&self, files: &BootFiles) -> Result<(), Misfit> {
        let (firmware, initrd_max) = match files.kernel {
            KernelMemory::BzImage { initrd_max, .. } => (0, initrd_max),
            KernelMemory::Vmlinux { .. } | KernelMemory::Image { .. } => (self.firmware, u64::MAX),
        };
        let end = files.kernel.end();
        if end > self.end.saturating_sub(firmware) {
            return Err(Misfit::Kernel);
        }
        let fits = |length| fits_below(self.initrd_max.min(initrd_max), length, end);
        if files.initrd.is_none_or(fits) { Ok(()) } else { Err(Misfit::Initrd) }
    }
}

/// Whether an initrd fits between the end of the kernel and an address.
fn fits_below(top: u64, length: u64, end: u64) -> bool {
    top.checked_sub(length).is_some_and(|start| start / PAGE * PAGE >= end)
}
