//! Which field a violation is about.

use std::io;
use std::path::Path;

use crate::error::ConfigError;

impl ConfigError {
    /// For a file or directory that exists and cannot be used.
    #[cold]
    pub(crate) fn inaccessible(field: &'static str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        let path = path.as_ref().to_owned();
        Self::Inaccessible { field, path, kind: error.kind(), reason: error.to_string() }
    }

    /// Returns the name of the field of [`HyperKit`](crate::HyperKit), or of the call, that the violation is about.
    /// [`ConfigError`] has an example.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::StateDirRequired { field }
            | Self::Missing { field }
            | Self::ForbiddenCharacter { field, .. }
            | Self::NotUtf8 { field, .. }
            | Self::TooLong { field, .. }
            | Self::InvalidUuid { field, .. }
            | Self::ZeroPort { field }
            | Self::MissingPrerequisite { field, .. }
            | Self::ConflictingBootSources { first: field, .. }
            | Self::RelativePath { field, .. }
            | Self::NotFound { field, .. }
            | Self::UnsupportedUrl { field, .. }
            | Self::NotAFile { field, .. }
            | Self::NotADirectory { field, .. }
            | Self::Inaccessible { field, .. }
            | Self::EmptyFile { field, .. }
            | Self::DoesNotFit { field, .. }
            | Self::TooManyPorts { field, .. }
            | Self::CompressedKernel { field, .. }
            | Self::ToolNotFound { field, .. } => field,
            Self::InvalidIpv4 { .. } => "vpnkit_preferred_ipv4",
            Self::InvalidMac { .. } => "mac",
            Self::InvalidCid { .. } => "vsock_guest_cid",
            Self::InvalidVsockPort { .. } => "vsock_ports",
            Self::DuplicateMountTag { .. } => "shares_9p",
            Self::InvalidInternalNetwork { .. } => "internal_networks",
            Self::DuplicateHostPort { .. } => "port_forwards",
            Self::CommandLineForRom { .. } | Self::CommandLineTooLong { .. } => "kernel_cmdline",
            Self::DuplicateStdio => "serials",
            Self::InvalidCpus { .. } => "cpus",
            Self::InvalidCpu { .. } => "cpu",
            Self::InvalidMemory { .. } | Self::MemoryExceedsHost { .. } => "memory_mib",
            // The key of a list's element: `disks.driver: "x"`.
            Self::UnknownSetting { key } => key.split(['.', ':']).next().unwrap_or(key),
            Self::Unsupported { feature, .. } => feature.split('`').nth(1).unwrap_or(feature),
            Self::InvalidKernel { .. } | Self::KernelForOtherArchitecture { .. } => "kernel",
            Self::NotMultiboot { .. } => "multiboot",
            Self::InvalidBootrom { .. } => "bootrom",
            Self::VpnKitNotFound { .. } => "network",
            Self::InvalidSectorSize { .. }
            | Self::InvalidQcowOption { .. }
            | Self::TooManyDevices { .. }
            | Self::InvalidDiskSize { .. }
            | Self::DuplicateDisk { .. }
            | Self::MissingDiskPath
            | Self::DiskSizeMissing { .. }
            | Self::DiskNotWritable { .. }
            | Self::DiskShrinks { .. }
            | Self::NotQcow2 { .. }
            | Self::InvalidQcow2 { .. }
            | Self::ForeignImage { .. }
            | Self::DiskHasOverlay { .. }
            | Self::DiskHasBackingFile { .. } => "disks",
        }
    }
}
