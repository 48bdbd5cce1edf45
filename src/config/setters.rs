//! The setters, one for each field of the description and of the same name.

use std::path::PathBuf;

use crate::config::disk::Disk;
use crate::config::{Console, HyperKit, Multiboot, PortForward, Serial, Server9p, Socket9p, VpnKit};

/// `name(Type)` sets a field, `name(some Type)` one that may be unset, `… in list` adds one of a list; with `into`, from
/// whatever the type can be made of.
macro_rules! setters {
    (@one $what:literal, $name:ident(into $kind:ty)) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), "), ", $what, ".")]
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$name = Some($name.into());
            self
        }
    };
    (@one $what:literal, $name:ident(some $kind:ty)) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), "), ", $what, ".")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = Some($name);
            self
        }
    };
    (@one $what:literal, $name:ident(into $kind:ty) in $list:ident) => {
        #[doc = concat!("Adds one of [`", stringify!($list), "`](Self#structfield.", stringify!($list), "), ", $what, ".")]
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$list.push($name.into());
            self
        }
    };
    (@one $what:literal, $name:ident($kind:ty) in $list:ident) => {
        #[doc = concat!("Adds one of [`", stringify!($list), "`](Self#structfield.", stringify!($list), "), ", $what, ".")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$list.push($name);
            self
        }
    };
    (@one $what:literal, $name:ident($kind:ty)) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), "), ", $what, ".")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = $name;
            self
        }
    };
    ($($what:literal: $name:ident($($kind:tt)*) $(in $list:ident)?;)*) => {
        $(setters!(@one $what, $name($($kind)*) $(in $list)?);)*
    };
}

impl HyperKit {
    /// The defaults: one vCPU, 1024 MiB, guest CID 3, a random number generator, console on stdio, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        "the program that runs the machine": hyperkit(into PathBuf);
        "what the program is told that it is called": argv0(into String);
        "the directory that remembers the machine": state_dir(into PathBuf);
        "the network": vpnkit(VpnKit);
        "a UUID for a lasting IP address": vpnkit_key(into String);
        "the address to ask VPNKit for": vpnkit_preferred_ipv4(into String);
        "whether there is a card on Apple's vmnet": vmnet(bool);
        "an interface of the host for a network card": tap(into String);
        "the MAC address of the first network card": mac(into String);
        "a port of 127.0.0.1 that leads to the guest": port_forward(PortForward) in port_forwards;
        "the machine's own UUID": uuid(into String);
        "an image and how it is attached": disk(Disk) in disks;
        "an image for a CD drive": iso(into PathBuf) in isos;
        "whether there is a vsock device": vsock(bool);
        "the directory of the vsock sockets": vsock_dir(into PathBuf);
        "a port of the guest that the host reaches by a socket": vsock_port(u32) in vsock_ports;
        "the guest's context identifier": vsock_guest_cid(u32);
        "the program that gives a QEMU guest its vsock": vhost_device_vsock(into PathBuf);
        "whether there is a random number generator": random(bool);
        "an x86 bzImage": kernel(into PathBuf);
        "the initial RAM disk": initrd(into PathBuf);
        "a boot ROM in place of a kernel": bootrom(into PathBuf);
        "a multiboot kernel in place of Linux": multiboot(into Multiboot);
        "the number of vCPUs": cpus(u32);
        "in MiB": memory(u64);
        "where the first serial port leads": console(Console);
        "whether the clock keeps UTC": utc(bool);
        "whether `hlt` hands the processor back": exit_on_hlt(bool);
        "whether `pause` hands the processor back": exit_on_pause(bool);
        "whether the local APICs are in x2APIC mode": x2apic(bool);
        "whether virtio devices interrupt by MSI-X": msix(bool);
        "whether there is an MPtable": mptable(bool);
        "whether core dumps have the guest's memory in them": core_dumps(bool);
        "the TCP port for a debugger": gdb_port(some u16);
        "for what this crate has no field for": extra_argument(into String) in extra_arguments;
    }

    /// Adds one of [`serials`](Self#structfield.serials), com1 first.
    #[must_use]
    pub fn serial(mut self, port: Serial) -> Self {
        self.serials.get_or_insert_default().push(port);
        self
    }

    /// Takes away all serial ports: an empty list of [`serials`](Self#structfield.serials).
    #[must_use]
    pub fn no_serials(mut self) -> Self {
        self.serials = Some(Vec::new());
        self
    }

    /// Adds one of [`sockets_9p`](Self#structfield.sockets_9p): on hyperkit the socket of a 9p server, on QEMU a directory.
    #[must_use]
    pub fn socket_9p(mut self, path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        self.sockets_9p.push(Socket9p { server: Server9p::Path(path.into()), tag: tag.into() });
        self
    }

    /// Adds one of [`sockets_9p`](Self#structfield.sockets_9p): the TCP port of a 9p server on this host. hyperkit only.
    #[must_use]
    pub fn port_9p(mut self, port: u16, tag: impl Into<String>) -> Self {
        self.sockets_9p.push(Socket9p { server: Server9p::Port(port), tag: tag.into() });
        self
    }
}
