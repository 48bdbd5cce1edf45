//! The programs that can run a machine: which one it is, where it is found, and what it cannot do.

pub(crate) mod dhcp_leases;
pub(crate) mod hyperkit;
pub(crate) mod qemu;

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::config::{HyperKit, PortForward};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::plan::kernel_cmdline::given_command_line;
use crate::state::StateDir;
use crate::sys::find_program::first_program;
use crate::vm::Vm;

/// A program that runs machines. Its file name says which it is: `qemu-system-…` is QEMU, anything else hyperkit.
///
/// ```
/// use hyperkit::Engine;
///
/// assert_eq!(Engine::of("/usr/bin/qemu-system-x86_64"), Engine::Qemu);
/// assert_eq!(Engine::of("com.docker.hyperkit"), Engine::HyperKit);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// The macOS `hyperkit` command.
    HyperKit,
    /// `qemu-system-x86_64`.
    Qemu,
}

/// What can be done to a running machine besides ending it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    PressPowerButton,
    Pause,
    Resume,
}

impl Control {
    fn call(self) -> &'static str {
        match self {
            Self::PressPowerButton => "shutdown",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// Where the Go package looks.
const HYPERKITS: [&str; 5] = [
    "hyperkit",
    "com.docker.hyperkit",
    "/usr/local/bin/hyperkit",
    "/Applications/Docker.app/Contents/Resources/bin/hyperkit",
    "/Applications/Docker.app/Contents/MacOS/com.docker.hyperkit",
];
const QEMU: &str = "qemu-system-x86_64";

impl Engine {
    /// The engine that a program of this name is.
    #[must_use]
    pub fn of(program: impl AsRef<Path>) -> Self {
        let name = program.as_ref().file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(b"qemu-system-") { Self::Qemu } else { Self::HyperKit }
    }

    /// The engine of a description; hyperkit where it names no program.
    pub(crate) fn of_machine(machine: &HyperKit) -> Self {
        machine.hyperkit.as_ref().map_or(Self::HyperKit, Self::of)
    }

    /// Refuses what this engine cannot do anywhere, then gives the arguments for `machine`; without looking at any file.
    pub(crate) fn arguments(self, machine: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
        self.supports(machine)?;
        match self {
            Self::HyperKit => hyperkit::arguments(machine, cmdline),
            Self::Qemu => qemu::arguments(machine, cmdline),
        }
    }

    /// The kernel command line that a machine was started with, going by its arguments.
    pub(crate) fn command_line(self, machine: &HyperKit) -> Option<String> {
        let behind = |option: &str| {
            let at = machine.arguments.iter().position(|argument| argument == option)?;
            machine.arguments.get(at + 1).map(String::as_str)
        };
        match self {
            Self::HyperKit => hyperkit::command_line(behind("-f")?),
            Self::Qemu if machine.bootrom.is_some() => (!machine.arguments.is_empty()).then(String::new),
            Self::Qemu if machine.multiboot.is_some() => behind("-append").map(str::to_owned),
            Self::Qemu => behind("-append").map(|line| given_command_line(line).to_owned()),
        }
    }

    /// Arguments that go before the others and depend on the host, not on the machine.
    pub(crate) fn host_arguments(self) -> Vec<String> {
        match self {
            Self::HyperKit => Vec::new(),
            Self::Qemu => vec!["-accel".to_owned(), qemu::accelerator().to_owned()],
        }
    }

    fn supports(self, machine: &HyperKit) -> Result<()> {
        match self {
            Self::HyperKit => hyperkit::supports(machine),
            Self::Qemu => qemu::supports(machine),
        }
    }

    /// Refuses what this engine cannot do on this host.
    pub(crate) fn check(self, machine: &HyperKit) -> Result<()> {
        self.supports(machine)?;
        match self {
            Self::HyperKit => Ok(()),
            Self::Qemu => qemu::check(machine),
        }
    }

    /// The ports of 127.0.0.1 that lead to the guest, with their numbers.
    pub(crate) fn port_forwards(self, vm: &Vm, patience: Duration) -> Result<Vec<PortForward>> {
        match (self, &vm.state) {
            (Self::HyperKit, _) => Ok(Vec::new()),
            (Self::Qemu, Some(state)) => qemu::port_forwards(state, patience),
            (Self::Qemu, None) => Err(Error::StateDirRequired { field: "port_forwards" }),
        }
    }

    /// Whether a program that has written its pid file has also set up the machine's devices.
    pub(crate) fn is_set_up(self, machine: &HyperKit, state: &StateDir, patience: Duration) -> Result<bool> {
        match self {
            Self::HyperKit => Ok(hyperkit::is_set_up(machine, state)),
            Self::Qemu => qemu::is_set_up(machine, state, patience),
        }
    }

    /// Listens to the program until it ends; then says how the guest ended, if the exit code cannot.
    pub(crate) fn listen(self, state: &StateDir) -> Option<impl FnOnce() -> Option<Exit> + Send + 'static> {
        match self {
            Self::HyperKit => None,
            Self::Qemu => qemu::listen(state),
        }
    }

    /// Does something to the running machine. The program may take `patience` to answer.
    pub(crate) fn control(self, what: Control, vm: &Vm, patience: Duration) -> Result<()> {
        match (self, &vm.state) {
            (Self::HyperKit, _) => vm.signal(hyperkit::signal(what)),
            (Self::Qemu, Some(state)) => qemu::control(what, state, patience),
            (Self::Qemu, None) => Err(Error::StateDirRequired { field: what.call() }),
        }
    }

    /// What the end of the program says about the machine's, with what the program `told` of it before.
    pub(crate) fn exit(self, status: ExitStatus, told: Option<Exit>) -> Exit {
        match (status.code(), status.signal()) {
            (Some(0), _) => told.unwrap_or(Exit::PowerOff),
            (Some(code), _) if self == Self::HyperKit => hyperkit::exit(code),
            (Some(code), _) => Exit::Failed(code),
            (None, Some(signal)) => Exit::Killed(signal),
            (None, None) => Exit::Unknown,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HyperKit => "hyperkit",
            Self::Qemu => "QEMU",
        })
    }
}

/// The program that runs the machine: `wanted`, or else the first one found.
pub(crate) fn find(wanted: Option<&Path>) -> Result<PathBuf> {
    let candidates: Vec<&Path> = match wanted {
        Some(program) => vec![program],
        None => HYPERKITS.iter().chain([&QEMU]).map(Path::new).collect(),
    };
    let place = first_program(&candidates).map_err(|looked| Error::ProgramNotFound { looked })?;
    if wanted.is_none() {
        log::info!(target: "hyperkit", "{} runs the machines: {}", Engine::of(&place), place.display());
    }
    std::path::absolute(&place).map_err(Error::io("make absolute", &place))
}
