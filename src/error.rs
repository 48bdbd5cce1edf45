//! What can go wrong: one enum, a variant for each thing a caller would handle differently.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Engine, Exit, LastWords, SectorSize};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a machine could not be described, started, found or ended.
///
/// The message names the field or path and says what to do; the cause, where there is one, is in
/// [`source`](std::error::Error::source) and not repeated in the message.
///
/// ```
/// use hyperkit::{Error, HyperKit};
///
/// match HyperKit::new().cpus(0).arguments("") {
///     Err(Error::InvalidCpus { value }) => assert_eq!(value, 0),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- the description, without looking at any file ---
    /// Something that lives in the state directory was asked for, and there is none.
    #[error("`{field}` needs a state directory: set `state_dir`")]
    StateDirRequired {
        /// The field or call that needs it.
        field: &'static str,
    },
    /// A field that the machine cannot do without is not set, or something is empty that must not be.
    #[error("`{field}` is not set, or empty{}", if *field == "kernel" { ": set `kernel`, `bootrom` or `multiboot`" } else { "" })]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A character that hyperkit would take for something else and that cannot be escaped.
    #[error("`{field}` must not contain {character:?}: {value:?}")]
    ForbiddenCharacter {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// A comma, or NUL; in places also `:`, `;`, `/` or `%`.
        character: char,
    },
    /// A path that is not valid UTF-8: it could not be written to `hyperkit.json`.
    #[error("`{field}` must be valid UTF-8: {}", path.display())]
    NotUtf8 {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A text longer than hyperkit takes; it would be cut or refused.
    #[error("`{field}` is {length} bytes long, and may have {limit} at most: {value:?}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// Its length in bytes.
        length: usize,
        /// The greatest length, in bytes.
        limit: usize,
    },
    /// Not an IPv4 address.
    #[error("`vpnkit_preferred_ipv4` must be an IPv4 address like 192.168.65.10: {value:?}")]
    InvalidIpv4 {
        /// Its value.
        value: String,
    },
    /// Not a MAC address of one card: six bytes, the first even, and not all 0.
    #[error("`mac` must be the address of one card, like 02:00:00:00:00:01: {value:?}")]
    InvalidMac {
        /// Its value.
        value: String,
    },
    /// Not a UUID of 8-4-4-4-12 hexadecimal digits.
    #[error("`{field}` must be a UUID like 01234567-89ab-cdef-0123-456789abcdef: {value:?}")]
    InvalidUuid {
        /// The field: `uuid` or `vpnkit_key`.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The guest's context identifier on vsock is reserved or out of range.
    #[error("`vsock_guest_cid` must be 3 to 2147483647: {value}")]
    InvalidCid {
        /// Its value.
        value: u32,
    },
    /// A vsock port that hyperkit cannot forward.
    #[error("`vsock_ports` must be 4294967294 at most: {value}")]
    InvalidPort {
        /// The port.
        value: u32,
    },
    /// More forwarded vsock ports than hyperkit takes.
    #[error("`vsock_ports` may have 4 ports at most, and has {count}")]
    TooManyPorts {
        /// How many there are.
        count: usize,
    },
    /// Two things the guest mounts by 9p, and one name.
    #[error("`sockets_9p` has the tag {tag:?} twice: give each its own")]
    TagTwice {
        /// The tag.
        tag: String,
    },
    /// A port of the host that is to lead to two places.
    #[error(
        "port {port} of 127.0.0.1 is given twice in `port_forwards` and `gdb_port`: give each its own, or 0 for any"
    )]
    PortTwice {
        /// The port.
        port: u16,
    },
    /// A port number that is none.
    #[error("`{field}` must be 1 to 65535, and is 0")]
    ZeroPort {
        /// The field: `gdb_port`, `sockets_9p` or `port_forwards`.
        field: &'static str,
    },
    /// Something that goes with another setting, and that is not set.
    #[error("`{field}` needs `{needs}`: set it, too")]
    Needs {
        /// The field that is set.
        field: &'static str,
        /// The field that is not.
        needs: &'static str,
    },
    /// Two ways to boot; a machine takes one.
    #[error("`{first}` and `{second}` exclude each other: set one")]
    TwoFirmwares {
        /// One field that is set.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A command line for a boot ROM, which takes none.
    #[error("a boot ROM takes no command line: leave it empty, and not {value:?}")]
    CommandLineForRom {
        /// The command line.
        value: String,
    },
    /// More serial ports than a machine has.
    #[error("`serials` may have 2 ports at most, and has {count}")]
    TooManySerials {
        /// How many there are.
        count: usize,
    },
    /// Both serial ports on the caller's standard input and output.
    #[error("`serials` may have one port on stdio, and both are")]
    StdioTwice,
    /// Sectors that hyperkit does not take.
    #[error("sectors of disk {} must be powers of two from 512 to 1073741824 bytes, the logical not above the physical: {value}", path.display())]
    InvalidSectorSize {
        /// The image.
        path: PathBuf,
        /// The sizes.
        value: SectorSize,
    },
    /// More devices than PCI slots.
    #[error("the machine has {count} devices, and room for 30: attach fewer `disks`, `isos` or `sockets_9p`")]
    TooManyDevices {
        /// How many there are, the random number generator included.
        count: usize,
    },
    /// No vCPU, or more than hyperkit takes.
    #[error("`cpus` must be 1 to 64: {value}")]
    InvalidCpus {
        /// Its value.
        value: u32,
    },
    /// Too little memory, or more than can be counted in bytes.
    #[error("`memory` must be 2 MiB at least and fit into 63 bits of bytes: {value} MiB")]
    InvalidMemory {
        /// Its value, in MiB.
        value: u64,
    },
    /// A disk to be made of no size, or of more than can be counted in bytes.
    #[error("the size of disk {} must be 1 MiB at least and fit into 63 bits of bytes: {value} MiB", path.display())]
    InvalidDiskSize {
        /// The image.
        path: PathBuf,
        /// Its size, in MiB.
        value: u64,
    },
    /// An image that is attached twice, under whatever names, and written to.
    #[error("`disks` or `isos` have this image twice, and one may write: {}", path.display())]
    DiskTwice {
        /// The image.
        path: PathBuf,
    },
    /// A relative path where hyperkit takes a URL.
    #[error("`{field}` must be an absolute path for a qcow2 image on hyperkit: {}", path.display())]
    Relative {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A setting of a later version of the Go package, from a `hyperkit.json`, that this version cannot honour.
    #[error(
        "`{key}` in hyperkit.json is more than this version can do: remove it, or start the machine with what wrote it"
    )]
    UnknownSetting {
        /// The key.
        key: String,
    },
    /// A disk with neither a path nor a state directory to be made in, nor a size.
    #[error("a disk without a path needs a size and a `state_dir` to be made in")]
    DiskPlaceMissing,
    /// The program that runs the machine cannot do this.
    #[error("{engine} cannot do this: {feature}")]
    Unsupported {
        /// The engine.
        engine: Engine,
        /// What it cannot do.
        feature: &'static str,
    },

    // --- files the description names ---
    /// A file that should be there is not.
    #[error("`{field}` does not exist: set it to one that does: {}", path.display())]
    NotFound {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A disk image that is not there, and no size to make it with.
    #[error("disk {} does not exist: give it a size to have it made", path.display())]
    DiskSizeMissing {
        /// The image.
        path: PathBuf,
    },
    /// A directory, pipe or the like where a file is wanted.
    #[error("`{field}` must be a file: {}", path.display())]
    NotAFile {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A file where a directory is wanted.
    #[error("`{field}` must be a directory: {}", path.display())]
    NotADirectory {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A file or directory that is there and cannot be used.
    #[error("`{field}` cannot be opened: look at its permissions, or set it to another: {}", path.display())]
    Inaccessible {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel is not one that kexec boots.
    #[error("`kernel` must be an x86 bzImage, and {reason}: {}", path.display())]
    NotABzImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel is not one for the Multiboot specification.
    #[error("`multiboot` must be a kernel for the Multiboot specification, and {reason}: {}", path.display())]
    NotMultiboot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A boot ROM of a size that hyperkit does not take.
    #[error("`bootrom` must have 4 KiB to 16 MiB, in multiples of 4096 bytes, and has {length}: {}", path.display())]
    InvalidBootrom {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        length: u64,
    },
    /// An initrd or module has no bytes.
    #[error("`{field}` is empty: {}", path.display())]
    EmptyFile {
        /// The field.
        field: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Kernel and initrd, or modules, do not fit into the memory, of which 3 GiB count at most.
    #[error("`{field}` does not fit: set `memory` to {needed} MiB at least to load it (to run takes more, and the first 3072 count), or take a smaller one: {}", path.display())]
    DoesNotFit {
        /// The field: `kernel`, `initrd` or `multiboot`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Memory that would be enough, in MiB.
        needed: u64,
    },
    /// The kernel takes no command line of this length.
    #[error(
        "the kernel command line is {length} bytes long with `earlyprintk=serial`, and this kernel takes {limit}: shorten it"
    )]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The greatest length that this kernel takes, in bytes.
        limit: usize,
    },
    /// Neither hyperkit nor QEMU is here.
    #[error("no program to run the machine: install hyperkit or qemu-system-x86_64, or set `hyperkit` to one; no executable file is {}",
        looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    ProgramNotFound {
        /// Every place looked at.
        looked: Vec<PathBuf>,
    },
    /// `VpnKit::Auto`, and no VPNKit is here.
    #[error("no VPNKit socket found: start Docker Desktop, or set `vpnkit` to a socket; looked for {}",
        looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    VpnKitNotFound {
        /// Every place looked at.
        looked: Vec<PathBuf>,
    },

    /// Arguments that describe no machine of this crate, for [`parse_arguments`](crate::parse_arguments).
    #[error("these arguments describe no machine that can be started: {reason}: {argument:?}")]
    ForeignArguments {
        /// The argument that is wrong, or the option that is missing.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },

    // --- disk images ---
    /// An image that may not be written, for a disk that the guest may write to.
    #[error("disk {} may not be written: make the disk read-only, or the file writable", path.display())]
    DiskNotWritable {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A port of 127.0.0.1 that cannot be had.
    #[error("port {port} of 127.0.0.1 cannot be had for `{field}`: take another, or 0 for any that is free")]
    PortTaken {
        /// The field: `port_forwards` or `gdb_port`.
        field: &'static str,
        /// The port.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// In the place of a socket that has to be made is one that somebody listens on, or something else; it was not
    /// touched.
    #[error("in the way of a socket is {}: stop who listens there, or take another `vsock_dir`", path.display())]
    SocketTaken {
        /// What is there.
        path: PathBuf,
    },
    /// An image that another machine uses.
    #[error("another machine uses this image: stop it, or take a copy: {}", path.display())]
    DiskInUse {
        /// The image.
        path: PathBuf,
    },
    /// An image that has more than the size that was asked for; it was not touched.
    #[error("disk {} has {from} MiB, and would lose data at {to} MiB: ask for as much, or copy what you need to a new one", path.display())]
    DiskShrinks {
        /// The image.
        path: PathBuf,
        /// Its size, in MiB and rounded up.
        from: u64,
        /// The size that was asked for, in MiB.
        to: u64,
    },
    /// An image that should be qcow2 and is not.
    #[error("disk {} is no qcow2 image: say what it is, or leave its format unset", path.display())]
    NotAQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// An image that was found to be qcow2 and to rest on other files, which a guest could have made it do.
    #[error("disk {} rests on other files (a backing file, or data of its own): set its format to qcow2 to take it, or flatten it", path.display())]
    DiskRestsOnOthers {
        /// The image.
        path: PathBuf,
    },
    /// A program that the machine needs besides hyperkit or QEMU is not here.
    #[error("`{field}` takes a program that is not here: install it, or name yours; no executable file is {}",
        looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    ToolNotFound {
        /// The field that takes it: `vhost_device_vsock`, or `disks` for qcow2 images.
        field: &'static str,
        /// Every place looked at.
        looked: Vec<PathBuf>,
    },
    /// The program that makes and grows qcow2 images did not.
    #[error("{} could not make or grow {}: {said}", tool.display(), path.display())]
    ToolFailed {
        /// The program.
        tool: PathBuf,
        /// The image.
        path: PathBuf,
        /// What it printed as error.
        said: String,
    },
    /// An image was to be made where there is a file already; it was not touched.
    #[error("{} exists already and was not touched: grow it, or take another name", path.display())]
    DiskExists {
        /// The file.
        path: PathBuf,
    },

    // --- the running machine ---
    /// A machine runs in this state directory already.
    #[error("the machine is running already, as process {pid}: `vm` takes it up, `stop` ends it")]
    AlreadyRunning {
        /// The process that runs it.
        pid: u32,
    },
    /// What was asked for can be done only to a machine that runs.
    #[error("the machine does not run: `start` it first")]
    NotRunning,
    /// What was asked for can be done only when the machine does not run.
    #[error("the machine is running, as process {pid}: stop it first")]
    StillRunning {
        /// The process that runs it.
        pid: u32,
    },
    /// The program neither started the machine nor ended; it was ended.
    #[error("the machine was not there after {} s, and was ended{}", patience.as_secs(), said(last_words))]
    StartTimedOut {
        /// How long it was waited for.
        patience: Duration,
        /// What the machine left.
        last_words: LastWords,
    },
    /// The program ended, and not because the guest was done: it could not start the machine, or not go on.
    #[error("the program that runs the machine {exit}{}", said(last_words))]
    ProgramFailed {
        /// How the program ended.
        exit: Exit,
        /// What the machine left.
        last_words: LastWords,
    },
    /// Nobody in the guest listens on this vsock port, or the guest is not that far.
    #[error("nobody in the guest listens on vsock port {port}: it may not be that far, so try again")]
    NobodyListens {
        /// The port.
        port: u32,
    },
    /// The program beside QEMU that gives the guest its vsock did not get up.
    #[error("{} did not start; is it vhost-device-vsock?{}", program.display(), said(last_words))]
    VsockFailed {
        /// The program.
        program: PathBuf,
        /// What it printed.
        last_words: LastWords,
    },
    /// The machine has no QMP socket, or what answers there is not QEMU.
    #[error("QEMU does not answer as it should, and `stop` ends it: {reason}")]
    Qmp {
        /// What was wrong.
        reason: String,
    },
    /// No serial port leads to a pty.
    #[error("no serial port leads to a pty: set `console` to `File`, or one of `serials` to a tty")]
    NoConsole,
    /// No serial port keeps what the guest says.
    #[error("no serial port keeps a log: set `console` to `File`, or give one of `serials` a log")]
    NoLog,
    /// The guest has not said what was waited for, in time or before its end.
    #[error("the guest has not said {text:?}{}{}", not_in_time(*exit), said(last_words))]
    NotSaid {
        /// What was waited for.
        text: String,
        /// How the machine ended before that; `None` if it runs, and time was up.
        exit: Option<Exit>,
        /// What the machine left.
        last_words: LastWords,
    },
    /// The file that names the pty of a serial port is missing, or names none: the machine may not run.
    #[error("no pty is named in {}: is the machine running?", path.display())]
    NoTty {
        /// The file.
        path: PathBuf,
    },
    /// `hyperkit.json` is not what it should be.
    #[error("the state file is damaged; start the machine anew, or remove the file: {}", path.display())]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// Where and why it could not be read.
        source: io::Error,
    },
    /// No machine has ever been started with this state directory.
    #[error("no machine is remembered here: start one with this `state_dir` first: {} does not exist", path.display())]
    NoState {
        /// The `hyperkit.json` that is not there.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was tried, and with what.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source }
    }
}

fn not_in_time(exit: Option<Exit>) -> String {
    exit.map_or(" in time: give it more, or look what it does".to_owned(), |exit| {
        format!(": before that the machine {exit}")
    })
}

fn said(last_words: &LastWords) -> String {
    if last_words.is_empty() { String::new() } else { format!("; its last words: {last_words}") }
}
