//! The form of disks in `hyperkit.json`.

use std::path::PathBuf;

use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::folding::{DISK, folded};
use super::read::{Object, take, take_count, take_or_default};
use super::{count, path};
use crate::config::disk::{Disk, DiskFormat, DiskInterface, FlushMode, QcowOptions};

/// `disk` and `disk_size`, or the list `disks` of the later generations if these two keys cannot express it.
pub(crate) mod disks {
    use super::*;

    #[derive(Default, Serialize)]
    struct Keys {
        #[serde(with = "path")]
        disk: Option<PathBuf>,
        #[serde(with = "count")]
        disk_size: Option<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        disks: Vec<Disk>,
    }

    /// All that the first generation can express: a raw image.
    pub(super) fn raw(path: Option<PathBuf>, size_mib: Option<u64>) -> Disk {
        Disk { path, size_mib, format: Some(DiskFormat::Raw), ..Disk::default() }
    }

    pub(crate) fn serialize<S: Serializer>(disks: &[Disk], serializer: S) -> Result<S::Ok, S::Error> {
        let is_something = |disk: &Disk| disk.path.is_some() || disk.size_mib.is_some();
        let keys = match disks {
            [] => Keys::default(),
            [one] if *one == raw(one.path.clone(), one.size_mib) && is_something(one) => {
                Keys { disk: one.path.clone(), disk_size: one.size_mib, ..Keys::default() }
            }
            many => Keys { disks: many.to_vec(), ..Keys::default() },
        };
        keys.serialize(serializer)
    }
}

pub(super) fn read_disks<E: de::Error>(from: &mut Object) -> Result<Vec<Disk>, E> {
    let (path, size_mib) = (take(from, "disk")?, take_count(from, "disk_size")?);
    let many: Vec<Disk> = take_or_default(from, "disks")?;
    let is_one = many.is_empty() && (path.is_some() || size_mib.is_some());
    Ok(if is_one { vec![disks::raw(path, size_mib)] } else { many })
}

/// The keys of a disk in the list. The Go package has no tags for those of a qcow2 image, so they are capitalized.
pub(super) mod keys {
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
    /// The Go package does not know these.
    pub const READ_ONLY: &str = "ro";
    pub const SYNC: &str = "sync";
    pub const SECTOR_SIZE: &str = "sectorsize";
    /// Path and format of the image of an overlay. The Go package must not attach it, as it would write to it. With the format
    /// `overlay`, an earlier version of this crate refuses the disk.
    pub const BASE: &str = "base";
    pub const BASE_FORMAT: &str = "base_format";
    pub const OTHERS: [&str; 10] = [PATH, SIZE, FORMAT, DRIVER, TRIM, READ_ONLY, SYNC, SECTOR_SIZE, BASE, BASE_FORMAT];
}

/// The value of `format` if the disk is an overlay.
const OVERLAY: &str = "overlay";

impl Serialize for Disk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = |path: &Option<PathBuf>| Value::from(path.as_ref().map_or("".into(), |path| path.to_string_lossy()));
        let format = match &self.format {
            None => None,
            Some(DiskFormat::Raw) => Some("raw"),
            Some(DiskFormat::Qcow2(_)) => Some("qcow"),
        };
        let mut known = Map::new();
        let mut put = |key: &str, value: Value| known.insert(key.to_owned(), value);
        let (path_key, format_key) =
            if self.overlay { (keys::BASE, keys::BASE_FORMAT) } else { (keys::PATH, keys::FORMAT) };
        if self.overlay {
            put(keys::PATH, "".into());
            put(keys::FORMAT, OVERLAY.into());
        }
        put(path_key, path(&self.path));
        put(keys::SIZE, self.size_mib.unwrap_or(0).into());
        // An unset format has no key: an empty one would be hyperkit's default, which is raw.
        format.map(|format| put(format_key, format.into()));
        if self.interface != DiskInterface::default() {
            put(keys::DRIVER, self.interface.word().into());
        }
        for (key, is_set) in [(keys::TRIM, self.trim), (keys::READ_ONLY, self.read_only), (keys::SYNC, self.sync)] {
            is_set.then(|| put(key, true.into()));
        }
        self.sector_size.map(|size| put(keys::SECTOR_SIZE, size.to_string().into()));
        if let Some(DiskFormat::Qcow2(qcow)) = &self.format {
            put(keys::ON_FLUSH, qcow.flush.word().into());
            put(keys::COMPACT_AFTER, qcow.compact_after.into());
            put(keys::KEEP_ERASED, qcow.keep_erased.into());
            put(keys::RUNTIME_ASSERTS, qcow.runtime_asserts.into());
            put(keys::STATS, qcow.stats.clone().unwrap_or_default().into());
            put(keys::TOOL, path(&qcow.tool));
        }
        // Unknown keys, and known keys whose value was not understood, are written as they were read.
        known.extend(self.unknown.clone());
        known.serialize(serializer)
    }
}

