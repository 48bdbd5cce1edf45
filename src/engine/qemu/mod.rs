//! Drives QEMU over QMP; hyperkit uses signals and exit codes instead.

mod arguments;
mod boot_memory;
mod events;
mod host;
mod internal_network;
mod limits;
mod machine;
mod names;
mod network;
mod qmp;
mod virtiofs;
mod vsock_device;

use std::ffi::{OsStr, OsString};
use std::fs::FileType;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;

use crate::config::{Architecture, HyperKit, Network, PortForward, Protocol};
use crate::engine::Engine;
use crate::engine::boot_memory::{BootFiles, Misfit};
use crate::engine::driver::{Control, Daemon, EngineDriver, ExitListener, GuestAddresses, Hypervisor, VsockEndpoint};
use crate::engine::firmware::FirmwareRules;
use crate::error::{ConfigError, Error, Result};
use crate::plan::root::without_root;
use crate::plan::serial_ports::{Line, ports};
use crate::state::{AGENT_SOCKET, EVENTS_SOCKET, QMP_SOCKET, StateDir, VHOST_SOCKET, VSOCK_SOCKET};
use machine::Machine;
use names::Program;
use qmp::Qmp;

/// Drives one of QEMU's programs.
pub(super) struct Driver {
    machine: &'static Machine,
}

pub(super) static X86_64: Driver = Driver { machine: &machine::X86_64 };
pub(super) static ARM64: Driver = Driver { machine: &machine::ARM64 };

impl EngineDriver for Driver {
    fn engine(&self) -> Engine {
        self.machine.engine
    }

