//! Rules for single texts and paths.

use std::path::Path;

use crate::error::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// `path` as text, which arguments and JSON require.
pub(crate) fn utf8<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| ConfigError::NotUtf8 { field, path: path.to_owned() })
}

/// Accepts a path that can stand in an argument.
pub(crate) fn check_path<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    check_text(field, utf8(field, path)?)
}

/// Accepts a path that an engine passes on with its commas escaped.
pub(crate) fn check_escaped_path<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    let text = reject_chars(&['\0'], field, utf8(field, path)?)?;
    if text.is_empty() { Err(ConfigError::Missing { field }) } else { Ok(text) }
}

/// The path itself, if it can stand in an argument. Otherwise only that is reported, and no file is searched by that name.
pub(crate) fn valid_path<'a>(field: &'static str, path: &'a Path) -> Result<&'a Path> {
    check_path(field, path).map(|_| path)
}

/// Accepts a text that is not empty, and contains no comma and no NUL. hyperkit splits its arguments at commas. The operating
/// system ends an argument at NUL.
pub(crate) fn check_text<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    reject_chars(&[',', '\0'], field, text)?;
    if text.is_empty() { Err(ConfigError::Missing { field }) } else { Ok(text) }
}

pub(crate) fn reject_chars<'a>(forbidden: &[char], field: &'static str, text: &'a str) -> Result<&'a str> {
    match text.chars().find(|character| forbidden.contains(character)) {
        Some(character) => Err(ConfigError::ForbiddenCharacter { field, value: text.to_owned(), character }),
        None => Ok(text),
    }
}

/// Accepts a text of at most `limit` bytes.
pub(crate) fn check_length(limit: usize, field: &'static str, text: &str) -> Result<()> {
    if text.len() > limit {
        return Err(ConfigError::TooLong { field, value: text.to_owned(), length: text.len(), limit });
    }
    Ok(())
}

pub(crate) fn is_uuid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether hyperkit accepts the UUID as the UUID of a VM. hyperkit aborts if the first three bits of the fourth group (the variant) are all
/// set (uuid_from_string and the assertion in smbiostbl.c).
pub(crate) fn has_known_variant(uuid: &str) -> bool {
    !uuid.split('-').nth(3).is_some_and(|group| group.starts_with(['e', 'f', 'E', 'F']))
}

/// Whether this is the MAC address of a single card, and not of a group of cards.
pub(crate) fn is_unicast_mac(text: &str) -> bool {
    let bytes: Option<Vec<_>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && !byte.starts_with('+')))
        .collect();
    // Bit 0 of the first byte marks addresses of groups.
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] % 2 == 0 && bytes.iter().any(|&byte| byte != 0))
}

/// Whether this can be one of QEMU's CPU models with features: `max`, `Nehalem,+rdrand`, `EPYC-v2,hv-time=on`. With `help`, QEMU
/// would print a list and start no VM.
pub(crate) fn is_cpu(text: &str) -> bool {
    let (model, features) = text.split_once(',').map_or((text, None), |(model, features)| (model, Some(features)));
    let is_model = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_feature = |feature: &str| !feature.is_empty() && !feature.contains(|c: char| c.is_control());
    model.starts_with(|first: char| first.is_ascii_alphanumeric())
        && model.bytes().all(is_model)
        && model != "help"
        && features.is_none_or(|features| features.split(',').all(is_feature))
}
