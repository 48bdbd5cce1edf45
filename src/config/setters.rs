//! The setters. A field that holds one value has a setter of the same name. A list has a method that adds an element.

use std::path::{Path, PathBuf};

use crate::config::disk::Disk;
use crate::config::{
    Console, HyperKit, InternalNetwork, Multiboot, Network, PortForward, Root, Serial, Share9p, Share9pSource,
    ShareVirtiofs,
};

/// `name(Type)` sets a field, `name(some Type)` an optional one, `name(Type) in list` adds to a list. With `into`, the argument
/// is anything that converts into the type. The doc comment is one line, since the field has the whole description.
macro_rules! setters {
    (@doc $what:literal, $verb:literal, $field:ident) => {
        concat!($verb, " [`", stringify!($field), "`](Self#structfield.", stringify!($field), "): ", $what, ".")
    };
    (@one [$($attr:tt)*] $what:literal, $name:ident: into $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        $($attr)*
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$name = Some($name.into());
            self
        }
    };
    (@one [$($attr:tt)*] $what:literal, $name:ident: some $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        $($attr)*
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = Some($name);
            self
        }
    };
    (@one [$($attr:tt)*] $what:literal, $name:ident: into $kind:ty, $list:ident) => {
        #[doc = setters!(@doc $what, "Adds to", $list)]
        $($attr)*
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$list.push($name.into());
            self
        }
    };
    (@one [$($attr:tt)*] $what:literal, $name:ident: $kind:ty, $list:ident) => {
        #[doc = setters!(@doc $what, "Adds to", $list)]
        $($attr)*
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$list.push($name);
            self
        }
    };
    (@one [$($attr:tt)*] $what:literal, $name:ident: $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        $($attr)*
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = $name;
            self
        }
    };
    ($($(#[$attr:meta])* $what:literal: $name:ident($($kind:tt)*) $(in $list:ident)?;)*) => {
        $(setters!(@one [$(#[$attr])*] $what, $name: $($kind)* $(, $list)?);)*
    };
}

/// # Create
///
/// The setters below take the description and return it, so that calls can be chained.
///
/// ```
/// use hyperkit::HyperKit;
///
/// let description = HyperKit::new().kernel("vmlinuz").cpus(2);
/// assert_eq!(description.cpus, 2);
/// ```
impl HyperKit {
    /// Creates a description with the [defaults](#impl-Default-for-HyperKit): one vCPU, 1024 MiB, nothing to boot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// # Boot
///
/// A VM boots from one of three sources: a Linux kernel, a boot ROM, or a multiboot kernel.
///
/// ```
/// use hyperkit::{HyperKit, Multiboot};
///
/// let linux = HyperKit::new().kernel("vmlinuz").initrd("initrd.img");
/// let uefi = HyperKit::new().bootrom("OVMF.fd").disk("root.img");
/// let other = HyperKit::new().multiboot(Multiboot::new("kernel.elf"));
/// assert!(linux.arguments("console=ttyS0").is_ok()); // the kernel command line
/// assert!(uefi.arguments("").is_ok() && other.arguments("").is_ok());
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "bzImage")]
        #[doc(alias = "vmlinuz")]
        #[doc(alias = "vmlinux")]
        #[doc(alias = "pvh")]
        #[doc(alias = "linux")]
        "a Linux kernel": kernel(into PathBuf);
        #[doc(alias = "initramfs")]
        "the initial RAM disk of the kernel": initrd(into PathBuf);
        #[doc(alias = "uefi")]
        #[doc(alias = "ovmf")]
        #[doc(alias = "firmware")]
        #[doc(alias = "bios")]
        "a boot ROM, such as UEFI firmware, instead of a kernel": bootrom(into PathBuf);
        "a multiboot kernel instead of Linux": multiboot(into Multiboot);
    }
}

/// # CPU, memory and board
///
/// ```
/// let description = hyperkit::HyperKit::new().cpus(4).memory_mib(2048).utc(false);
/// assert_eq!(description.memory_mib, 2048); // 2 GiB
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "cores")]
        #[doc(alias = "smp")]
        #[doc(alias = "processors")]
        "the number of vCPUs, 1 to 64": cpus(u32);
        #[doc(alias = "processor")]
        #[doc(alias = "model")]
        "the CPU's model, by its name in QEMU": cpu(into String);
        #[doc(alias = "ram")]
        "the memory, in MiB": memory_mib(u64);
        "the VM's UUID": uuid(into String);
        #[doc(alias = "clock")]
        #[doc(alias = "rtc")]
        "whether the clock keeps UTC": utc(bool);
        #[doc(alias = "entropy")]
        #[doc(alias = "rng")]
        "whether there is a random number generator": random(bool);
        "whether `hlt` yields the vCPU": exit_on_hlt(bool);
        "whether `pause` yields the vCPU": exit_on_pause(bool);
        "whether the local APICs start in x2APIC mode": x2apic(bool);
        "whether virtio devices use MSI-X": msix(bool);
        "whether there is an MPtable": mptable(bool);
    }
}

