//! Words and commands for the shell.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Quotes a word for the shell, if it has to be.
pub fn quoted(word: &OsStr) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(is_plain) {
        return word.as_bytes().to_vec();
    }
    let escaped = |&byte: &u8| if byte == b'\'' { b"'\\''".to_vec() } else { vec![byte] };
    [b"'", &word.as_bytes().iter().flat_map(escaped).collect::<Vec<_>>()[..], b"'"].concat()
}
