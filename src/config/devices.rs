//! Types used by `HyperKit`'s fields.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::json;

/// What the guest's network card is connected to; see [`HyperKit::network`](crate::HyperKit#structfield.network).
///
/// ```
/// use hyperkit::{HyperKit, Network};
///
/// assert_eq!(HyperKit::new().network(Network::Nat), HyperKit::new().vpnkit("auto"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Network {
    /// No network card.
    #[default]
    None,
    /// The guest reaches the host's networks by address translation (NAT), without root: on QEMU through its user-mode
    /// network, on hyperkit through Docker Desktop's VPNKit. The host reaches the guest by
    /// [`port_forwards`](crate::HyperKit#structfield.port_forwards).
    ///
    /// The guest can also connect to services that listen on the host's loopback address only: on QEMU, the guest's gateway,
    /// 10.0.2.2, is the host's 127.0.0.1.
    Nat,
    /// The host reaches the guest by [`port_forwards`](crate::HyperKit#structfield.port_forwards), and the guest reaches nothing:
    /// neither the host nor its networks. QEMU only. This holds for this card: `vmnet` and `tap` give the guest other cards, and a start
    /// with one of them logs a warning.
    Isolated,
    /// The network of the VPNKit that listens on this unix socket. VPNKit is the network stack of Docker Desktop: a program
    /// that gives guests access to the network without root. hyperkit only. [`check`](crate::HyperKit::check) exchanges greetings
    /// with VPNKit, because hyperkit would wait forever for a VPNKit that does not answer.
    VpnKit(PathBuf),
}

impl From<&Path> for Network {
    /// Reads the words of `hyperkit.json`: an empty path is [`None`](Self::None), `auto` is [`Nat`](Self::Nat), `isolated` is
    /// [`Isolated`](Self::Isolated), anything else is [`VpnKit`](Self::VpnKit).
    fn from(socket: &Path) -> Self {
        match socket.as_os_str().as_encoded_bytes() {
            b"" => Self::None,
            name if name == json::AUTO.as_bytes() => Self::Nat,
            name if name == json::ISOLATED.as_bytes() => Self::Isolated,
            _ => Self::VpnKit(socket.to_owned()),
        }
    }
}

/// A port of 127.0.0.1 that is forwarded to the guest; see
/// [`HyperKit::port_forwards`](crate::HyperKit#structfield.port_forwards).
///
/// ```
/// use hyperkit::{HyperKit, Network, PortForward};
///
/// let description = HyperKit::new().network(Network::Nat).port_forward(PortForward::tcp(0, 22));
/// assert_eq!(description.port_forwards[0].to_string(), "tcp 127.0.0.1:0 -> 22");
/// assert_eq!(PortForward::udp(5353, 53).to_string(), "udp 127.0.0.1:5353 -> 53");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port of 127.0.0.1. With 0, QEMU chooses a free port, and [`Vm::host_port`](crate::Vm::host_port) returns it.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// The protocol of a forwarded port; [`PortForward`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP streams.
    Tcp,
    /// UDP datagrams.
    Udp,
}

impl PortForward {
    /// Forwards TCP connections from port `host` of 127.0.0.1 to port `guest` of the guest. 0 means any free port.
    #[must_use]
    pub fn tcp(host: u16, guest: u16) -> Self {
        Self { protocol: Protocol::Tcp, host, guest }
    }

    /// Forwards UDP datagrams from port `host` of 127.0.0.1 to port `guest` of the guest. 0 means any free port.
    #[must_use]
    pub fn udp(host: u16, guest: u16) -> Self {
        Self { protocol: Protocol::Udp, host, guest }
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} 127.0.0.1:{} -> {}", self.protocol, self.host, self.guest)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The guest's root directory; see [`HyperKit::root`](crate::HyperKit#structfield.root).
///
/// If the root is a directory of the host, the guest cannot change it: what the guest writes stays in the guest's memory. Directories
/// of [`shares_9p`](crate::HyperKit#structfield.shares_9p) inside of the root are mounted at their own paths, and the guest can write to
/// them. The guide's page [`host_programs`](crate::guide::host_programs) has more.
///
/// ```
/// use hyperkit::{HyperKit, Root};
///
/// // The host's programs, and `target` for writing.
/// let description = HyperKit::new().agent(true).root(Root::Host).share_dir("/home/me/project/target", "target");
/// assert_eq!(description.root, Root::Host);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Root {
    /// The root directory of the initrd, or the one that the initrd chooses.
    #[default]
    Initrd,
    /// The host's root directory, `/`. The guest can read everything that the user who starts the VM can read, such as private keys
    /// in the home directory. The host must be Linux, and have the guest's architecture.
    Host,
    /// A directory of the host with the programs of a Linux system for the guest's architecture, such as one that `debootstrap` has created.
    Dir(PathBuf),
}

