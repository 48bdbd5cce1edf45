//! A running hypervisor: supervision of a child, its output, helper programs, finding it again, cleanup.

pub(crate) mod child;
pub(crate) mod cleanup;
pub(crate) mod console_stdio;
pub(crate) mod daemons;
pub(crate) mod discovery;
pub(crate) mod exit_wakers;
pub(crate) mod log_tail;
pub(crate) mod network_number;
pub(crate) mod output;
pub(crate) mod owner;
mod permissions;
pub(crate) mod ring;
mod watch;
