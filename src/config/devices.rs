//! What the fields of a description hold, where a number or a path does not say it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::json;

/// The network of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VpnKit {
    /// No network card.
    #[default]
    None,
    /// What is there: on hyperkit the VPNKit of Docker Desktop, on QEMU its user-mode network.
    Auto,
    /// The VPNKit that listens on this socket. hyperkit only.
    Socket(PathBuf),
}

/// A port of 127.0.0.1 that leads to one of the guest; see [`HyperKit::port_forwards`](crate::HyperKit#structfield.port_forwards).
///
/// ```
/// use hyperkit::{HyperKit, PortForward, VpnKit};
///
/// let machine = HyperKit::new().vpnkit(VpnKit::Auto).port_forward(PortForward::tcp(0, 22));
/// assert_eq!(machine.port_forwards[0].to_string(), "tcp 127.0.0.1:0 -> 22");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port of 127.0.0.1; 0 is any free one, which [`Vm::port_forwards`](crate::Vm::port_forwards) names.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// What a forwarded port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortForward {
    /// Leads TCP connections to port `host` of 127.0.0.1 (0: any free one) to port `guest` of the guest.
    #[must_use]
    pub fn tcp(host: u16, guest: u16) -> Self {
        Self { protocol: Protocol::Tcp, host, guest }
    }

    /// Leads datagrams to port `host` of 127.0.0.1 (0: any free one) to port `guest` of the guest.
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

/// Something the guest can mount by 9p under a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Socket9p {
    /// Who serves it.
    pub server: Server9p,
    /// The name the guest mounts it by, 256 bytes at most (QEMU: 31).
    pub tag: String,
}

/// Who serves what the guest mounts by 9p.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Server9p {
    /// On hyperkit the unix socket of a 9p server, on QEMU a directory.
    Path(PathBuf),
    /// The TCP port of a 9p server on this host. hyperkit only.
    Port(u16),
}

/// Where the first serial port of the machine leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Console {
    /// The caller's standard input and output.
    #[default]
    Stdio,
    /// A pty, named by the file `tty` in the state directory; all output is kept in `console-ring` beside it.
    File,
    /// The same pty, with the output in the Apple System Log. hyperkit only.
    Log,
}

/// A serial port: where it leads, and where what the guest says on it is kept.
///
/// ```
/// use hyperkit::{HyperKit, Serial};
///
/// // com1 on the terminal, com2 only kept in `console-ring2`.
/// let machine = HyperKit::new().serial(Serial::stdio()).serial(Serial::none().log());
/// # assert_eq!(machine.serials.unwrap().len(), 2);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Serial {
    /// Where it leads.
    #[serde(rename = "InteractiveConsole", deserialize_with = "json::or_default")]
    pub line: SerialLine,
    /// Whether the output is kept in the state directory, in `console-ring` (com1) or `console-ring2` (com2).
    #[serde(rename = "LogToRingBuffer", deserialize_with = "json::or_default")]
    pub log: bool,
    /// Whether the output goes to the Apple System Log, too. hyperkit only.
    #[serde(rename = "LogToASL", deserialize_with = "json::or_default")]
    pub asl: bool,
}

/// Where a serial port leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SerialLine {
    /// Nowhere; hyperkit knows that since v0.20200908.
    #[default]
    None,
    /// The caller's standard input and output; one port at most.
    Stdio,
    /// A pty, named by the file `tty1` (com1) or `tty2` (com2) in the state directory.
    Tty,
}

impl Serial {
    /// A port that leads nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A port on the caller's standard input and output.
    #[must_use]
    pub fn stdio() -> Self {
        Self { line: SerialLine::Stdio, ..Self::default() }
    }

    /// A port on a pty.
    #[must_use]
    pub fn tty() -> Self {
        Self { line: SerialLine::Tty, ..Self::default() }
    }

    /// Keeps the output in the state directory.
    #[must_use]
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }

    /// Sends the output to the Apple System Log. hyperkit only.
    #[must_use]
    pub fn asl(mut self) -> Self {
        self.asl = true;
        self
    }
}

/// A kernel for the Multiboot specification (version 1), with its modules.
///
/// ```
/// use hyperkit::{HyperKit, Multiboot};
///
/// let machine = HyperKit::new().multiboot(Multiboot::new("kernel.elf").module("initrd.tar", "root"));
/// assert_eq!(machine.arguments("verbose")?.last().unwrap(), "multiboot,kernel.elf,initrd.tar;root,verbose");
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Multiboot {
    /// The kernel: a 32-bit ELF file, or one whose multiboot header says where it goes.
    #[serde(serialize_with = "json::lossy")]
    pub kernel: PathBuf,
    /// What is loaded with it, in order.
    #[serde(default, deserialize_with = "json::or_default")]
    pub modules: Vec<Module>,
}

/// A file that a [`Multiboot`] kernel gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Module {
    /// The file.
    #[serde(serialize_with = "json::lossy")]
    pub path: PathBuf,
    /// What the kernel is told of it, behind its path.
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
        self.modules.push(Module { path: path.into(), cmdline: cmdline.into() });
        self
    }
}
