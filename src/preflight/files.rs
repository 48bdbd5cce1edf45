//! Checks of the files that a description names.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::config::disk::{DiskFormat, QcowOptions};
use crate::config::{HyperKit, Multiboot};
use crate::engine::driver_of;
use crate::error::ConfigError;
use crate::plan::kernel_cmdline::with_early_console;
use crate::plan::limits::MIN_MEMORY_MIB;
use crate::plan::text::valid_path;
use crate::plan::validate::{Violations, check_module_path, reject_duplicates};
use crate::preflight::image::tool_for;
use crate::preflight::image_format::DiskAction;
use crate::preflight::kernel::{PAGE, bz_image, check_multiboot_fits, multiboot_end};
use crate::sys::file::{inode, nonzero_length, open};
use crate::sys::path::canonical;

type Result<T> = std::result::Result<T, ConfigError>;

/// The length of a boot ROM, in bytes; it must be a multiple of pages.
const BOOTROM_BYTES: std::ops::RangeInclusive<u64> = PAGE..=16 * 1024 * 1024;

/// Checks the files that the description names.
pub(super) fn check_files(description: &HyperKit, found: &mut Violations) {
    if let Some(dir) = &description.state_dir {
        found.collect(valid_path("state_dir", dir).and_then(|dir| check_writable_dir("state_dir", dir)));
    }
    if let Some(dir) = &description.vsock_dir {
        found.collect(valid_path("vsock_dir", dir).and_then(check_vsock_dir));
    }
    check_kernel(description, found);
    if let Some(path) = &description.bootrom {
        found.collect(valid_path("bootrom", path).and_then(check_bootrom));
    }
    if let Some(multiboot) = &description.multiboot {
        found.extend(check_multiboot(description, multiboot, ""));
    }
    check_images(description, found);
}

/// The kernel command line must fit, with its final NUL, into what the kernel reserves for it. That of a multiboot kernel must
/// fit into memory.
pub(crate) fn check_cmdline_length(description: &HyperKit, cmdline: &str) -> Result<()> {
    if let Some(multiboot) = &description.multiboot {
        return check_multiboot(description, multiboot, cmdline).into_iter().next().map_or(Ok(()), Err);
    }
    let Some(kernel) = &description.kernel else { return Ok(()) };
    let (line, limit) = (with_early_console(cmdline), bz_image(kernel)?.cmdline_size.saturating_sub(1));
    if line.len() > limit {
        return Err(ConfigError::CommandLineTooLong { length: line.len(), limit });
    }
    Ok(())
}

fn check_vsock_dir(dir: &Path) -> Result<()> {
    let (field, path) = ("vsock_dir", dir.to_owned());
    match dir.is_dir() {
        true => check_writable_dir(field, dir),
        false if dir.exists() => Err(ConfigError::NotADirectory { field, path }),
        false => Err(ConfigError::NotFound { field, path }),
    }
}

fn check_kernel(description: &HyperKit, found: &mut Violations) {
    let kernel = description.kernel.as_ref().and_then(|path| {
        let kernel = valid_path("kernel", path).and_then(bz_image);
        Some((path, found.collect(kernel)?))
    });
    let initrd = description.initrd.as_ref().map(|path| {
        let length = valid_path("initrd", path).and_then(|path| nonzero_length("initrd", path));
        found.collect(length.map(|length| (path, length)))
    });
    let is_comparable = initrd.as_ref().is_none_or(Option::is_some) && description.memory_mib >= MIN_MEMORY_MIB;
    if let (Some((path, kernel)), true) = (kernel, is_comparable) {
        found.collect(kernel.check_fits(description.memory_mib, path, initrd.flatten()));
    }
}

fn check_bootrom(path: &Path) -> Result<()> {
    let length = open("bootrom", path, Metadata::is_file)?.1.len();
    match BOOTROM_BYTES.contains(&length) && length % PAGE == 0 {
        true => Ok(()),
        false => Err(ConfigError::InvalidBootrom { path: path.to_owned(), length }),
    }
}

