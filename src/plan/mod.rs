//! What can be told of a description without looking at files: where devices go, and what is wrong.

pub(crate) mod kernel_cmdline;
pub(crate) mod limits;
pub(crate) mod serial_ports;
pub(crate) mod slots;
pub(crate) mod text;
pub(crate) mod validate;
