//! The description of a machine: plain data with defaults, no files and no processes.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::state::json;

/// A lightweight virtual machine: what it is made of and, once it was started, which process runs it.
///
/// Every field has a setter of the same name, so both `machine.cpus = 2` and `.cpus(2)` read well; the setters of
/// lists ([`disk`](Self::disk), [`iso`](Self::iso), [`socket_9p`](Self::socket_9p), [`vsock_port`](Self::vsock_port))
/// add one. Nothing is checked before [`check`](Self::check), [`arguments`](Self::arguments), [`start`](Self::start)
/// or [`run`](Self::run).
///
/// Its serde form is `hyperkit.json` as the Go package writes it; [`Display`](fmt::Display) prints that JSON.
///
/// ```
/// use hyperkit::{Disk, HyperKit};
///
/// let machine = HyperKit::new()
///     .kernel("vmlinuz")
///     .initrd("initrd.img")
///     .cpus(2)
///     .memory(2048)
///     .disk(Disk::raw("root.img").size(4096));
/// assert_eq!(machine.disks[0].size, Some(4096));
/// assert_eq!(serde_json::from_str::<HyperKit>(&machine.to_string())?, machine);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HyperKit {
    /// The program that runs the machine: a path, or a name to be found on `PATH`. Its file name decides the
    /// [`Engine`](crate::Engine). Unset, hyperkit is looked for, then QEMU.
    #[serde(with = "json::path")]
    pub hyperkit: Option<PathBuf>,
    /// The directory that remembers the machine; made if missing. Unset, nothing is remembered.
    #[serde(with = "json::path")]
    pub state_dir: Option<PathBuf>,
    /// The network.
    #[serde(rename = "vpnkit_sock", deserialize_with = "json::or_default")]
    pub vpnkit: VpnKit,
    /// A UUID that gets the machine the same IP address from VPNKit each time.
    #[serde(with = "json::text")]
    pub vpnkit_key: Option<String>,
    /// The machine's own UUID, which Linux shows in `/sys/class/dmi/id/product_uuid`.
    #[serde(with = "json::text")]
    pub uuid: Option<String>,
    /// The disks, `/dev/vda` first.
    #[serde(flatten, with = "json::disks")]
    pub disks: Vec<Disk>,
    /// ISO images, `/dev/sr0` first.
    #[serde(rename = "iso", with = "json::isos")]
    pub isos: Vec<PathBuf>,
    /// Whether the machine has a vsock device; its sockets are in the state directory.
    #[serde(deserialize_with = "json::or_default")]
    pub vsock: bool,
    /// vsock ports of the guest that hyperkit offers as sockets on the host, 4 at most.
    #[serde(serialize_with = "json::list", deserialize_with = "json::or_default")]
    pub vsock_ports: Vec<u32>,
    /// The guest's context identifier (CID) on vsock, 3 to 2147483647.
    #[serde(deserialize_with = "json::vsock_guest_cid")]
    pub vsock_guest_cid: u32,
    /// What the guest can mount by 9p.
    #[serde(rename = "9p_sockets", serialize_with = "json::list", deserialize_with = "json::or_default")]
    pub sockets_9p: Vec<Socket9p>,
    /// The kernel: an x86 bzImage.
    #[serde(with = "json::path")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(with = "json::path")]
    pub initrd: Option<PathBuf>,
    /// Number of vCPUs, 1 to 64.
    #[serde(deserialize_with = "json::cpus")]
    pub cpus: u32,
    /// Memory, in MiB.
    #[serde(deserialize_with = "json::memory")]
    pub memory: u64,
    /// Where the first serial port leads.
    #[serde(deserialize_with = "json::or_default")]
    pub console: Console,
    /// The process that was started last; whether it still runs, [`is_running`](Self::is_running) says.
    #[serde(with = "json::count")]
    pub pid: Option<u32>,
    /// The arguments that process was started with.
    #[serde(serialize_with = "json::list", deserialize_with = "json::or_default")]
    pub arguments: Vec<String>,
    /// The same as a single line, the program first.
    #[serde(deserialize_with = "json::or_default")]
    pub cmdline: String,
    /// When that process began, in seconds since 1970: with the pid, what tells it from a later stranger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid_started: Option<u64>,
    /// Names of the disk images in the state directory that this crate made, and may delete.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::or_default")]
    pub(crate) made_disks: Vec<String>,
    /// Keys of `hyperkit.json` that this version does not know; they survive.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
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

