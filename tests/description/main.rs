//! Tests of descriptions: arguments, parsing and JSON. They run no program.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod documentation;
mod errors;
mod go_recordings;
mod imports;
mod json;
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

/// Returns the description with other values of some keys in its JSON form: what a start records has no setters.
fn with_keys(description: &HyperKit, keys: Value) -> HyperKit {
    let mut form = serde_json::to_value(description).unwrap();
    let keys = keys.as_object().unwrap().clone();
    form.as_object_mut().unwrap().extend(keys);
    serde_json::from_value(form).unwrap()
}
