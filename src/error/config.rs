//! What can be wrong with a description or with the files that it names.

use std::io;
use std::path::PathBuf;

use crate::{Architecture, Engine, KernelFormat, SectorSize};

/// One violation: a field of a [`HyperKit`](crate::HyperKit) whose value, or whose file, cannot be used. There is an example
/// below the table.
///
#[doc = include_str!("violations.md")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A required field is unset, or a text is empty. Set it; for `kernel`, set one of `kernel`, `bootrom` and `multiboot`.
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field is set that only works together with another one, which is not set. Set both or neither.
    MissingPrerequisite {
        /// The field that is set, or the call.
        field: &'static str,
        /// The field that is not set.
        requires: &'static str,
    },
    /// Two of `kernel`, `bootrom` and `multiboot` are set, or an `initrd` without a `kernel`. Unset one of them.
    ConflictingBootSources {
        /// One field that is set.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A kernel command line was given, but the VM boots from a boot ROM. Pass `""`.
    CommandLineForRom {
        /// The command line.
        value: String,
    },
    /// A field or call requires a state directory. Set `state_dir`.
    StateDirRequired {
        /// The field or call.
        field: &'static str,
    },
    /// A text contains a character that the hypervisor would interpret and that cannot be escaped. Use another name.
    ForbiddenCharacter {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// A comma, NUL, or in some fields `:`, `;`, `/` or `%`.
        character: char,
    },
    /// A path is not valid UTF-8, so `hyperkit.json` cannot store it. Rename the file, or use a symlink.
    NotUtf8 {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A text is longer than the hypervisor accepts. Shorten it; for a path, use a shorter directory.
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
    /// No vCPU, or more than hyperkit supports. Use 1 to 64.
    InvalidCpus {
        /// The value.
        value: u32,
    },
    /// The value is not a CPU model, with or without features. `qemu-system-x86_64 -cpu help` lists both.
    InvalidCpu {
        /// The value.
        value: String,
    },
    /// Too little memory, or more than fits into 63 bits of bytes. Use at least 2 MiB.
    InvalidMemory {
        /// The value, in MiB.
        value: u64,
    },
    /// `memory_mib` exceeds the host's memory, all of which hyperkit would take at the start. Use less, or QEMU.
    MemoryExceedsHost {
        /// The value, in MiB.
        value: u64,
        /// The host's memory, in MiB.
        host: u64,
    },
    /// The text is not a UUID of 8-4-4-4-12 hexadecimal digits, or the fourth group of `uuid` begins with e or f. Correct it.
    InvalidUuid {
        /// The field: `uuid` or `vpnkit_key`.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The VM has more devices than PCI slots. Attach fewer `disks`, `isos` or `shares_9p`.
    TooManyDevices {
        /// The number of devices, including the random number generator.
        count: usize,
        /// The number of slots.
        max: usize,
    },
    /// `hyperkit.json` has a setting that this version cannot ignore. Remove it, or use the program that wrote it.
    UnknownSetting {
        /// The key and its value.
        key: String,
    },
    /// The engine does not have this feature, or not on this host. Unset the field, or use another engine.
    Unsupported {
        /// The engine.
        engine: Engine,
        /// The unsupported feature, with the name of its field.
        feature: &'static str,
    },
    /// The text is not an IPv4 address. Correct it.
    InvalidIpv4 {
        /// The value.
        value: String,
    },
    /// The text is not a unicast MAC address, that is, six bytes of which the first is even and not all are zero. Correct it.
    InvalidMac {
        /// The value.
        value: String,
    },
    /// A port of the host is used twice in `port_forwards` and `gdb_port`. Use another port, or 0 for any free one.
    DuplicateHostPort {
        /// The port of 127.0.0.1.
        port: u16,
    },
    /// A port number is 0 where 0 has no meaning. Use 1 to 65535.
    ZeroPort {
        /// The field: `gdb_port`, `shares_9p` or `port_forwards`.
        field: &'static str,
    },
    /// A number in `internal_networks` is not 1 to 16, or a directory cannot be used for a network. Correct it.
    InvalidInternalNetwork {
        /// The directory.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The description has more `serials` or `vsock_ports` than a VM can have. Remove some. `Vm::vsock_connect` reaches every vsock
    /// port, also those that are not in `vsock_ports`.
    TooManyPorts {
        /// The field: `serials` or `vsock_ports`.
        field: &'static str,
        /// The number of ports.
        count: usize,
        /// The highest accepted number.
        max: usize,
    },
    /// Two serial ports use the caller's standard input and output. Change one of them.
    DuplicateStdio,
    /// The guest's address on vsock is reserved or out of range. Use a number from `min` to `max`.
    InvalidCid {
        /// The value.
        value: u32,
        /// The lowest accepted value.
        min: u32,
        /// The highest accepted value.
        max: u32,
    },
    /// hyperkit cannot create a socket for this vsock port. Use a number up to `max`.
    InvalidVsockPort {
        /// The port.
        value: u32,
        /// The highest accepted port.
        max: u32,
    },
    /// Two shares have the same mount tag. Change one of them.
    DuplicateMountTag {
        /// The tag.
        tag: String,
    },
    /// A file or directory does not exist. Correct the path.
    NotFound {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The path is a directory, a pipe or the like instead of a file. Correct the path.
    NotAFile {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The path is not a directory. Correct the path.
    NotADirectory {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A file or directory exists and cannot be used. Change its permissions, or run as a user who may use it.
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
    /// An initrd, multiboot module, ISO image or disk without a size is an empty file, or a device that is not a disk. Use another
    /// file.
    EmptyFile {
        /// The field.
        field: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The kernel has no known format, is truncated, or has a format that the engine does not boot. Use `/boot/vmlinuz-…`.
    InvalidKernel {
        /// The file.
        path: PathBuf,
        /// The format, if it is known.
        format: Option<KernelFormat>,
        /// The reason.
        reason: &'static str,
    },
    /// The kernel is for another architecture than the guests of the engine. Use another kernel or another engine.
    KernelForOtherArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture of the kernel.
        architecture: Architecture,
        /// The engine.
        engine: Engine,
    },
    /// The kernel file is compressed as a whole, and is not an arm64 `Image` in gzip, which QEMU unpacks. Unpack the file.
    CompressedKernel {
        /// The field: `kernel` or `multiboot`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// The format, such as `gzip` or `EFI zboot`.
        format: &'static str,
        /// A shell command that reads the file from its standard input, and writes the kernel to its standard output.
        unpack: String,
    },
    /// The kernel does not follow the Multiboot specification, or needs more than hyperkit offers. Use another kernel.
    NotMultiboot {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The boot ROM is not firmware for the guest's CPU, or has a length that the engine does not accept. Files of UEFI
    /// variables, option ROMs and firmware for other CPUs have no code where the CPU starts. Use a file such as `OVMF.fd`
    /// for x86 or `AAVMF_CODE.fd` for arm64.
    InvalidBootrom {
        /// The file.
        path: PathBuf,
        /// The architecture of the guest.
        architecture: Architecture,
        /// The requirement that the file does not meet.
        reason: &'static str,
    },
    /// The kernel, its initrd or its modules do not fit into the guest's memory. Set `memory_mib` to at least `needed`, or use a
    /// smaller file if that is more than `max`.
    DoesNotFit {
        /// The field: `kernel`, `initrd` or `multiboot`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// The memory needed to load it, in MiB; `u64::MAX` if the kernel accepts no initrd of this size.
        needed: u64,
        /// The most memory into which the engine loads kernels, in MiB: 3072 on hyperkit, on QEMU 2048, and no limit for arm64.
        max: u64,
    },
    /// The kernel command line is longer than this kernel accepts. Shorten it.
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest line that this kernel accepts, in bytes.
        limit: usize,
    },
    /// A disk has neither a path nor a size with which its image could be created in the state directory. Set one of them.
    MissingDiskPath,
    /// A disk's path is a URL that names no file of this host, or has options without a field. Use the path of a file, or
    /// `file:///path`; write `./` before a relative path that only looks like a URL.
    UnsupportedUrl {
        /// The field.
        field: &'static str,
        /// The URL.
        url: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// A disk image does not exist, and the disk has no size with which it could be created. Correct the path, or set a size.
    DiskSizeMissing {
        /// The image.
        path: PathBuf,
    },
    /// The size of a disk is 0, or more than 63 bits of bytes. Correct it.
    InvalidDiskSize {
        /// The image.
        path: PathBuf,
        /// The size, in MiB.
        value: u64,
    },
    /// hyperkit does not accept these sector sizes. Use powers of two; most disks have 512 or 4096 bytes.
    InvalidSectorSize {
        /// The image.
        path: PathBuf,
        /// The sizes.
        value: SectorSize,
    },
    /// hyperkit does not accept this value in [`QcowOptions`](crate::QcowOptions). Statistics are served at `unix:PATH` or
    /// `tcp:PORT`, and numbers are at most 9223372036854775807.
    InvalidQcowOption {
        /// The image.
        path: PathBuf,
        /// The field of `QcowOptions`.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// hyperkit requires an absolute path for a qcow2 image. Only `arguments` returns this: other calls make paths absolute.
    RelativePath {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// An image is attached twice, perhaps under two names or as the backing file of another one, and at least one of the two
    /// disks can write to it. Remove one, or make both read-only.
    DuplicateDisk {
        /// The image.
        path: PathBuf,
    },
    /// The guest can write to the disk, but the image file is not writable. Change its permissions, or make the disk read-only.
    DiskNotWritable {
        /// The image.
        path: PathBuf,
        /// The operating system's message.
        reason: String,
    },
    /// The image is larger than the size of the disk. It was not changed. Use its size, or leave the size unset.
    DiskShrinks {
        /// The image.
        path: PathBuf,
        /// Its size, in MiB, rounded up.
        from: u64,
        /// The requested size, in MiB.
        to: u64,
    },
    /// The disk's format is qcow2, but the image is not. Correct the format, or leave it unset.
    NotQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// The image is qcow2, but no engine can use it: it is encrypted, damaged, or of a later version. Convert it with `qemu-img`,
    /// repair it with `qemu-img check -r all`, or use another one.
    InvalidQcow2 {
        /// The image, or a backing file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The file is an image or an archive of a format that no engine attaches. If it were attached as raw, the guest would write
    /// into the container. Convert it with `qemu-img convert`, or unpack it; [`Disk::raw`](crate::Disk::raw) attaches the bytes as they
    /// are.
    ForeignImage {
        /// The file.
        path: PathBuf,
        /// The format, such as `vmdk` or `gzip`.
        format: &'static str,
    },
    /// The image was probed as qcow2 and refers to other files of the host. If you created it so, set its format to qcow2. If a
    /// guest could write to it as a raw image, the guest may have written that header: set the format to raw.
    DiskHasBackingFile {
        /// The image.
        path: PathBuf,
    },
    /// `create` or `grow` was called for a disk with an [overlay](crate::Disk::overlay). Call it for the disk without one.
    DiskHasOverlay {
        /// The image, which was not changed.
        path: PathBuf,
    },
    /// `network` is `Nat` on hyperkit, and Docker Desktop's VPNKit is not running. Start Docker Desktop, or use another network.
    VpnKitNotFound {
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },
    /// A helper program is not installed. Install it, or set its path.
    ToolNotFound {
        /// The field that needs it: `vhost_device_vsock`, `virtiofsd`, or `disks` for qcow2 images.
        field: &'static str,
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },
}
