//! Tests of descriptions: arguments, parsing, JSON, validation; and tests of the structure of the source. They start no VM.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod documentation;
mod errors;
mod go_recordings;
mod imports;
mod json;
mod json_by_hand;
mod json_compatibility;
mod json_properties;
mod layers;
mod parsing;
mod parsing_properties;
mod pictures;
mod qemu_arguments;
mod resolve;
mod untrusted_input;

use hyperkit::HyperKit;
use serde_json::Value;

/// Returns the description with other values of some keys in its JSON form. Tests set in this way what a start records,
/// since there are no setters for it.
fn with_keys(description: &HyperKit, keys: Value) -> HyperKit {
    let mut form = serde_json::to_value(description).unwrap();
    let keys = keys.as_object().unwrap().clone();
    form.as_object_mut().unwrap().extend(keys);
    serde_json::from_value(form).unwrap()
}