/// A directory that the guest can mount with the 9p file system: `mount -t 9p -o trans=virtio TAG /mnt`.
///
/// 9p is a file system protocol. QEMU serves a directory of the host by itself; hyperkit passes the requests on to a 9p
/// server. The guest's kernel needs the 9p file system (`CONFIG_9P_FS`, `CONFIG_NET_9P_VIRTIO`).
///
/// ```
/// use hyperkit::{HyperKit, Share9pSource};
///
/// let description = HyperKit::new().share_dir("/srv/data", "data");
/// assert_eq!(description.shares_9p[0].tag, "data");
/// assert_eq!(description.shares_9p[0].source, Share9pSource::Path("/srv/data".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share9p {
    /// Where the files come from.
    pub source: Share9pSource,
    /// The mount tag, by which the guest names the share: at most 256 bytes, on QEMU 31.
    pub tag: String,
}

/// Where the files of a [`Share9p`] come from; that page has an example.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Share9pSource {
    /// On QEMU a directory, on hyperkit the unix socket of a 9p server.
    Path(PathBuf),
    /// The TCP port of a 9p server on this host. hyperkit only.
    Port(u16),
}

/// A directory that the guest can mount with the file system virtiofs: `mount -t virtiofs TAG /mnt`. QEMU only, on Linux.
///
/// virtiofs is faster than [9p](Share9p), most of all for many small files. A program of the host, `virtiofsd`, serves each share. It
/// must be installed. The crate starts it, and it ends with the VM. Debian 12 has it in QEMU's package, Debian 13 in the package
/// `virtiofsd`. The guest's kernel needs virtiofs (`CONFIG_VIRTIO_FS`).
///
/// ```
/// use hyperkit::{HyperKit, ShareVirtiofs};
///
/// let description = HyperKit::new().share_virtiofs(ShareVirtiofs::new("/srv/data", "data").read_only());
/// assert_eq!(description.shares_virtiofs[0].tag, "data");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ShareVirtiofs {
    /// The directory of the host.
    pub path: PathBuf,
    /// The mount tag, by which the guest names the share: at most 36 bytes.
    pub tag: String,
    /// Whether the guest can only read. The `virtiofsd` of Debian 12, which is written in C, cannot do this.
    pub read_only: bool,
}

impl ShareVirtiofs {
    /// Describes a share that the guest can write to. The type's page has an example.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        Self { path: path.into(), tag: tag.into(), read_only: false }
    }

    /// Sets [`read_only`](Self#structfield.read_only): the guest can only read. The type's page has an example.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// What the first serial port (com1) is connected to; see [`HyperKit::console`](crate::HyperKit#structfield.console).
///
/// ```
/// use hyperkit::{Console, HyperKit};
///
/// let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").console(Console::Pty);
/// let arguments = description.arguments("console=ttyS0")?;
/// assert!(arguments.contains(&"com1,autopty=vm/tty,log=vm/console-ring".to_owned()));
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Console {
    /// The caller's standard input and output.
    ///
    /// hyperkit uses one descriptor for input and output. If standard input and output are not the same terminal, the crate copies
    /// between them and the console. In that case, the guest gets no input before its first output, and a Linux guest discards input
    /// until one of its programs opens the serial port. A VM that [`start`](crate::HyperKit::start) has started then gets no input.
    Stdio,
    /// A pty and a log. The pty (pseudo-terminal: a terminal whose other end is a program, here the hypervisor) is opened by
    /// [`Vm::console`](crate::Vm::console), or by a terminal program such as `screen`. The log is in the state directory, and
    /// [`Vm::console_log`](crate::Vm::console_log) reads it.
    ///
    /// A pty holds 4 KiB of unread output. On QEMU, a guest stops when the pty is open, full and not read. The log stops, too,
    /// and [`wait_for_console`](crate::Vm::wait_for_console) times out: see
    /// [`ConsoleStream`](crate::ConsoleStream#read-the-stream-while-it-is-open). While no program has the pty open, the guest
    /// never waits.
    Pty,
    /// A pty, and macOS's system log (Apple System Log, ASL) for the output. hyperkit only.
    AppleLog,
}

