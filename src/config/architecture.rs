//! The architectures of guests and hosts.

use std::fmt;

/// The architecture of a guest's CPU, for which its kernel is built.
///
/// ```
/// use hyperkit::{Architecture, Engine};
///
/// assert_eq!(Engine::of("qemu-system-aarch64").architecture(), Architecture::Arm64);
/// assert_eq!(Architecture::Arm64.to_string(), "arm64");
/// assert_eq!(Architecture::X86_64.to_string(), "x86-64");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// 64-bit x86, also called amd64.
    X86_64,
    /// 64-bit ARM, also called aarch64: Apple silicon and many servers.
    Arm64,
}

impl Architecture {
    /// Returns the architecture for which this program is built. `None` if no engine runs guests with this architecture.
    ///
    /// ```
    /// println!("guests with the host's CPU: {:?}", hyperkit::Architecture::host());
    /// # assert_eq!(hyperkit::Architecture::host().is_some(), cfg!(any(target_arch = "x86_64", target_arch = "aarch64")));
    /// ```
    #[must_use]
    pub const fn host() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Arm64)
        } else {
            None
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        })
    }
}
