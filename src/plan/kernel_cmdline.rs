//! The command line of a Linux kernel.

use crate::config::HyperKit;

/// The Go package puts this before every kernel command line, so hyperkit gets it, too. On QEMU it would only do harm: `quiet` does
/// not silence this early console, and a kernel that turns to it twice prints "ERROR: earlyprintk= earlyser already used".
const EARLY_CONSOLE: &str = "earlyprintk=serial";

/// Adds `earlyprintk=serial` to a kernel command line, unless the description was parsed from a command line without it.
pub(crate) fn with_early_console(description: &HyperKit, cmdline: &str) -> String {
    match description.record.home.lacks_early_console {
        true => cmdline.to_owned(),
        false => format!("{EARLY_CONSOLE} {cmdline}"),
    }
}

/// Removes `earlyprintk=serial` from a kernel command line.
pub(crate) fn without_early_console(line: &str) -> &str {
    let after = line.strip_prefix(EARLY_CONSOLE).filter(|rest| rest.is_empty() || rest.starts_with(' '));
    after.map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest))
}
