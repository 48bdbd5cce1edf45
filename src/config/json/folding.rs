//! Keys without regard to case, as Go's encoding/json matches them: `"CPUs": 8` sets `cpus`. If a key occurs twice, the last one
//! counts.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::disk::keys as disk;
use super::typos::KEYS;

/// The known keys of an object, or of each object in a list.
pub(super) struct Schema {
    keys: &'static [&'static [&'static str]],
    children: &'static [(&'static str, &'static Schema)],
}

const fn leaf(keys: &'static [&'static [&'static str]]) -> Schema {
    Schema { keys, children: &[] }
}

pub(super) static RECORD: Schema = leaf(&[RECORD_KEYS]);
pub(super) static DISK: Schema = leaf(&[&disk::OTHERS, &disk::QCOW]);
pub(super) static DESCRIPTION: Schema = Schema {
    keys: &[KEYS, RECORD_KEYS],
    children: &[
        ("disks", &DISK),
        ("9p_sockets", &leaf(&[&["path", "port", "tag"]])),
        ("virtiofs", &leaf(&[&["path", "tag", "ro"]])),
        ("serials", &leaf(&[&["InteractiveConsole", "LogToRingBuffer", "LogToASL"]])),
        ("port_forwards", &leaf(&[&["protocol", "host", "guest"]])),
        ("internal_networks", &leaf(&[&["path", "number"]])),
        (
            "multiboot",
            &Schema { keys: &[&["kernel", "modules"]], children: &[("modules", &leaf(&[&["path", "cmdline"]]))] },
        ),
    ],
};

const RECORD_KEYS: &[&str] =
    &["arguments", "cmdline", "killed", "made_disks", "pid", "pid_identity", "pid_started", "vmnet_mac"];

impl Schema {
    /// The known key that `key` stands for. An equal one is preferred to one that differs in case.
    fn known(&self, key: &str) -> Option<&'static str> {
        let all = || self.keys.iter().flat_map(|keys| keys.iter().copied());
        all().find(|known| *known == key).or_else(|| all().find(|known| is_same_folded(known, key)))
    }

    fn child(&self, key: &str) -> Option<&'static Schema> {
        self.children.iter().find(|(name, _)| *name == key).map(|(_, schema)| *schema)
    }
}

/// Go also matches the long s (`ſ`) with `s`, and the Kelvin sign with `k`.
fn is_same_folded(known: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    known.chars().map(fold).eq(key.chars().map(fold))
}

/// Reads an object with known keys in their usual case. Other keys are kept. With `known_only`, they
/// are ignored, which is faster.
pub(super) fn folded<'de, D: Deserializer<'de>>(
    deserializer: D,
    schema: &'static Schema,
    known_only: bool,
) -> Result<Map<String, Value>, D::Error> {
    match deserializer.deserialize_any(Folding { schema: Some(schema), known_only })? {
        Value::Object(object) => Ok(object),
        other => Err(D::Error::custom(format_args!("expected an object, not {other}"))),
    }
}

#[derive(Clone, Copy)]
struct Folding {
    schema: Option<&'static Schema>,
    known_only: bool,
}

impl<'de> DeserializeSeed<'de> for Folding {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Folding {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = from.next_element_seed(self)? {
            list.push(element);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let known = self.schema.and_then(|schema| schema.known(&key));
            if known.is_none() && self.known_only {
                from.next_value::<IgnoredAny>()?;
                continue;
            }
            let key = known.map_or(key, str::to_owned);
            let child = self.schema.and_then(|schema| schema.child(&key));
            let value = from.next_value_seed(Folding { schema: child, known_only: false })?;
            // In Go, `null` does not change a number, text or Boolean that an earlier key has set.
            let is_set = |earlier: &Value| !earlier.is_array() && !earlier.is_object();
            if !(value.is_null() && object.get(&key).is_some_and(is_set)) {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }
}