/// Something the guest can mount by 9p under a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Socket9p {
    /// On hyperkit the socket of a 9p server, on QEMU a directory.
    #[serde(serialize_with = "json::lossy")]
    pub path: PathBuf,
    /// The name the guest mounts it by, 256 bytes at most.
    pub tag: String,
}

impl Default for HyperKit {
    /// One vCPU, 1024 MiB, guest CID 3, console on stdio, and nothing else.
    fn default() -> Self {
        Self {
            hyperkit: None,
            state_dir: None,
            vpnkit: VpnKit::None,
            vpnkit_key: None,
            uuid: None,
            disks: Vec::new(),
            isos: Vec::new(),
            vsock: false,
            vsock_ports: Vec::new(),
            vsock_guest_cid: 3,
            sockets_9p: Vec::new(),
            kernel: None,
            initrd: None,
            cpus: 1,
            memory: 1024,
            console: Console::Stdio,
            pid: None,
            arguments: Vec::new(),
            cmdline: String::new(),
            pid_started: None,
            made_disks: Vec::new(),
            unknown: serde_json::Map::new(),
        }
    }
}

impl HyperKit {
    /// The defaults: one vCPU, 1024 MiB, guest CID 3, console on stdio, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`hyperkit`](Self#structfield.hyperkit), the program that runs the machine.
    #[must_use]
    pub fn hyperkit(mut self, program: impl Into<PathBuf>) -> Self {
        self.hyperkit = Some(program.into());
        self
    }

    /// Sets [`state_dir`](Self#structfield.state_dir), the directory that remembers the machine.
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// Sets [`vpnkit`](Self#structfield.vpnkit), the network.
    #[must_use]
    pub fn vpnkit(mut self, vpnkit: VpnKit) -> Self {
        self.vpnkit = vpnkit;
        self
    }

    /// Sets [`vpnkit_key`](Self#structfield.vpnkit_key), a UUID for a lasting IP address.
    #[must_use]
    pub fn vpnkit_key(mut self, uuid: impl Into<String>) -> Self {
        self.vpnkit_key = Some(uuid.into());
        self
    }

    /// Sets [`uuid`](Self#structfield.uuid), the machine's own UUID.
    #[must_use]
    pub fn uuid(mut self, uuid: impl Into<String>) -> Self {
        self.uuid = Some(uuid.into());
        self
    }

    /// Adds one of [`disks`](Self#structfield.disks).
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Adds one of [`isos`](Self#structfield.isos).
    #[must_use]
    pub fn iso(mut self, image: impl Into<PathBuf>) -> Self {
        self.isos.push(image.into());
        self
    }

    /// Sets [`vsock`](Self#structfield.vsock): whether there is a vsock device.
    #[must_use]
    pub fn vsock(mut self, vsock: bool) -> Self {
        self.vsock = vsock;
        self
    }

    /// Adds one of [`vsock_ports`](Self#structfield.vsock_ports).
    #[must_use]
    pub fn vsock_port(mut self, port: u32) -> Self {
        self.vsock_ports.push(port);
        self
    }

    /// Sets [`vsock_guest_cid`](Self#structfield.vsock_guest_cid).
    #[must_use]
    pub fn vsock_guest_cid(mut self, cid: u32) -> Self {
        self.vsock_guest_cid = cid;
        self
    }

    /// Adds one of [`sockets_9p`](Self#structfield.sockets_9p).
    #[must_use]
    pub fn socket_9p(mut self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.sockets_9p.push(Socket9p { path: path.into(), tag: tag.into() });
        self
    }

    /// Sets [`kernel`](Self#structfield.kernel), an x86 bzImage.
    #[must_use]
    pub fn kernel(mut self, bz_image: impl Into<PathBuf>) -> Self {
        self.kernel = Some(bz_image.into());
        self
    }

    /// Sets [`initrd`](Self#structfield.initrd), the initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, image: impl Into<PathBuf>) -> Self {
        self.initrd = Some(image.into());
        self
    }

    /// Sets [`cpus`](Self#structfield.cpus), the number of vCPUs.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Sets [`memory`](Self#structfield.memory), in MiB.
    #[must_use]
    pub fn memory(mut self, mebibytes: u64) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Sets [`console`](Self#structfield.console), where the first serial port leads.
    #[must_use]
    pub fn console(mut self, console: Console) -> Self {
        self.console = console;
        self
    }
}

impl fmt::Display for HyperKit {
    /// The JSON that `hyperkit.json` holds; a path that is not UTF-8 has none, and is shown with replacements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
