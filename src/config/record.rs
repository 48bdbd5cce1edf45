//! What a start adds to a description.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::json;

/// The process of the VM that was started last, as `hyperkit.json` records it.
///
/// Only the record that is read from the state directory counts, since another program may have started the VM since.
/// A record that a description carries is for display.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// The hypervisor's process ID.
    #[serde(with = "json::count")]
    pub pid: Option<u32>,
    /// The arguments of that process.
    #[serde(serialize_with = "json::list")]
    pub arguments: Vec<String>,
    /// Program and arguments as a single line.
    pub cmdline: String,
    /// When the process started, in seconds since 1970. With the pid, it identifies the process: a later one may have the same pid.
    #[serde(with = "json::count", skip_serializing_if = "Option::is_none")]
    pub pid_started: Option<u64>,
    /// Identifies that process and the inode of the state directory. So the process is known whatever its command line is, and
    /// if the directory was moved, but not in a copy of the directory.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub pid_identity: Option<String>,
    /// Whether this crate has killed that process. Tells other programs, which wait for its exit, how it ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub killed: bool,
    /// The MAC address that vmnet gives the guest, as hyperkit reports it before the start.
    #[serde(with = "json::text", skip_serializing_if = "Option::is_none")]
    pub vmnet_mac: Option<String>,
    /// Names of the disk images in the state directory that this crate created, and may delete.
    #[serde(rename = "made_disks", skip_serializing_if = "Vec::is_empty")]
    pub created_disks: Vec<String>,
    /// The state directory from which the description was read, or in which it was started. Disks in there belong to that
    /// VM: see [`relocate_disks`](crate::config::HyperKit::relocate_disks).
    #[serde(skip)]
    pub home: Home,
}

/// A directory that comparisons ignore: two descriptions are equal even if they were read from different directories.
#[derive(Clone, Debug, Default, Eq)]
pub(crate) struct Home {
    pub dir: Option<PathBuf>,
    /// Relative paths of disks that were read from a file. Nothing tells to which directory they are relative, so no disk is
    /// created there.
    pub relative_disks: Vec<PathBuf>,
    /// Whether the description was read from a command line, whose relative paths are relative to another program's working
    /// directory.
    pub is_from_arguments: bool,
    /// Whether the kernel command line there had no `earlyprintk=serial`. Then the crate adds none on hyperkit.
    pub lacks_early_console: bool,
}

impl PartialEq for Home {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
