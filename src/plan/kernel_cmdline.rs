//! The command line of a Linux kernel.

/// The Go package always asks for it.
const EARLY_CONSOLE: &str = "earlyprintk=serial";

/// What a Linux kernel gets.
pub(crate) fn kernel_command_line(cmdline: &str) -> String {
    format!("{EARLY_CONSOLE} {cmdline}")
}

/// What was given of what a Linux kernel gets.
pub(crate) fn given_command_line(line: &str) -> &str {
    let after = line.strip_prefix(EARLY_CONSOLE).filter(|rest| rest.is_empty() || rest.starts_with(' '));
    after.map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest))
}