/// # Disks
///
/// ```
/// use hyperkit::{Disk, HyperKit};
///
/// let description = HyperKit::new().disk(Disk::raw("root.img").size_mib(4096)).disk("data.img").iso("install.iso");
/// assert_eq!((description.disks.len(), description.isos.len()), (2, 1));
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "drive")]
        #[doc(alias = "image")]
        #[doc(alias = "storage")]
        #[doc(alias = "volume")]
        "a disk, or only the path of its image": disk(into Disk) in disks;
        #[doc(alias = "cdrom")]
        #[doc(alias = "cloud-init")]
        "an ISO image in a CD drive": iso(into PathBuf) in isos;
    }
}

/// # Network
///
/// Without any of these, the guest has no network card. [`Network::Nat`] is the usual one. The guest then reaches
/// the host's networks, and forwarded ports lead from the host to the guest.
///
/// ```
/// use hyperkit::{HyperKit, Network, PortForward};
///
/// // On QEMU: port 2222 of 127.0.0.1 leads to the guest's ssh server.
/// let description = HyperKit::new().network(Network::Nat).port_forward(PortForward::tcp(2222, 22));
/// assert_eq!(description.port_forwards[0].guest, 22);
/// // Two VMs on one network, which the host's networks do not reach.
/// let first = HyperKit::new().state_dir("vms/1").internal_network("vms/net", 1);
/// let second = HyperKit::new().state_dir("vms/2").internal_network("vms/net", 2);
/// assert_ne!(first.internal_networks[0].mac(), second.internal_networks[0].mac());
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "nat")]
        #[doc(alias = "internet")]
        #[doc(alias = "nic")]
        #[doc(alias = "slirp")]
        "what the network card is connected to": network(Network);
        #[doc(alias = "ssh")]
        #[doc(alias = "hostfwd")]
        #[doc(alias = "forward")]
        #[doc(alias = "publish")]
        "a port of 127.0.0.1 that leads to the guest": port_forward(PortForward) in port_forwards;
        "the MAC address of the first network card": mac(into String);
        "a tap interface of the host": tap(into String);
        "whether there is a card on Apple's vmnet": vmnet(bool);
        "a UUID by which VPNKit recognizes the guest": vpnkit_key(into String);
        "the IPv4 address that the guest should get": vpnkit_preferred_ipv4(into String);
    }

    /// Adds to [`internal_networks`](Self#structfield.internal_networks): a network between VMs, by its directory, and this VM's
    /// number in it.
    #[doc(alias = "switch")]
    #[doc(alias = "bridge")]
    #[doc(alias = "lan")]
    #[doc(alias = "vlan")]
    #[doc(alias = "peers")]
    #[must_use]
    pub fn internal_network(mut self, dir: impl Into<PathBuf>, number: u8) -> Self {
        self.internal_networks.push(InternalNetwork::new(dir, number));
        self
    }

    /// Sets [`network`](Self#structfield.network) in the Go package's words: `auto` is [`Network::Nat`], `isolated`
    /// [`Network::Isolated`], an empty path
    /// [`Network::None`], any other path [`Network::VpnKit`].
    #[must_use]
    pub fn vpnkit(mut self, socket: impl AsRef<Path>) -> Self {
        self.network = socket.as_ref().into();
        self
    }
}

/// # Console and serial ports
///
/// The console is the first serial port. Linux writes to it with `console=ttyS0` on its command line, or on arm64 with
/// `console=ttyAMA0` ([`kernel_console`](crate::Engine::kernel_console)). A program reaches the console with
/// [`Vm::console`](crate::Vm::console), and its log with [`Vm::console_log`](crate::Vm::console_log).
///
/// ```
/// use hyperkit::{Console, HyperKit, Serial};
///
/// let usual = HyperKit::new().console(Console::Pty); // also what `start` uses by default
/// let two_ports = HyperKit::new().serial(Serial::pty().log()).serial(Serial::none().log());
/// assert_eq!(two_ports.serials.map(|ports| ports.len()), Some(2));
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "tty")]
        #[doc(alias = "terminal")]
        #[doc(alias = "stdio")]
        "what the first serial port is connected to": console(some Console);
    }

    /// Adds to [`serials`](Self#structfield.serials): a serial port, com1 first.
    #[must_use]
    pub fn serial(mut self, port: Serial) -> Self {
        self.serials.get_or_insert_default().push(port);
        self
    }

    /// Sets [`serials`](Self#structfield.serials) to an empty list: no serial port.
    #[must_use]
    pub fn no_serials(mut self) -> Self {
        self.serials = Some(Vec::new());
        self
    }
}

