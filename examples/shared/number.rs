//! Parses the value of a flag that takes a number.

use std::error::Error;
use std::str::FromStr;

pub fn number<T: FromStr>(flags: &mut lexopt::Parser, flag: &str) -> Result<T, Box<dyn Error>> {
    let value = flags.value()?.to_string_lossy().into_owned();
    value.parse().map_err(|_| format!("{flag} takes a number: {value:?}").into())
}
