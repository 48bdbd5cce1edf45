//! Linux kernel files: which engines boot them, and whether they fit into the guest's memory.

mod bz_image;
mod vmlinux;

use std::fmt;
use std::fs::Metadata;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::Architecture;
use crate::engine::{Engine, EngineDriver, LowMemory};
use crate::error::{ConfigError, Result};
use crate::plan::limits::PAGE;
use crate::preflight::image_header::compression;
use crate::sys::elf;
use crate::sys::file::open;
use bz_image::BzImage;
use vmlinux::Vmlinux;

const MIB: u64 = 1024 * 1024;
/// The bytes at the start of a file that are enough to recognize it. QEMU searches as many for a multiboot header
/// (x86_load_linux in hw/i386/x86.c).
const HEAD_BYTES: u64 = 8192;
/// The longest command line of Linux for x86-64, in bytes, without its NUL. Linux truncates a longer one silently
/// (COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h). QEMU's buffer holds 4096 bytes, and more overwrite other data
/// (pc-bios/optionrom/pvh_main.c).
const VMLINUX_CMDLINE: usize = 2047;

/// The format of a kernel file. [`Kernel`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelFormat {
    /// The compressed kernel that distributions install as `/boot/vmlinuz-…`. It unpacks itself in the guest.
    BzImage,
    /// An ELF file: the kernel that the build of Linux leaves as `vmlinux`, and that a bzImage contains in compressed form. Kernels
    /// of other systems have this format, too.
    Vmlinux,
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage",
            Self::Vmlinux => "vmlinux",
        })
    }
}

/// A kernel file, as its headers describe it.
///
/// A start reads the kernel of its description by itself. This type is for programs that choose a kernel, or show its format.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use hyperkit::{Architecture, Engine, Kernel, KernelFormat};
///
/// let kernel = Kernel::read("vmlinuz")?;
/// assert_eq!((kernel.format(), kernel.architecture()), (KernelFormat::BzImage, Architecture::X86_64));
/// assert_eq!(kernel.cmdline_limit(), Some(2047));
/// assert!(kernel.boots_on(Engine::HyperKit) && kernel.boots_on(Engine::Qemu));
///
/// // The same kernel, unpacked.
/// let kernel = Kernel::read("vmlinux")?;
/// assert_eq!(kernel.format(), KernelFormat::Vmlinux);
/// assert!(kernel.pvh_entry().is_some() && kernel.boots_on(Engine::Qemu));
/// assert!(!kernel.boots_on(Engine::HyperKit));
/// println!("{}: a {} for {}", kernel.path().display(), kernel.format(), kernel.architecture());
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    path: PathBuf,
    image: Image,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Image {
    BzImage(BzImage),
    Vmlinux(Vmlinux),
}

impl Kernel {
    /// Reads the headers of a kernel file: at most a few MiB, however large the file is.
    ///
    /// [`check`](crate::HyperKit::check) also finds out whether the kernel boots on the engine of a description, and fits into its
    /// memory.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::Error::InvalidConfig) with one violation: the file [does not exist](ConfigError::NotFound), is
    /// [not a file](ConfigError::NotAFile) or [not readable](ConfigError::Inaccessible), is
    /// [compressed](ConfigError::CompressedKernel), is [not a whole bzImage](ConfigError::NotABzImage), or is an ELF file that is
    /// [not a whole kernel for x86-64](ConfigError::InvalidVmlinux).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Ok(read(path.as_ref())?)
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file.
    #[must_use]
    pub fn format(&self) -> KernelFormat {
        match self.image {
            Image::BzImage(_) => KernelFormat::BzImage,
            Image::Vmlinux(_) => KernelFormat::Vmlinux,
        }
    }