    fn name(&self) -> &'static str {
        self.machine.name
    }

    fn architecture(&self) -> Architecture {
        self.machine.architecture
    }

    fn kernel_console(&self) -> &'static str {
        self.machine.kernel_console
    }

    /// QEMU's programs for other architectures are accepted here as QEMU for x86-64, whose `unsupported` refuses them.
    fn accepts_program_name(&self, name: &[u8]) -> bool {
        names::program(name).is_some_and(|program| (program == Program::Arm64) == (self.engine() == Engine::QemuArm64))
    }

    fn default_programs(&self) -> &'static [&'static str] {
        self.machine.programs
    }

    fn unsupported(&self, description: &HyperKit) -> Vec<ConfigError> {
        self.name_engine(limits::unsupported_features(description))
    }

    fn check_pages_of_16_kib(&self, description: &HyperKit) -> Result<(), ConfigError> {
        host::check_pages_of_16_kib(description).map_err(|violation| self.machine.name_engine(violation))
    }

    fn check_host(&self, description: &HyperKit) -> Vec<ConfigError> {
        self.name_engine(limits::check_host(description))
    }

    fn warnings(&self, description: &HyperKit) -> Vec<String> {
        let is_isolated = description.network == Network::Isolated;
        [("vmnet", description.vmnet), ("tap", description.tap.is_some())]
            .into_iter()
            .filter(|(_, is_set)| is_isolated && *is_set)
            .map(|(field, _)| format!("the guest is not isolated: `network` is, and the card of `{field}` is not"))
            .collect()
    }

    fn resolve(&self, description: &mut HyperKit) -> Result<(), ConfigError> {
        description.vhost_device_vsock = vsock_device::find_daemon(description)?;
        description.virtiofsd = virtiofs::find_daemon(description)?;
        Ok(())
    }

    fn arguments(&self, description: &HyperKit, cmdline: &str) -> Result<Vec<String>, ConfigError> {
        arguments::arguments(description, cmdline).map_err(|violation| self.machine.name_engine(violation))
    }

    fn host_arguments(&self, description: &HyperKit) -> Vec<String> {
        host::arguments(description)
    }

    fn recorded_cmdline(&self, description: &HyperKit) -> Option<String> {
        let arguments = &description.record.arguments;
        // All arguments of this engine contain a machine.
        if !arguments.iter().any(|argument| argument == "-machine") {
            return None;
        }
        // A VM with a boot ROM has no command line.
        let line = arguments.iter().skip_while(|argument| *argument != "-append").nth(1);
        Some(without_root(description, line.map_or("", String::as_str)).to_owned())
    }

    fn pid_file<'a>(&self, command: &'a [OsString]) -> Option<&'a OsStr> {
        let (program, options) = command.split_first()?;
        let name = Path::new(program).file_name()?;
        let mut files = options.windows(2).filter(|pair| pair[0] == "-pidfile").map(|pair| pair[1].as_os_str());
        if self.accepts_program_name(name.as_encoded_bytes()) { files.next_back() } else { None }
    }

    /// QEMU answers on its QMP socket when all devices exist. It names the ptys of the serial ports only there, so this writes
    /// the tty files, which hyperkit writes by itself.
    fn finish_start(&self, description: &HyperKit, state: &StateDir, pid: u32, timeout: Duration) -> Result<bool> {
        let answer =
            Qmp::connect(&state.file(QMP_SOCKET), pid, timeout).and_then(|mut qmp| qmp.execute("query-chardev"));
        let chardevs = match answer {
            Ok(chardevs) => chardevs,
            // QEMU may be ready. A start that tried until its timeout would report that it is not.
            Err(error) if has_no_descriptors(&error) => return Err(error),
            Err(error) => {
                log::trace!(target: "hyperkit", "{}: not ready: {error}", state.path().display());
                return Ok(false);
            }
        };
        for port in ports(description)? {
            let Line::Pty(file) = port.line else { continue };
            let chardev = chardevs.as_array().into_iter().flatten().find(|chardev| chardev["label"] == port.name);
            let pty = chardev.and_then(|chardev| chardev["filename"].as_str()?.strip_prefix("pty:"));
            let pty = pty.ok_or_else(|| Error::Qmp {
                socket: state.file(QMP_SOCKET),
                reason: format!("no pty for {} in {chardevs}", port.name),
            })?;
            state.write(file, pty.as_bytes())?;
        }
        Ok(true)
    }

    /// The exit code is 0 for a power-off and for a reset. The event before the exit says which it was.
    fn exit_listener(&self, description: &HyperKit, state: &StateDir, pid: u32) -> Option<ExitListener> {
        events::listener(description, state, pid)
    }

    /// QEMU serves one client at a time on each socket. On the socket for events, the client is the starter while it lives. `cont`
    /// does nothing to a VM that is not paused.
    fn press_power_button_over_events(
        &self,
        hypervisor: Hypervisor<'_>,
        events: Option<&UnixStream>,
        timeout: Duration,
    ) -> Result<()> {
        let mut requests = internal_network::set_link_requests(hypervisor.description, true)?;
        requests.extend(["cont", "system_powerdown"].map(|command| (command, json!({}))));
        let state = hypervisor.state.ok_or(ConfigError::StateDirRequired { field: "shutdown" })?;
        let socket = state.file(EVENTS_SOCKET);
        if let Some(mut events) = events {
            let line = |(name, arguments)| format!("{}\n", json!({ "execute": name, "arguments": arguments }));
            let lines: String = requests.into_iter().map(line).collect();
            let sent = events.set_write_timeout(Some(timeout)).and_then(|()| events.write_all(lines.as_bytes()));
            return sent.map_err(Error::io("write to", socket));
        }
        let mut events = Qmp::connect(&socket, hypervisor.pid, timeout)?;
        execute_all(&mut events, requests)
    }

    fn control(
        &self,
        control: Control,
        hypervisor: Hypervisor<'_>,
        _: &dyn Fn(Signal) -> Result<()>,
        timeout: Duration,
    ) -> Result<()> {
        let mut qmp = qmp(hypervisor, control.call(), timeout)?;
        match control {
            Control::PressPowerButton => qmp.execute("system_powerdown").map(drop),
            // In this order, a program that is killed in between leaves no running VM without a network.
            Control::Pause => {
                qmp.execute("stop")?;
                execute_all(&mut qmp, internal_network::set_link_requests(hypervisor.description, false)?)
            }
            Control::Resume => {
                execute_all(&mut qmp, internal_network::set_link_requests(hypervisor.description, true)?)?;
                qmp.execute("cont").map(drop)
            }
        }
    }

    fn is_paused(&self, hypervisor: Hypervisor<'_>, timeout: Duration) -> Result<Option<bool>> {
        if hypervisor.state.is_none() {
            return Ok(None);
        }
        let status = qmp(hypervisor, "status", timeout)?.execute("query-status")?;
        Ok(Some(status["running"] == false))
    }

    fn port_forwards(&self, hypervisor: Hypervisor<'_>, timeout: Duration) -> Result<Vec<PortForward>> {
        let mut qmp = qmp(hypervisor, "port_forwards", timeout)?;
        let table = qmp.execute_with("human-monitor-command", json!({ "command-line": "info usernet" }))?;
        Ok(table.as_str().unwrap_or_default().lines().filter_map(forwarded_port).collect())
    }

    fn addresses(&self, description: &HyperKit) -> GuestAddresses {
        GuestAddresses { network: Some(network::network_address(description)), vmnet: Some(network::VMNET_ADDRESS) }
    }

    fn vsock_endpoint(&self, description: &HyperKit, port: u32) -> Result<VsockEndpoint, ConfigError> {
        vsock_device::check_has_daemon(description).map_err(|violation| self.machine.name_engine(violation))?;
        let socket = description.vsock_sockets_dir().join(VSOCK_SOCKET);
        Ok(VsockEndpoint { socket, request: Some(format!("CONNECT {port}\n")), is_acknowledged: true })
    }

    fn vsock_listener_name(&self, port: u32) -> String {
        format!("{VSOCK_SOCKET}_{port}")
    }

    fn daemons(&self, description: &HyperKit, state: &StateDir) -> Result<Vec<Daemon>, ConfigError> {
        let mut daemons = Vec::from_iter(vsock_device::daemon(description, state)?);
        daemons.extend(virtiofs::daemons(description, state)?);
        Ok(daemons)
    }

    fn failed_daemon(&self, description: &HyperKit, log: &str) -> Option<PathBuf> {
        virtiofs::failed(description, log)
    }

    fn boots_kernel_without_padding(&self) -> bool {
        true
    }

    fn receives_frames_at(&self, command: &[OsString], socket: &Path) -> bool {
        internal_network::receives_frames_at(command, socket)
    }

    fn is_progress(&self, line: &str) -> bool {
        line.contains(internal_network::HUB_WARNING)
    }

    fn check_memory(&self, files: &BootFiles, memory_mib: u64) -> Result<(), Misfit> {
        (self.machine.check_memory)(files, memory_mib)
    }

    fn firmware(&self) -> &'static FirmwareRules {
        self.machine.firmware
    }

    fn max_boot_memory_mib(&self) -> u64 {
        self.machine.max_boot_memory_mib
    }

    fn agent_socket(&self, state: &StateDir) -> Option<PathBuf> {
        Some(state.file(AGENT_SOCKET))
    }

    fn is_agent_port_closed(&self, hypervisor: Hypervisor<'_>, timeout: Duration) -> Result<bool> {
        let chardevs = qmp(hypervisor, "command", timeout)?.execute("query-chardev")?;
        let agent =
            chardevs.as_array().into_iter().flatten().find(|chardev| chardev["label"] == arguments::AGENT_CHARDEV);
        Ok(agent.is_some_and(|agent| agent["frontend-open"] == false))
    }

    /// From block/file-posix.c.
    fn locked_image_message(&self) -> &'static str {
        "Is another process using the image"
    }

    fn is_own_socket(&self, name: &str, kind: FileType) -> bool {
        let is_listener = |name: &str| {
            let port = name.strip_prefix(VSOCK_SOCKET).and_then(|rest| rest.strip_prefix('_'));
            port.is_some_and(|port| port.parse::<u32>().is_ok())
        };
        kind.is_socket()
            && ([QMP_SOCKET, EVENTS_SOCKET, AGENT_SOCKET, VHOST_SOCKET, VSOCK_SOCKET].contains(&name)
                || is_listener(name)
                || virtiofs::is_socket_name(name))
    }
}

