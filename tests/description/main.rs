//! Tests of descriptions: arguments, parsing and JSON. They run no program.

#[path = "../common/mod.rs"]
mod common;

mod go_recordings;
mod json;
mod json_properties;
mod parsing;
mod parsing_properties;
mod qemu_arguments;
mod untrusted_input;
