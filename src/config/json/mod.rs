//! Serde helpers for `hyperkit.json`. The keys are the fields of `HyperKit` (`config/mod.rs`), `Record` and `Serial`; those
//! of disks are in `disk.rs`.
//!
//! Three generations exist. All are read. The first is written, so that the Go package of 2017 can read it, with keys of
//! later generations only for what it cannot express. `null`, `""` and a missing key all mean unset.

mod disk;
mod folding;
mod read;
mod typos;

use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use disk::disks;
pub(crate) use typos::misspelled;

use crate::config::{Console, Network, Root, SerialBackend, Share9p, Share9pSource, ShareVirtiofs};

/// The value of a key, unless it is `null` or `""`.
pub(crate) fn optional<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        value => serde_json::from_value(value).map_err(de::Error::custom),
    }
}

pub(crate) fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: DeserializeOwned + Default,
    D: Deserializer<'de>,
{
    Ok(optional(deserializer)?.unwrap_or_default())
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Switches that are on by default.
pub(crate) fn is_true(value: &bool) -> bool {
    *value
}

/// A text for which the empty string means unset.
pub(crate) mod text {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
        text.as_deref().unwrap_or_default().serialize(serializer)
    }
}

/// Writes a path as text. A path that is not UTF-8 gets replacement characters; validation refuses it.
pub(crate) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

/// The same as [`text`] for a path.
pub(crate) mod path {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        lossy(path.as_deref().unwrap_or(Path::new("")), serializer)
    }
}

/// A number for which 0 means unset.
pub(crate) mod count {
    use super::*;

    pub(crate) fn serialize<T: Serialize + Default, S: Serializer>(
        count: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match count {
            Some(count) => count.serialize(serializer),
            None => T::default().serialize(serializer),
        }
    }
}

/// `null` for an empty list, as Go writes it.
pub(crate) fn list<T: Serialize, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    (!list.is_empty()).then_some(list).serialize(serializer)
}

/// `iso`: a string, or a list of two or more images.
pub(crate) fn isos<S: Serializer>(isos: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    match isos {
        [] => "".serialize(serializer),
        [one] => lossy(one, serializer),
        many => many.iter().map(|iso| iso.to_string_lossy()).collect::<Vec<_>>().serialize(serializer),
    }
}

/// Go writes its enumerations as numbers.
macro_rules! numbered {
    ($($kind:ident: $($name:ident = $number:literal),*;)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let number: u8 = match self {
                    $(Self::$name => $number,)*
                };
                number.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match u8::deserialize(deserializer)? {
                    $($number => Ok(Self::$name),)*
                    other => Err(de::Error::custom(format_args!("{} must be one of {:?}: {other}", stringify!($kind), [$($number),*]))),
                }
            }
        }
    )*};
}
numbered! {
    Console: Stdio = 0, Pty = 1, AppleLog = 2;
    SerialBackend: None = 0, Stdio = 1, Pty = 2;
}

/// A source is a `path` or a `port`; the Go package does not know the latter.
#[derive(Serialize, Deserialize)]
struct Share9pKeys {
    #[serde(serialize_with = "path::serialize", deserialize_with = "optional", default)]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional", default)]
    port: Option<u16>,
    tag: String,
}

impl Serialize for Share9p {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (path, port) = match &self.source {
            Share9pSource::Path(path) => (Some(path.clone()), None),
            Share9pSource::Port(port) => (None, Some(*port)),
        };
        Share9pKeys { path, port, tag: self.tag.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Share9p {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Share9pKeys { path, port, tag } = Share9pKeys::deserialize(deserializer)?;
        let source = match port.filter(|&port| port != 0) {
            Some(port) => Share9pSource::Port(port),
            None => Share9pSource::Path(path.unwrap_or_default()),
        };
        Ok(Self { source, tag })
    }
}

#[derive(Serialize, Deserialize)]
struct ShareVirtiofsKeys {
    #[serde(serialize_with = "path::serialize", deserialize_with = "optional")]
    path: Option<PathBuf>,
    tag: String,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "or_default", default)]
    ro: bool,
}

impl Serialize for ShareVirtiofs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { path, tag, read_only } = self.clone();
        ShareVirtiofsKeys { path: Some(path), tag, ro: read_only }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ShareVirtiofs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ShareVirtiofsKeys { path, tag, ro } = ShareVirtiofsKeys::deserialize(deserializer)?;
        Ok(Self { path: path.unwrap_or_default(), tag, read_only: ro })
    }
}

/// The Go package replaces `auto` by a path before it writes the state. On QEMU there is no such path.
pub(crate) const AUTO: &str = "auto";
/// A word of this crate. The Go package would take it for a path.
pub(crate) const ISOLATED: &str = "isolated";

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => "".serialize(serializer),
            Self::Nat => AUTO.serialize(serializer),
            Self::Isolated => ISOLATED.serialize(serializer),
            Self::VpnKit(path) => lossy(path, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Path::new(&String::deserialize(deserializer)?).into())
    }
}

/// The host's root directory.
const HOST: &str = "host";

impl Serialize for Root {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Initrd => "".serialize(serializer),
            Self::Host => HOST.serialize(serializer),
            // A directory whose name is the word.
            Self::Dir(dir) if dir.as_os_str() == HOST => lossy(&Path::new(".").join(HOST), serializer),
            Self::Dir(dir) => lossy(dir, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "" => Self::Initrd,
            HOST => Self::Host,
            dir => Self::Dir(dir.into()),
        })
    }
}

#[cfg(test)]
mod pinned;
