//! What an engine has to do. Code that depends on which engine it is exists only in implementations of [`EngineDriver`].

use std::ffi::{OsStr, OsString};
use std::fs::FileType;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Weak;
use std::time::Duration;

use rustix::process::Signal;

use crate::config::{Architecture, HyperKit, PortForward};
use crate::engine::Engine;
use crate::engine::boot_memory::{BootFiles, Misfit};
use crate::engine::firmware::{self, FirmwareRules};
use crate::error::{ConfigError, Result};
use crate::exit::Exit;
use crate::state::StateDir;

/// A connection on which the hypervisor reports how the guest ends.
pub(crate) struct ExitListener {
    /// Waits for the report. Returns when the hypervisor has exited.
    pub listen: Box<dyn FnOnce() -> Option<Exit> + Send>,
    /// The same connection, for requests whose answers are not needed. It lasts as long as `listen`.
    pub connection: Weak<UnixStream>,
}

/// What an engine can do to a running VM, except killing it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Control {
    PressPowerButton,
    Pause,
    Resume,
}

impl Control {
    /// The call of `Vm`, for errors.
    pub fn call(self) -> &'static str {
        match self {
            Self::PressPowerButton => "shutdown",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// Addresses of the guest that the host knows.
#[derive(Debug, Default)]
pub(crate) struct GuestAddresses {
    pub network: Option<Ipv4Addr>,
    pub vmnet: Option<Ipv4Addr>,
}

/// How a program of the host connects to a vsock port of the guest.
pub(crate) struct VsockEndpoint {
    pub socket: PathBuf,
    /// What to send first.
    pub request: Option<String>,
    /// Whether the engine answers when a program in the guest has accepted the connection.
    pub is_acknowledged: bool,
}

/// The descriptor of a socket that is passed to a daemon.
pub(crate) const DAEMON_FD: u8 = 4;

/// A program that runs together with the hypervisor and serves one of the guest's devices.
pub(crate) struct Daemon {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub socket: DaemonSocket,
}

/// Where a daemon listens.
pub(crate) enum DaemonSocket {
    /// The daemon creates these sockets, and is ready when they exist.
    Created(Vec<PathBuf>),
    /// This socket is created for the daemon, which gets it as [`DAEMON_FD`]. So the hypervisor can connect at once.
    Passed(PathBuf),
}

/// The running hypervisor that a call is about.
#[derive(Clone, Copy)]
pub(crate) struct Hypervisor<'a> {
    pub pid: u32,
    /// The description with which it was started.
    pub description: &'a HyperKit,
    /// Where its sockets are. Another hypervisor may listen there by now.
    pub state: Option<&'a StateDir>,
}

/// What each engine implements.
pub(crate) trait EngineDriver: Sync {
    fn engine(&self) -> Engine;

    /// The name of the engine in messages.
    fn name(&self) -> &'static str;

    /// The architecture of the guests.
    fn architecture(&self) -> Architecture;

    /// The name of the first serial port in a Linux guest.
    fn kernel_console(&self) -> &'static str;

    /// Whether the engine can run VMs on hosts with this operating system and CPU.
    fn runs_on_this_host(&self) -> bool {
        true
    }

    /// Whether a program with this file name is of this engine.
    fn accepts_program_name(&self, name: &[u8]) -> bool;

    /// The programs that are searched if a description names none: names are searched on `PATH`.
    fn default_programs(&self) -> &'static [&'static str];

    // --- from the description to arguments, and back ---

    /// What the engine cannot do on any host.
    fn unsupported(&self, description: &HyperKit) -> Vec<ConfigError>;

    /// What the engine cannot do on this host.
    fn check_host(&self, description: &HyperKit) -> Vec<ConfigError>;

    /// Warnings for the log: effects of a valid description that its author may not expect.
    fn warnings(&self, _description: &HyperKit) -> Vec<String> {
        Vec::new()
    }

    /// Whether the engine copies the segments of a multiboot ELF kernel from the file to memory as one piece.
    fn copies_multiboot_elf_whole(&self) -> bool {
        false
    }

    /// Finds the VPNKit socket or the daemons for which the description has no paths, and sets the paths.
    fn resolve(&self, description: &mut HyperKit) -> Result<(), ConfigError>;

    /// The arguments for a description that passed validation and [`unsupported`](Self::unsupported). Looks at no file.
    fn arguments(&self, description: &HyperKit, cmdline: &str) -> Result<Vec<String>, ConfigError>;

    /// Arguments before all others that depend on the host.
    fn host_arguments(&self, _description: &HyperKit) -> Vec<String> {
        Vec::new()
    }

    /// The kernel command line in the recorded arguments.
    fn recorded_cmdline(&self, description: &HyperKit) -> Option<String>;

