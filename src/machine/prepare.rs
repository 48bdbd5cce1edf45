//! Prepares a start: locks the state directory, refuses images and ports that others use, creates and grows disks.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::disk::{DiskFormat, overlay_path};
use crate::config::record::Record;
use crate::config::{HyperKit, Protocol};
use crate::engine::driver_of;
use crate::error::{ConfigError, Error, Result};
use crate::plan::serial_ports::{Line, ports};
use crate::preflight::image;
use crate::preflight::image_format::DiskAction;
use crate::preflight::image_lock::{ImageLock, lock_disk, lock_image};
use crate::preflight::overlay;
use crate::process::Process;
use crate::state::{Lock, StateDir};
use crate::sys::path::canonical;

/// How long a hypervisor may take to finish or to exit after its starter was killed.
const UNFINISHED_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A state directory that is locked for a start.
pub(super) struct Acquired {
    pub lock: Lock,
    pub image_locks: Vec<ImageLock>,
    /// The directories that were created, innermost first.
    pub created: Vec<PathBuf>,
}

/// Locks the state directory and removes what the previous VM left. It is an error if a VM runs there, or if an image or a
/// port of the new VM is in use.
pub(super) fn acquire(state: &StateDir, description: &mut HyperKit) -> Result<Acquired> {
    let missing: Vec<_> = state.path().ancestors().take_while(|dir| !dir.exists()).collect();
    let lock = state.create_and_lock()?;
    let checked = check_idle(state, &lock).and_then(|record| Ok((record, refuse_resources_in_use(description)?)));
    let (record, image_locks) = checked.inspect_err(|_| {
        // Remove the directories that this call created. `remove_dir` keeps one that is not empty.
        missing.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    })?;
    state.clear_for_start(&lock)?;
    // `remove` may still delete the disks that this crate created for an earlier start.
    description.record.created_disks = record.map(|record| record.created_disks).unwrap_or_default();
    Ok(Acquired { lock, image_locks, created: missing.into_iter().map(Path::to_owned).collect() })
}

/// Returns the record of a state directory that the caller has locked. It is an error if a VM runs there.
pub(super) fn check_idle(state: &StateDir, lock: &Lock) -> Result<Option<Record>> {
    let recorded = state.load_if_recorded()?;
    let record = recorded.as_ref().map(|description| &description.record);
    let Some(process) = state.running_locked(record, lock)? else {
        return Ok(recorded.map(|description| description.record));
    };
    if recorded.is_some_and(|description| exits_unfinished(state, &description, &process)) {
        return check_idle(state, lock);
    }
    Err(Error::AlreadyRunning { pid: process.pid(), state_dir: state.path().to_owned() })
}

/// Whether a hypervisor exits before all its devices exist. The caller has the lock of the state directory, so the starter of an
/// unfinished one was killed. QEMU may then have lost its vsock daemon, and exits.
fn exits_unfinished(state: &StateDir, description: &HyperKit, process: &Process) -> bool {
    let deadline = Instant::now() + UNFINISHED_TIMEOUT;
    let ports = ports(description).unwrap_or_default();
    let is_finished = || ports.iter().all(|port| !matches!(port.line, Line::Pty(name) if !state.file(name).exists()));
    while description.record.pid == Some(process.pid()) && !is_finished() && Instant::now() < deadline {
        // For QEMU, this creates the missing files.
        let _ = driver_of(description).finish_start(description, state, process.pid(), UNFINISHED_TIMEOUT);
        if process.wait(Some(Instant::now() + POLL_INTERVAL)) {
            return true;
        }
    }
    false
}

/// Refuses images and ports that others use. The caller has checked that no VM of this state directory runs. While the
/// returned locks are held, no other start can use the images. The hypervisor takes its own locks.
pub(super) fn refuse_resources_in_use(description: &HyperKit) -> Result<Vec<ImageLock>> {
    let mut image_locks = Vec::new();
    for (index, disk) in description.disks.iter().enumerate() {
        let path = disk.image_path(index, description.state_dir.as_deref())?;
        image_locks.extend(lock_disk(disk, &path)?);
    }
    for iso in &description.isos {
        lock_image(iso, &DiskFormat::Raw, true)?;
    }
    let forwards = description.port_forwards.iter().map(|forward| ("port_forwards", forward.protocol, forward.host));
    let gdb = description.gdb_port.map(|port| ("gdb_port", Protocol::Tcp, port));
    for (field, protocol, port) in forwards.chain(gdb).filter(|(.., port)| *port != 0) {
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
            Protocol::Udp => UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
        };
        bound.map_err(|source| Error::PortInUse { field, port, source })?;
    }
    Ok(image_locks)
}

/// A disk's image and what has to be done to it.
pub(super) type DiskPlan = (PathBuf, DiskFormat, DiskAction);

/// Sets the path of each disk, and returns what has to be done to the images. Records those that will be created in the
/// state directory.
pub(super) fn plan_disks(description: &mut HyperKit, state: Option<&StateDir>) -> Result<Vec<DiskPlan>> {
    let mut plans = Vec::new();
    let created = &mut description.record.created_disks;
    for (index, disk) in description.disks.iter_mut().enumerate() {
        let path = disk.image_path(index, state.map(StateDir::path))?;
        disk.path = Some(path.clone());
        let action = DiskAction::plan(disk, &path)?;
        if let DiskAction::Create { .. } = action {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_in_state_dir = path.parent().map(canonical).as_deref() == state.map(StateDir::path);
            if is_in_state_dir && !created.contains(&name) {
                created.push(name);
            }
        }
        plans.push((path, disk.format_by_name(), action));
    }
    Ok(plans)
}

/// Creates and grows the images, and creates the overlays in `state_dir`. Adds the path of each created image to `created`, also if a
/// later image fails, and its lock to
/// `locks`: another start must not take the image before the hypervisor uses it.
pub(super) fn apply(
    plans: Vec<DiskPlan>,
    state_dir: Option<&Path>,
    created: &mut Vec<PathBuf>,
    locks: &mut Vec<ImageLock>,
) -> Result<()> {
    for (index, (path, format, action)) in plans.into_iter().enumerate() {
        match action {
            DiskAction::Nothing => {}
            DiskAction::CreateOverlay { length } => {
                let dir = state_dir.ok_or(ConfigError::StateDirRequired { field: "disks" })?;
                overlay::create(&overlay_path(dir, index), &path, &format, length)?;
            }
            DiskAction::Grow { size_mib } => image::grow(&path, &format, size_mib)?,
            DiskAction::Create { size_mib } => {
                image::create(&path, &format, size_mib).map_err(|error| match error {
                    Error::DiskExists { path } => Error::DiskInUse { path }, // another start was faster
                    error => error,
                })?;
                created.push(path.clone());
                locks.extend(lock_image(&path, &format, false)?);
            }
        }
    }
    Ok(())
}
