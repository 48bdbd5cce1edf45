//! The fuzz targets. They check the same properties as the property tests of `cargo test`.

#[path = "../../tests/common/inputs.rs"]
pub mod inputs;
