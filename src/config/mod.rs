//! The description of a machine: plain data with defaults, no files and no processes.

mod devices;
pub(crate) mod disk;
pub(crate) mod json;
mod setters;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::disk::Disk;

pub use devices::{Console, Module, Multiboot, PortForward, Protocol, Serial, SerialLine, Server9p, Socket9p, VpnKit};

/// A lightweight virtual machine: what it is made of and, once it was started, which process runs it.
///
/// Every field has a setter of the same name, so both `machine.cpus = 2` and `.cpus(2)` read well; the setters of
/// lists ([`disk`](Self::disk), [`iso`](Self::iso), [`socket_9p`](Self::socket_9p), [`serial`](Self::serial), …)
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
    /// What the program is told that it is called (`argv[0]`); unset, its path.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub argv0: Option<String>,
    /// The directory that remembers the machine; made if missing. Unset, nothing is remembered.
    #[serde(with = "json::path")]
    pub state_dir: Option<PathBuf>,

    /// The network by VPNKit, or what there is in its place.
    #[serde(rename = "vpnkit_sock", deserialize_with = "json::or_default")]
    pub vpnkit: VpnKit,
    /// A UUID that gets the machine the same IP address from VPNKit each time.
    #[serde(flatten, with = "json::vpnkit_key")]
    pub vpnkit_key: Option<String>,
    /// The IPv4 address that VPNKit should give the machine; it needs a [`vpnkit_key`](Self#structfield.vpnkit_key).
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub vpnkit_preferred_ipv4: Option<String>,
    /// A network card on Apple's vmnet, which needs root or an entitlement; on QEMU on its user-mode network. Its MAC
    /// address follows from [`uuid`](Self#structfield.uuid) on hyperkit.
    #[serde(skip_serializing_if = "json::is_default", deserialize_with = "json::or_default")]
    pub vmnet: bool,
    /// A network card on this tap interface of the host.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The MAC address of the first network card. hyperkit can only give one to [`tap`](Self#structfield.tap).
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports of 127.0.0.1 that lead to the guest, on the first card of QEMU's user-mode network. QEMU only: VPNKit has
    /// ways of its own.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::or_default")]
    pub port_forwards: Vec<PortForward>,
    /// The machine's own UUID, which Linux shows in `/sys/class/dmi/id/product_uuid`.
    #[serde(with = "json::text")]
    pub uuid: Option<String>,

    /// The disks, `/dev/vda` first.
    #[serde(flatten, with = "json::disks")]
    pub disks: Vec<Disk>,
    /// ISO images, in the order of their slots. Linux may name them otherwise if there are several.
    #[serde(rename = "iso", with = "json::isos")]
    pub isos: Vec<PathBuf>,
    /// Whether the machine has a vsock device.
    #[serde(deserialize_with = "json::or_default")]
    pub vsock: bool,
    /// The directory of the vsock sockets, which has to be there; unset, the state directory. hyperkit makes `connect`
    /// there and a socket for each of [`vsock_ports`](Self#structfield.vsock_ports), vhost-device-vsock makes `v.sock`.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub vsock_dir: Option<PathBuf>,
    /// vsock ports of the guest that hyperkit offers as sockets on the host, 4 at most.
    #[serde(serialize_with = "json::list", deserialize_with = "json::or_default")]
    pub vsock_ports: Vec<u32>,
    /// The guest's context identifier (CID) on vsock, 3 to 2147483647.
    #[serde(deserialize_with = "json::vsock_guest_cid")]
    pub vsock_guest_cid: u32,
    /// The `vhost-device-vsock` program, which gives a QEMU guest its vsock. Unset, it is looked for on `PATH`; where it is
    /// not there, `/dev/vhost-vsock` does, which only sockets of the family AF_VSOCK reach.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub vhost_device_vsock: Option<PathBuf>,
    /// Whether the machine has a random number generator, `/dev/hwrng`. Yes by default, as in the Go package.
    #[serde(skip_serializing_if = "json::is_true", deserialize_with = "json::true_unless")]
    pub random: bool,
    /// What the guest can mount by 9p.
    #[serde(rename = "9p_sockets", serialize_with = "json::list", deserialize_with = "json::or_default")]
    pub sockets_9p: Vec<Socket9p>,

    /// The kernel: an x86 bzImage.
    #[serde(with = "json::path")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(with = "json::path")]
    pub initrd: Option<PathBuf>,
    /// A boot ROM in place of a kernel, such as UEFI: 4 KiB to 16 MiB, a multiple of 4096 bytes.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub bootrom: Option<PathBuf>,
    /// A multiboot kernel with its modules, in place of a Linux kernel.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::or_default")]
    pub multiboot: Option<Multiboot>,

    /// Number of vCPUs, 1 to 64.
    #[serde(deserialize_with = "json::cpus")]
    pub cpus: u32,
    /// Memory in MiB, 2 at least.
    #[serde(deserialize_with = "json::memory")]
    pub memory: u64,
    /// Where the first serial port leads, unless [`serials`](Self#structfield.serials) says so.
    #[serde(deserialize_with = "json::or_default")]
    pub console: Console,
    /// The serial ports, com1 first and 2 at most, in place of [`console`](Self#structfield.console); an empty list is
    /// none at all.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::or_default")]
    pub serials: Option<Vec<Serial>>,

    /// Whether the clock of the machine (RTC) keeps UTC, not local time. Yes by default, as in the Go package.
    #[serde(skip_serializing_if = "json::is_true", deserialize_with = "json::true_unless")]
    pub utc: bool,
    /// Whether `hlt` in the guest hands the processor back to the host. QEMU always does so.
    #[serde(skip_serializing_if = "json::is_default", deserialize_with = "json::or_default")]
    pub exit_on_hlt: bool,
    /// Whether `pause` in the guest hands the processor back to the host. QEMU decides that by itself.
    #[serde(skip_serializing_if = "json::is_default", deserialize_with = "json::or_default")]
    pub exit_on_pause: bool,
    /// Whether the local APICs are in x2APIC mode. hyperkit only.
    #[serde(skip_serializing_if = "json::is_default", deserialize_with = "json::or_default")]
    pub x2apic: bool,
    /// Whether virtio devices interrupt by MSI-X; no is by single-vector MSI, and hyperkit only. Yes by default.
    #[serde(skip_serializing_if = "json::is_true", deserialize_with = "json::true_unless")]
    pub msix: bool,
    /// Whether there is an MPtable beside ACPI; no is hyperkit only. Yes by default.
    #[serde(skip_serializing_if = "json::is_true", deserialize_with = "json::true_unless")]
    pub mptable: bool,
    /// Whether core dumps of the program have the guest's memory in them.
    #[serde(skip_serializing_if = "json::is_default", deserialize_with = "json::or_default")]
    pub core_dumps: bool,
    /// The TCP port where a debugger reaches the guest.
    #[serde(with = "json::count", skip_serializing_if = "Option::is_none")]
    pub gdb_port: Option<u16>,
    /// Arguments for the program that go behind all others, as they are: what this crate has no field for. They are in
    /// the language of the program, and nothing looks at them.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::or_default")]
    pub extra_arguments: Vec<String>,

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
    #[serde(with = "json::count", skip_serializing_if = "Option::is_none")]
    pub(crate) pid_started: Option<u64>,
    /// The MAC address that vmnet gives the guest, as hyperkit says before the start.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub(crate) vmnet_mac: Option<String>,
    /// Names of the disk images in the state directory that this crate made, and may delete.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::or_default")]
    pub(crate) made_disks: Vec<String>,
    /// Keys of `hyperkit.json` that this version does not know; they survive.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