/// # Sharing: 9p, virtiofs, vsock, commands
///
/// With 9p (a network file system, here without a network) or virtiofs, the guest mounts a directory of the host. With vsock
/// (sockets between a host and its guests), programs of the host and of the guest connect to each other, without a
/// network card: see [`Vm::vsock_connect`](crate::Vm::vsock_connect) and [`Vm::vsock_listen`](crate::Vm::vsock_listen).
///
/// ```
/// use hyperkit::HyperKit;
///
/// // In the guest: mount -t 9p -o trans=virtio data /mnt
/// let description = HyperKit::new().share_dir("/srv/data", "data").vsock(true);
/// assert_eq!(description.shares_9p[0].tag, "data");
/// ```
impl HyperKit {
    /// Adds to [`shares_9p`](Self#structfield.shares_9p): a directory of the host. QEMU only; hyperkit needs a 9p server,
    /// see [`socket_9p`](Self::socket_9p).
    #[doc(alias = "mount")]
    #[doc(alias = "directory")]
    #[doc(alias = "folder")]
    #[doc(alias = "share")]
    #[doc(alias = "virtfs")]
    #[must_use]
    pub fn share_dir(self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Path(path.into()), tag)
    }

    /// Adds to [`shares_9p`](Self#structfield.shares_9p): the unix socket of a 9p server. hyperkit only; QEMU serves a
    /// directory by itself, see [`share_dir`](Self::share_dir).
    #[must_use]
    pub fn socket_9p(self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Path(path.into()), tag)
    }

    /// Adds to [`shares_9p`](Self#structfield.shares_9p): the TCP port of a 9p server on this host. hyperkit only.
    #[must_use]
    pub fn port_9p(self, port: u16, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Port(port), tag)
    }

    fn share_9p(mut self, source: Share9pSource, tag: impl Into<String>) -> Self {
        self.shares_9p.push(Share9p { source, tag: tag.into() });
        self
    }

    setters! {
        #[doc(alias = "virtio-serial")]
        #[doc(alias = "exec")]
        "whether the guest has a channel for `Vm::command`; hyperkit requires `vsock` for it": agent(bool);
        #[doc(alias = "rootfs")]
        #[doc(alias = "chroot")]
        "the guest's root directory": root(Root);
        #[doc(alias = "virtio-vsock")]
        #[doc(alias = "AF_VSOCK")]
        "whether there is a vsock device": vsock(bool);
        "the guest's address on vsock": vsock_guest_cid(u32);
        "the directory of the sockets on the host": vsock_dir(into PathBuf);
        "a port of the guest with a socket on the host": vsock_port(u32) in vsock_ports;
        "the program that provides vsock to a QEMU guest": vhost_device_vsock(into PathBuf);
        #[doc(alias = "virtio-fs")]
        "a directory that the guest can mount with virtiofs": share_virtiofs(ShareVirtiofs) in shares_virtiofs;
        "the program that serves shares by virtiofs": virtiofsd(into PathBuf);
    }
}

/// # State directory
///
/// The state directory records the VM. Give each VM its own.
///
/// ```
/// let description = hyperkit::HyperKit::new().state_dir("vms/one").label("owner", "me");
/// assert_eq!(description.labels["owner"], "me");
/// ```
impl HyperKit {
    setters! {
        "the directory that records the VM": state_dir(into PathBuf);
    }

    /// Adds to [`labels`](Self#structfield.labels), or replaces the label with this key.
    #[doc(alias = "metadata")]
    #[doc(alias = "tag")]
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// # Hypervisor
///
/// ```
/// use hyperkit::{Engine, HyperKit};
///
/// let description = HyperKit::new().hyperkit("/usr/bin/qemu-system-x86_64").gdb_port(1234);
/// assert_eq!(description.engine()?, Engine::Qemu);
/// # Ok::<(), hyperkit::Error>(())
/// ```
impl HyperKit {
    setters! {
        #[doc(alias = "qemu")]
        #[doc(alias = "program")]
        "the hypervisor, hyperkit or QEMU": hyperkit(into PathBuf);
        "the name of the hypervisor's process": argv0(into String);
        "an argument for the hypervisor": extra_argument(into String) in extra_arguments;
        #[doc(alias = "debugger")]
        "the TCP port for a debugger": gdb_port(some u16);
        "whether core dumps include the guest's memory": core_dumps(bool);
        #[doc(alias = "seccomp")]
        "whether QEMU runs in its sandbox": sandbox(bool);
    }
}