/// Removes a key if its value is a known word; anything else stays among the unknown keys.
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
        let mut from = folded(deserializer, &DISK, false)?;
        let from = &mut from;
        let is_qcow = keys::QCOW.iter().any(|key| from.contains_key(*key));
        let overlay = from.get(keys::FORMAT).is_some_and(|format| format == OVERLAY);
        let format_key = if overlay { keys::BASE_FORMAT } else { keys::FORMAT };
        let base = if overlay { take(from, keys::BASE)? } else { None };
        let is_written = from.get(format_key).is_some_and(Value::is_string);
        let format = take_word(from, format_key, |word| match word {
            "" if is_qcow => Some(Some(DiskFormat::Qcow2(QcowOptions::default()))),
            // The Go package writes an empty format, which hyperkit takes as raw. The image must not be probed: the guest may
            // have written a qcow2 header.
            "" if is_written => Some(Some(DiskFormat::Raw)),
            "" => Some(None),
            "raw" => Some(Some(DiskFormat::Raw)),
            "qcow" | "qcow2" => Some(Some(DiskFormat::Qcow2(QcowOptions::default()))),
            _ => None,
        });
        let mut format = format.flatten();
        if overlay {
            from.remove(keys::FORMAT);
        }
        if let Some(DiskFormat::Qcow2(qcow)) = &mut format {
            // The Go package writes an empty word. If the key is missing, the description was written by hand.
            if from.get(keys::ON_FLUSH).is_some_and(|value| !value.is_null()) {
                qcow.flush = take_word(from, keys::ON_FLUSH, FlushMode::from_word).unwrap_or_default();
            }
            from.retain(|key, value| key != keys::ON_FLUSH || !value.is_null());
            qcow.compact_after = take_or_default(from, keys::COMPACT_AFTER)?;
            qcow.keep_erased = take_or_default(from, keys::KEEP_ERASED)?;
            qcow.runtime_asserts = take_or_default(from, keys::RUNTIME_ASSERTS)?;
            qcow.stats = take(from, keys::STATS)?;
            qcow.tool = take(from, keys::TOOL)?;
        }
        let interface =
            |word: &str| if word.is_empty() { Some(DiskInterface::default()) } else { DiskInterface::from_word(word) };
        let sector_size = take::<String, _>(from, keys::SECTOR_SIZE)?;
        Ok(Self {
            path: base.or(take(from, keys::PATH)?),
            size_mib: take_count(from, keys::SIZE)?,
            format,
            interface: take_word(from, keys::DRIVER, interface).unwrap_or_default(),
            read_only: take_or_default(from, keys::READ_ONLY)?,
            sync: take_or_default(from, keys::SYNC)?,
            sector_size: sector_size.map(|size| size.parse().map_err(de::Error::custom)).transpose()?,
            trim: take_or_default(from, keys::TRIM)?,
            overlay,
            unknown: std::mem::take(from),
        })
    }
}
