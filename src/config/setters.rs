//! The setters: a field that holds one value has one of the same name, a list has a method that adds an element.

use std::path::{Path, PathBuf};

use crate::config::disk::Disk;
use crate::config::{Console, HyperKit, Multiboot, Network, PortForward, Serial, Share9p, Share9pSource};

/// `name: Type` sets a field, `name: some Type` an optional one, `name: Type in list` adds to a list; with `into`, from
/// whatever converts into the type.
macro_rules! setters {
    (@doc $what:literal, $verb:literal, $field:ident) => {
        concat!($verb, " [`", stringify!($field), "`](Self#structfield.", stringify!($field), "): ", $what, ".")
    };
    (@one $what:literal, $name:ident: into $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$name = Some($name.into());
            self
        }
    };
    (@one $what:literal, $name:ident: some $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = Some($name);
            self
        }
    };
    (@one $what:literal, $name:ident: into $kind:ty, $list:ident) => {
        #[doc = setters!(@doc $what, "Adds one of", $list)]
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$list.push($name.into());
            self
        }
    };
    (@one $what:literal, $name:ident: $kind:ty, $list:ident) => {
        #[doc = setters!(@doc $what, "Adds one of", $list)]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$list.push($name);
            self
        }
    };
    (@one $what:literal, $name:ident: $kind:ty) => {
        #[doc = setters!(@doc $what, "Sets", $name)]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = $name;
            self
        }
    };
    ($($what:literal: $name:ident($($kind:tt)*) $(in $list:ident)?;)*) => {
        $(setters!(@one $what, $name: $($kind)* $(, $list)?);)*
    };
}

impl HyperKit {
    /// Creates a description with the [defaults](Self::default).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        "the hypervisor": hyperkit(into PathBuf);
        "the hypervisor's `argv[0]`": argv0(into String);
        "the directory that records the VM": state_dir(into PathBuf);
        "the guest's network": network(Network);
        "a UUID for the same IP address each time": vpnkit_key(into String);
        "the address requested from VPNKit": vpnkit_preferred_ipv4(into String);
        "whether there is a card on Apple's vmnet": vmnet(bool);
        "a tap interface of the host": tap(into String);
        "the MAC address of the first network card": mac(into String);
        "a port of 127.0.0.1 that is forwarded to the guest": port_forward(PortForward) in port_forwards;
        "the VM's UUID": uuid(into String);
        "a disk, or just the path of its image": disk(into Disk) in disks;
        "an image in a CD drive": iso(into PathBuf) in isos;
        "whether there is a vsock device": vsock(bool);
        "the directory of the vsock sockets": vsock_dir(into PathBuf);
        "a vsock port of the guest with a socket on the host": vsock_port(u32) in vsock_ports;
        "the guest's context identifier": vsock_guest_cid(u32);
        "the program that provides vsock to a QEMU guest": vhost_device_vsock(into PathBuf);
        "whether there is a random number generator": random(bool);
        "an x86 bzImage": kernel(into PathBuf);
        "the initial RAM disk": initrd(into PathBuf);
        "a boot ROM instead of a kernel": bootrom(into PathBuf);
        "a multiboot kernel instead of Linux": multiboot(into Multiboot);
        "the number of vCPUs": cpus(u32);
        "the memory in MiB": memory_mib(u64);
        "the first serial port": console(some Console);
        "whether the clock keeps UTC": utc(bool);
        "whether `hlt` yields the vCPU": exit_on_hlt(bool);
        "whether `pause` yields the vCPU": exit_on_pause(bool);
        "whether the local APICs start in x2APIC mode": x2apic(bool);
        "whether virtio devices use MSI-X": msix(bool);
        "whether there is an MPtable": mptable(bool);
        "whether core dumps include the guest's memory": core_dumps(bool);
        "the TCP port for a debugger": gdb_port(some u16);
        "an argument for the hypervisor": extra_argument(into String) in extra_arguments;
    }

    /// Sets [`network`](Self#structfield.network) in the Go package's words: `auto` is [`Network::Nat`], an empty path
    /// [`Network::None`], any other path [`Network::VpnKit`].
    #[must_use]
    pub fn vpnkit(mut self, socket: impl AsRef<Path>) -> Self {
        self.network = socket.as_ref().into();
        self
    }

    /// Adds one of [`serials`](Self#structfield.serials), com1 first.
    #[must_use]
    pub fn serial(mut self, port: Serial) -> Self {
        self.serials.get_or_insert_default().push(port);
        self
    }

    /// Removes all serial ports: an empty list of [`serials`](Self#structfield.serials).
    #[must_use]
    pub fn no_serials(mut self) -> Self {
        self.serials = Some(Vec::new());
        self
    }

    /// Shares a directory of the host: adds one of [`shares_9p`](Self#structfield.shares_9p). The guest mounts it with
    /// `mount -t 9p -o trans=virtio TAG /mnt`. QEMU only: hyperkit needs a 9p server, see
    /// [`socket_9p`](Self::socket_9p).
    #[must_use]
    pub fn share_dir(self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Path(path.into()), tag)
    }

    /// Adds one of [`shares_9p`](Self#structfield.shares_9p): the unix socket of a 9p server. hyperkit only: QEMU
    /// serves a directory by itself, see [`share_dir`](Self::share_dir).
    #[must_use]
    pub fn socket_9p(self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Path(path.into()), tag)
    }

    /// Adds one of [`shares_9p`](Self#structfield.shares_9p): the TCP port of a 9p server on this host. hyperkit only.
    #[must_use]
    pub fn port_9p(self, port: u16, tag: impl Into<String>) -> Self {
        self.share_9p(Share9pSource::Port(port), tag)
    }

    fn share_9p(mut self, source: Share9pSource, tag: impl Into<String>) -> Self {
        self.shares_9p.push(Share9p { source, tag: tag.into() });
        self
    }

    /// Adds one of [`labels`](Self#structfield.labels), or replaces the one with this key.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}
