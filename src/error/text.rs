//! Parts of messages.

use std::path::PathBuf;

/// What to do if the kernel is an ELF file that cannot be used.
pub(super) const VMLINUX_ADVICE: &str =
    "; use a bzImage, on QEMU a vmlinux for x86-64 with CONFIG_PVH, or on QEMU for arm64 an Image";

/// What to do if `needed` MiB are needed to load a kernel, and the engine loads it into the first `max` MiB.
pub(super) fn advice(needed: u64, max: u64) -> String {
    if needed == u64::MAX {
        "the kernel accepts no initrd of this size; use a smaller file".to_owned()
    } else if needed > max {
        format!("it needs {needed} MiB, but only {max} are below 4 GiB; use a smaller file")
    } else {
        format!("set `memory_mib` to at least {needed}")
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
