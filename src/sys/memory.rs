//! The memory of the host.

/// The host's memory, in bytes. `None` if the operating system does not say.
pub(crate) fn memory_of_host() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let info = std::fs::read_to_string("/proc/meminfo").ok()?;
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        total.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }
    #[cfg(not(target_os = "linux"))]
    {
        use sysinfo::{MemoryRefreshKind, RefreshKind, System};

        let system =
            System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
        Some(system.total_memory()).filter(|&bytes| bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory() {
        assert!(memory_of_host().is_some_and(|bytes| bytes > 64 << 20));
    }
}
