//! What can be told of a description by looking at the files it names.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};

use crate::config::{HyperKit, VpnKit};
use crate::error::{Error, Result};
use crate::plan::kernel_cmdline::kernel_command_line;
use crate::plan::validate::not_twice;
use crate::preflight::image;
use crate::preflight::image_format::Work;
use crate::preflight::kernel::multiboot;
use crate::preflight::kernel::{PAGE, bz_image, multiboot_fits};
use crate::sys::file::{inode, not_empty, open};
use crate::sys::path::canonical;
use crate::sys::unix_socket::connect;

/// A boot ROM, in bytes, of which it has whole pages.
const BOOTROM: std::ops::RangeInclusive<u64> = PAGE..=16 * 1024 * 1024;

/// The files that the description names.
pub(super) fn files(machine: &HyperKit) -> Result<()> {
    if let Some(dir) = &machine.state_dir {
        directory("state_dir", dir)?;
    }
    if let Some(dir) = &machine.vsock_dir {
        if !dir.is_dir() {
            return Err(match dir.exists() {
                true => Error::NotADirectory { field: "vsock_dir", path: dir.clone() },
                false => Error::NotFound { field: "vsock_dir", path: dir.clone() },
            });
        }
        directory("vsock_dir", dir)?;
    }
    let initrd = machine.initrd.as_ref().map(|path| Ok((path, not_empty("initrd", path)?))).transpose()?;
    if let Some(path) = &machine.kernel {
        let kernel = bz_image(path)?;
        kernel.fits(machine.memory, path, initrd)?;
    }
    if let Some(path) = &machine.bootrom {
        let (_, metadata) = open("bootrom", path, Metadata::is_file)?;
        if !BOOTROM.contains(&metadata.len()) || metadata.len() % PAGE != 0 {
            return Err(Error::InvalidBootrom { path: path.clone(), length: metadata.len() });
        }
    }
    if let Some(image) = &machine.multiboot {
        let end = multiboot(&image.kernel)?;
        let modules = image.modules.iter().map(|module| {
            let path = module.path.as_path();
            Ok((path, not_empty("multiboot", path)?))
        });
        multiboot_fits(machine.memory, &image.kernel, end, &modules.collect::<Result<Vec<_>>>()?)?;
    }
    let file_or_device = |metadata: &Metadata| {
        let kind = metadata.file_type();
        kind.is_file() || kind.is_block_device() || kind.is_char_device()
    };
    let mut images = Vec::new();
    for iso in &machine.isos {
        open("isos", iso, file_or_device)?;
        images.push((iso.clone(), true));
    }
    for (index, image) in machine.disks.iter().enumerate() {
        let path = image.place(index, machine.state_dir.as_deref())?;
        match open("disks", &path, file_or_device) {
            Err(Error::NotFound { path, .. }) if image.size.is_none() => return Err(Error::DiskSizeMissing { path }),
            Err(Error::NotFound { path, .. }) => directory("disks", path.parent().unwrap_or(&path))?,
            opened => drop(opened?),
        }
        // hyperkit would take it read-only without a word.
        if let (false, Ok(()), Err(source)) =
            (image.read_only, access(&path, Access::EXISTS), access(&path, Access::WRITE_OK))
        {
            return Err(Error::DiskNotWritable { path, source: source.into() });
        }
        if Work::on(image, &path)? != Work::Nothing {
            image::tool_for(&image.format_by_name())?;
        }
        images.push((path, image.read_only));
    }
    // One image has several names where there are links.
    not_twice(&images, |path, other| match (inode(path), inode(other)) {
        (Some(one), Some(other)) => one == other,
        _ => canonical(path) == canonical(other),
    })?;
    match &machine.vpnkit {
        VpnKit::Socket(path) if !path.exists() => Err(Error::NotFound { field: "vpnkit", path: path.clone() }),
        // With nobody listening hyperkit would try for ever, and not say so.
        VpnKit::Socket(path) => match connect(path, Duration::ZERO) {
            // Somebody who has much to do.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            connected => {
                let inaccessible = |source| Error::Inaccessible { field: "vpnkit", path: path.clone(), source };
                connected.map(drop).map_err(inaccessible)
            }
        },
        _ => Ok(()),
    }
}

/// A directory, or as much as there is of it, has to be one to make files in.
fn directory(field: &'static str, dir: &Path) -> Result<()> {
    for existing in dir.ancestors() {
        match existing.metadata() {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Error::NotADirectory { field, path: existing.to_owned() });
            }
            Ok(_) => {
                return access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| Error::Inaccessible {
                    field,
                    path: existing.to_owned(),
                    source: error.into(),
                });
            }
            // A link that leads nowhere is no place to make a directory at.
            Err(source) if source.kind() != io::ErrorKind::NotFound || existing.is_symlink() => {
                return Err(Error::Inaccessible { field, path: existing.to_owned(), source });
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// The kernel's command line has to fit, with its final NUL, into what the kernel has room for.
pub(crate) fn command_line(machine: &HyperKit, cmdline: &str) -> Result<()> {
    let Some(kernel) = &machine.kernel else { return Ok(()) };
    let (line, limit) = (kernel_command_line(cmdline), bz_image(kernel)?.cmdline_size.saturating_sub(1));
    if line.len() > limit {
        return Err(Error::CommandLineTooLong { length: line.len(), limit });
    }
    Ok(())
}