    /// The pid file of a hypervisor with this command line. `None` if it is not the command line of this engine, or if it names no
    /// pid file. Other programs have options of the same names: `tail -F hyperkit.pid` is no hypervisor.
    fn pid_file<'a>(&self, command: &'a [OsString]) -> Option<&'a OsStr>;

    // --- the running hypervisor ---

    /// The MAC address that vmnet will give the guest, if the engine can find it out.
    fn vmnet_mac(&self, _description: &HyperKit) -> Option<String> {
        None
    }

    /// The socket of a program that can delay a start: the hypervisor waits for its answer, and prints no message.
    fn awaited_socket<'a>(&self, _description: &'a HyperKit) -> Option<&'a Path> {
        None
    }

    /// Finds out whether a hypervisor that has written its pid file has also created all devices. If so, completes the state
    /// directory with files that the engine does not write by itself.
    fn finish_start(&self, description: &HyperKit, state: &StateDir, pid: u32, timeout: Duration) -> Result<bool>;

    /// Connects to the hypervisor's source of events, if the exit code alone does not say how the guest ended. The listener also
    /// logs what the engine reports of a running VM.
    fn exit_listener(&self, _description: &HyperKit, _state: &StateDir, _pid: u32) -> Option<ExitListener> {
        None
    }

    /// Controls the VM, by signals or through sockets in its state directory, within the timeout.
    fn control(
        &self,
        control: Control,
        hypervisor: Hypervisor<'_>,
        send: &dyn Fn(Signal) -> Result<()>,
        timeout: Duration,
    ) -> Result<()>;

    /// Whether the guest's vCPUs are stopped; `None` if the engine does not report it.
    fn is_paused(&self, _hypervisor: Hypervisor<'_>, _timeout: Duration) -> Result<Option<bool>> {
        Ok(None)
    }

    /// The meaning of an exit code other than 0.
    fn exit_code(&self, code: i32) -> Exit {
        Exit::Failed(code)
    }

    /// What the hypervisor's exit status says about the VM. `reported` comes from the [`ExitListener`].
    fn exit(&self, status: ExitStatus, reported: Option<Exit>) -> Exit {
        match (status.code(), status.signal()) {
            (Some(0), _) => reported.unwrap_or(Exit::PowerOff),
            (Some(code), _) => self.exit_code(code),
            (None, Some(signal)) => Exit::Killed(signal),
            (None, None) => Exit::Unknown,
        }
    }

    /// Resumes the VM and presses the power button over the connection for events, for the case that another client blocks
    /// [`control`](Self::control). `events` is the connection of the [`ExitListener`], if this program has one.
    fn press_power_button_over_events(
        &self,
        _hypervisor: Hypervisor<'_>,
        _events: Option<&UnixStream>,
        _timeout: Duration,
    ) -> Result<()> {
        Ok(())
    }

    /// The forwarded ports with their numbers.
    fn port_forwards(&self, hypervisor: Hypervisor<'_>, timeout: Duration) -> Result<Vec<PortForward>>;

    /// The guest's addresses that are known.
    fn addresses(&self, description: &HyperKit) -> GuestAddresses;

    /// How to connect to a vsock port of the guest.
    fn vsock_endpoint(&self, description: &HyperKit, port: u32) -> Result<VsockEndpoint, ConfigError>;

    /// The name of the socket on which a program of the host receives connections of the guest to a vsock port.
    fn vsock_listener_name(&self, port: u32) -> String;

    /// The socket on which the hypervisor passes bytes to the agent's serial port in the guest. `None` if the agent has to use
    /// vsock.
    fn agent_socket(&self, _state: &StateDir) -> Option<PathBuf> {
        None
    }

    /// Whether the hypervisor reports that no program of the guest has the agent's port open.
    fn is_agent_port_closed(&self, _hypervisor: Hypervisor<'_>, _timeout: Duration) -> Result<bool> {
        Ok(false)
    }

    /// The programs that must run together with the hypervisor.
    fn daemons(&self, _description: &HyperKit, _state: &StateDir) -> Result<Vec<Daemon>, ConfigError> {
        Ok(Vec::new())
    }

    /// The daemon whose failure the hypervisor's log reports.
    fn failed_daemon(&self, _description: &HyperKit, _log: &str) -> Option<PathBuf> {
        None
    }

    // --- files ---

    /// Whether a file in a state directory is a socket that belongs to a VM of this engine.
    fn is_own_socket(&self, name: &str, kind: FileType) -> bool;

    /// Whether a hypervisor with this command line receives an internal network's frames at this socket.
    fn receives_frames_at(&self, _command: &[OsString], _socket: &Path) -> bool {
        false
    }

    /// Whether a console on stdio writes to descriptor 0, and standard output carries only the hypervisor's own messages.
    fn console_is_standard_input(&self) -> bool {
        false
    }

    /// Whether a line of the hypervisor's output only reports progress.
    fn is_progress(&self, _line: &str) -> bool {
        false
    }

    /// Whether the console log is a ring that the hypervisor overwrites, instead of a growing file.
    fn has_ring_log(&self) -> bool {
        false
    }

    /// Whether the engine boots a bzImage that is up to 15 bytes shorter than its header says. The header counts blocks of 16
    /// bytes.
    fn boots_kernel_without_padding(&self) -> bool {
        false
    }

    /// Why the engine does not boot a vmlinux; `None` if it does.
    fn refuses_vmlinux(&self) -> Option<&'static str> {
        None
    }

    /// Checks whether the guest's CPU can have pages of 16 KiB.
    fn check_pages_of_16_kib(&self, _description: &HyperKit) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Checks whether the kernel and the initrd fit into this much memory, in MiB. The kernel must be for this engine.
    fn check_memory(&self, files: &BootFiles, memory_mib: u64) -> std::result::Result<(), Misfit>;

    /// The most memory into which kernels are loaded, in MiB. A VM can have more.
    fn max_boot_memory_mib(&self) -> u64;

    /// What the engine requires of a boot ROM.
    fn firmware(&self) -> &'static FirmwareRules {
        &firmware::PC
    }

    /// What a hypervisor prints, with the path, if it cannot lock an image.
    fn locked_image_message(&self) -> &'static str;

    /// Whether a hypervisor of this engine has an image in use that it has not locked, and `conflicts` returns true for it.
    /// `conflicts` gets the path of the image, and whether the hypervisor only reads it.
    fn uses_image(&self, _conflicts: &dyn Fn(&Path, bool) -> bool) -> io::Result<bool> {
        Ok(false)
    }
}
