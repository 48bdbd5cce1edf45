//! Checks of the files that a description names.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::config::{HyperKit, Multiboot};
use crate::engine::{EngineDriver, FirmwareStart, driver_of};
use crate::error::ConfigError;
use crate::plan::kernel_cmdline::with_early_console;
use crate::plan::limits::{MIN_MEMORY_MIB, PAGE};
use crate::plan::root::with_root;
use crate::plan::text::valid_path;
use crate::plan::validate::{Violations, check_module_path};
use crate::preflight::disks::check_images;
use crate::preflight::kernel::{self, KernelFormat};
use crate::preflight::multiboot::{check_multiboot_fits, multiboot_end};
use crate::preflight::own_files::check_inputs_are_kept;
use crate::state::JSON_FILE;
use crate::sys::file::{nonzero_length, open};
use crate::sys::path::canonical;

type Result<T> = std::result::Result<T, ConfigError>;

/// Checks the files that the description names.
pub(super) fn check_files(description: &HyperKit, found: &mut Violations) {
    if let Some(dir) = &description.state_dir {
        found.collect(valid_path("state_dir", dir).and_then(|dir| check_writable_dir("state_dir", dir)));
    }
    if let Some(dir) = &description.vsock_dir {
        found.collect(valid_path("vsock_dir", dir).and_then(check_vsock_dir));
    }
    for network in &description.internal_networks {
        let dir = found.collect(valid_path("internal_networks", &network.dir).and_then(check_network_dir));
        // A start locks the state directory and the network's, and would wait for itself.
        let is_state_dir = || description.state_dir.as_deref() == Some(&canonical(&network.dir));
        if dir.is_some() && (is_state_dir() || network.dir.join(JSON_FILE).exists()) {
            let reason = "its directory must not be a state directory";
            found.add(ConfigError::InvalidInternalNetwork { path: network.dir.clone(), reason });
        }
    }
    check_kernel(description, found);
    if let Some(path) = &description.bootrom {
        found.collect(valid_path("bootrom", path).and_then(|path| check_bootrom(path, found_driver(description))));
    }
    if let Some(multiboot) = &description.multiboot {
        found.extend(check_multiboot(description, multiboot, ""));
    }
    check_images(description, found);
    check_inputs_are_kept(description, found);
}

/// Checks that the kernel command line, with its final NUL, fits into the space that the kernel reserves for it. The command line of
/// a multiboot kernel must fit into memory.
pub(crate) fn check_cmdline_length(description: &HyperKit, cmdline: &str) -> Result<()> {
    if let Some(multiboot) = &description.multiboot {
        return check_multiboot(description, multiboot, cmdline).into_iter().next().map_or(Ok(()), Err);
    }
    let Some(kernel) = &description.kernel else { return Ok(()) };
    let kernel = kernel::read(kernel)?;
    let cmdline = with_root(description, cmdline);
    // Only hyperkit gets the early console, and it boots only bzImages.
    let length = match kernel.format() {
        KernelFormat::BzImage => with_early_console(description, &cmdline).len(),
        _ => cmdline.len(),
    };
    let limit = kernel.longest_cmdline();
    if length > limit { Err(ConfigError::CommandLineTooLong { length, limit }) } else { Ok(()) }
}

fn check_vsock_dir(dir: &Path) -> Result<()> {
    let (field, path) = ("vsock_dir", dir.to_owned());
    match dir.is_dir() {
        true => check_writable_dir(field, dir),
        false if dir.exists() => Err(ConfigError::NotADirectory { field, path }),
        false => Err(ConfigError::NotFound { field, path }),
    }
}

/// Checks that a directory of a network can be created, or that it exists and nobody else can add or replace sockets in it.
pub(crate) fn check_network_dir(dir: &Path) -> Result<()> {
    let field = "internal_networks";
    check_writable_dir(field, dir)?;
    match dir.metadata() {
        // Mode bits of write access for group and others.
        Ok(metadata) if metadata.mode() & 0o022 != 0 || metadata.uid() != geteuid().as_raw() => {
            let reason = "its directory must belong to you, and nobody else may write to it; set its mode to 0700";
            Err(ConfigError::InvalidInternalNetwork { path: dir.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// The engine's driver. `None` if no hypervisor is set and none is installed: then it is unknown what the VM needs.
fn found_driver(description: &HyperKit) -> Option<&'static dyn EngineDriver> {
    description.hyperkit.is_some().then(|| driver_of(description))
}

fn check_kernel(description: &HyperKit, found: &mut Violations) {
    let driver = found_driver(description);
    let kernel = description.kernel.as_ref().and_then(|path| {
        let kernel = valid_path("kernel", path).and_then(kernel::read);
        let checked = kernel.and_then(|kernel| {
            if let Some(driver) = driver {
                kernel.check_engine(driver)?;
                if kernel.has_pages_of_16_kib() {
                    driver.check_pages_of_16_kib(description)?;
                }
            }
            Ok(kernel)
        });
        found.collect(checked)
    });
    let initrd = description.initrd.as_ref().map(|path| {
        let length = valid_path("initrd", path).and_then(|path| nonzero_length("initrd", path));
        found.collect(length.map(|length| (path, length)))
    });
    let is_comparable = initrd.as_ref().is_none_or(Option::is_some) && description.memory_mib >= MIN_MEMORY_MIB;
    if let (Some(kernel), Some(driver), true) = (kernel, driver, is_comparable) {
        found.collect(kernel.check_fits(driver, description.memory_mib, initrd.flatten()));
    }
}

/// Checks a boot ROM. Without a driver, the crate cannot tell which firmware the VM needs, and checks only that the file is readable.
fn check_bootrom(path: &Path, driver: Option<&dyn EngineDriver>) -> Result<()> {
    let (file, metadata) = open("bootrom", path, Metadata::is_file)?;
    let Some(driver) = driver else { return Ok(()) };
    let rules = driver.firmware();
    let mut start = [0; 4];
    let is_long_enough = match rules.start {
        FirmwareStart::Beginning => file.read_exact_at(&mut start, 0),
        FirmwareStart::End => file.read_exact_at(&mut start, metadata.len().saturating_sub(FirmwareStart::END_BYTES)),
    };
    let invalid = |reason| {
        Err(ConfigError::InvalidBootrom { path: path.to_owned(), architecture: driver.architecture(), reason })
    };
    match is_long_enough {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => invalid(rules.length_rule),
        Err(error) => Err(ConfigError::inaccessible("bootrom", path, &error)),
        Ok(()) if !rules.start.is_code(start) => invalid(rules.start.rule()),
        Ok(()) if !rules.lengths.contains(&metadata.len()) || metadata.len() % PAGE != 0 => invalid(rules.length_rule),
        Ok(()) => Ok(()),
    }
}

fn check_multiboot(description: &HyperKit, multiboot: &Multiboot, cmdline: &str) -> Violations {
    let mut found = Violations::default();
    let driver = found_driver(description);
    let is_copied_whole = driver.is_some_and(|driver| driver.copies_multiboot_elf_whole());
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
    if let (Some(end), Some(modules), Some(driver)) = (end, modules, driver) {
        found.collect(check_multiboot_fits(
            memory_mib,
            driver.max_boot_memory_mib(),
            &multiboot.kernel,
            end,
            &modules,
            cmdline,
        ));
    }
    found
}

/// Checks whether files can be created in the directory. If it does not exist, the nearest existing directory above it counts.
pub(super) fn check_writable_dir(field: &'static str, dir: &Path) -> Result<()> {
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
