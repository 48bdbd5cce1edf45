//! What is made ready before the program is started: the state directory, the images, and nobody in the way.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;

use crate::config::disk::Format;
use crate::config::{HyperKit, Protocol};
use crate::error::{Error, Result};
use crate::preflight::image;
use crate::preflight::image_format::Work;
use crate::preflight::image_lock::Held;
use crate::preflight::image_lock::refuse_if_in_use;
use crate::state::{Lock, StateDir};
use crate::sys::path::canonical;

/// Makes the state directory ours, if no machine runs there and nobody else uses what this one needs, and clears away what
/// the last one left.
pub(crate) fn claim(state: &StateDir, machine: &mut HyperKit) -> Result<(Lock, Vec<Held>)> {
    let missing: Vec<_> = state.path().ancestors().take_while(|dir| !dir.exists()).collect();
    let lock = state.create_and_lock()?;
    let recorded = state.load().ok();
    if let Some(process) = state.running(recorded.as_ref()) {
        return Err(Error::AlreadyRunning { pid: process.pid() });
    }
    let held = refuse_what_others_use(machine).inspect_err(|_| {
        // Those that were made for it; what somebody has put there in the meantime keeps them.
        missing.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    })?;
    state.prepare(&lock)?;
    // What this crate has made there before is still its own.
    for name in recorded.into_iter().flat_map(|recorded| recorded.made_disks) {
        if !machine.made_disks.contains(&name) {
            machine.made_disks.push(name);
        }
    }
    Ok((lock, held))
}

/// Refuses images and ports that another machine, or whoever, uses. Our own does not run: that was looked at before. What
/// this returns keeps others away from the images until the program has them.
pub(crate) fn refuse_what_others_use(machine: &HyperKit) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for (index, disk) in machine.disks.iter().enumerate() {
        let path = disk.place(index, machine.state_dir.as_deref())?;
        held.extend(refuse_if_in_use(&path, &disk.format_by_name(), disk.read_only)?);
    }
    for iso in &machine.isos {
        refuse_if_in_use(iso, &Format::Raw, true)?;
    }
    let forwards = machine.port_forwards.iter().map(|forward| ("port_forwards", forward.protocol, forward.host));
    let gdb = machine.gdb_port.map(|port| ("gdb_port", Protocol::Tcp, port));
    for (field, protocol, port) in forwards.chain(gdb).filter(|(.., port)| *port != 0) {
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
            Protocol::Udp => UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
        };
        bound.map_err(|source| Error::PortTaken { field, port, source })?;
    }
    Ok(held)
}

/// Gives each disk its path, and returns what is to be done to them. Of those that are to be made in the state directory a
/// record is kept.
pub(crate) fn work_on_disks(machine: &mut HyperKit, state: Option<&StateDir>) -> Result<Vec<(PathBuf, Format, Work)>> {
    let mut all = Vec::new();
    for (index, disk) in machine.disks.iter_mut().enumerate() {
        let path = disk.place(index, state.map(StateDir::path))?;
        disk.path = Some(path.clone());
        let work = Work::on(disk, &path)?;
        if let Work::Make { .. } = work {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.parent().map(canonical).as_deref() == state.map(StateDir::path)
                && !machine.made_disks.contains(&name)
            {
                machine.made_disks.push(name);
            }
        }
        all.push((path, disk.format_by_name(), work));
    }
    Ok(all)
}

/// Makes and grows the images.
pub(crate) fn do_work(
    work: Vec<(PathBuf, Format, Work)>,
    machine: &mut HyperKit,
    state: Option<&StateDir>,
) -> Result<()> {
    for (path, format, work) in work {
        match work {
            Work::Nothing => Ok(()),
            Work::Grow { mebibytes } => image::grow(&path, &format, mebibytes),
            Work::Make { mebibytes } => image::create(&path, &format, mebibytes).inspect_err(|_| {
                // What somebody else has made in the meantime is not ours.
                machine.made_disks.retain(|name| Some(OsStr::new(name)) != path.file_name());
                let _ = state.map(|state| state.save(machine));
            }),
        }?;
    }
    Ok(())
}
