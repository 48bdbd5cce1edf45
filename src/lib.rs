//! Describes lightweight virtual machines, starts them and keeps track of them.
//!
//! A VM is described once ([`HyperKit`], plain data), rendered into arguments for the hypervisor that is installed
//! ([`Engine`]: QEMU, or the macOS `hyperkit` command), and recorded in a state directory, in which any later program finds
//! it again.
//!
//! In this documentation, the *engine* is hyperkit or QEMU as a kind, the *hypervisor* the running process, the *VM* what
//! it runs, and the *guest* the software inside. The *description* is the [`HyperKit`] value, the *record* what a start
//! adds to it in the state directory: process ID, arguments, start time.
//!
//! # Describe
//! A description consists of fields with setters. [`arguments`](HyperKit::arguments) looks at no
//! file, [`check`](HyperKit::check) at all of them, and neither changes anything.
//!
//! ```
//! use hyperkit::{ConfigError, Disk, HyperKit};
//!
//! let description = HyperKit::new()
//!     .state_dir("vm")                            // records the VM
//!     .kernel("vmlinuz")
//!     .initrd("initrd.img")
//!     .cpus(2)
//!     .memory_mib(2048)
//!     .disk(Disk::raw("root.img").size_mib(4096)); // created if missing
//! assert!(description.arguments("console=ttyS0")?.contains(&"1:0,virtio-blk,root.img".to_owned()));
//!
//! let error = description.cpus(65).check().unwrap_err();
//! assert!(error.violations().contains(&ConfigError::InvalidCpus { value: 65 }));
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # Start
//! [`start`](HyperKit::start) leaves the VM running in the background, [`start_scoped`](HyperKit::start_scoped) ends it with
//! the caller, and [`run`](HyperKit::run) waits for its exit. All of them check everything before they create anything. A
//! hypervisor that fails at its start is an error with its output.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::alone();
//! let template = hyperkit::HyperKit::new().kernel("vmlinuz").initrd("initrd.img");
//! let vm = template.clone().state_dir("vm").start("console=ttyS0")?;
//! println!("process {}", vm.pid());
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # Find again
//! [`from_state`](HyperKit::from_state) reads a state directory, [`list`](HyperKit::list) all state directories in a
//! directory, and [`vm`](HyperKit::vm) returns the running VM: the process that was started, and no other that has its
//! process ID by now.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! for found in hyperkit::HyperKit::list("machines")? {
//!     match found.vm? {
//!         Some(vm) => println!("{}: process {}", found.dir.display(), vm.pid()),
//!         None => println!("{}: not running", found.dir.display()),
//!     }
//! }
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # Reach the guest
//! The console is a stream ([`Vm::console`]); its output is kept in a log ([`Vm::console_log`]), which can be followed
//! ([`Vm::console_lines`]) and awaited ([`Vm::wait_for_console`]). vsock carries streams between programs of the host and of
//! the guest ([`Vm::vsock_connect`], [`Vm::vsock_listen`]). [`Vm::host_port`] and [`Vm::addresses`] tell about the network.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
//! use std::time::Duration;
//!
//! vm.wait_for_console("is up", Duration::from_secs(300))?;
//! let console = vm.console()?;
//! console.send_line("uname -m")?;
//! console.expect("x86_64", Duration::from_secs(60))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # End
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! use std::time::Duration;
//! use hyperkit::{Disks, HyperKit};
//!
//! if let Some(vm) = HyperKit::from_state("vm")?.vm()? {
//!     let outcome = vm.shutdown(Duration::from_secs(30))?; // power button, then kill
//!     println!("{outcome}");
//!     vm.remove(Disks::Keep)?; // deletes the record, and keeps disk images
//! }
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # What the library does not do
//! The library prints nothing, installs no signal handler, never exits and never panics on input. The hypervisor's output
//! goes to `hyperkit.log` in the state directory and to the [`log`] facade, target `hyperkit`. The [`guide`] has pages on
//! the state directory, on embedding, and for users of the Go package.
//!
//! # Layers
//! Each folder of `src/` uses only those before it: `sys` (operating system), `config` (the description), `plan` (PCI slots,
//! serial ports, validation), `state` (the state directory as files), `process`, `engine` (a folder for each engine),
//! `preflight` (files and images), `runtime` (a running hypervisor), `vm`, `machine` (the verbs of a description). A test
//! checks it.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(unix))]
compile_error!("hyperkit runs on macOS, QEMU is driven over unix sockets: this crate is for Unix systems");

mod config;
mod engine;
mod error;
mod exit;
pub mod guide;
mod plan;
mod preflight;
mod process;
mod runtime;
mod state;
mod sys;
mod vm;

// After `vm`, so that `remove` comes last on the page of `Vm`. The empty line keeps rustfmt from sorting.
mod machine;

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
