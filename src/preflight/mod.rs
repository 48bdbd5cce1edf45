//! What a start does first: it checks the description, the files and programs that it names, and the host. Disk images are
//! here, too, which a start creates, grows and locks.

pub(crate) mod backing_files;
pub(crate) mod disks;
pub(crate) mod files;
pub(crate) mod image;
pub(crate) mod image_format;
pub(crate) mod image_header;
pub(crate) mod image_lock;
pub(crate) mod kernel;
pub(crate) mod multiboot;
pub(crate) mod overlay;
mod own_files;
pub(crate) mod qcow2_header;

use std::path::{Path, PathBuf};

use crate::config::{Architecture, HyperKit};
use crate::engine::{self, driver_of};
use crate::error::{ConfigError, Error, Result};
use crate::plan::validate::{Violations, validate};
use crate::sys::path::{canonical, make_absolute, make_program_absolute};

use files::check_files;
use image_format::found_format;

/// The description as it would be started, if it passes all checks.
pub(crate) fn checked(description: &HyperKit) -> Result<HyperKit> {
    let (description, mut violations, not_found) = resolve(description)?;
    if not_found.is_none() {
        let driver = driver_of(&description);
        violations.extend(driver.unsupported(&description));
        violations.extend(driver.check_host(&description));
    }
    check_files(&description, &mut violations);
    violations.into_result()?;
    not_found.map_or(Ok(description), Err)
}

/// The description as it would be started, if everything is found.
pub(crate) fn resolved(description: &HyperKit) -> Result<HyperKit> {
    let (description, violations, not_found) = resolve(description)?;
    violations.into_result()?;
    not_found.map_or(Ok(description), Err)
}

/// Resolves the description, even if parts of it are not valid. Returns also the violations that it finds, and the error if the
/// hypervisor is missing.
fn resolve(description: &HyperKit) -> Result<(HyperKit, Violations, Option<Error>)> {
    let mut resolved = description.clone();
    let urls = resolved.replace_urls(|disk| found_format(disk, disk.path.as_deref().unwrap_or(Path::new(""))));
    resolved.paths_mut().try_for_each(make_absolute)?;
    resolved.programs_mut().try_for_each(make_program_absolute)?;
    if let Some(dir) = &mut resolved.state_dir {
        make_absolute(dir)?;
        *dir = canonical(dir);
    }
    if let crate::config::Network::VpnKit(socket) = &mut resolved.network {
        make_absolute(socket)?;
    }
    resolved.relocate_disks();
    let mut violations = validate(&resolved);
    violations.extend(urls);
    for path in &description.record.home.relative_disks {
        if description.disks.iter().any(|disk| disk.path.as_ref() == Some(path)) && !path.exists() {
            violations.add(ConfigError::NotFound { field: "disks", path: path.clone() });
        }
    }
    let not_found = match find_hypervisor(description) {
        Ok(program) => {
            resolved.hyperkit = Some(program);
            let driver = driver_of(&resolved);
            violations.collect(driver.resolve(&mut resolved));
            None
        }
        Err(error) => Some(error),
    };
    for index in 0..resolved.disks.len() {
        let disk = &resolved.disks[index];
        let Ok(path) = disk.image_path(index, resolved.state_dir.as_deref()) else { continue };
        if let Some(format) = violations.collect(found_format(disk, &path)) {
            let disk = &mut resolved.disks[index];
            // The default path depends on the format. The file that was probed must stay the disk's image.
            if disk.format.is_none() {
                disk.path = Some(path);
            }
            disk.format = Some(format);
        }
    }
    Ok((resolved, violations, not_found))
}

/// The absolute path of the hypervisor of a description. If the description names none, the kernel's architecture decides which engines
/// are searched.
pub(crate) fn find_hypervisor(description: &HyperKit) -> Result<PathBuf> {
    let architecture = match (&description.hyperkit, &description.multiboot, &description.kernel) {
        (None, Some(_), _) => Some(Architecture::X86_64),
        (None, None, Some(kernel)) => kernel::read(kernel).ok().map(|kernel| kernel.architecture()),
        (None, None, None) => {
            let length = description.bootrom.as_ref().and_then(|rom| Some(rom.metadata().ok()?.len()));
            length.and_then(engine::architecture_of_firmware)
        }
        _ => None,
    };
    engine::find(description.hyperkit.as_deref(), architecture)
}

/// A little-endian number of `length` bytes; missing bytes are 0.
fn little_endian(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes.iter().skip(at).take(length).rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}
