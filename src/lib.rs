//! Starts lightweight virtual machines, and finds them again.
//!
//! A program describes a VM once, as plain data ([`HyperKit`]), and starts it from that description. The crate runs the VM
//! with the hypervisor that is installed ([`Engine`]): QEMU on Linux and macOS, or hyperkit, a small hypervisor for Intel
//! Macs. It records the VM in a directory, in which any later program finds it again. Guests are for x86-64: a Linux
//! kernel, UEFI firmware (a boot ROM), or another kernel that follows the Multiboot specification.
//!
//! Calls block. For async programs there are a future ([`Vm::exited`]) and non-blocking streams; the [`guide`] shows tokio.
//! Neither root nor KVM is needed: without KVM, QEMU emulates the processor, which is slower.
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | engine | hyperkit or QEMU, as a kind of program |
//! | hypervisor | the running process of an engine, one for each VM |
//! | VM | the virtual machine that the hypervisor runs |
//! | guest | the software in the VM: kernel and programs |
//! | host | the computer and the operating system on which the hypervisor runs |
//! | description | the [`HyperKit`] value |
//! | state directory | the directory of one VM, with its record, its console's log and its sockets ([file by file](guide::state_directory)) |
//! | record | what a start writes into the state directory: the description, process ID, arguments, start time |
//! | console | the first serial port of the VM, to which a Linux guest writes with `console=ttyS0` on its command line |
//! | pty | a pseudo-terminal: a terminal whose other end is a program, here the hypervisor |
//! | 9p | a file system protocol, with which a guest mounts a directory of the host |
//! | vsock | sockets between a host and its guests, without a network card |
//! | VPNKit | Docker Desktop's network stack, through which a guest on hyperkit reaches the network without root |
//!
//! # Describe
//! A description consists of fields with setters. [`arguments`](HyperKit::arguments) returns the hypervisor's arguments,
//! and [`check`](HyperKit::check) finds everything that is wrong with a description and its files. Neither changes
//! anything.
//!
//! ```
//! use hyperkit::{ConfigError, Disk, HyperKit};
//!
//! let description = HyperKit::new()
//!     .state_dir("vm")                             // records the VM
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
//! [`start`](HyperKit::start) leaves the VM running in the background, also after this program has ended.
//! [`start_scoped`](HyperKit::start_scoped) kills the VM when this program ends, which suits tests. [`run`](HyperKit::run)
//! waits until the VM has exited. All of them check everything before they create anything. If the hypervisor fails at its
//! start, the error has its output.
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
//! [`from_state`](HyperKit::from_state) reads a state directory, and [`list`](HyperKit::list) all state directories in a
//! directory. [`vm`](HyperKit::vm) returns the VM if it runs. A process that got the same process ID later is never taken
//! for the VM.
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
//! - The console: as a stream ([`Vm::console`]), or its log, as a whole ([`Vm::console_log`]), line by line
//!   ([`Vm::console_lines`]) or until it contains a text ([`Vm::wait_for_console`]).
//! - The network: [`Network::Nat`], with ports of the host that lead to the guest ([`PortForward`], [`Vm::host_port`]).
//! - A directory of the host, which the guest mounts: [`HyperKit::share_dir`].
//! - Sockets without a network: [`Vm::vsock_connect`], [`Vm::vsock_listen`].
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
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
//! [`shutdown`](Vm::shutdown) lets the guest power off, and kills the hypervisor if that takes too long.
//! [`kill`](Vm::kill) kills the hypervisor at once; data that the guest has not written to its disks is lost.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::running();
//! use std::time::Duration;
//! use hyperkit::{Disks, HyperKit};
//!
//! if let Some(vm) = HyperKit::from_state("vm")?.vm()? {
//!     let outcome = vm.shutdown(Duration::from_secs(30))?;
//!     println!("{outcome}");
//!     vm.remove(Disks::Keep)?; // deletes the record, and keeps disk images
//! }
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! # When something fails
//! Every call that can fail returns an [`Error`]. Its [`kind`](Error::kind) says what a program can do, its message what is
//! wrong with which field or path, and what to do. Most errors of a VM have the last lines of its output ([`LogTail`]).
//!
//! # What the library does not do
//! It prints nothing, installs no signal handler, never exits and never panics on input. The hypervisor's output goes to
//! `hyperkit.log` in the state directory and to the `log` facade, with the target `hyperkit`. It downloads no images, and has no
//! graphics and no snapshots. The [`guide`] has more about the state directory, about using the crate in a program, and for
//! users of the Go package that this crate mirrors.
//!
//! # Source
//! Each folder of `src/` uses only those before it: `sys` (operating system), `config` (the description), `plan` (PCI slots,
//! serial ports, validation), `state` (the state directory as files), `process`, `engine` (a folder for each engine),
//! `preflight` (files and images), `runtime` (a running hypervisor), `vm`, `machine` (the calls on a description). A test
//! checks this.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(unix))]
compile_error!("unsupported operating system: this crate is for macOS, Linux and other Unix systems");

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
