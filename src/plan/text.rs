//! Rules for texts and paths.

use std::path::Path;

use crate::error::{Error, Result};

/// `path` as text, which arguments and JSON are.
pub(crate) fn utf8<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| Error::NotUtf8 { field, path: path.to_owned() })
}

pub(crate) fn path_text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    plain(field, utf8(field, path)?)
}

/// Something, and nothing in it that hyperkit would split at or the system would end it at.
pub(crate) fn plain<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    without(&[',', '\0'], field, text)?;
    if text.is_empty() { Err(Error::Missing { field }) } else { Ok(text) }
}

pub(crate) fn without<'a>(forbidden: &[char], field: &'static str, text: &'a str) -> Result<&'a str> {
    match text.chars().find(|character| forbidden.contains(character)) {
        Some(character) => Err(Error::ForbiddenCharacter { field, value: text.to_owned(), character }),
        None => Ok(text),
    }
}

pub(crate) fn at_most(limit: usize, field: &'static str, text: &str) -> Result<()> {
    if text.len() > limit {
        return Err(Error::TooLong { field, value: text.to_owned(), length: text.len(), limit });
    }
    Ok(())
}

pub(crate) fn is_uuid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

pub(crate) fn is_mac(text: &str) -> bool {
    let bytes: Option<Vec<_>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && !byte.starts_with('+')))
        .collect();
    // Bit 0 of the first byte is for groups.
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] % 2 == 0 && bytes.iter().any(|&byte| byte != 0))
}