impl Driver {
    fn name_engine(&self, violations: Vec<ConfigError>) -> Vec<ConfigError> {
        violations.into_iter().map(|violation| self.machine.name_engine(violation)).collect()
    }
}

/// Whether this program, or the system, has no file descriptors left.
fn has_no_descriptors(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(Errno::from_io_error(source), Some(Errno::MFILE | Errno::NFILE))
}

/// Connects to a hypervisor's control socket. `call` is the call that needs it.
fn qmp(hypervisor: Hypervisor<'_>, call: &'static str, timeout: Duration) -> Result<Qmp> {
    let state = hypervisor.state.ok_or(ConfigError::StateDirRequired { field: call })?;
    Qmp::connect(&state.file(QMP_SOCKET), hypervisor.pid, timeout)
}

fn execute_all(qmp: &mut Qmp, requests: Vec<internal_network::Request>) -> Result<()> {
    requests.into_iter().try_for_each(|(command, arguments)| qmp.execute_with(command, arguments).map(drop))
}

/// Reads a line of QEMU's table of forwarded ports: protocol, descriptor, address, port, address, port.
fn forwarded_port(line: &str) -> Option<PortForward> {
    let mut words = line.split_ascii_whitespace();
    let protocol = match words.next()? {
        "TCP[HOST_FORWARD]" => Protocol::Tcp,
        "UDP[HOST_FORWARD]" => Protocol::Udp,
        _ => return None,
    };
    Some(PortForward { protocol, host: words.nth(2)?.parse().ok()?, guest: words.nth(1)?.parse().ok()? })
}
