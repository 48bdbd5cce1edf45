//! Whether a kernel and its initrd fit into the guest's memory.

use std::path::PathBuf;

use crate::engine::{BootFiles, EngineDriver, Misfit};
use crate::error::ConfigError;
use crate::plan::limits::PAGE;
use crate::preflight::kernel::Kernel;

const MIB: u64 = 1024 * 1024;
/// If files do not fit into memory that has this many MiB more than their lengths, they fit into no larger memory either. The engines
/// leave less than this between the files. QEMU leaves the most: it loads an initrd for arm64 at 128 MiB if the kernel ends below.
const ENOUGH_MIB: u64 = 512;

impl Kernel {
    /// Refuses the kernel or its initrd if they do not fit into memory: the engine would load one over the other. `initrd` is its path and
    /// its length in bytes.
    pub(crate) fn check_fits(
        &self,
        driver: &dyn EngineDriver,
        memory_mib: u64,
        initrd: Option<(&PathBuf, u64)>,
    ) -> Result<(), ConfigError> {
        let files = BootFiles { kernel: self.memory(), initrd: initrd.map(|(_, length)| length) };
        let Err(misfit) = driver.check_memory(&files, memory_mib) else { return Ok(()) };
        let (field, path) = match initrd {
            Some((path, _)) if misfit == Misfit::Initrd => ("initrd", path),
            _ => ("kernel", &self.path),
        };
        let max = driver.max_boot_memory_mib();
        let length = files.kernel.end().saturating_add(files.initrd.map_or(0, |length| length.saturating_add(PAGE)));
        let needed = match least_memory(driver, &files, max.min(length.div_ceil(MIB) + ENOUGH_MIB)) {
            // The kernel's header allows no initrd of this size, whatever the memory is.
            _ if field == "initrd" && !files.initrd.is_none_or(|length| files.kernel.accepts_initrd(length)) => {
                u64::MAX
            }
            Some(least) => least,
            None => length.div_ceil(MIB).max(max + 1),
        };
        Err(ConfigError::DoesNotFit { field, path: path.clone(), needed, max })
    }
}

/// The smallest memory size such that every larger one suffices, too, in MiB. `None` if `enough` does not suffice.
fn least_memory(driver: &dyn EngineDriver, files: &BootFiles, enough: u64) -> Option<u64> {
    (1..=enough).rev().take_while(|&mib| driver.check_memory(files, mib).is_ok()).last()
}
