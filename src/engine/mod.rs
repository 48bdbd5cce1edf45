//! The engines: hypervisors that can run a VM. Each is a folder with an [`EngineDriver`], and a line in [`DRIVERS`].

pub(crate) mod dhcp_leases;
mod driver;
pub(crate) mod hyperkit;
mod qemu;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use driver::{
    Control, Daemon, DaemonSocket, EngineDriver, ExitListener, Hypervisor, LowMemory, VsockEndpoint,
};

use crate::config::HyperKit;
use crate::error::{Error, Result};
use crate::plan::validate::{check_cmdline, validate};
use crate::sys::find_program::first_program;

/// A kind of hypervisor that can run a VM.
///
/// The file name of the program decides which engine it is: a name that begins with `qemu` is QEMU, and so is `kvm`. Any other
/// name is hyperkit. Of QEMU's programs, only those for x86-64 are supported.
///
/// ```
/// use hyperkit::Engine;
///
/// assert_eq!(Engine::of("/usr/bin/qemu-system-x86_64"), Engine::Qemu);
/// assert_eq!(Engine::of("/usr/libexec/qemu-kvm"), Engine::Qemu);
/// assert_eq!(Engine::of("com.docker.hyperkit"), Engine::HyperKit);
/// assert_eq!(Engine::Qemu.to_string(), "QEMU");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// The `hyperkit` command for Intel Macs.
    HyperKit,
    /// QEMU: `qemu-system-x86_64` or `qemu-kvm`, on Linux and macOS. Without KVM or HVF it emulates the processor.
    Qemu,
}

/// All engines, in the order in which their programs are searched. hyperkit comes last when the name of a program
/// decides, since it accepts every name.
const DRIVERS: [&dyn EngineDriver; 2] = [&hyperkit::Driver, &qemu::Driver];

impl Engine {
    /// Returns the engine of a program with this file name. [`HyperKit::engine`] returns that of a description.
    #[must_use]
    pub fn of(program: impl AsRef<Path>) -> Self {
        let name = program.as_ref().file_name().unwrap_or_default().as_encoded_bytes();
        let named = DRIVERS.iter().rev().find(|driver| driver.accepts_program_name(name));
        named.map_or(Self::HyperKit, |driver| driver.engine())
    }

    pub(crate) fn driver(self) -> &'static dyn EngineDriver {
        match self {
            Self::HyperKit => &hyperkit::Driver,
            Self::Qemu => &qemu::Driver,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.driver().name())
    }
}

/// The engine of a description; hyperkit if it names no program, as in the Go package.
pub(crate) fn driver_of(description: &HyperKit) -> &'static dyn EngineDriver {
    description.hyperkit.as_ref().map_or(Engine::HyperKit, Engine::of).driver()
}

/// The absolute path of the hypervisor: `wanted`, or else the first one that is installed.
pub(crate) fn find(wanted: Option<&Path>) -> Result<PathBuf> {
    let candidates: Vec<&Path> = match wanted {
        Some(program) => vec![program],
        None => DRIVERS.iter().flat_map(|driver| driver.default_programs()).map(Path::new).collect(),
    };
    let program = first_program(&candidates).map_err(|searched| Error::HypervisorNotFound { searched })?;
    if wanted.is_none() {
        let engine = Engine::of(&program);
        log::info!(target: "hyperkit", "using {engine}, the first installed engine: {}", program.display());
    }
    std::path::absolute(&program).map_err(Error::io("make absolute", &program))
}

/// The pid file of a hypervisor of any engine with this command line.
pub(crate) fn pid_file(command: &[OsString]) -> Option<&OsStr> {
    DRIVERS.into_iter().find_map(|driver| driver.pid_file(command))
}

/// Whether a hypervisor with this command line receives frames of other VMs at this socket.
pub(crate) fn receives_frames_at(command: &[OsString], socket: &Path) -> bool {
    DRIVERS.iter().any(|driver| driver.receives_frames_at(command, socket))
}

/// Whether a file in a state directory is a socket that an engine or this crate creates there.
pub(crate) fn is_engine_socket(name: &str, kind: FileType) -> bool {
    DRIVERS.iter().any(|driver| driver.is_own_socket(name, kind))
}

/// Whether a hypervisor has an image in use that it has not locked, and `conflicts` returns true for it. `conflicts` gets the path
/// of the image, and whether the hypervisor only reads it.
pub(crate) fn uses_image(conflicts: &dyn Fn(&Path, bool) -> bool) -> io::Result<bool> {
    for driver in DRIVERS {
        if driver.uses_image(conflicts)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The arguments for a description. Looks at no file.
pub(crate) fn arguments(description: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut description = Cow::Borrowed(description);
    let has_urls = description.has_urls();
    let urls = if has_urls { description.to_mut().replace_urls(|disk| Ok(disk.format_by_name())) } else { Vec::new() };
    if description.record.home.dir.is_some() {
        description.to_mut().relocate_disks();
    }
    let description = &*description;
    let driver = driver_of(description);
    let mut violations = validate(description);
    violations.extend(urls);
    violations.collect(check_cmdline(description, cmdline));
    violations.extend(driver.unsupported(description));
    violations.into_result()?;
    Ok(driver.arguments(description, cmdline)?)
}
