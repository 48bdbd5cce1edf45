//! The engines: hypervisors that can run a VM. hyperkit and QEMU have a folder each, and each engine has an [`EngineDriver`] in
//! [`DRIVERS`]. QEMU has two of them: one for each architecture of guests.

mod boot_memory;
pub(crate) mod dhcp_leases;
mod driver;
mod firmware;
pub(crate) mod hyperkit;
mod qemu;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use boot_memory::{BootFiles, KernelMemory, Misfit};
pub(crate) use driver::{Control, Daemon, DaemonSocket, EngineDriver, ExitListener, Hypervisor, VsockEndpoint};
pub(crate) use firmware::FirmwareStart;

use crate::config::{Architecture, HyperKit};
use crate::error::{Error, Result};
use crate::plan::validate::{check_cmdline, validate};
use crate::sys::find_program::first_program;

/// A kind of hypervisor that can run a VM.
///
/// The file name of the program decides which engine it is: a name that begins with `qemu` is QEMU, and so is `kvm`. Any other
/// name is hyperkit. QEMU has one program for each architecture of guests. `qemu-kvm` is the one for the host's architecture. The crate
/// refuses QEMU's programs for other architectures than x86-64 and arm64.
///
/// ```
/// use hyperkit::{Architecture, Engine};
///
/// assert_eq!(Engine::of("/usr/bin/qemu-system-x86_64"), Engine::Qemu);
/// assert_eq!(Engine::of("/usr/bin/qemu-system-aarch64"), Engine::QemuArm64);
/// assert_eq!(Engine::QemuArm64.architecture(), Architecture::Arm64);
/// assert_eq!(Engine::of("com.docker.hyperkit"), Engine::HyperKit);
/// assert_eq!(Engine::Qemu.to_string(), "QEMU");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// The `hyperkit` command for Intel Macs.
    HyperKit,
    /// QEMU for x86-64 guests: `qemu-system-x86_64`, on Linux and macOS. Without KVM or HVF, and on hosts of another
    /// architecture, it emulates the CPU.
    Qemu,
    /// QEMU for arm64 guests: `qemu-system-aarch64`, on Linux and macOS. Without KVM or HVF, and on hosts of another
    /// architecture, it emulates the CPU.
    QemuArm64,
}

/// All engines, in the order in which their programs are searched. hyperkit comes last when the name of a program
/// decides, since it accepts every name.
const DRIVERS: [&dyn EngineDriver; 3] = [&hyperkit::Driver, &qemu::X86_64, &qemu::ARM64];

impl Engine {
    /// Returns the engine of a program with this file name. [`HyperKit::engine`] returns that of a description.
    #[must_use]
    pub fn of(program: impl AsRef<Path>) -> Self {
        let name = program.as_ref().file_name().unwrap_or_default().as_encoded_bytes();
        let named = DRIVERS.iter().rev().find(|driver| driver.accepts_program_name(name));
        named.map_or(Self::HyperKit, |driver| driver.engine())
    }

    /// Returns the architecture of the guests that the engine runs.
    #[must_use]
    pub fn architecture(self) -> Architecture {
        self.driver().architecture()
    }

    /// Returns the name of the first serial port in a Linux guest, for `console=` on the kernel command line. With it, one program
    /// boots kernels of all architectures.
    ///
    /// ```
    /// use hyperkit::{Engine, HyperKit};
    ///
    /// let description = HyperKit::new().hyperkit("qemu-system-aarch64").kernel("vmlinuz");
    /// let console = description.engine()?.kernel_console();
    /// assert_eq!(format!("console={console}"), "console=ttyAMA0");
    /// assert_eq!(Engine::Qemu.kernel_console(), "ttyS0");
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    #[must_use]
    pub fn kernel_console(self) -> &'static str {
        self.driver().kernel_console()
    }

    pub(crate) fn driver(self) -> &'static dyn EngineDriver {
        match self {
            Self::HyperKit => &hyperkit::Driver,
            Self::Qemu => &qemu::X86_64,
            Self::QemuArm64 => &qemu::ARM64,
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

/// The architecture of firmware of this length, in bytes: the lengths that the engines accept do not overlap.
pub(crate) fn architecture_of_firmware(length: u64) -> Option<Architecture> {
    let driver = DRIVERS.into_iter().find(|driver| driver.firmware().lengths.contains(&length));
    driver.map(|driver| driver.architecture())
}

/// The kernel command line of the last start. The description may have been changed since, so that another engine would run it.
pub(crate) fn recorded_cmdline(description: &HyperKit) -> Option<String> {
    let engines = std::iter::once(driver_of(description)).chain(DRIVERS);
    engines.into_iter().find_map(|driver| driver.recorded_cmdline(description))
}

/// The absolute path of the hypervisor: `wanted`, or else the first installed one for guests with this architecture. If the
/// architecture is not known, hypervisors for guests with the host's architecture are searched first.
pub(crate) fn find(wanted: Option<&Path>, architecture: Option<Architecture>) -> Result<PathBuf> {
    let candidates: Vec<&Path> = match wanted {
        Some(program) => vec![program],
        None => candidates(architecture),
    };
    let program = first_program(&candidates).map_err(|searched| Error::HypervisorNotFound { searched })?;
    if wanted.is_none() {
        let guests = match architecture {
            Some(architecture) => format!("for {architecture} guests"),
            None => "(those for the host come first, since no file tells the guest's architecture)".to_owned(),
        };
        let engine = Engine::of(&program);
        log::info!(target: "hyperkit", "using {engine}, the first installed engine {guests}: {}", program.display());
    }
    std::path::absolute(&program).map_err(Error::io("make absolute", &program))
}

/// The programs that are searched, in this order.
fn candidates(architecture: Option<Architecture>) -> Vec<&'static Path> {
    let mut drivers = Vec::from(DRIVERS);
    drivers.retain(|driver| driver.runs_on_this_host());
    match architecture {
        Some(architecture) => drivers.retain(|driver| driver.architecture() == architecture),
        None => drivers.sort_by_key(|driver| Some(driver.architecture()) != Architecture::host()),
    }
    // QEMU's engines both list `qemu-kvm`, which belongs to the engine for the host's architecture.
    let of_engine = |driver: &&'static dyn EngineDriver| {
        let engine = driver.engine();
        driver.default_programs().iter().map(Path::new).filter(move |program| Engine::of(program) == engine)
    };
    drivers.iter().flat_map(of_engine).collect()
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
