//! Parts of messages.

use std::path::PathBuf;

use crate::plan::limits::{LOW_MEMORY_MIB, QEMU_LOW_MEMORY_MIB};

/// What to do if `needed` MiB are needed to load a kernel.
pub(super) fn advice(needed: u64) -> String {
    let at_least = format!("set `memory_mib` to at least {needed}");
    if needed == u64::MAX {
        "the kernel accepts no initrd of this size; use a smaller file".to_owned()
    } else if needed > LOW_MEMORY_MIB {
        format!("it needs {needed} MiB, but only {LOW_MEMORY_MIB} are below 4 GiB; use a smaller file")
    } else if needed > QEMU_LOW_MEMORY_MIB {
        format!("{at_least}, or on QEMU, which has {QEMU_LOW_MEMORY_MIB} MiB below 4 GiB, use a smaller file")
    } else {
        at_least
    }
}

/// How to unpack a file of this format.
pub(super) fn unpacking(format: &str) -> String {
    match format {
        "compress" => "gzip -dc".to_owned(),
        "lzma" => "xz --format=lzma -dc".to_owned(),
        format => format!("{format} -dc"),
    }
}

/// Paths separated by commas.
pub(super) fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The text with control characters escaped as in Rust. A guest could clear the caller's screen with them.
pub(crate) fn escape_control(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::error::Error;

    #[test]
    fn alternate_display_appends_causes_and_escapes_control_characters() {
        let error = Error::io("read", "/x\u{1b}[2J")(io::Error::other("first\nsecond"));
        assert_eq!(error.to_string(), "cannot read /x\\u{1b}[2J");
        assert_eq!(format!("{error:#}"), "cannot read /x\\u{1b}[2J: first\\nsecond");
    }
}
