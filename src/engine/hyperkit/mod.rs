//! The macOS `hyperkit` command.

mod arguments;
pub(crate) mod parse;
mod vmnet;
mod vpnkit;

use std::ffi::{OsStr, OsString};
use std::fs::FileType;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::config::disk::{DiskFormat, FlushMode, bytes};
use crate::config::file_url::percent_decoded;
use crate::config::{Architecture, HyperKit, Network, PortForward, Root, Share9pSource};
use crate::engine::Engine;
use crate::engine::boot_memory::{BootFiles, LowMemory, Misfit};
use crate::engine::dhcp_leases::leased_address;
use crate::engine::driver::{Control, EngineDriver, GuestAddresses, Hypervisor, VsockEndpoint};
use crate::error::{ConfigError, Result};
use crate::exit::Exit;
use crate::plan::limits::{LOW_MEMORY_MIB, MAX_SOCKET};
use crate::plan::serial_ports::{Line, ports};
use crate::plan::slots::{Device, NicBackend, layout};
use crate::plan::text::{check_length, check_path};
use crate::process::list_all;
use crate::state::StateDir;
use crate::state::tty_file::read_pty_path;
use crate::sys::memory::memory_of_host;

/// The options that take no value.
const SWITCHES: &[char] = &['b', 'e', 'h', 'v', 'u', 'w', 'x', 'M', 'A', 'C', 'H', 'P', 'W'];

/// The beginnings of lines that hyperkit prints on stdout without an error (uart_emul.c, pci_virtio_net_vpnkit.c, hyperkit.c).
const PROGRESS: [&str; 9] = [
    "linkname ",
    "COM1 connected to ",
    "COM2 connected to ",
    "Reopening slave pty",
    "virtio-net-vpnkit: initialising, ",
    "virtio-net-vpnkit: interface will have uuid ",
    "virtio-net-vpnkit: requesting ip ",
    "virtio-net-vpnkit: Connection established with ",
    "received sigusr",
];

const NO_ROOT: &str = "a directory of the host as the guest's root (`root`); use QEMU";
const NO_VIRTIOFS: &str = "virtiofs (`shares_virtiofs`); use 9p, or QEMU";
const NO_INTERNAL_NETWORK: &str = "networks between VMs (`internal_networks`); use QEMU";
/// The host's context identifier on vsock.
const HOST_CID: u32 = 2;

pub(super) struct Driver;

impl EngineDriver for Driver {
    fn engine(&self) -> Engine {
        Engine::HyperKit
    }

