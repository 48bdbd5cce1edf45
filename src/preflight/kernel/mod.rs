//! Linux kernel files: which engines boot them, and whether they fit into the guest's memory.

mod bz_image;
mod fits;
mod gzip;
mod image;
mod vmlinux;
mod zboot;

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::config::Architecture;
use crate::engine::{Engine, EngineDriver, KernelMemory};
use crate::error::{ConfigError, Result};
use crate::preflight::image_header::{compression, unpacking};
use crate::preflight::little_endian;
use crate::sys::elf;
use crate::sys::file::open;
use bz_image::BzImage;
use image::Image;
use vmlinux::Vmlinux;

/// The bytes at the start of a file that are enough to recognize it. QEMU searches as many for a multiboot header
/// (x86_load_linux in hw/i386/x86.c).
const HEAD_BYTES: u64 = 8192;
/// The bytes of an unpacked Image that the crate reads. The header and the section headers of the PE file take some 400.
const IMAGE_BYTES: usize = 1024;
/// QEMU unpacks a kernel up to this length, and boots a longer one as it is (LOAD_IMAGE_MAX_GUNZIP_BYTES in include/hw/loader.h).
const MAX_UNPACKED: u64 = 256 * 1024 * 1024;
/// The longest command line of Linux for x86-64 and arm64, in bytes, without its NUL. Linux truncates a longer one silently
/// (COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h and arch/arm64/include/uapi/asm/setup.h). For a vmlinux, QEMU's buffer holds
/// 4096 bytes, and more overwrite other data (pc-bios/optionrom/pvh_main.c).
const LINUX_CMDLINE: usize = 2047;

/// The format of a kernel file. [`Kernel`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelFormat {
    /// For x86-64: the compressed kernel that distributions install as `/boot/vmlinuz-…`. It unpacks itself in the guest.
    BzImage,
    /// For x86-64: an ELF file, the kernel that the build of Linux leaves as `vmlinux`, and that a bzImage contains in compressed
    /// form. Kernels of other systems have this format, too.
    Vmlinux,
    /// For arm64: the kernel that Debian and others install as `/boot/vmlinuz-…`. It is not compressed.
    Image,
    /// For arm64: an [`Image`](Self::Image) that is compressed with gzip, as in Ubuntu. QEMU unpacks it.
    ImageGz,
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage",
            Self::Vmlinux => "vmlinux",
            Self::Image => "Image",
            Self::ImageGz => "Image.gz",
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
/// assert!(!kernel.boots_on(Engine::QemuArm64)); // its guests need an arm64 Image
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
    header: Header,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Header {
    BzImage(BzImage),
    Vmlinux(Vmlinux),
    Image(Image),
    ImageGz(Image),
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
    /// [compressed](ConfigError::CompressedKernel) and no [`ImageGz`](KernelFormat::ImageGz), or is
    /// [not a whole kernel of a known format](ConfigError::InvalidKernel).
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
        match self.header {
            Header::BzImage(_) => KernelFormat::BzImage,
            Header::Vmlinux(_) => KernelFormat::Vmlinux,
            Header::Image(_) => KernelFormat::Image,
            Header::ImageGz(_) => KernelFormat::ImageGz,
        }
    }

    /// Returns the architecture for which the kernel is built.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        match self.header {
            Header::BzImage(_) | Header::Vmlinux(_) => Architecture::X86_64,
            Header::Image(_) | Header::ImageGz(_) => Architecture::Arm64,
        }
    }

    /// Returns the length of the longest command line that the kernel accepts, in bytes, if it is known.
    ///
    /// The header of a bzImage contains it. A start accepts one byte less, since hyperkit counts a NUL at the end. For an arm64 Image it
    /// is Linux's limit, 2047. `None` for a vmlinux, which may be another system's. A start accepts 2047 bytes with it, the limit of Linux
    /// for x86-64.
    #[must_use]
    pub fn cmdline_limit(&self) -> Option<usize> {
        match &self.header {
            Header::BzImage(header) => Some(header.cmdline_size),
            Header::Vmlinux(_) => None,
            Header::Image(_) | Header::ImageGz(_) => Some(LINUX_CMDLINE),
        }
    }

    /// Returns the address at which QEMU enters a vmlinux, if an ELF note in the file contains it. *PVH* is the protocol by which Xen
    /// and QEMU start a kernel without a boot loader. Linux has the note if it is built with `CONFIG_PVH`, as Debian's is. `None` for
    /// the other formats, which need no such entry.
    #[must_use]
    pub fn pvh_entry(&self) -> Option<u32> {
        match &self.header {
            Header::Vmlinux(header) => header.pvh_entry,
            _ => None,
        }
    }

    /// Returns whether an engine boots the kernel.
    #[must_use]
    pub fn boots_on(&self, engine: Engine) -> bool {
        self.check_engine(engine.driver()).is_ok()
    }

    /// The length of the longest command line that a start accepts, in bytes, without its NUL.
    pub(crate) fn longest_cmdline(&self) -> usize {
        match &self.header {
            Header::BzImage(header) => header.cmdline_size.saturating_sub(1),
            _ => LINUX_CMDLINE,
        }
    }

    pub(crate) fn check_engine(&self, driver: &dyn EngineDriver) -> Result<(), ConfigError> {
        let (path, architecture) = (self.path.clone(), self.architecture());
        if architecture != driver.architecture() {
            return Err(ConfigError::KernelForOtherArchitecture { path, architecture, engine: driver.engine() });
        }
        let reason = match &self.header {
            Header::BzImage(header) => {
                (header.lacks_padding && !driver.boots_kernel_without_padding()).then_some("truncated")
            }
            Header::Vmlinux(header) => {
                let no_entry = || header.pvh_entry.is_none().then_some("no PVH entry");
                driver.refuses_vmlinux().or_else(no_entry)
            }
            Header::Image(_) | Header::ImageGz(_) => None,
        };
        reason.map_or(Ok(()), |reason| Err(invalid(&path, Some(self.format()), reason)))
    }

    /// Whether the kernel has pages of 16 KiB. On a CPU that lacks them it waits forever, and prints nothing (__no_granule_support in
    /// Linux's arch/arm64/kernel/head.S).
    pub(crate) fn has_pages_of_16_kib(&self) -> bool {
        matches!(&self.header, Header::Image(header) | Header::ImageGz(header) if header.has_pages_of_16_kib)
    }

    fn memory(&self) -> KernelMemory {
        match &self.header {
            Header::BzImage(header) => KernelMemory::BzImage { end: header.end(), initrd_max: header.initrd_max },
            Header::Vmlinux(header) => KernelMemory::Vmlinux { end: header.end },
            Header::Image(header) | Header::ImageGz(header) => header.memory(),
        }
    }
}

