//! Parts of messages.

use std::path::PathBuf;

use crate::plan::limits::LOW_MEMORY_MIB;

/// What to do if `needed` MiB are needed to load a kernel.
pub(super) fn advice(needed: u64) -> String {
    match needed <= LOW_MEMORY_MIB {
        true => format!("set `memory_mib` to at least {needed}"),
        false if needed == u64::MAX => "the kernel accepts no initrd of this size; use a smaller file".to_owned(),
        false => format!("it needs {needed} MiB, but only {LOW_MEMORY_MIB} are below 4 GiB; use a smaller file"),
    }
}

/// Paths separated by commas.
pub(super) fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
