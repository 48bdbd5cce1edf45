//! Small wrappers of the operating system.

pub(crate) mod elf;
pub(crate) mod file;
pub(crate) mod find_program;
pub(crate) mod handover;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod path;
pub(crate) mod terminal;
pub(crate) mod thread;
pub(crate) mod unix_socket;
