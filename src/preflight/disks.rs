//! Checks of the images of disks and of ISO images.

use std::fs::Metadata;
use std::io;
use std::io::Seek;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::config::HyperKit;
use crate::config::disk::{DiskFormat, QcowOptions, bytes};
use crate::config::file_url::is_url;
use crate::error::ConfigError;
use crate::plan::text::valid_path;
use crate::plan::validate::{Violations, reject_duplicates};
use crate::preflight::backing_files::used_files;
use crate::preflight::files::check_writable_dir;
use crate::preflight::image::tool_for;
use crate::preflight::image_format::DiskAction;
use crate::sys::file::{check_file_size_limit, inode, open};
use crate::sys::path::canonical;

type Result<T> = std::result::Result<T, ConfigError>;

fn is_file_or_device(metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    kind.is_file() || kind.is_block_device() || kind.is_char_device()
}

/// Refuses an image without content. On Linux, a device that is a disk has a length. On other systems only an ioctl returns
/// the length, so devices are accepted.
fn check_content(field: &'static str, path: &Path) -> Result<()> {
    let (mut file, metadata) = open(field, path, is_file_or_device)?;
    let length = match metadata.is_file() {
        true => Ok(metadata.len()),
        false if cfg!(target_os = "linux") => file.seek(io::SeekFrom::End(0)),
        false => return Ok(()),
    };
    match length.map_err(|error| ConfigError::inaccessible(field, path, &error))? {
        0 => Err(ConfigError::EmptyFile { field, path: path.to_owned() }),
        _ => Ok(()),
    }
}

pub(super) fn check_images(description: &HyperKit, found: &mut Violations) {
    let mut images = Vec::new();
    for iso in &description.isos {
        found.collect(valid_path("isos", iso).and_then(|iso| check_content("isos", iso)));
        images.push((iso.clone(), true));
    }
    for (index, disk) in description.disks.iter().enumerate() {
        let Ok(path) = disk.image_path(index, description.state_dir.as_deref()) else { continue };
        // Validation has refused it.
        if is_url(&path) {
            continue;
        }
        let is_empty_allowed =
            (disk.size_mib.is_some() && !disk.overlay) || matches!(disk.format, Some(DiskFormat::Qcow2(_)));
        let open_image = |path| match is_empty_allowed {
            true => open("disks", path, is_file_or_device).map(drop),
            false => check_content("disks", path),
        };
        let opened = match valid_path("disks", &path).and_then(open_image) {
            Err(error @ ConfigError::NotFound { .. }) if disk.overlay => Err(error),
            Err(ConfigError::NotFound { path, .. }) if disk.size_mib.is_none() => {
                Err(ConfigError::DiskSizeMissing { path })
            }
            Err(ConfigError::NotFound { path, .. }) => check_writable_dir("disks", path.parent().unwrap_or(&path)),
            opened => opened,
        };
        if found.collect(opened).is_some() {
            // hyperkit would silently attach the image read-only.
            let is_writable = |path: &Path| access(path, Access::EXISTS).is_err() || disk.only_reads_image();
            if let (false, Err(error)) = (is_writable(&path), access(&path, Access::WRITE_OK)) {
                let reason = io::Error::from(error).to_string();
                found.add(ConfigError::DiskNotWritable { path: path.clone(), reason });
            }
            if let Some(DiskFormat::Qcow2(_)) = disk.format {
                for file in found.collect(used_files(&path)).unwrap_or_default() {
                    found.collect(open("disks", &file.path, is_file_or_device));
                    images.push((file.path, disk.only_reads_image() || !file.is_written));
                }
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
            if let Some(DiskAction::Create { size_mib } | DiskAction::Grow { size_mib }) = action {
                let format = disk.format_by_name();
                if format == DiskFormat::Raw {
                    let limit = check_file_size_limit(bytes(size_mib).unwrap_or_default());
                    found.collect(limit.map_err(|error| ConfigError::inaccessible("disks", &path, &error)));
                }
                let tool = match &format {
                    DiskFormat::Qcow2(QcowOptions { tool: Some(tool), .. }) => valid_path("disks", tool).map(drop),
                    _ => Ok(()),
                };
                found.collect(tool.and_then(|()| tool_for(&format)));
            }
        }
        images.push((path, disk.only_reads_image()));
    }
    // Links can give one image several names.
    found.collect(reject_duplicates(&images, |path, other| match (inode(path), inode(other)) {
        (Some(one), Some(other)) => one == other,
        _ => canonical(path) == canonical(other),
    }));
}