fn check_multiboot(description: &HyperKit, multiboot: &Multiboot, cmdline: &str) -> Violations {
    let mut found = Violations::default();
    let is_copied_whole = driver_of(description).copies_multiboot_elf_whole();
    let end = valid_path("multiboot", &multiboot.kernel).and_then(|kernel| multiboot_end(kernel, is_copied_whole));
    let end = found.collect(end);
    let lengths = multiboot.modules.iter().map(|module| {
        let path = module.path.as_path();
        let length = check_module_path(path).and_then(|_| nonzero_length("multiboot", path));
        found.collect(length).map(|length| (module, length))
    });
    let modules: Vec<_> = lengths.collect();
    let memory_mib = description.memory_mib;
    let modules = modules.into_iter().collect::<Option<Vec<_>>>().filter(|_| memory_mib >= MIN_MEMORY_MIB);
    if let (Some(end), Some(modules)) = (end, modules) {
        found.collect(check_multiboot_fits(memory_mib, &multiboot.kernel, end, &modules, cmdline));
    }
    found
}

fn check_images(description: &HyperKit, found: &mut Violations) {
    let is_file_or_device = |metadata: &Metadata| {
        let kind = metadata.file_type();
        kind.is_file() || kind.is_block_device() || kind.is_char_device()
    };
    let mut images = Vec::new();
    for iso in &description.isos {
        found.collect(valid_path("isos", iso).and_then(|iso| open("isos", iso, is_file_or_device)));
        images.push((iso.clone(), true));
    }
    for (index, disk) in description.disks.iter().enumerate() {
        let Ok(path) = disk.image_path(index, description.state_dir.as_deref()) else { continue };
        let opened = match valid_path("disks", &path).and_then(|path| open("disks", path, is_file_or_device)) {
            Err(ConfigError::NotFound { path, .. }) if disk.size_mib.is_none() => {
                Err(ConfigError::DiskSizeMissing { path })
            }
            Err(ConfigError::NotFound { path, .. }) => check_writable_dir("disks", path.parent().unwrap_or(&path)),
            opened => opened.map(drop),
        };
        if found.collect(opened).is_some() {
            // hyperkit would silently attach the image read-only.
            let is_writable = |path: &Path| access(path, Access::EXISTS).is_err() || disk.read_only;
            if let (false, Err(error)) = (is_writable(&path), access(&path, Access::WRITE_OK)) {
                let reason = io::Error::from(error).to_string();
                found.add(ConfigError::DiskNotWritable { path: path.clone(), reason });
            }
            let action = found.collect(DiskAction::plan(disk, &path).and_then(|action| {
                let is_in_state_dir = path.parent() == description.state_dir.as_deref();
                match action {
                    // The description did not choose the file that a link in the state directory leads to.
                    DiskAction::Grow { .. } if is_in_state_dir && path.is_symlink() => {
                        let reason = "a symlink in the state directory, whose image is not grown; set the image's path";
                        Err(ConfigError::inaccessible("disks", &path, &io::Error::other(reason)))
                    }
                    action => Ok(action),
                }
            }));
            if action.is_some_and(|action| action != DiskAction::Nothing) {
                let format = disk.format_by_name();
                let tool = match &format {
                    DiskFormat::Qcow2(QcowOptions { tool: Some(tool), .. }) => valid_path("disks", tool).map(drop),
                    _ => Ok(()),
                };
                found.collect(tool.and_then(|()| tool_for(&format)));
            }
        }
        images.push((path, disk.read_only));
    }
    // Links can give one image several names.
    found.collect(reject_duplicates(&images, |path, other| match (inode(path), inode(other)) {
        (Some(one), Some(other)) => one == other,
        _ => canonical(path) == canonical(other),
    }));
}

/// Checks whether files can be created in the directory. If it does not exist, the nearest existing directory above it counts.
fn check_writable_dir(field: &'static str, dir: &Path) -> Result<()> {
    for existing in dir.ancestors() {
        match existing.metadata() {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(ConfigError::NotADirectory { field, path: existing.to_owned() });
            }
            Ok(_) => {
                let allowed = access(existing, Access::WRITE_OK | Access::EXEC_OK);
                return allowed.map_err(|error| ConfigError::inaccessible(field, existing, &error.into()));
            }
            // No directory can be created at a dangling symlink.
            Err(error) if error.kind() != io::ErrorKind::NotFound || existing.is_symlink() => {
                return Err(ConfigError::inaccessible(field, existing, &error));
            }
            Err(_) => {}
        }
    }
    Ok(())
}
