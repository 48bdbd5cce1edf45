//! The messages. The form is: what is wrong, a colon, the value or path, a semicolon, what to do.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::text::{VMLINUX_ADVICE, advice, list};
use crate::error::{ConfigError, Error, escape_control, text};
use crate::plan::limits::{MAX_CPUS, MIN_MEMORY_MIB};
use crate::{KernelFormat, LogTail};

impl Error {
    fn message(&self) -> String {
        match self {
            Self::InvalidConfig(violations) => {
                violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
            Self::InvalidArguments { argument, reason } => format!("invalid hyperkit argument {argument:?}: {reason}"),
            Self::HypervisorNotFound { searched } => {
                format!("no hypervisor found: {}; install hyperkit or QEMU, or set `hyperkit`", text::list(searched))
            }
            Self::DiskInUse { path } => {
                format!("disk image in use by another VM: {}; stop that VM or use another image", path.display())
            }
            Self::PortInUse { field, port, .. } => {
                let advice = if *field == "gdb_port" { "" } else { ", or 0 for any free port" }; // 0 is no port for a debugger
                format!("cannot bind port {port} of 127.0.0.1 for `{field}`; use another one{advice}")
            }
            Self::SocketInUse { path } => {
                format!(
                    "socket path in use: {}; stop its owner or choose another `vsock_dir` or network",
                    path.display()
                )
            }
            Self::NetworkNumberInUse { dir, number } => {
                format!("number {number} is in use by another VM of the network: {}; use another number", dir.display())
            }
            Self::DiskExists { path } => {
                format!("file exists: {}; remove it or use another path for the disk image", path.display())
            }
            Self::ImageToolFailed { tool, path, stderr } => {
                format!("{} failed for {}: {stderr}", tool.display(), path.display())
            }
            Self::AlreadyRunning { pid, state_dir } => {
                format!(
                    "VM already running as process {pid}: {}; stop it, or use another state directory",
                    state_dir.display()
                )
            }
            Self::StillRunning { pid, state_dir } => {
                format!("VM still running as process {pid}: {}; stop it first", state_dir.display())
            }
            Self::NotRunning { state_dir } => format!("VM not running{}", of(state_dir)),
            Self::CannotTell { path, .. } => match path {
                Some(path) => format!("cannot tell whether a VM is running or using {}", path.display()),
                None => "cannot tell whether the VM is running".to_owned(),
            },
            Self::StartTimedOut { timeout, state_dir, suspect, log_tail } => {
                let suspect = suspect.as_ref().map(|socket| format!("; VPNKit may not answer: {}", socket.display()));
                let (timeout, suspect) = (seconds(*timeout), suspect.unwrap_or_default());
                format!("VM not ready after {timeout} and killed{}{suspect}{}", of(state_dir), tail(log_tail))
            }
            Self::HypervisorFailed { exit, state_dir, log_tail } => {
                format!("hypervisor {exit}{}{}", of(state_dir), tail(log_tail))
            }
            Self::VsockDaemonFailed { program, log_tail } => {
                format!("vsock daemon did not start: {}{}", program.display(), tail(log_tail))
            }
            Self::VirtiofsdFailed { program, log_tail } => {
                format!("virtiofsd failed: {}{}", program.display(), tail(log_tail))
            }
            Self::Qmp { socket, reason } => format!("QMP error: {reason}: {}", socket.display()),
            Self::VsockConnectionRefused { port } => {
                format!("connection refused on the guest's vsock port {port}; the guest may not be ready")
            }
            Self::NoConsole { state_dir } => {
                format!(
                    "no serial port is connected to a pty{}; start the VM with `console` set to `Pty`",
                    of(state_dir)
                )
            }
            Self::NoConsoleLog { state_dir } => {
                format!("no serial port has a log{}; start the VM with `console` set to `Pty`", of(state_dir))
            }
            Self::PtyNotFound { path } => format!("pty not found: {}; the VM may not be running", path.display()),
            Self::ConsoleTextNotFound { text, exit, timeout, state_dir, log_tail } => {
                let reason = match exit {
                    Some(exit) => format!("VM {exit} while waiting"),
                    None => format!("timed out after {} waiting", seconds(*timeout)),
                };
                format!("{reason} for {text:?} on the console{}{}", of(state_dir), tail(log_tail))
            }
            Self::VmExited { program, exit, state_dir, log_tail } => {
                format!("VM {exit} while {program:?} ran{}{}", of(state_dir), tail(log_tail))
            }
            Self::CommandNotStarted { program, reason, .. } => format!("{reason}: {program:?}"),
            Self::CommandOutputTooLong { program, limit } => {
                format!("output of {program:?} longer than {limit} bytes; raise `output_limit` or use `spawn`")
            }
            Self::CopyFailed { from, to, .. } => format!("cannot copy {} to {}", from.display(), to.display()),
            Self::AgentFailed { reason, state_dir } => format!("agent in the guest failed: {reason}{}", of(state_dir)),
            Self::AgentNotResponding { timeout, is_paused, state_dir, log_tail } => {
                let (timeout, dir, tail) = (seconds(*timeout), of(state_dir), tail(log_tail));
                match is_paused {
                    true => format!("no answer from the agent after {timeout}; the VM is paused{dir}"),
                    false => format!(
                        "no answer from the agent after {timeout}{dir}; the guest may still boot or not run the agent, or \
                         another program may use the agent{tail}"
                    ),
                }
            }
            Self::CommandTimedOut { program, timeout, .. } => {
                format!("{program:?} did not end within {} and was killed", seconds(*timeout))
            }
            Self::Replaced { pid, successor, state_dir } => {
                format!("state directory of process {pid} belongs to process {successor} now: {}", state_dir.display())
            }
            Self::StateNotFound { path } => {
                format!("no saved state: {} not found; correct the path, or start the VM first", path.display())
            }
            Self::DamagedState { path, .. } => {
                format!("damaged state file: {}; start the VM again or remove the file", path.display())
            }
            Self::Io { action, path, .. } => format!("cannot {action} {}", path.display()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_control(&self.message()))?;
        if f.alternate() {
            let first = std::error::Error::source(self);
            for cause in std::iter::successors(first, |cause| cause.source()) {
                write!(f, ": {}", escape_control(&cause.to_string()))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateDirRequired { field } => {
                write!(f, "`{field}` requires a state directory; set `state_dir`")
            }
            Self::Missing { field: "kernel" } => {
                write!(f, "`kernel` is not set or empty; set `kernel`, `bootrom` or `multiboot`")
            }
            Self::Missing { field } => write!(f, "`{field}` is not set or empty"),
            Self::ForbiddenCharacter { field, value, character } => {
                write!(f, "`{field}` must not contain {character:?}: {value:?}")
            }
            Self::NotUtf8 { field, path } => write!(f, "`{field}` must be valid UTF-8: {path:?}"),
            Self::TooLong { field, value, length, limit } => {
                write!(f, "`{field}` must be at most {limit} bytes long, not {length}: {value:?}")
            }
            Self::InvalidIpv4 { value } => {
                write!(f, "`vpnkit_preferred_ipv4` must be an IPv4 address such as 192.168.65.10: {value:?}")
            }
            Self::InvalidMac { value } => {
                write!(f, "`mac` must be a unicast MAC address such as 02:00:00:00:00:01: {value:?}")
            }
            Self::InvalidUuid { field, value } => {
                let variant = if *field == "uuid" { ", with a fourth group from 0000 to dfff" } else { "" };
                write!(f, "`{field}` must be a UUID such as 01234567-89ab-cdef-0123-456789abcdef{variant}: {value:?}")
            }
            Self::InvalidCid { value, min, max } => write!(f, "`vsock_guest_cid` must be {min} to {max}: {value}"),
            Self::InvalidVsockPort { value, max } => write!(f, "`vsock_ports` must be at most {max}: {value}"),
            Self::DuplicateMountTag { tag } => {
                write!(f, "duplicate mount tag in `shares_9p` or `shares_virtiofs`: {tag:?}")
            }
            Self::DuplicateHostPort { port } => {
                write!(f, "duplicate host port in `port_forwards` and `gdb_port`: {port}; use 0 for any free port")
            }
            Self::InvalidInternalNetwork { path, reason } => {
                write!(f, "invalid network in `internal_networks`: {reason}: {}", path.display())
            }
            Self::ZeroPort { field } => write!(f, "`{field}` must be a port from 1 to 65535: 0"),
            Self::MissingPrerequisite { field, requires } => {
                write!(f, "`{field}` requires `{requires}`, which is not set; set both or neither")
            }
            Self::ConflictingBootSources { first, second } => {
                write!(f, "conflicting boot sources: set either `{first}` or `{second}`")
            }
            Self::CommandLineForRom { value } => {
                write!(f, "a boot ROM takes no kernel command line: {value:?}; pass an empty one")
            }
            Self::TooManyPorts { field, count, max } => {
                write!(f, "`{field}` must have at most {max} ports, not {count}")
            }
            Self::DuplicateStdio => write!(f, "only one of `serials` can use standard input and output"),
            Self::InvalidSectorSize { path, value } => write!(
                f,
                "sector sizes must be powers of two from 512 to 1073741824 bytes, logical at most physical: {value} for {}",
                path.display()
            ),
            Self::TooManyDevices { count, max } => {
                write!(f, "too many devices: {count} for {max} PCI slots; attach fewer `disks`, `isos` or `shares_9p`")
            }
            Self::InvalidCpus { value } => write!(f, "`cpus` must be 1 to {MAX_CPUS}: {value}"),
            Self::InvalidCpu { value } => write!(
                f,
                "`cpu` must be a CPU model of QEMU, with its features after commas, such as max or Nehalem,+rdrand: {value:?}"
            ),
            Self::InvalidMemory { value } => {
                write!(f, "`memory_mib` must be at least {MIN_MEMORY_MIB} MiB and fit into 63 bits of bytes: {value}")
            }
            Self::MemoryExceedsHost { value, host } => {
                write!(f, "`memory_mib` must be at most the host's {host} MiB on hyperkit: {value}")
            }
            Self::InvalidQcowOption { path, option, value } => {
                let form = if *option == "stats" { "`unix:PATH` or `tcp:PORT`" } else { "at most 9223372036854775807" };
                write!(f, "`{option}` of a qcow2 disk must be {form}: {value:?} for {}", path.display())
            }
            Self::InvalidDiskSize { path, value } => write!(
                f,
                "disk size must be at least 1 MiB and fit into 63 bits of bytes: {value} MiB for {}",
                path.display()
            ),
            Self::DuplicateDisk { path } => write!(
                f,
                "duplicate disk image in `disks`, their backing files or `isos`: {}; attach it once, or make all of them read-only",
                path.display()
            ),
            Self::RelativePath { field, path } => {
                write!(f, "`{field}` must be an absolute path for a qcow2 image on hyperkit: {}", path.display())
            }
            Self::UnknownSetting { key } => write!(
                f,
                "unsupported setting in hyperkit.json: `{key}`; remove it or start the VM with the program that wrote it"
            ),
            Self::UnsupportedUrl { field, url, reason } => {
                write!(f, "`{field}` must be a path or the URL of a file: {reason}: {}", url.display())
            }
            Self::MissingDiskPath => write!(f, "a disk without a path requires a size and a `state_dir`"),
            Self::Unsupported { engine, feature } => write!(f, "{engine} does not support {feature}"),
            Self::NotFound { field, path } => write!(f, "`{field}` not found: {}", path.display()),
            Self::DiskSizeMissing { path } => {
                write!(f, "disk image not found: {}; set a size to create it", path.display())
            }
            Self::NotAFile { field, path } => write!(f, "`{field}` must be a file: {}", path.display()),
            Self::NotADirectory { field, path } => write!(f, "`{field}` must be a directory: {}", path.display()),
            Self::Inaccessible { field, path, reason, .. } => {
                write!(f, "cannot access `{field}`: {}: {reason}", path.display())
            }
            Self::InvalidKernel { path, format: None, reason } => write!(
                f,
                "`kernel` must be a bzImage or vmlinux for x86-64, or an Image for arm64: {reason}: {}",
                path.display()
            ),
            Self::InvalidKernel { path, format: Some(format), reason } => write!(
                f,
                "unusable {format} in `kernel`: {reason}: {}{}",
                path.display(),
                if *format == KernelFormat::Vmlinux { VMLINUX_ADVICE } else { "" }
            ),
            Self::KernelForOtherArchitecture { path, architecture, engine } => write!(
                f,
                "`kernel` is for {architecture}, but {engine} runs {} guests: {}; use another kernel or engine",
                engine.architecture(),
                path.display(),
            ),
            Self::CompressedKernel { field, path, format, unpack } => {
                write!(f, "`{field}` is compressed with {format}: {}; unpack it with `{unpack}`", path.display())
            }
            Self::NotMultiboot { path, reason } => {
                write!(f, "`multiboot` must be a multiboot kernel: {reason}: {}", path.display())
            }
            Self::InvalidBootrom { path, architecture, reason } => {
                write!(f, "`bootrom` is not firmware for {architecture}: {}; {reason}", path.display())
            }
            Self::EmptyFile { field, path } => write!(f, "`{field}` is empty: {}", path.display()),
            Self::DoesNotFit { field, path, needed, max } => {
                write!(f, "`{field}` does not fit into memory: {}; {}", path.display(), advice(*needed, *max))
            }
            Self::CommandLineTooLong { length, limit } => write!(
                f,
                "kernel command line must be at most {limit} bytes long, not {length} (for a bzImage, `earlyprintk=serial` counts, too)"
            ),
            Self::VpnKitNotFound { searched } => write!(
                f,
                "no VPNKit socket found: {}; start Docker Desktop or set `network` to a VPNKit socket",
                list(searched)
            ),
            Self::ToolNotFound { field, searched } => {
                write!(f, "program for `{field}` not found: {}; install it or set its path", list(searched))
            }
            Self::DiskNotWritable { path, reason } => write!(
                f,
                "disk image is not writable: {}: {reason}; make the disk read-only or the file writable",
                path.display()
            ),
            Self::DiskShrinks { path, from, to } => write!(
                f,
                "cannot shrink disk image from {from} to {to} MiB: {}; use a size of at least {from} MiB",
                path.display()
            ),
            Self::NotQcow2 { path } => {
                write!(f, "disk image is not qcow2: {}; correct its format or leave it unset", path.display())
            }
            Self::InvalidQcow2 { path, reason } => write!(f, "unusable qcow2 image: {reason}: {}", path.display()),
            Self::ForeignImage { path, format } => write!(
                f,
                "disk image has the unsupported format {format}: {}; convert or unpack it, or set its format to raw",
                path.display()
            ),
            Self::DiskHasOverlay { path } => {
                write!(
                    f,
                    "cannot create or grow the base of an overlay: {}; use the disk without `overlay`",
                    path.display()
                )
            }
            Self::DiskHasBackingFile { path } => write!(
                f,
                "disk image has a backing file or external data file: {}; set its format to qcow2 to allow it",
                path.display()
            ),
        }
    }
}

/// `30 s` or `1500 ms`.
fn seconds(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{} s", duration.as_secs()),
        _ => format!("{} ms", duration.as_millis()),
    }
}

fn of(state_dir: &Option<PathBuf>) -> String {
    state_dir.as_ref().map_or(String::new(), |dir| format!(": {}", dir.display()))
}

fn tail(log_tail: &LogTail) -> String {
    if log_tail.is_empty() { String::new() } else { format!("; hypervisor output: {log_tail}") }
}
