//! The plan of a VM: which device is in which PCI slot, what the serial ports are connected to, and what is wrong with a
//! description. Looks at no file.

pub(crate) mod kernel_cmdline;
pub(crate) mod limits;
pub(crate) mod root;
pub(crate) mod serial_ports;
pub(crate) mod slots;
pub(crate) mod text;
pub(crate) mod validate;
