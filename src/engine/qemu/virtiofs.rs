//! Directories of the host that a QEMU guest mounts by virtiofs: a `virtiofsd` for each.
//!
//! There are two programs of this name. The older one, in C, is a part of QEMU 5.0 to 7.2. The other one is written in Rust.

use std::path::{Path, PathBuf};

use crate::config::{HyperKit, ShareVirtiofs};
use crate::engine::driver::{DAEMON_FD, Daemon, DaemonSocket};
use crate::engine::qemu::machine::unsupported;
use crate::engine::qemu::vsock_device;
use crate::error::ConfigError;
use crate::plan::text::{utf8, valid_path};
use crate::state::{LIFETIME_FIFO, StateDir};
use crate::sys::elf::needed_libraries;
use crate::sys::find_program::first_program;

/// Where distributions have it: Debian 13, Fedora; Debian 12 (in C); Arch.
const PROGRAMS: [&str; 4] = ["virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];
/// A library with which the program in C is linked, as all of QEMU is.
const QEMU_LIBRARY: &str = "libglib-2.0.so";
/// The number of requests that the guest can have open at once. QEMU's default is 128; the manual of virtiofsd uses this.
const QUEUE_SIZE: &str = "1024";

/// The path of virtiofsd, if the VM needs it.
pub(super) fn find_daemon(description: &HyperKit) -> Result<Option<PathBuf>, ConfigError> {
    if description.shares_virtiofs.is_empty() {
        return Ok(None);
    }
    let candidates: Vec<&Path> = match &description.virtiofsd {
        Some(program) => vec![program],
        None => PROGRAMS.iter().map(Path::new).collect(),
    };
    let found = first_program(&candidates);
    found.map(Some).map_err(|searched| ConfigError::ToolNotFound { field: "virtiofsd", searched })
}

/// Whether this is the program in C. Reading the file takes microseconds; running it to ask takes much longer.
fn is_in_c(program: &Path) -> bool {
    let libraries = needed_libraries(program).unwrap_or_default();
    libraries.iter().any(|library| library.starts_with(QEMU_LIBRARY))
}

/// Reports the shares that this host cannot serve.
pub(super) fn check_host(description: &HyperKit) -> Vec<ConfigError> {
    let shares = &description.shares_virtiofs;
    if shares.is_empty() {
        return Vec::new();
    }
    if !cfg!(target_os = "linux") {
        return vec![unsupported("virtiofs on this operating system (`shares_virtiofs`); use `share_dir`")];
    }
    let mut found = Vec::new();
    for share in shares.iter().filter(|share| valid_path("shares_virtiofs", &share.path).is_ok()) {
        let (field, path) = ("shares_virtiofs", share.path.clone());
        match share.path.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => found.push(ConfigError::NotADirectory { field, path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                found.push(ConfigError::NotFound { field, path });
            }
            Err(error) => found.push(ConfigError::inaccessible(field, path, &error)),
        }
    }
    if description.virtiofsd.as_deref().is_some_and(is_in_c) {
        // It would fail only when QEMU connects.
        if !rustix::process::geteuid().is_root() {
            found.push(unsupported(
                "the virtiofsd in C, which requires root (`virtiofsd`); use the one in Rust, or `share_dir`",
            ));
        }
        if shares.iter().any(|share| share.read_only) {
            found.push(unsupported(
                "a read-only share with the virtiofsd in C (`shares_virtiofs`); use the one in Rust",
            ));
        }
    }
    found
}

/// Whether a daemon shares the guest's memory.
pub(super) fn shares_memory(description: &HyperKit) -> bool {
    vsock_device::uses_daemon(description) || !description.shares_virtiofs.is_empty()
}

/// QEMU's arguments for all daemons: the guest's memory, which they share, and the FIFO that keeps them alive.
pub(super) fn arguments_for_daemons(description: &HyperKit, state_dir: &str) -> [(&'static str, String); 2] {
    [
        ("-object", format!("memory-backend-memfd,id=mem0,size={}M,share=on", description.memory_mib)),
        ("-chardev", format!("pipe,id=daemons,path={state_dir}/{LIFETIME_FIFO}")),
    ]
}

/// QEMU's arguments for a share.
pub(super) fn arguments(share: &ShareVirtiofs, index: usize, state_dir: &str, at: &str) -> [(&'static str, String); 2] {
    let (tag, socket) = (&share.tag, socket_name(index));
    [
        ("-chardev", format!("socket,id=fs{index},path={state_dir}/{socket}")),
        ("-device", format!("vhost-user-fs-pci,chardev=fs{index},tag={tag},queue-size={QUEUE_SIZE},{at}")),
    ]
}

/// The daemon of each share.
pub(super) fn daemons(description: &HyperKit, state: &StateDir) -> Result<Vec<Daemon>, ConfigError> {
    let Some(program) = &description.virtiofsd else { return Ok(Vec::new()) };
    let is_in_c = is_in_c(program);
    let shares = description.shares_virtiofs.iter().enumerate();
    let daemon = |(index, share): (usize, &ShareVirtiofs)| {
        let path = utf8("shares_virtiofs", &share.path)?;
        let mut arguments = vec![format!("--fd={DAEMON_FD}")];
        if is_in_c {
            // In its options, a backslash escapes the next character. Validation refuses commas. Without the last option, files of
            // several file systems in the directory could have the same inode number.
            let source = format!("source={}", path.replace('\\', r"\\"));
            arguments.extend(["-f", "-o", &source, "-o", "announce_submounts"].map(str::to_owned));
        } else {
            arguments.push(format!("--shared-dir={path}"));
            arguments.extend(share.read_only.then(|| "--readonly".to_owned()));
        }
        let socket = DaemonSocket::Passed(state.file(socket_name(index)));
        Ok(Daemon { program: program.clone(), arguments, socket })
    };
    shares.map(daemon).collect()
}

/// The program, if the log has the line with which its shell reports that it has failed.
pub(super) fn failed(description: &HyperKit, log: &str) -> Option<PathBuf> {
    let program = description.virtiofsd.as_ref()?;
    let line = format!("{}: exited with status ", program.display());
    log.lines().any(|logged| logged.starts_with(&line)).then(|| program.clone())
}

/// The socket of a share in the state directory.
fn socket_name(index: usize) -> String {
    format!("fs{index}.sock")
}

/// Whether a file has a name that [`socket_name`] gives.
pub(super) fn is_socket_name(name: &str) -> bool {
    let index = name.strip_prefix("fs").and_then(|name| name.strip_suffix(".sock"));
    index.is_some_and(|index| index.parse::<u8>().is_ok())
}