    /// Returns the architecture for which the kernel is built.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        Architecture::X86_64
    }

    /// Returns the length of the longest command line that the kernel accepts, in bytes, if the file's header contains it.
    ///
    /// The header of a bzImage does. A start accepts one byte less, since hyperkit counts a NUL at the end. `None` for a vmlinux, with
    /// which a start accepts 2047 bytes, the limit of Linux for x86-64.
    #[must_use]
    pub fn cmdline_limit(&self) -> Option<usize> {
        match &self.image {
            Image::BzImage(image) => Some(image.cmdline_size),
            Image::Vmlinux(_) => None,
        }
    }

    /// Returns the address at which QEMU enters a vmlinux, if an ELF note in the file contains it. *PVH* is the protocol by which Xen
    /// and QEMU start a kernel without a boot loader. Linux has the note if it is built with `CONFIG_PVH`, as Debian's is. `None` for a
    /// bzImage, which needs no such entry.
    #[must_use]
    pub fn pvh_entry(&self) -> Option<u32> {
        match &self.image {
            Image::BzImage(_) => None,
            Image::Vmlinux(image) => image.pvh_entry,
        }
    }

    /// Returns whether an engine boots the kernel.
    #[must_use]
    pub fn boots_on(&self, engine: Engine) -> bool {
        self.check_engine(engine.driver()).is_ok()
    }

    /// The length of the longest command line that a start accepts, in bytes, without its NUL.
    pub(crate) fn longest_cmdline(&self) -> usize {
        self.cmdline_limit().map_or(VMLINUX_CMDLINE, |limit| limit.saturating_sub(1))
    }

    pub(crate) fn check_engine(&self, driver: &dyn EngineDriver) -> Result<(), ConfigError> {
        let path = self.path.clone();
        match &self.image {
            Image::BzImage(image) if image.lacks_padding && !driver.boots_kernel_without_padding() => {
                Err(ConfigError::NotABzImage { path, reason: "truncated" })
            }
            Image::BzImage(_) => Ok(()),
            Image::Vmlinux(image) => {
                let no_entry = || image.pvh_entry.is_none().then_some("no PVH entry");
                let reason = driver.refuses_vmlinux().or_else(no_entry);
                reason.map_or(Ok(()), |reason| Err(ConfigError::InvalidVmlinux { path, reason }))
            }
        }
    }

    /// Refuses the kernel or its initrd if they do not fit into memory. `initrd` is its path and its length in bytes. The engines load
    /// it as high as possible, and would overwrite the kernel.
    pub(crate) fn check_fits(
        &self,
        driver: &dyn EngineDriver,
        memory_mib: u64,
        initrd: Option<(&PathBuf, u64)>,
    ) -> Result<(), ConfigError> {
        // The end of the kernel; whether it may use the firmware's part of the memory; the highest address of an initrd.
        let (end, uses_all, initrd_max) = match &self.image {
            Image::BzImage(image) => (image.end(), true, image.initrd_max),
            Image::Vmlinux(image) => (image.end, false, u64::MAX),
        };
        let kernel_fits =
            |memory: &LowMemory| end <= if uses_all { memory.end } else { memory.end.saturating_sub(memory.firmware) };
        let initrd_fits = |top: u64| {
            initrd.is_none_or(|(_, size)| top.checked_sub(size).is_some_and(|start| start / PAGE * PAGE >= end))
        };
        let fits = |memory: &LowMemory| kernel_fits(memory) && initrd_fits(initrd_max.min(memory.initrd_max));
        let memory = driver.low_memory(memory_mib);
        if fits(&memory) {
            return Ok(());
        }
        let (field, path) = match initrd {
            Some((path, _)) if kernel_fits(&memory) => ("initrd", path),
            _ => ("kernel", &self.path),
        };
        // The smallest memory size such that every larger one suffices, too.
        let most = driver.low_memory(u64::MAX).end / MIB;
        let least = (1..=most).rev().take_while(|&mib| fits(&driver.low_memory(mib))).last();
        let needed = match least {
            // The kernel's header allows no initrd of this size, whatever the memory is.
            _ if field == "initrd" && !initrd_fits(initrd_max) => u64::MAX,
            Some(least) => least,
            None => {
                end.saturating_add(initrd.map_or(0, |(_, size)| size.saturating_add(PAGE))).div_ceil(MIB).max(most + 1)
            }
        };
        Err(ConfigError::DoesNotFit { field, path: path.clone(), needed })
    }
}

/// Reads the headers of a kernel file.
pub(crate) fn read(path: &Path) -> std::result::Result<Kernel, ConfigError> {
    let (file, metadata) = open("kernel", path, Metadata::is_file)?;
    let mut head = Vec::new();
    let read = (&file).take(HEAD_BYTES).read_to_end(&mut head);
    read.map_err(|error| ConfigError::inaccessible("kernel", path, &error))?;
    if let Some(format) = compression(&head) {
        return Err(ConfigError::CompressedKernel { field: "kernel", path: path.to_owned(), format });
    }
    // QEMU, too, recognizes a bzImage by this mark alone.
    let image = match elf::Header::parse(&head) {
        Some(header) if !bz_image::has_mark(&head) => vmlinux::parse(&file, metadata.len(), &head, &header)
            .map(Image::Vmlinux)
            .map_err(|reason| ConfigError::InvalidVmlinux { path: path.to_owned(), reason }),
        _ => bz_image::parse(&head, metadata.len())
            .map(Image::BzImage)
            .map_err(|reason| ConfigError::NotABzImage { path: path.to_owned(), reason }),
    };
    Ok(Kernel { path: path.to_owned(), image: image? })
}