/// A serial port: what it is connected to, and where its output is kept.
///
/// ```
/// use hyperkit::{HyperKit, Serial};
///
/// // com1 on the terminal, com2 logged to `console-ring2` and connected to nothing.
/// let description = HyperKit::new().serial(Serial::stdio()).serial(Serial::none().log());
/// # assert_eq!(description.serials.unwrap().len(), 2);
/// let on_a_mac = HyperKit::new().serial(Serial::pty().apple_log());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Serial {
    /// What the port is connected to.
    #[serde(rename = "InteractiveConsole", deserialize_with = "json::or_default")]
    pub backend: SerialBackend,
    /// Whether the output is logged in the state directory, to `console-ring` (com1) or `console-ring2` (com2).
    #[serde(rename = "LogToRingBuffer", deserialize_with = "json::or_default")]
    pub log: bool,
    /// Whether the output also goes to macOS's system log (Apple System Log, ASL). hyperkit only.
    #[serde(rename = "LogToASL", deserialize_with = "json::or_default")]
    pub apple_log: bool,
}

/// What a serial port is connected to; [`Serial`] has an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SerialBackend {
    /// Nothing. Requires hyperkit v0.20200908 or later, or QEMU.
    #[default]
    None,
    /// The caller's standard input and output; at most one port.
    Stdio,
    /// A pty, named by the file `tty1` (com1) or `tty2` (com2) in the state directory.
    Pty,
}

impl Serial {
    /// Creates a port that is connected to nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Creates a port on the caller's standard input and output.
    #[must_use]
    pub fn stdio() -> Self {
        Self { backend: SerialBackend::Stdio, ..Self::default() }
    }

    /// Creates a port on a pty; [`Console::Pty`] explains it.
    #[must_use]
    pub fn pty() -> Self {
        Self { backend: SerialBackend::Pty, ..Self::default() }
    }

    /// Logs the output in the state directory.
    #[must_use]
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }

    /// Sends the output to macOS's system log (Apple System Log, ASL). hyperkit only.
    #[must_use]
    pub fn apple_log(mut self) -> Self {
        self.apple_log = true;
        self
    }
}

/// A kernel that follows the Multiboot specification (version 1), with its modules. Multiboot is a protocol between boot
/// loaders and kernels, for other kernels than Linux.
///
/// ```
/// use hyperkit::{HyperKit, Multiboot};
///
/// let description = HyperKit::new().multiboot(Multiboot::new("kernel.elf").module("initrd.tar", "root"));
/// assert_eq!(description.arguments("verbose")?.last().unwrap(), "multiboot,kernel.elf,initrd.tar;root,verbose");
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Multiboot {
    /// The kernel: a 32-bit ELF file, or a file whose multiboot header says where it is loaded.
    #[serde(serialize_with = "json::lossy")]
    pub kernel: PathBuf,
    /// The modules, in the order in which they are loaded.
    #[serde(default, deserialize_with = "json::or_default")]
    pub modules: Vec<MultibootModule>,
}

/// A file that is loaded for a [`Multiboot`] kernel; that page has an example.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MultibootModule {
    /// The file.
    #[serde(serialize_with = "json::lossy")]
    pub path: PathBuf,
    /// The module's command line, which the kernel receives after the path.
    #[serde(default, deserialize_with = "json::or_default")]
    pub cmdline: String,
}

impl Multiboot {
    /// Creates a kernel without modules.
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), modules: Vec::new() }
    }

    /// Adds to [`modules`](Self#structfield.modules): a file and its command line.
    #[must_use]
    pub fn module(mut self, path: impl Into<PathBuf>, cmdline: impl Into<String>) -> Self {
        self.modules.push(MultibootModule { path: path.into(), cmdline: cmdline.into() });
        self
    }
}

impl<P: Into<PathBuf>> From<P> for Multiboot {
    fn from(kernel: P) -> Self {
        Self::new(kernel)
    }
}
