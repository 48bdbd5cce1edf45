//! What the targets assert is what `cargo test` asserts, too.

#[path = "../../tests/common/inputs.rs"]
pub mod inputs;
