//! Types used by `HyperKit`'s fields.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::json;

/// The guest's network.
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
    /// The guest reaches the host's networks by address translation, without root: on hyperkit through Docker
    /// Desktop's VPNKit, on QEMU through its user-mode network.
    Nat,
    /// The network of the VPNKit (a user-space network stack) that listens on this unix socket. hyperkit only.
    VpnKit(PathBuf),
}

impl From<&Path> for Network {
    /// As the Go package reads it: empty is no network, `auto` is [`Nat`](Self::Nat), anything else a VPNKit socket.
    fn from(socket: &Path) -> Self {
        match socket.as_os_str().as_encoded_bytes() {
            b"" => Self::None,
            b"auto" => Self::Nat,
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
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port of 127.0.0.1; 0 is any free port, which [`Vm::host_port`](crate::Vm::host_port) returns.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP streams.
    Tcp,
    /// UDP datagrams.
    Udp,
}

impl PortForward {
    /// Forwards TCP connections from port `host` of 127.0.0.1 (0: any free port) to port `guest` of the guest.
    #[must_use]
    pub fn tcp(host: u16, guest: u16) -> Self {
        Self { protocol: Protocol::Tcp, host, guest }
    }

    /// Forwards UDP datagrams from port `host` of 127.0.0.1 (0: any free port) to port `guest` of the guest.
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

/// Files that the guest can mount with the 9p file system: `mount -t 9p -o trans=virtio TAG /mnt`.
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
    /// The mount tag, at most 256 bytes (QEMU: 31).
    pub tag: String,
}

/// Where the files of a [`Share9p`] come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Share9pSource {
    /// On QEMU a directory, on hyperkit the unix socket of a 9p server.
    Path(PathBuf),
    /// The TCP port of a 9p server on this host. hyperkit only.
    Port(u16),
}

/// The first serial port (com1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Console {
    /// The caller's standard input and output.
    Stdio,
    /// A pty, which [`Vm::console`](crate::Vm::console) opens, and a log in the state directory, which
    /// [`Vm::console_log`](crate::Vm::console_log) reads.
    Pty,
    /// A pty, with the output in the Apple System Log. hyperkit only.
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
    /// Whether the output also goes to the Apple System Log. hyperkit only.
    #[serde(rename = "LogToASL", deserialize_with = "json::or_default")]
    pub apple_log: bool,
}

/// What a serial port is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SerialBackend {
    /// Nothing. hyperkit supports this since v0.20200908.
    #[default]
    None,
    /// The caller's standard input and output; at most one port.
    Stdio,
    /// A pty, named by the file `tty1` (com1) or `tty2` (com2) in the state directory.
    Pty,
}

impl Serial {
    /// A port that is connected to nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A port on the caller's standard input and output.
    #[must_use]
    pub fn stdio() -> Self {
        Self { backend: SerialBackend::Stdio, ..Self::default() }
    }

    /// A port on a pty.
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

    /// Sends the output to the Apple System Log. hyperkit only.
    #[must_use]
    pub fn apple_log(mut self) -> Self {
        self.apple_log = true;
        self
    }
}

/// A kernel that follows the Multiboot specification (version 1), with its modules.
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

/// A file that is loaded for a [`Multiboot`] kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MultibootModule {
    /// The file.
    #[serde(serialize_with = "json::lossy")]
    pub path: PathBuf,
    /// The text that the kernel gets with the module, after its path.
    #[serde(default, deserialize_with = "json::or_default")]
    pub cmdline: String,
}

impl Multiboot {
    /// A kernel without modules.
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), modules: Vec::new() }
    }

    /// Adds one of [`modules`](Self#structfield.modules).
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
