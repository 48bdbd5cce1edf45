//! A started hypervisor: supervision, output, helper programs, cleanup.

pub(crate) mod child;
pub(crate) mod cleanup;
pub(crate) mod discovery;
pub(crate) mod output;
pub(crate) mod ring;
pub(crate) mod vhost_vsock;
mod watch;