/// Reads the headers of a kernel file.
pub(crate) fn read(path: &Path) -> std::result::Result<Kernel, ConfigError> {
    let (file, metadata) = open("kernel", path, Metadata::is_file)?;
    let mut head = Vec::new();
    let read = (&file).take(HEAD_BYTES).read_to_end(&mut head);
    read.map_err(|error| ConfigError::inaccessible("kernel", path, &error))?;
    let length = metadata.len();
    let header = match gzip::unpack(&head, IMAGE_BYTES).filter(|unpacked| image::has_mark(unpacked)) {
        Some(unpacked) => image_gz(&file, length, &unpacked)
            .map(Header::ImageGz)
            .map_err(|reason| invalid(path, Some(KernelFormat::ImageGz), reason))?,
        None => recognize(path, &file, length, &head)?,
    };
    Ok(Kernel { path: path.to_owned(), header })
}

fn recognize(path: &Path, file: &File, length: u64, head: &[u8]) -> std::result::Result<Header, ConfigError> {
    if let Some((format, unpack)) =
        compression(head).map(|format| (format, unpacking(format))).or_else(|| zboot::find(head))
    {
        return Err(ConfigError::CompressedKernel { field: "kernel", path: path.to_owned(), format, unpack });
    }
    // QEMU, too, recognizes a bzImage and an Image by these marks alone.
    let (format, header) = if image::has_mark(head) {
        (Some(KernelFormat::Image), image::parse(head, length).map(Header::Image))
    } else if bz_image::has_mark(head) {
        (Some(KernelFormat::BzImage), bz_image::parse(head, length).map(Header::BzImage))
    } else if let Some(header) = elf::Header::parse(head) {
        (Some(KernelFormat::Vmlinux), vmlinux::parse(file, length, head, &header).map(Header::Vmlinux))
    } else {
        (None, Err(foreign(head)))
    };
    header.map_err(|reason| invalid(path, format, reason))
}

/// Reads the header of an Image that begins with `unpacked`, in a gzip file of this length.
fn image_gz(file: &File, length: u64, unpacked: &[u8]) -> std::result::Result<Image, &'static str> {
    // The length of the unpacked file is at the end.
    let mut trailer = [0; 4];
    let end = length.checked_sub(trailer.len() as u64).ok_or("truncated")?;
    file.read_exact_at(&mut trailer, end).map_err(|_| "truncated")?;
    let unpacked_length = u32::from_le_bytes(trailer).into();
    // In a truncated file, and before other data, the last bytes are any number.
    let image = image::parse(unpacked, unpacked_length).map_err(|reason| match reason {
        image::TRUNCATED | image::TOO_LONG => "truncated, or followed by other data",
        reason => reason,
    })?;
    if unpacked_length > MAX_UNPACKED { Err("longer than 256 MiB when unpacked") } else { Ok(image) }
}

/// Why a file that begins with `head` is no kernel.
fn foreign(head: &[u8]) -> &'static str {
    const SHORTEST: usize = 512;
    // The marks are in Linux's Documentation/arch/arm/booting.rst and in U-Boot's include/image.h.
    match (little_endian(head, 0x24, 4), little_endian(head, 0, 4)) {
        (0x016f_2818, _) => "a zImage for 32-bit ARM",
        (_, 0x5619_0527) => "a uImage of U-Boot",
        _ if zboot::has_mark(head) => "an EFI zboot image with an unknown compression",
        _ if head.len() < SHORTEST => "file too short",
        _ => "no boot header",
    }
}

fn invalid(path: &Path, format: Option<KernelFormat>, reason: &'static str) -> ConfigError {
    ConfigError::InvalidKernel { path: path.to_owned(), format, reason }
}
