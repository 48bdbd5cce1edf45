//! The form of `hyperkit.json`.
//!
//! Three generations of it exist. All are read; the first is written, so that the Go package of 2017 can read it back,
//! with keys of the later ones only for what it cannot say. `null`, `""` and a missing key all mean unset.

use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Console, HyperKit, VpnKit};
use crate::disk::Disk;

/// What a key holds, if that is more than `null` or `""`.
fn set<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
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
    Ok(set(deserializer)?.unwrap_or_default())
}

/// The numbers whose default is not 0.
macro_rules! with_default_of {
    ($($field:ident: $kind:ty),*) => {$(
        pub(crate) fn $field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$kind, D::Error> {
            Ok(set(deserializer)?.unwrap_or(HyperKit::default().$field))
        }
    )*};
}
with_default_of!(vsock_guest_cid: u32, cpus: u32, memory: u64);

/// A text or path where the empty string says there is none.
pub(crate) mod text {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
        text.as_deref().unwrap_or_default().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
        set(deserializer)
    }
}

/// A path that is not UTF-8 (which no check lets pass) is written with replacements.
pub(crate) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

/// The same as [`text`] for a path.
pub(crate) mod path {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        lossy(path.as_deref().unwrap_or(Path::new("")), serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(text::deserialize(deserializer)?.map(PathBuf::from))
    }
}

/// A number where 0 says there is none.
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

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: DeserializeOwned + Default + PartialEq,
        D: Deserializer<'de>,
    {
        Ok(set::<T, _>(deserializer)?.filter(|count| *count != T::default()))
    }
}

/// `null` for an empty list, as Go writes it.
pub(crate) fn list<T: Serialize, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    (!list.is_empty()).then_some(list).serialize(serializer)
}

/// `disk` and `disk_size`, or from two disks on the list `disks` of the later generations.
pub(crate) mod disks {
    use super::*;

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Keys {
        #[serde(with = "path")]
        disk: Option<PathBuf>,
        #[serde(with = "count")]
        disk_size: Option<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
        disks: Vec<Disk>,
    }

    pub(crate) fn serialize<S: Serializer>(disks: &[Disk], serializer: S) -> Result<S::Ok, S::Error> {
        let keys = match disks {
            [] => Keys::default(),
            [one] if one.unknown.is_empty() => Keys { disk: one.path.clone(), disk_size: one.size, ..Keys::default() },
            many => Keys { disks: many.to_vec(), ..Keys::default() },
        };
        keys.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Disk>, D::Error> {
        let keys = Keys::deserialize(deserializer)?;
        let one = Disk { path: keys.disk, size: keys.disk_size, ..Disk::default() };
        Ok(match keys.disks {
            many if !many.is_empty() => many,
            _ if one == Disk::default() => Vec::new(),
            _ => vec![one],
        })
    }
}

/// `iso`: a string, or from two images on a list.
pub(crate) mod isos {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Key {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }

    pub(crate) fn serialize<S: Serializer>(isos: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        match isos {
            [] => "".serialize(serializer),
            [one] => lossy(one, serializer),
            many => many.iter().map(|iso| iso.to_string_lossy()).collect::<Vec<_>>().serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(match set(deserializer)? {
            None => Vec::new(),
            Some(Key::One(one)) => vec![one],
            Some(Key::Many(many)) => many,
        })
    }
}

impl Serialize for Console {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: u8 = match self {
            Self::Stdio => 0,
            Self::File => 1,
            Self::Log => 2,
        };
        number.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Console {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self::Stdio),
            1 => Ok(Self::File),
            2 => Ok(Self::Log),
            other => Err(de::Error::custom(format_args!("`console` must be 0, 1 or 2, and is {other}"))),
        }
    }
}

/// Go resolves `auto` before it writes the state; QEMU has nothing to resolve it to.
const AUTO: &str = "auto";

impl Serialize for VpnKit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => "".serialize(serializer),
            Self::Auto => AUTO.serialize(serializer),
            Self::Socket(path) => lossy(path, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VpnKit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "" => Self::None,
            AUTO => Self::Auto,
            path => Self::Socket(path.into()),
        })
    }
}
