//! Describes a lightweight virtual machine, starts it, and keeps hold of it.
//!
//! A machine is described once ([`HyperKit`], plain data), laid out once (which device is in which PCI slot), rendered
//! for whichever program is there ([`Engine`]: the macOS `hyperkit` command, or QEMU), and kept in a state directory
//! from which any later program can take it up again.
//!
//! # Describe
//! A description is made of fields, each with a setter of the same name. Nothing is looked at until it is asked for:
//! [`arguments`](HyperKit::arguments) looks at no file, [`check`](HyperKit::check) at all of them, and neither makes any.
//!
//! ```
//! use hyperkit::{Console, Disk, Error, HyperKit};
//!
//! let machine = HyperKit::new()
//!     .state_dir("vm")                        // remembers it
//!     .kernel("vmlinuz")
//!     .initrd("initrd.img")
//!     .cpus(2)
//!     .memory(2048)                           // MiB
//!     .disk(Disk::raw("root.img").size(4096)) // MiB; made if missing
//!     .console(Console::File);                // a pty, and a log in the state directory
//! assert!(machine.arguments("console=ttyS0")?.contains(&"1:0,virtio-blk,root.img".to_owned()));
//! assert!(matches!(machine.cpus(65).check(), Err(Error::InvalidCpus { value: 65 })));
//! # Ok::<(), Error>(())
//! ```
//!
//! # Start
//! [`start`](HyperKit::start) leaves it running in the background, [`run`](HyperKit::run) waits for its end. Either refuses what
//! is wrong before anything is made, and a program that dies at its start is an error with its [`LastWords`].
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::alone();
//! let mut machine = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
//! machine.console = hyperkit::Console::File; // not on the terminal
//! let vm = machine.start("console=ttyS0")?;
//! println!("process {} runs it", vm.pid());
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # Find again
//! [`from_state`](HyperKit::from_state) reads a state directory, [`list`](HyperKit::list) all in a directory, and
//! [`vm`](HyperKit::vm) takes up the machine if it runs: the process that was started, and no other that has its pid by now.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! use hyperkit::HyperKit;
//!
//! for machine in HyperKit::list("machines")?.into_iter().flatten() {
//!     println!("{:?} {}", machine.state_dir, if machine.is_running() { "runs" } else { "does not run" });
//! }
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # Reach
//! The console is a stream ([`Vm::console`]), and what it has said can be read ([`HyperKit::console_log`]), followed
//! ([`Vm::console_lines`]) and awaited ([`Vm::wait_for_console`]). Ports of vsock are streams, either way
//! ([`Vm::vsock_connect`], [`Vm::vsock_listen`]); [`Vm::port_forwards`] and [`Vm::addresses`] tell of the network.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
//! use std::io::{Read, Write};
//! use std::time::Duration;
//!
//! vm.wait_for_console("is up", Duration::from_secs(300))?;
//! let mut console = vm.console()?; // who opens it has to read it
//! console.write_all(b"echo hello\r")?;
//! let mut said = [0; 4096];
//! let length = console.read(&mut said)?; // the first piece of the answer
//! # assert!(length > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # End
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! use std::time::Duration;
//!
//! let machine = hyperkit::HyperKit::from_state("vm")?;
//! if let Some(vm) = machine.vm()? {
//!     vm.shutdown(Duration::from_secs(30))?; // power button, then the plug
//! }
//! machine.remove(true)?; // forgets it, and keeps its disk
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # What it leaves alone
//! The library prints nothing, installs no signal handler, never ends the program and never panics on input. What the
//! program that runs the machine prints goes to `hyperkit.log` in the state directory and to the [`log`] facade,
//! target `hyperkit`. More of that, and what is in a state directory, is in the [`guide`].
//!
//! # How it is built
//! Data flows one way: description (`config`, `disk`) → `check`, with `kernel` and `image` for what is in files → `slots`
//! and `serial` → `engine` → `prepare` → `start`, which spawns (`child` with its `alarm`, `output`, `terminal`) and records
//! (`state`, under a `lock`) → `vm`, which may be another program's `process`, and `console`, `console_log`, `vsock` and `network`.
//! How to add a device or an engine stands in the README, "Working on it".

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(unix))]
compile_error!("hyperkit runs on macOS, QEMU is driven over unix sockets: this crate is for Unix systems");

mod config;
mod engine;
mod error;
mod exit;
pub mod guide;
mod machine;
mod plan;
mod preflight;
mod process;
mod runtime;
mod state;
mod sys;
mod vm;

pub use config::disk::{Disk, DiskFormat, DiskInterface, FlushMode, QcowOptions, SectorSize};
pub use config::{
    Console, HyperKit, Multiboot, MultibootModule, Network, PortForward, Protocol, Serial, SerialBackend, Share9p,
    Share9pSource,
};
pub use engine::{Engine, hyperkit::parse::parse_arguments};
pub use error::{ConfigError, Error, ErrorKind, Result};
pub use exit::{Exit, ShutdownOutcome};
pub use machine::{Found, StartOrAttach, Starting};
pub use preflight::image::create_disk_image;
pub use runtime::log_tail::LogTail;
pub use vm::console::ConsoleStream;
pub use vm::console_log::{ConsoleLines, ConsoleLinesCloser, NextLine};
pub use vm::network::NicKind;
pub use vm::scoped::ScopedVm;
pub use vm::{Disks, Exited, Vm, VmStatus};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
