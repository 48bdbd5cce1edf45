//! The form of disks in `hyperkit.json`.

use std::path::PathBuf;

use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{count, or_default, path, set};
use crate::config::disk::{Disk, Driver, Format, OnFlush, Qcow};

/// `disk` and `disk_size`, or the list `disks` of the later generations where these two cannot say it.
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

    /// All that the first generation knows: a raw image.
    fn raw(path: Option<PathBuf>, size: Option<u64>) -> Disk {
        Disk { path, size, format: Some(Format::Raw), ..Disk::default() }
    }

    pub(crate) fn serialize<S: Serializer>(disks: &[Disk], serializer: S) -> Result<S::Ok, S::Error> {
        let is_something = |disk: &Disk| disk.path.is_some() || disk.size.is_some();
        let keys = match disks {
            [] => Keys::default(),
            [one] if *one == raw(one.path.clone(), one.size) && is_something(one) => {
                Keys { disk: one.path.clone(), disk_size: one.size, ..Keys::default() }
            }
            many => Keys { disks: many.to_vec(), ..Keys::default() },
        };
        keys.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Disk>, D::Error> {
        let keys = Keys::deserialize(deserializer)?;
        Ok(match (keys.disks, keys.disk, keys.disk_size) {
            (many, ..) if !many.is_empty() => many,
            (_, None, None) => Vec::new(),
            (_, path, size) => vec![raw(path, size)],
        })
    }
}

/// The keys of a disk on the list. Those of a qcow2 image, which the Go package does not tag, have capitals.
mod keys {
    pub const PATH: &str = "path";
    pub const SIZE: &str = "size";
    pub const FORMAT: &str = "format";
    pub const DRIVER: &str = "driver";
    pub const TRIM: &str = "trim";
    pub const ON_FLUSH: &str = "OnFlush";
    pub const COMPACT_AFTER: &str = "CompactAfter";
    pub const KEEP_ERASED: &str = "KeepErased";
    pub const RUNTIME_ASSERTS: &str = "RuntimeAsserts";
    pub const STATS: &str = "Stats";
    pub const TOOL: &str = "QcowToolPath";
    pub const QCOW: [&str; 6] = [ON_FLUSH, COMPACT_AFTER, KEEP_ERASED, RUNTIME_ASSERTS, STATS, TOOL];
    /// These are this crate's own.
    pub const READ_ONLY: &str = "ro";
    pub const SYNC: &str = "sync";
    pub const SECTOR_SIZE: &str = "sectorsize";
}

impl Serialize for Disk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = |path: &Option<PathBuf>| Value::from(path.as_ref().map_or("".into(), |path| path.to_string_lossy()));
        let format = match &self.format {
            None => None,
            Some(Format::Raw) => Some("raw"),
            Some(Format::Qcow2(_)) => Some("qcow"),
        };
        let mut known = Map::new();
        let mut put = |key: &str, value: Value| known.insert(key.to_owned(), value);
        put(keys::PATH, path(&self.path));
        put(keys::SIZE, self.size.unwrap_or(0).into());
        // Of the format that is not known yet there is no word: an empty one is hyperkit's default, which is raw.
        format.map(|format| put(keys::FORMAT, format.into()));
        if self.driver != Driver::default() {
            put(keys::DRIVER, self.driver.word().into());
        }
        for (key, is_set) in [(keys::TRIM, self.trim), (keys::READ_ONLY, self.read_only), (keys::SYNC, self.sync)] {
            is_set.then(|| put(key, true.into()));
        }
        self.sector_size.map(|size| put(keys::SECTOR_SIZE, size.to_string().into()));
        if let Some(Format::Qcow2(qcow)) = &self.format {
            put(keys::ON_FLUSH, qcow.on_flush.word().into());
            put(keys::COMPACT_AFTER, qcow.compact_after.into());
            put(keys::KEEP_ERASED, qcow.keep_erased.into());
            put(keys::RUNTIME_ASSERTS, qcow.runtime_asserts.into());
            put(keys::STATS, qcow.stats.clone().unwrap_or_default().into());
            put(keys::TOOL, path(&qcow.tool));
        }
        // What was read and is not known stands in the place of what could not be understood.
        known.extend(self.unknown.clone());
        known.serialize(serializer)
    }
}

/// Takes the value of a key out, if it is set.
fn take<T: DeserializeOwned, E: de::Error>(from: &mut Map<String, Value>, key: &str) -> Result<Option<T>, E> {
    let value = from.remove(key).unwrap_or_default();
    set(value).map_err(|error| E::custom(format_args!("`{key}` of a disk: {error}")))
}

/// Takes out a word that is known; anything else stays among the unknown keys.
fn take_word<T>(from: &mut Map<String, Value>, key: &str, known: impl Fn(&str) -> Option<T>) -> Option<T> {
    let word = match from.get(key) {
        None | Some(Value::Null) => known(""),
        Some(value) => value.as_str().and_then(known),
    };
    if word.is_some() {
        from.remove(key);
    }
    word
}

impl<'de> Deserialize<'de> for Disk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut from = Map::deserialize(deserializer)?;
        let from = &mut from;
        let is_qcow = keys::QCOW.iter().any(|key| from.contains_key(*key));
        let is_written = from.get(keys::FORMAT).is_some_and(Value::is_string);
        let format = take_word(from, keys::FORMAT, |word| match word {
            "" if is_qcow => Some(Some(Format::Qcow2(Qcow::default()))),
            // The Go package leaves it to hyperkit, for which it is raw. What is in the image must not decide that: the
            // guest may have written it.
            "" if is_written => Some(Some(Format::Raw)),
            "" => Some(None),
            "raw" => Some(Some(Format::Raw)),
            "qcow" | "qcow2" => Some(Some(Format::Qcow2(Qcow::default()))),
            _ => None,
        });
        let mut format = format.flatten();
        if let Some(Format::Qcow2(qcow)) = &mut format {
            qcow.on_flush = take_word(from, keys::ON_FLUSH, OnFlush::from_word).unwrap_or_default();
            qcow.compact_after = take(from, keys::COMPACT_AFTER)?.unwrap_or_default();
            qcow.keep_erased = take(from, keys::KEEP_ERASED)?.unwrap_or_default();
            qcow.runtime_asserts = take(from, keys::RUNTIME_ASSERTS)?.unwrap_or_default();
            qcow.stats = take(from, keys::STATS)?;
            qcow.tool = take(from, keys::TOOL)?;
        }
        let driver = |word: &str| if word.is_empty() { Some(Driver::default()) } else { Driver::from_word(word) };
        let sector_size = take::<String, _>(from, keys::SECTOR_SIZE)?;
        Ok(Self {
            path: take(from, keys::PATH)?,
            size: take(from, keys::SIZE)?.filter(|&size| size != 0),
            format,
            driver: take_word(from, keys::DRIVER, driver).unwrap_or_default(),
            read_only: take(from, keys::READ_ONLY)?.unwrap_or_default(),
            sync: take(from, keys::SYNC)?.unwrap_or_default(),
            sector_size: sector_size.map(|size| size.parse().map_err(de::Error::custom)).transpose()?,
            trim: take(from, keys::TRIM)?.unwrap_or_default(),
            unknown: std::mem::take(from),
        })
    }
}