impl Default for HyperKit {
    /// One vCPU, 1024 MiB, guest CID 3, a random number generator, console on stdio, and nothing else.
    fn default() -> Self {
        Self {
            hyperkit: None,
            argv0: None,
            state_dir: None,
            vpnkit: VpnKit::None,
            vpnkit_key: None,
            vpnkit_preferred_ipv4: None,
            vmnet: false,
            tap: None,
            mac: None,
            port_forwards: Vec::new(),
            uuid: None,
            disks: Vec::new(),
            isos: Vec::new(),
            vsock: false,
            vsock_dir: None,
            vsock_ports: Vec::new(),
            vsock_guest_cid: 3,
            vhost_device_vsock: None,
            random: true,
            sockets_9p: Vec::new(),
            kernel: None,
            initrd: None,
            bootrom: None,
            multiboot: None,
            cpus: 1,
            memory: 1024,
            console: Console::Stdio,
            serials: None,
            utc: true,
            exit_on_hlt: false,
            exit_on_pause: false,
            x2apic: false,
            msix: true,
            mptable: true,
            core_dumps: false,
            gdb_port: None,
            extra_arguments: Vec::new(),
            pid: None,
            arguments: Vec::new(),
            cmdline: String::new(),
            pid_started: None,
            vmnet_mac: None,
            made_disks: Vec::new(),
            unknown: serde_json::Map::new(),
        }
    }
}

impl HyperKit {
    /// The files that it is made of, but for programs and VPNKit.
    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { kernel, initrd, bootrom, vsock_dir, multiboot, disks, isos, sockets_9p, .. } = self;
        let paths = [kernel, initrd, bootrom, vsock_dir].into_iter().flatten();
        let disks = disks.iter_mut().filter_map(|disk| disk.path.as_mut());
        let shares = sockets_9p.iter_mut().filter_map(|share| match &mut share.server {
            Server9p::Path(path) => Some(path),
            Server9p::Port(_) => None,
        });
        let multiboot = multiboot.iter_mut().flat_map(|multiboot| {
            std::iter::once(&mut multiboot.kernel).chain(multiboot.modules.iter_mut().map(|module| &mut module.path))
        });
        paths.chain(disks).chain(isos).chain(shares).chain(multiboot)
    }

    /// Where the vsock sockets are.
    pub(crate) fn vsock_place(&self) -> &Path {
        self.vsock_dir.as_deref().or(self.state_dir.as_deref()).unwrap_or(Path::new(""))
    }
}

impl fmt::Display for HyperKit {
    /// The JSON that `hyperkit.json` holds; a path that is not UTF-8 has none, and is shown with replacements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
