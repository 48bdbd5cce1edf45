//! Describes a lightweight virtual machine, starts it, and keeps hold of it.
//!
//! A machine is described once ([`HyperKit`], plain data), laid out once (which device is in which PCI slot), rendered
//! for whichever program is there ([`Engine`]: the macOS `hyperkit` command, or QEMU), and kept in a state directory
//! from which any later program can take it up again.
//!
//! ```no_run
//! use hyperkit::{Console, Disk, HyperKit};
//!
//! let vm = HyperKit::new()
//!     .state_dir("vm")
//!     .kernel("vmlinuz")
//!     .initrd("initrd.img")
//!     .cpus(2)
//!     .memory(2048)
//!     .disk(Disk::raw("root.img").size(4096)) // MiB; made if missing
//!     .console(Console::File)
//!     .start("console=ttyS0")?;
//! println!("process {} runs it", vm.pid());
//!
//! // Later, in another program:
//! let machine = HyperKit::from_state("vm")?;
//! if let Some(vm) = machine.vm()? {
//!     vm.shutdown(std::time::Duration::from_secs(30))?; // power button, then the plug
//! }
//! machine.remove(true)?; // forgets it, and keeps its disk
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! The library prints nothing, installs no signal handler, never ends the program and never panics on input. What the
//! program that runs the machine prints goes to `hyperkit.log` in the state directory and to the [`log`] facade,
//! target `hyperkit`.
//!
//! # How it is built
//! Data flows one way: description (`config`, `disk`) → `check`, with `kernel` and `image` for what is in files → `slots`
//! and `serial` → `engine` → `prepare` → `start`, which spawns (`child`, `output`, `terminal`) and records (`state`, under a `lock`) →
//! `vm`, which may be another program's `process`, and `console` and `console_log`. A new device is an entry in `slots` and its spelling in
//! each engine; a new engine is a folder in `engine`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(unix))]
compile_error!("hyperkit runs on macOS, QEMU is driven over unix sockets: this crate is for Unix systems");

mod alarm;
mod check;
mod child;
mod config;
mod console;
mod console_log;
mod disk;
mod engine;
mod error;
mod image;
mod kernel;
mod lock;
mod network;
mod output;
mod prepare;
mod process;
mod serial;
mod slots;
mod socket;
mod start;
mod state;
mod terminal;
mod vm;
mod vsock;

pub use config::{
    Console, HyperKit, Module, Multiboot, PortForward, Protocol, Serial, SerialLine, Server9p, Socket9p, VpnKit,
};
pub use console::ConsoleStream;
pub use console_log::ConsoleLines;
pub use disk::{Disk, Driver, Format, OnFlush, Qcow, SectorSize};
pub use engine::{Engine, hyperkit::parse_arguments};
pub use error::{Error, Result};
pub use image::create_disk_image;
pub use network::Card;
pub use output::LastWords;
pub use vm::{Exit, Shutdown, Vm};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