    fn name(&self) -> &'static str {
        "hyperkit"
    }

    fn architecture(&self) -> Architecture {
        Architecture::X86_64
    }

    fn kernel_console(&self) -> &'static str {
        "ttyS0"
    }

    /// Rosetta executes hyperkit on Apple silicon, but it cannot run x86-64 VMs (Apple's "About the Rosetta translation environment").
    fn runs_on_this_host(&self) -> bool {
        !cfg!(all(target_os = "macos", target_arch = "aarch64"))
    }

    fn accepts_program_name(&self, _: &[u8]) -> bool {
        true
    }

    /// Where the Go package looks.
    fn default_programs(&self) -> &'static [&'static str] {
        &[
            "hyperkit",
            "com.docker.hyperkit",
            "/usr/local/bin/hyperkit",
            "/Applications/Docker.app/Contents/Resources/bin/hyperkit",
            "/Applications/Docker.app/Contents/MacOS/com.docker.hyperkit",
        ]
    }

    fn unsupported(&self, description: &HyperKit) -> Vec<ConfigError> {
        let first = layout(description).ok().and_then(|devices| devices.first().map(|(_, device)| *device));
        let first_is_no_tap = matches!(first, Some(Device::Nic(NicBackend::Network(_) | NicBackend::Vmnet)));
        let check_socket = |source: &Share9pSource| match source {
            Share9pSource::Path(path) => {
                check_path("shares_9p", path).and_then(|path| check_length(MAX_SOCKET, "shares_9p", path)).err()
            }
            Share9pSource::Port(_) => None,
        };
        let sockets = description.shares_9p.iter().filter_map(|share| check_socket(&share.source));
        let has_foreign_mac = description.mac.is_some() && first_is_no_tap;
        [
            (description.cpu.is_some(), "a choice of the CPU's model (`cpu`); the guest has the host's CPU"),
            (
                description.network == Network::Isolated,
                "a network without access to the host (`network`); use no network, or QEMU",
            ),
            (!description.port_forwards.is_empty(), "port forwarding (`port_forwards`); use VPNKit's own, or QEMU"),
            (description.root != Root::Initrd, NO_ROOT),
            (description.has_overlays(), "a disk with an overlay (`disks`); use QEMU"),
            (!description.shares_virtiofs.is_empty(), NO_VIRTIOFS),
            (!description.internal_networks.is_empty(), NO_INTERNAL_NETWORK),
            (has_foreign_mac, "a MAC address for a card that is not a tap (`mac`); that of vmnet follows from `uuid`"),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .map(|(_, feature)| unsupported(feature))
        .chain(sockets)
        // hyperkit has no virtio serial port, so the agent uses vsock.
        .chain(
            (description.agent && !description.vsock)
                .then_some(ConfigError::MissingPrerequisite { field: "agent", requires: "vsock" }),
        )
        .collect()
    }

    fn check_host(&self, description: &HyperKit) -> Vec<ConfigError> {
        let is_directory = |source: &Share9pSource| matches!(source, Share9pSource::Path(path) if path.is_dir());
        let mut found = Vec::new();
        if description.shares_9p.iter().any(|share| is_directory(&share.source)) {
            found.push(unsupported("sharing a directory (`shares_9p`); use `socket_9p` or `port_9p` with a 9p server"));
        }
        if let Network::VpnKit(socket) = &description.network {
            let path = check_path("network", socket).and_then(|path| check_length(MAX_SOCKET, "network", path));
            found.extend(path.is_ok().then(|| vpnkit::check(socket).err()).flatten());
        }
        // hyperkit maps all memory at its start, and aborts if it cannot (vmm_mem_alloc in vmm_mem.c).
        let value = description.memory_mib;
        let host = memory_of_host().map(|bytes| bytes >> 20);
        if let (Some(host), Some(_)) = (host.filter(|&host| host < value), bytes(value)) {
            found.push(ConfigError::MemoryExceedsHost { value, host });
        }
        found
    }

    fn warnings(&self, description: &HyperKit) -> Vec<String> {
        let mut warnings = Vec::new();
        for disk in &description.disks {
            let DiskFormat::Qcow2(options) = disk.format_by_name() else { continue };
            if matches!(options.flush, FlushMode::Unset | FlushMode::None) && !disk.read_only {
                let path = disk.path.as_deref().unwrap_or(Path::new("a qcow2 image")).display();
                let flush = options.flush;
                warnings.push(format!("a flush by the guest does nothing, because `flush` is {flush:?}: {path}"));
            }
        }
        if let Some(port) = description.gdb_port {
            // init_dbgport in dbgport.c binds to INADDR_ANY.
            warnings.push(format!("hyperkit listens for debuggers on port {port} of all addresses (`gdb_port`)"));
        }
        if description.core_dumps {
            warnings.push("hyperkit ignores `core_dumps`".to_owned());
        }
        warnings
    }

    /// hyperkit loads the initrd at the end of the memory, below what the kernel's header allows.
    fn check_memory(&self, files: &BootFiles, memory_mib: u64) -> std::result::Result<(), Misfit> {
        let end = memory_mib.min(LOW_MEMORY_MIB) << 20;
        LowMemory { end, initrd_max: end.saturating_sub(1), firmware: 0 }.check(files)
    }

    fn max_boot_memory_mib(&self) -> u64 {
        LOW_MEMORY_MIB
    }

    fn refuses_vmlinux(&self) -> Option<&'static str> {
        Some("hyperkit boots only bzImages")
    }

    fn copies_multiboot_elf_whole(&self) -> bool {
        true
    }

    fn resolve(&self, description: &mut HyperKit) -> Result<(), ConfigError> {
        if description.network == Network::Nat {
            let searched = vpnkit::sockets();
            let found = searched.iter().find(|socket| socket.exists()).cloned();
            description.network = Network::VpnKit(found.ok_or(ConfigError::VpnKitNotFound { searched })?);
        }
        Ok(())
    }

    fn arguments(&self, description: &HyperKit, cmdline: &str) -> Result<Vec<String>, ConfigError> {
        arguments::arguments(description, cmdline)
    }

    fn recorded_cmdline(&self, description: &HyperKit) -> Option<String> {
        let mut options = description.record.arguments.iter().skip_while(|argument| *argument != "-f");
        parse::cmdline(options.nth(1)?)
    }

    /// The value of `-F` among options that hyperkit accepts and that boot something.
    fn pid_file<'a>(&self, command: &'a [OsString]) -> Option<&'a OsStr> {
        let (mut file, mut firmware) = (None, None);
        let mut words = command.get(1..)?.iter();
        while let Some(word) = words.next() {
            // hyperkit ignores all words after the options. The options end at an operand or at `--`.
            let Some(letters) =
                word.to_str().and_then(|word| word.strip_prefix('-')).filter(|letters| !["", "-"].contains(letters))
            else {
                break;
            };
            let letters = letters.trim_start_matches(SWITCHES);
            let Some(option) = letters.chars().next() else { continue };
            if !parse::OPTIONS_WITH_VALUE.contains(option) {
                return None;
            }
            // The value may be one word with its letter.
            let value = match &letters[1..] {
                "" => words.next()?,
                value => OsStr::new(value),
            };
            if !parse::is_plausible_value(option, value) {
                return None;
            }
            match option {
                'F' => file = Some(value),
                'f' => firmware = Some(value),
                _ => {}
            }
        }
        file.filter(|_| firmware.is_some_and(parse::is_firmware))
    }

    fn vmnet_mac(&self, description: &HyperKit) -> Option<String> {
        vmnet::mac(description)
    }

    /// hyperkit's handshake with VPNKit has no timeout.
    fn awaited_socket<'a>(&self, description: &'a HyperKit) -> Option<&'a Path> {
        if let Network::VpnKit(socket) = &description.network { Some(socket) } else { None }
    }

    /// hyperkit creates serial ports last, so it is ready when their tty files exist and their logs, which this crate has created
    /// empty, have the size of a ring.
    fn finish_start(&self, description: &HyperKit, state: &StateDir, _: u32, _: Duration) -> Result<bool> {
        Ok(ports(description)?.iter().all(|port| {
            // The file is created first and written later.
            let names_its_pty = !matches!(port.line, Line::Pty(name) if read_pty_path(&state.file(name)).is_none());
            names_its_pty && port.log.is_none_or(|name| state.file(name).metadata().is_ok_and(|log| log.len() > 0))
        }))
    }

    /// Each of these signals kills a hypervisor if it comes too early: the power button before the guest has turned ACPI on,
    /// the others before the first vCPU runs.
    fn control(
        &self,
        control: Control,
        _: Hypervisor<'_>,
        send: &dyn Fn(Signal) -> Result<()>,
        _: Duration,
    ) -> Result<()> {
        send(match control {
            Control::PressPowerButton => Signal::TERM,
            Control::Pause => Signal::USR1,
            Control::Resume => Signal::USR2,
        })
    }

    fn exit_code(&self, code: i32) -> Exit {
        match code {
            2 => Exit::Reset,
            3 => Exit::TripleFault,
            code => Exit::Failed(code),
        }
    }

    fn port_forwards(&self, _: Hypervisor<'_>, _: Duration) -> Result<Vec<PortForward>> {
        Ok(Vec::new())
    }

    fn addresses(&self, description: &HyperKit) -> GuestAddresses {
        let preferred = description.vpnkit_preferred_ipv4.as_ref();
        GuestAddresses {
            network: preferred.and_then(|address| address.parse().ok()),
            vmnet: description.record.vmnet_mac.as_deref().and_then(leased_address),
        }
    }

    /// Each of `vsock_ports` has a separate socket. For any other port, hyperkit reads `CID.PORT` in hexadecimal from the socket
    /// `connect`, and sends no answer.
    fn vsock_endpoint(&self, description: &HyperKit, port: u32) -> Result<VsockEndpoint, ConfigError> {
        let dir = description.vsock_sockets_dir();
        let (socket, request) = match description.vsock_ports.contains(&port) {
            true => (dir.join(format!("guest.{port:08x}")), None),
            false => (dir.join("connect"), Some(format!("{:08x}.{port:08x}\n", description.vsock_guest_cid))),
        };
        Ok(VsockEndpoint { socket, request, is_acknowledged: false })
    }

    fn vsock_listener_name(&self, port: u32) -> String {
        format!("{HOST_CID:08x}.{port:08x}")
    }

    fn is_own_socket(&self, name: &str, kind: FileType) -> bool {
        let is_hex = |text: &str| text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match name.split_once('.') {
            Some(("guest", port)) => kind.is_symlink() && is_hex(port),
            Some((cid, port)) => kind.is_socket() && is_hex(cid) && is_hex(port),
            None => kind.is_socket() && name == "connect",
        }
    }

    fn has_ring_log(&self) -> bool {
        true
    }

    /// From uart_set_backend in uart_emul.c: `stdio` is STDIN_FILENO for both directions.
    fn console_is_standard_input(&self) -> bool {
        true
    }

    /// hyperkit's stdout is fully buffered, so these lines are written at the exit, after the errors on stderr.
    fn is_progress(&self, line: &str) -> bool {
        PROGRESS.iter().any(|start| line.starts_with(start))
    }

    /// From block_if.c.
    fn locked_image_message(&self) -> &'static str {
        "Could not lock backing file"
    }

    /// hyperkit does not lock qcow2 images, so they are found on its command line. The Go package passes paths as they are;
    /// this crate escapes characters with a meaning in URLs. Others give URLs without options, or plain paths.
    fn uses_image(&self, conflicts: &dyn Fn(&Path, bool) -> bool) -> io::Result<bool> {
        let uses_it = |argument: &OsString| {
            let argument = argument.to_string_lossy();
            let mut parts = argument.split(',').skip(2);
            let Some(url) = parts.next() else { return false };
            let options: Vec<_> = parts.collect();
            let path = match url.strip_prefix("file://") {
                Some(rest) => rest.split_once('?').map_or(rest, |(path, _)| path),
                None if options.contains(&"format=qcow") => url,
                None => return false,
            };
            let is_read_only = options.contains(&"ro");
            let is_conflict = |path: &str| conflicts(Path::new(path), is_read_only);
            is_conflict(path) || percent_decoded(path).is_some_and(|path| is_conflict(&path))
        };
        Ok(list_all()?.iter().any(|process| process.command.iter().any(uses_it)))
    }
}

fn unsupported(feature: &'static str) -> ConfigError {
    ConfigError::Unsupported { engine: Engine::HyperKit, feature }
}
