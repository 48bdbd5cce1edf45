//! The command line of a Linux kernel.

/// The Go package puts this before every kernel command line.
const EARLY_CONSOLE: &str = "earlyprintk=serial";

/// The line that a Linux kernel gets for the caller's one.
pub(crate) fn with_early_console(cmdline: &str) -> String {
    format!("{EARLY_CONSOLE} {cmdline}")
}

/// The caller's line, from the one that a Linux kernel got.
pub(crate) fn without_early_console(line: &str) -> &str {
    let after = line.strip_prefix(EARLY_CONSOLE).filter(|rest| rest.is_empty() || rest.starts_with(' '));
    after.map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest))
}
