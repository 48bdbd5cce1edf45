//! Errors in how a program is called. They name what comes closest, and the exit status is the same in each program.

use std::error::Error;
use std::num::{IntErrorKind, ParseIntError};
use std::process::{ExitCode, exit};
use std::str::FromStr;

use crate::output::{print, warn};

/// The exit status of a usage error, as in most programs.
const STATUS: u8 = 2;
/// A longer distance is not a typo.
const MAX_TYPOS: usize = 2;
/// A shorter word is the beginning of too many others.
const MIN_PREFIX: usize = 3;

/// Prints a usage error, and returns the exit status.
pub fn refuse(program: &str, error: &dyn Error) -> ExitCode {
    warn(format_args!("{program}: {error}; --help shows how\n"));
    ExitCode::from(STATUS)
}

/// Prints the help text.
pub fn print_help(program: &str, help: &str) {
    if let Err(error) = print(help) {
        warn(format_args!("{program}: {error}\n"));
        exit(1);
    }
}

/// The message for an argument that the program does not know. Its flags are those in its help text.
pub fn unexpected(argument: lexopt::Arg<'_>, help: &str) -> String {
    let lexopt::Arg::Long(name) = argument else { return argument.unexpected().to_string() };
    let is_part_of_flag = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let flags = help.split(|c| !is_part_of_flag(c)).filter(|word| word.len() > 2 && word.starts_with("--"));
    unknown("option", &format!("--{name}"), flags)
}

/// The message for a word that is not among the known ones.
pub fn unknown<'a>(kind: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let distance = |other: &&str| match other.strip_prefix(word) {
        Some(_) if word.trim_start_matches('-').len() >= MIN_PREFIX => 1,
        _ => typos(word, other),
    };
    let nearest = known.into_iter().min_by_key(distance).filter(|other| distance(other) <= MAX_TYPOS);
    match nearest {
        Some(nearest) => format!("unknown {kind} {word} (did you mean {nearest}?)"),
        None => format!("unknown {kind} {word}"),
    }
}

/// The value of a flag that takes a number.
pub fn number<T: FromStr<Err = ParseIntError>>(flags: &mut lexopt::Parser, flag: &str) -> Result<T, Box<dyn Error>> {
    let value = flags.value()?.to_string_lossy().into_owned();
    value.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => format!("the number for {flag} is too large: {value:?}").into(),
        _ => format!("{flag} takes a number: {value:?}").into(),
    })
}

/// The value of a flag that takes a text.
#[allow(dead_code, reason = "not every example has such a flag")]
pub fn text(flags: &mut lexopt::Parser, flag: &str) -> Result<String, Box<dyn Error>> {
    let value = flags.value()?;
    value.into_string().map_err(|value| format!("{flag} takes valid UTF-8: {value:?}").into())
}

/// The Levenshtein distance: how many characters have to be inserted, deleted or replaced.
fn typos(word: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, character) in word.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(character != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
