//! Errors of the library in the words of a program that is controlled by flags.

use std::error::Error;

use hyperkit::{ConfigError, Error as VmError};

use crate::ctl_command::ctl_command;

/// What the library calls its fields and values, and the flags of the examples that set them.
const FLAGS: [(&str, &str); 28] = [
    ("console`, `serials", "--console"),
    ("kernel", "--kernel"),
    ("initrd", "--initrd"),
    ("bootrom", "--bootrom"),
    ("kernel_cmdline", "--cmdline"),
    ("cpus", "--cpus"),
    ("cpu", "--cpu"),
    ("memory_mib", "--memory"),
    ("disks", "--disk"),
    ("isos", "--iso"),
    ("network", "--vpnkit"),
    ("Network::Nat", "--vpnkit auto"),
    ("vpnkit_key", "--vpnkit-key"),
    ("port_forwards", "--forward"),
    ("gdb_port", "--gdb"),
    ("extra_arguments", "--extra"),
    ("vsock", "--vsock"),
    ("vsock_ports", "--vsock-port"),
    ("vsock_guest_cid", "--vsock-cid"),
    ("shares_9p", "--9p"),
    ("shares_virtiofs", "--virtiofs"),
    ("uuid", "--uuid"),
    ("console", "--console"),
    ("serials", "--console"),
    ("Console::Pty", "pty"),
    ("Pty", "pty"),
    ("hyperkit", "--hyperkit"),
    ("state_dir", "--state-dir"),
];

/// An error as one line, with what to do about it. With `has_flags`, flags stand for the fields that they set.
pub fn explain(error: &(dyn Error + 'static), has_flags: bool) -> String {
    let named = |text: String| if has_flags { with_flags(text) } else { text };
    match error.downcast_ref::<VmError>() {
        Some(VmError::InvalidConfig(violations)) if has_flags => {
            violations.iter().map(violation).collect::<Vec<_>>().join("; ")
        }
        Some(error @ (VmError::AlreadyRunning { state_dir, .. } | VmError::StillRunning { state_dir, .. })) => {
            let (console, stop) = (ctl_command("console", state_dir), ctl_command("stop", state_dir));
            let what = error.to_string();
            let what = what.strip_suffix("; stop it first").unwrap_or(&what);
            format!("{what}\n  attach to it: {console}\n  kill it:      {stop}")
        }
        Some(error) => named(format!("{error:#}")),
        None => error.to_string(),
    }
}

fn violation(violation: &ConfigError) -> String {
    let flag = |field: &str| with_flags(format!("`{field}`"));
    match violation {
        ConfigError::MissingPrerequisite { field, requires: "network" } => {
            format!("{} requires `--vpnkit auto`", flag(field))
        }
        ConfigError::StateDirRequired { field } => {
            format!("{} requires a state directory; leave out `--no-state`", flag(field))
        }
        other => with_flags(other.to_string()),
    }
}

fn with_flags(text: String) -> String {
    FLAGS.iter().fold(text, |text, (field, flag)| text.replace(&format!("`{field}`"), &format!("`{flag}`")))
}
