//! An error for people.

use std::error::Error;

/// What went wrong, and why: the message of an error, and those of its causes.
pub fn told(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |message, cause| format!("{message}: {cause}"))
}
