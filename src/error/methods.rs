//! Constructors of errors, and what they contain.

use std::io;
use std::path::Path;

use crate::error::{ConfigError, Error};

impl Error {
    /// Returns the violations of an [`InvalidConfig`](Self::InvalidConfig) error, and an empty slice for any other error.
    ///
    /// ```
    /// let error = hyperkit::HyperKit::new().kernel("vmlinuz").cpus(0).arguments("").unwrap_err();
    /// assert_eq!(error.violations()[0].field(), "cpus");
    /// ```
    #[must_use]
    pub fn violations(&self) -> &[ConfigError] {
        match self {
            Self::InvalidConfig(violations) => violations,
            _ => &[],
        }
    }

    /// Whether a check before a start failed.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::InvalidConfig(_) | Self::HypervisorNotFound { .. })
    }

    /// For `map_err`: names what was tried, and with which file.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new_io(action, path.as_ref(), source)
    }

    /// Not inlined: there are many callers, and failures are rare.
    #[cold]
    #[inline(never)]
    fn new_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// For `map_err`: names the state directory or image that could not be looked at.
    pub(crate) fn cannot_tell(path: Option<&Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.map(Path::to_owned);
        move |source| Self::CannotTell { path, source }
    }
}

impl From<ConfigError> for Error {
    fn from(violation: ConfigError) -> Self {
        Self::InvalidConfig(vec![violation])
    }
}
