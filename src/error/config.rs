//! What can be wrong with a description or with the files that it names.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::text::{advice, list};
use crate::{Engine, SectorSize};

/// One violation: a field of a [`HyperKit`](crate::HyperKit) whose value, or whose file, cannot be used.
///
/// [`check`](crate::HyperKit::check) reports all violations of a description in
/// [`Error::InvalidConfig`](crate::Error::InvalidConfig).
///
/// ```
/// use hyperkit::{ConfigError, Error, HyperKit};
///
/// let result = HyperKit::new().kernel("vmlinuz").cpus(0).arguments("");
/// let Err(Error::InvalidConfig(violations)) = result else { panic!("accepted") };
/// assert_eq!(violations, [ConfigError::InvalidCpus { value: 0 }]);
/// assert_eq!(violations[0].to_string(), "`cpus` must be 1 to 64: 0");
/// assert_eq!(violations[0].field(), "cpus");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    // --- the description by itself ---
    /// The field or call needs a state directory.
    #[error("`{field}` requires a state directory; set `state_dir`")]
    StateDirRequired {
        /// The field or call.
        field: &'static str,
    },
    /// A required field is unset, or a text is empty.
    #[error("`{field}` is not set or empty{}", if *field == "kernel" { "; set `kernel`, `bootrom` or `multiboot`" } else { "" })]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A text contains a character that the hypervisor would interpret and that cannot be escaped.
    #[error("`{field}` must not contain {character:?}: {value:?}")]
    ForbiddenCharacter {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// A comma, NUL, or in some fields `:`, `;`, `/` or `%`.
        character: char,
    },
    /// A path is not valid UTF-8, so `hyperkit.json` cannot store it.
    #[error("`{field}` must be valid UTF-8: {path:?}")]
    NotUtf8 {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A text is longer than the hypervisor accepts.
    #[error("`{field}` must be at most {limit} bytes long, not {length}: {value:?}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// Its length in bytes.
        length: usize,
        /// The longest accepted length, in bytes.
        limit: usize,
    },
    /// Not an IPv4 address.
    #[error("`vpnkit_preferred_ipv4` must be an IPv4 address such as 192.168.65.10: {value:?}")]
    InvalidIpv4 {
        /// The value.
        value: String,
    },
    /// Not a unicast MAC address: six bytes, the first one even, and not all zero.
    #[error("`mac` must be a unicast MAC address such as 02:00:00:00:00:01: {value:?}")]
    InvalidMac {
        /// The value.
        value: String,
    },
    /// Not a UUID of 8-4-4-4-12 hexadecimal digits.
    #[error("`{field}` must be a UUID such as 01234567-89ab-cdef-0123-456789abcdef: {value:?}")]
    InvalidUuid {
        /// The field: `uuid` or `vpnkit_key`.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The guest's vsock context identifier is reserved or out of range.
    #[error("`vsock_guest_cid` must be {min} to {max}: {value}")]
    InvalidCid {
        /// The value.
        value: u32,
        /// The lowest accepted value.
        min: u32,
        /// The highest accepted value.
        max: u32,
    },
    /// A vsock port that hyperkit cannot forward.
    #[error("`vsock_ports` must be at most {max}: {value}")]
    InvalidVsockPort {
        /// The port.
        value: u32,
        /// The highest accepted port.
        max: u32,
    },
    /// More forwarded vsock ports than hyperkit accepts.
    #[error("`vsock_ports` must have at most {max} ports, not {count}")]
    TooManyVsockPorts {
        /// The number of ports.
        count: usize,
        /// The highest accepted number.
        max: usize,
    },
    /// Two shares have the same mount tag.
    #[error("duplicate mount tag in `shares_9p`: {tag:?}")]
    DuplicateMountTag {
        /// The tag.
        tag: String,
    },
    /// A port of the host is used twice in `port_forwards` and `gdb_port`.
    #[error("duplicate host port in `port_forwards` and `gdb_port`: {port}; use 0 for any free port")]
    DuplicateHostPort {
        /// The port of 127.0.0.1.
        port: u16,
    },
    /// A port number is 0 where 0 has no meaning.
    #[error("`{field}` must be a port from 1 to 65535: 0")]
    ZeroPort {
        /// The field: `gdb_port`, `shares_9p` or `port_forwards`.
        field: &'static str,
    },
    /// A field is set that only works together with another one, which is not set.
    #[error("`{field}` requires `{requires}`")]
    MissingPrerequisite {
        /// The field that is set, or the call.
        field: &'static str,
        /// The field that is not set.
        requires: &'static str,
    },
    /// Two of `kernel`, `bootrom` and `multiboot` are set, or an `initrd` without a `kernel`.
    #[error("conflicting boot sources: set either `{first}` or `{second}`")]
    ConflictingBootSources {
        /// One field that is set.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A kernel command line was given, but the VM boots from a boot ROM, which takes none.
    #[error("a boot ROM takes no kernel command line: {value:?}")]
    CommandLineForRom {
        /// The command line.
        value: String,
    },
    /// More serial ports than a VM has.
    #[error("`serials` must have at most {max} ports, not {count}")]
    TooManySerials {
        /// The number of ports.
        count: usize,
        /// The highest accepted number.
        max: usize,
    },
    /// Two serial ports use the caller's standard input and output.
    #[error("only one of `serials` can use standard input and output")]
    DuplicateStdio,
    /// Sector sizes that hyperkit does not accept.
    #[error("sector sizes must be powers of two from 512 to 1073741824 bytes, logical at most physical: {value} for {}", path.display())]
    InvalidSectorSize {
        /// The image.
        path: PathBuf,
        /// The sizes.
        value: SectorSize,
    },
    /// More devices than PCI slots.
    #[error("too many devices: {count} for {max} PCI slots; attach fewer `disks`, `isos` or `shares_9p`")]
    TooManyDevices {
        /// The number of devices, including the random number generator.
        count: usize,
        /// The number of slots.
        max: usize,
    },
    /// No vCPU, or more than hyperkit supports.
    #[error("`cpus` must be 1 to {}: {value}", crate::plan::limits::MAX_CPUS)]
    InvalidCpus {
        /// The value.
        value: u32,
    },
    /// Too little memory, or more than fits into 63 bits of bytes.
    #[error(
        "`memory_mib` must be at least {} MiB and fit into 63 bits of bytes: {value}",
        crate::plan::limits::MIN_MEMORY_MIB
    )]
    InvalidMemory {
        /// The value, in MiB.
        value: u64,
    },
    /// A disk size of 0, or of more than 63 bits of bytes.
    #[error("disk size must be at least 1 MiB and fit into 63 bits of bytes: {value} MiB for {}", path.display())]
    InvalidDiskSize {
        /// The image.
        path: PathBuf,
        /// The size, in MiB.
        value: u64,
    },
    /// An image is attached twice, under whatever names, and at least one of them can write.
    #[error("duplicate disk image in `disks` or `isos`: {}", path.display())]
    DuplicateDisk {
        /// The image.
        path: PathBuf,
    },
    /// hyperkit takes the path of a qcow2 image as a URL, which must be absolute.
    #[error("`{field}` must be an absolute path for a qcow2 image on hyperkit: {}", path.display())]
    RelativePath {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// `hyperkit.json` has a setting that this version does not know and cannot ignore.
    #[error("unsupported setting in hyperkit.json: `{key}`; remove it or start the VM with the program that wrote it")]
    UnknownSetting {
        /// The key and its value.
        key: String,
    },
    /// A disk has no path, and no size with which the image could be created in the state directory.
    #[error("a disk without a path requires a size and a `state_dir`")]
    MissingDiskPath,
    /// The engine cannot do this, or not on this host.
    #[error("{engine} does not support {feature}")]
    Unsupported {
        /// The engine.
        engine: Engine,
        /// The unsupported feature, with the name of its field.
        feature: &'static str,
    },

    // --- files and programs that the description names ---
    /// A file does not exist.
    #[error("`{field}` not found: {}", path.display())]
    NotFound {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A disk image does not exist, and the disk has no size with which it could be created.
    #[error("disk image not found: {}; set a size to create it", path.display())]
    DiskSizeMissing {
        /// The image.
        path: PathBuf,
    },
    /// The path is a directory, a pipe or the like instead of a file.
    #[error("`{field}` must be a file: {}", path.display())]
    NotAFile {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The path is not a directory.
    #[error("`{field}` must be a directory: {}", path.display())]
    NotADirectory {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A file or directory exists and cannot be used.
    #[error("cannot access `{field}`: {}: {reason}", path.display())]
    Inaccessible {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// The kind of the operating system's error.
        kind: io::ErrorKind,
        /// The operating system's message.
        reason: String,
    },
    /// The kernel is not an x86 bzImage that hyperkit can boot.
    #[error("`kernel` must be an x86 bzImage: {reason}: {}", path.display())]
    NotABzImage {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The kernel does not follow the Multiboot specification, or needs more than hyperkit offers.
    #[error("`multiboot` must be a multiboot kernel: {reason}: {}", path.display())]
    NotMultiboot {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The boot ROM has a size that hyperkit does not accept.
    #[error("`bootrom` must be 4 KiB to 16 MiB long, in multiples of 4096 bytes, not {length} bytes: {}", path.display())]
    InvalidBootrom {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        length: u64,
    },
    /// An initrd or a multiboot module is empty.
    #[error("`{field}` is empty: {}", path.display())]
    EmptyFile {
        /// The field.
        field: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The kernel, its initrd or its modules do not fit into the guest's memory, of which 3 GiB count at most.
    #[error("`{field}` does not fit into memory: {}; {}", path.display(), advice(*needed))]
    DoesNotFit {
        /// The field: `kernel`, `initrd` or `multiboot`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// The memory needed to load it, in MiB.
        needed: u64,
    },
    /// The kernel command line is longer than this kernel accepts.
    #[error("kernel command line must be at most {limit} bytes long with `earlyprintk=serial`, not {length}")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest line that this kernel accepts, in bytes.
        limit: usize,
    },
    /// `network` is `Nat` on hyperkit, and Docker Desktop's VPNKit is not running.
    #[error(
        "no VPNKit socket found; start Docker Desktop or set `network` to a VPNKit socket; searched {}",
        list(searched)
    )]
    VpnKitNotFound {
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },
    /// A helper program is not installed.
    #[error("program for `{field}` not found: {}; install it or set its path", list(searched))]
    ToolNotFound {
        /// The field that needs it: `vhost_device_vsock`, or `disks` for qcow2 images.
        field: &'static str,
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },

    // --- disk images ---
    /// The guest can write to the disk, but the image file is not writable.
    #[error("disk image is not writable: {}: {reason}; make the disk read-only or the file writable", path.display())]
    DiskNotWritable {
        /// The image.
        path: PathBuf,
        /// The operating system's message.
        reason: String,
    },
    /// The image is larger than the size of the disk. It was not changed.
    #[error("cannot shrink disk image from {from} to {to} MiB: {}", path.display())]
    DiskShrinks {
        /// The image.
        path: PathBuf,
        /// Its size, in MiB, rounded up.
        from: u64,
        /// The requested size, in MiB.
        to: u64,
    },
    /// The disk's format is qcow2, but the image is not.
    #[error("disk image is not qcow2: {}; correct its format or leave it unset", path.display())]
    NotQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// The image was probed as qcow2 and refers to other files. A guest that can write to a raw image could have
    /// made it so.
    #[error("disk image has a backing file or external data file: {}; set its format to qcow2 to allow it", path.display())]
    DiskHasBackingFile {
        /// The image.
        path: PathBuf,
    },
}

impl ConfigError {
    /// For a file or directory that exists and cannot be used.
    #[cold]
    pub(crate) fn inaccessible(field: &'static str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        let path = path.as_ref().to_owned();
        Self::Inaccessible { field, path, kind: error.kind(), reason: error.to_string() }
    }
}
