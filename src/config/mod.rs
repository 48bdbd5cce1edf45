//! The description of a VM: data with defaults, no files and no processes.

mod architecture;
mod devices;
pub(crate) mod disk;
pub(crate) mod file_url;
pub(crate) mod internal_network;
pub(crate) mod json;
pub(crate) mod record;
mod setters;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use architecture::Architecture;
pub use devices::{
    Console, Multiboot, MultibootModule, Network, PortForward, Protocol, Root, Serial, SerialBackend, Share9p,
    Share9pSource, ShareVirtiofs,
};
pub use internal_network::InternalNetwork;

use crate::config::disk::{Disk, DiskFormat};
use crate::config::file_url::is_url;
use record::Record;

/// A description of a lightweight VM: plain data, from which VMs are started.
///
/// A field that holds one value has a setter of the same name: `description.cpus = 2` and `.cpus(2)` mean the same. For
/// a list, a method adds one element: [`disk`](Self::disk), [`iso`](Self::iso), [`serial`](Self::serial), ….
///
/// No call changes the description: [`start`](Self::start) and all others take `&self`. So one description can be the
/// template of many VMs, each in its own [`state_dir`](Self#structfield.state_dir). Setters validate nothing;
/// [`check`](Self::check), [`arguments`](Self::arguments), [`start`](Self::start) and [`run`](Self::run) do.
///
/// | group | fields |
/// |---|---|
/// | boot | [`kernel`](#structfield.kernel), [`initrd`](#structfield.initrd), [`bootrom`](#structfield.bootrom), [`multiboot`](#structfield.multiboot) |
/// | CPU, memory and board | [`cpus`](#structfield.cpus), [`cpu`](#structfield.cpu), [`memory_mib`](#structfield.memory_mib), [`uuid`](#structfield.uuid), [`utc`](#structfield.utc), [`random`](#structfield.random), [`exit_on_hlt`](#structfield.exit_on_hlt), [`exit_on_pause`](#structfield.exit_on_pause), [`x2apic`](#structfield.x2apic), [`msix`](#structfield.msix), [`mptable`](#structfield.mptable) |
/// | disks | [`disks`](#structfield.disks), [`isos`](#structfield.isos) |
/// | network | [`network`](#structfield.network), [`port_forwards`](#structfield.port_forwards), [`internal_networks`](#structfield.internal_networks), [`mac`](#structfield.mac), [`tap`](#structfield.tap), [`vmnet`](#structfield.vmnet), [`vpnkit_key`](#structfield.vpnkit_key), [`vpnkit_preferred_ipv4`](#structfield.vpnkit_preferred_ipv4) |
/// | console and serial ports | [`console`](#structfield.console), [`serials`](#structfield.serials) |
/// | sharing: 9p, virtiofs, vsock, commands | [`agent`](#structfield.agent), [`root`](#structfield.root), [`shares_9p`](#structfield.shares_9p), [`shares_virtiofs`](#structfield.shares_virtiofs), [`virtiofsd`](#structfield.virtiofsd), [`vsock`](#structfield.vsock), [`vsock_guest_cid`](#structfield.vsock_guest_cid), [`vsock_dir`](#structfield.vsock_dir), [`vsock_ports`](#structfield.vsock_ports), [`vhost_device_vsock`](#structfield.vhost_device_vsock) |
/// | state directory | [`state_dir`](#structfield.state_dir), [`labels`](#structfield.labels) |
/// | hypervisor | [`hyperkit`](#structfield.hyperkit), [`argv0`](#structfield.argv0), [`extra_arguments`](#structfield.extra_arguments), [`gdb_port`](#structfield.gdb_port), [`core_dumps`](#structfield.core_dumps), [`sandbox`](#structfield.sandbox) |
///
/// The methods below have the same groups, and after them the calls on a description: check and render, start, find
/// again, end and remove.
///
/// With serde, a description is read and written as `hyperkit.json`, in the words of the Go package.
/// [`Display`](fmt::Display) prints that JSON.
///
/// ```
/// use hyperkit::{Disk, HyperKit};
///
/// let template = HyperKit::new()
///     .kernel("vmlinuz")
///     .initrd("initrd.img")
///     .cpus(2)
///     .memory_mib(2048)
///     .disk(Disk::in_state_dir(4096));
/// let first = template.clone().state_dir("vms/1");
/// let second = template.state_dir("vms/2").disk("shared.iso");
/// assert_eq!((first.disks.len(), second.disks.len()), (1, 2));
/// assert_eq!(serde_json::from_str::<HyperKit>(&first.to_string())?, first);
/// # Ok::<(), serde_json::Error>(())
/// ```
// The order of the fields is that of the keys in `hyperkit.json`, which recorded files pin byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HyperKit {
    /// The hypervisor: a path, or a name that is searched in the directories of `PATH`. Its file name decides the
    /// [`Engine`](crate::Engine). If unset, a start uses the first installed one for the architecture of the kernel or of the boot ROM:
    /// hyperkit, or else QEMU.
    #[serde(with = "json::path")]
    pub hyperkit: Option<PathBuf>,
    /// The hypervisor's `argv[0]`, which `ps` shows as the name of the process. If unset, its path.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub argv0: Option<String>,
    /// The state directory, which is created if it is missing. It has the [record](crate#words) of the VM in
    /// `hyperkit.json`, the console's log and the hypervisor's sockets: see the guide's page
    /// [`state_directory`](crate::guide::state_directory). If unset, nothing is recorded, and no other program can find
    /// the VM.
    #[serde(with = "json::path")]
    pub state_dir: Option<PathBuf>,

    /// What the guest's network card is connected to. By default there is no network card.
    #[serde(rename = "vpnkit_sock")]
    pub network: Network,
    /// A UUID by which VPNKit ([`Network::VpnKit`]) recognizes the guest and gives it the same IP address each time.
    #[serde(with = "json::text")]
    pub vpnkit_key: Option<String>,
    /// The IPv4 address that the guest should get on the card of [`network`](Self#structfield.network); requires
    /// [`vpnkit_key`](Self#structfield.vpnkit_key).
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub vpnkit_preferred_ipv4: Option<String>,
    /// Whether the guest has a network card on vmnet, which is macOS's network for VMs. hyperkit requires root or an
    /// entitlement for it, and the card's MAC address follows from [`uuid`](Self#structfield.uuid). On QEMU, the card is
    /// on a second user-mode network instead.
    #[serde(skip_serializing_if = "json::is_default")]
    pub vmnet: bool,
    /// A tap interface of the host, such as `tap0`, to which a network card of the guest is connected. (A tap interface
    /// is a network interface whose other end is a program, here the hypervisor.)
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The MAC address of the first network card. hyperkit supports this only for [`tap`](Self#structfield.tap).
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports of 127.0.0.1 that are forwarded to the guest. They require [`Network::Nat`], [`Network::Isolated`] or
    /// [`vmnet`](Self#structfield.vmnet). QEMU only: on hyperkit, VPNKit forwards ports by other means.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_forwards: Vec<PortForward>,
    /// Networks between VMs of this host, without root. The VM has a network card for each. They require
    /// [`state_dir`](Self#structfield.state_dir). QEMU only, version 7.2 or later. [How to use
    /// them](crate::guide::howto#connect-vms-to-each-other).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub internal_networks: Vec<InternalNetwork>,
    /// The VM's UUID, which Linux shows in `/sys/class/dmi/id/product_uuid`. Its fourth group must not begin with e or f. For arm64
    /// guests, it requires a [`bootrom`](Self#structfield.bootrom): only firmware passes the UUID to the guest.
    #[serde(with = "json::text")]
    pub uuid: Option<String>,

    /// The disks. Linux names virtio disks `/dev/vda`, `/dev/vdb`, … in this order.
    #[serde(flatten, with = "json::disks")]
    pub disks: Vec<Disk>,
    /// ISO images, each in a CD drive, in the order of their PCI slots. Linux may name several of them in another order.
    #[serde(rename = "iso", serialize_with = "json::isos")]
    pub isos: Vec<PathBuf>,
    /// Whether the guest has a vsock device. With vsock, programs of the host and of the guest connect to each other
    /// without a network card.
    pub vsock: bool,
    /// The directory of the vsock sockets, which must exist; if unset, the state directory. hyperkit creates `connect`
    /// there and a socket for each of [`vsock_ports`](Self#structfield.vsock_ports). On QEMU, vhost-device-vsock creates
    /// `v.sock` there.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub vsock_dir: Option<PathBuf>,
    /// vsock ports of the guest for which hyperkit creates sockets on the host, at most 4. hyperkit only.
    #[serde(serialize_with = "json::list")]
    pub vsock_ports: Vec<u32>,
    /// The guest's address on vsock (its context identifier, CID), 3 to 2147483647.
    pub vsock_guest_cid: u32,
    /// The `vhost-device-vsock` program, which provides vsock to a QEMU guest. If unset, it is searched on `PATH`. If it
    /// is not installed, QEMU uses the host kernel's `/dev/vhost-vsock`. Then [`vsock_connect`](crate::Vm::vsock_connect)
    /// and [`vsock_listen`](crate::Vm::vsock_listen) are not supported: a program of the host has to use sockets of the
    /// address family AF_VSOCK.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub vhost_device_vsock: Option<PathBuf>,
    /// Whether the guest has a random number generator, `/dev/hwrng`. On by default, as in the Go package.
    #[serde(skip_serializing_if = "json::is_true")]
    pub random: bool,
    /// Whether the guest has a channel for [`Vm::command`](crate::Vm::command), on which [the agent](crate::guide::agent) in the guest
    /// answers: on QEMU a virtio serial port named `org.hyperkit.agent`, on hyperkit vsock, so it requires `vsock` there.
    #[serde(skip_serializing_if = "json::is_default")]
    pub agent: bool,
    /// The guest's root directory. By default it is that of the [`initrd`](Self#structfield.initrd). With [`Root::Host`], commands in
    /// the guest are the host's programs. QEMU only. It requires [`agent`](Self#structfield.agent), a kernel, and the initrd
    /// `host-root.img`: see the guide's page [`host_programs`](crate::guide::host_programs).
    #[serde(skip_serializing_if = "json::is_default")]
    pub root: Root,
    /// Directories that the guest can mount with the 9p file system.
    #[serde(rename = "9p_sockets", serialize_with = "json::list")]
    pub shares_9p: Vec<Share9p>,
    /// Directories that the guest can mount with virtiofs. QEMU only, on Linux; each needs [`virtiofsd`](Self#structfield.virtiofsd).
    #[serde(rename = "virtiofs", skip_serializing_if = "Vec::is_empty")]
    pub shares_virtiofs: Vec<ShareVirtiofs>,
    /// The `virtiofsd` program, which serves a share by virtiofs. If unset, it is searched for on `PATH`, and where
    /// distributions install it.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub virtiofsd: Option<PathBuf>,

    /// The Linux kernel. For x86-64 guests: a bzImage, the format of `/boot/vmlinuz-…`, or on QEMU an ELF `vmlinux` with a PVH entry.
    /// For arm64 guests: an `Image`, which may be compressed with gzip. [`Kernel`](crate::Kernel) reads a file's format. The hypervisor
    /// loads the kernel without a boot loader. If [`hyperkit`](Self::hyperkit) is unset, a start chooses an engine for the kernel's
    /// architecture.
    #[serde(with = "json::path")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk, from which the kernel starts its first program.
    #[serde(with = "json::path")]
    pub initrd: Option<PathBuf>,
    /// A boot ROM instead of a kernel, such as UEFI firmware: 4 KiB to 16 MiB, in multiples of 4096 bytes; for arm64
    /// guests exactly 64 MiB. So its length tells the architecture. It boots from the disks.
    #[serde(with = "json::path", skip_serializing_if = "Option::is_none")]
    pub bootrom: Option<PathBuf>,
    /// A multiboot kernel with its modules, instead of a Linux kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiboot: Option<Multiboot>,

    /// The number of vCPUs (processors that the guest sees), 1 to 64. If QEMU emulates the CPU, more vCPUs make a boot slower: see
    /// the guide's page [`engines`](crate::guide::engines#boot-cpu-and-memory).
    pub cpus: u32,
    /// The model of the guest's CPU, by its name in QEMU, and features: `max`, or `Skylake-Client,-hle`. QEMU only;
    /// `qemu-system-x86_64 -cpu help`, or `qemu-system-aarch64 -cpu help`, lists models and features. If unset, the guest has the host's CPU, as on hyperkit. If QEMU
    /// emulates the CPU, the default is `Nehalem,+rdrand`, which has the instructions of x86-64-v2, or `cortex-a57` for arm64 guests.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// The guest's memory in MiB, at least 2. On hyperkit at most the host's memory, because hyperkit requires all of it at its
    /// start. QEMU takes memory from the host when the guest uses it, so a VM on QEMU can have more.
    #[serde(rename = "memory")]
    pub memory_mib: u64,
    /// What the first serial port is connected to. [`serials`](Self#structfield.serials) replaces it. If unset,
    /// [`Console::Stdio`] for [`run`](Self::run) and [`arguments`](Self::arguments), and [`Console::Pty`] for a VM that
    /// [`start`](Self::start), [`spawn`](Self::spawn) or [`start_scoped`](Self::start_scoped) starts.
    pub console: Option<Console>,
    /// The serial ports, com1 first, at most 2. They replace [`console`](Self#structfield.console). An empty list means
    /// no serial port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serials: Option<Vec<Serial>>,

    /// Whether the VM's clock (RTC) keeps UTC instead of local time. On by default, as in the Go package.
    #[serde(skip_serializing_if = "json::is_true")]
    pub utc: bool,
    /// Whether `hlt` in the guest yields the vCPU to the host. QEMU always does this.
    #[serde(skip_serializing_if = "json::is_default")]
    pub exit_on_hlt: bool,
    /// Whether `pause` in the guest yields the vCPU to the host. QEMU ignores this, and decides by itself.
    #[serde(skip_serializing_if = "json::is_default")]
    pub exit_on_pause: bool,
    /// Whether the local APICs (interrupt controllers of the vCPUs) start in x2APIC mode. hyperkit only.
    #[serde(skip_serializing_if = "json::is_default")]
    pub x2apic: bool,
    /// Whether virtio devices use MSI-X interrupts instead of single-vector MSI. On by default. Only hyperkit can turn it
    /// off.
    #[serde(skip_serializing_if = "json::is_true")]
    pub msix: bool,
    /// Whether the VM has an MPtable (a list of CPUs for old kernels) in addition to ACPI. On by default. Only
    /// hyperkit can turn it off. VMs for arm64 guests never have one.
    #[serde(skip_serializing_if = "json::is_true")]
    pub mptable: bool,
    /// Whether core dumps of the hypervisor include the guest's memory. hyperkit accepts the option and ignores it.
    #[serde(skip_serializing_if = "json::is_default")]
    pub core_dumps: bool,
    /// Whether QEMU runs in its sandbox: it gives up system calls that start programs, change users or raise limits. So a guest
    /// that breaks out of QEMU can do less. On by default. The sandbox exists on Linux, if QEMU is built with seccomp. Turn it off
    /// if [`extra_arguments`](Self#structfield.extra_arguments) make QEMU start a program. No effect on hyperkit. The guide's page
    /// [`security`](crate::guide::security) has more.
    #[serde(skip_serializing_if = "json::is_true")]
    pub sandbox: bool,
    /// The TCP port on which a debugger reaches the guest. Whoever connects can read and write the guest's memory. QEMU listens on
    /// 127.0.0.1, hyperkit on all addresses of the host.
    #[serde(with = "json::count", skip_serializing_if = "Option::is_none")]
    pub gdb_port: Option<u16>,
    /// Arguments of the hypervisor for which this crate has no field. They follow all others, and are not validated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_arguments: Vec<String>,
    /// The caller's notes on the VM. The state directory records them, and this crate does not use them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,

    /// What the last start recorded.
    #[serde(flatten)]
    pub(crate) record: Record,
    /// Keys of `hyperkit.json` that this version does not know. They are written as they were read.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

impl Default for HyperKit {
    /// One vCPU, 1024 MiB, guest CID 3, a clock in UTC, a random number generator, and nothing else.
    fn default() -> Self {
        Self {
            hyperkit: None,
            argv0: None,
            state_dir: None,
            network: Network::None,
            vpnkit_key: None,
            vpnkit_preferred_ipv4: None,
            vmnet: false,
            tap: None,
            mac: None,
            port_forwards: Vec::new(),
            internal_networks: Vec::new(),
            uuid: None,
            disks: Vec::new(),
            isos: Vec::new(),
            vsock: false,
            vsock_dir: None,
            vsock_ports: Vec::new(),
            vsock_guest_cid: 3,
            vhost_device_vsock: None,
            random: true,
            agent: false,
            root: Root::Initrd,
            shares_9p: Vec::new(),
            shares_virtiofs: Vec::new(),
            virtiofsd: None,
            kernel: None,
            initrd: None,
            bootrom: None,
            multiboot: None,
            cpus: 1,
            cpu: None,
            memory_mib: 1024,
            console: None,
            serials: None,
            utc: true,
            exit_on_hlt: false,
            exit_on_pause: false,
            x2apic: false,
            msix: true,
            mptable: true,
            core_dumps: false,
            sandbox: true,
            gdb_port: None,
            extra_arguments: Vec::new(),
            labels: BTreeMap::new(),
            record: Record::default(),
            unknown: serde_json::Map::new(),
        }
    }
}

impl HyperKit {
    /// The programs of the description: paths, or names that are searched on `PATH`.
    pub(crate) fn programs_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let tools = self.disks.iter_mut().filter_map(|disk| match &mut disk.format {
            Some(DiskFormat::Qcow2(options)) => options.tool.as_mut(),
            _ => None,
        });
        [&mut self.hyperkit, &mut self.vhost_device_vsock, &mut self.virtiofsd].into_iter().flatten().chain(tools)
    }

    /// The paths of the description, which a start makes absolute, except those of programs and of the network. The URL of a disk
    /// is not a path.
    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self {
            kernel,
            initrd,
            bootrom,
            vsock_dir,
            multiboot,
            disks,
            isos,
            root,
            shares_9p,
            shares_virtiofs,
            internal_networks,
            ..
        } = self;
        let paths = [kernel, initrd, bootrom, vsock_dir].into_iter().flatten();
        let disks = disks.iter_mut().filter_map(|disk| disk.path.as_mut().filter(|path| !is_url(path)));
        let shares = shares_9p.iter_mut().filter_map(|share| match &mut share.source {
            Share9pSource::Path(path) => Some(path),
            Share9pSource::Port(_) => None,
        });
        let root = match root {
            Root::Dir(dir) => Some(dir),
            Root::Initrd | Root::Host => None,
        };
        let multiboot = multiboot.iter_mut().flat_map(|multiboot| {
            std::iter::once(&mut multiboot.kernel).chain(multiboot.modules.iter_mut().map(|module| &mut module.path))
        });
        let virtiofs = shares_virtiofs.iter_mut().map(|share| &mut share.path);
        let networks = internal_networks.iter_mut().map(|network| &mut network.dir);
        paths.chain(disks).chain(isos).chain(shares).chain(virtiofs).chain(root).chain(multiboot).chain(networks)
    }

    /// The directory of the vsock sockets.
    pub(crate) fn vsock_sockets_dir(&self) -> &Path {
        self.vsock_dir.as_deref().or(self.state_dir.as_deref()).unwrap_or(Path::new(""))
    }

    pub(crate) fn has_overlays(&self) -> bool {
        self.disks.iter().any(|disk| disk.overlay)
    }

    /// Moves disks to the state directory that the description names, if it was read from another one or started in another
    /// one. It moves those that this crate created there, and those with a size and a default name, as the Go package
    /// creates them. So the two VMs share no disk.
    pub(crate) fn relocate_disks(&mut self) {
        let Some(home) = self.record.home.dir.take().filter(|home| Some(home) != self.state_dir.as_ref()) else {
            return;
        };
        for disk in &mut self.disks {
            // Other VMs may use the image of an overlay, too.
            let path = disk.path.as_ref().filter(|path| !disk.overlay && path.parent() == Some(&home));
            let Some(path) = path else { continue };
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_default = disk.size_mib.is_some() && disk::is_default_name(name);
            if is_default || self.record.created_disks.iter().any(|created| created == name) {
                disk.path = self.state_dir.as_ref().map(|dir| dir.join(name));
            }
        }
    }
}

impl fmt::Display for HyperKit {
    /// The JSON of `hyperkit.json`. Paths that are not UTF-8 are shown with replacement characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
