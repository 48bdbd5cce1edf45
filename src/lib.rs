//! Starts lightweight virtual machines, and finds them again.
//!
//! A program describes a VM as plain data ([`HyperKit`]) and starts it. The crate records the VM in a directory, in which any later
//! program finds it again. QEMU runs the VMs, on Linux and macOS. On Intel Macs the crate can use moby's hypervisor `hyperkit` instead:
//! a separate program, after which this crate is named. Guests are for x86-64 or arm64: a Linux kernel, or a disk that boots by UEFI; for
//! x86-64 also a kernel that follows the Multiboot specification.
//!
//! ```
//! # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
//! # let _here = here::alone();
//! use std::time::Duration;
//! use hyperkit::{Disk, Disks, HyperKit};
//!
//! let timeout = Duration::from_secs(300);
//! let description = HyperKit::new()
//!     .state_dir("vm")                              // records the VM
//!     .kernel("vmlinuz")
//!     .initrd("initrd.img")
//!     .memory_mib(512)
//!     .disk(Disk::raw("data.img").size_mib(64));    // created if missing
//! let console = description.engine()?.kernel_console(); // "ttyS0", or "ttyAMA0" for an arm64 kernel
//! let vm = description.start(&format!("console={console} panic=1 quiet no_timer_check"))?; // runs on when this program ends
//!
//! vm.wait_for_console("# ", timeout)?;              // the guest's prompt
//! let console = vm.console()?;                      // contains what the guest prints from now on
//! console.send_line("echo $((6 * 7))")?;
//! console.expect("42", timeout)?;
//! drop(console);                                    // the guest blocks while an open console is not read
//!
//! println!("{}", vm.shutdown(timeout)?);
//! vm.remove(Disks::Keep)?;                          // deletes what the crate created in `vm`, and keeps disk images
//! # Ok::<(), hyperkit::Error>(())
//! ```
//!
//! Calls block. For async programs there are a future ([`Vm::exited`]) and a non-blocking console; the guide shows
//! [tokio](guide::howto#use-it-from-tokio). Neither root nor KVM is needed. A guest for the host's architecture runs on the host's CPU
//! with KVM, or HVF on Macs. Otherwise QEMU emulates the CPU, which is slower.
//!
//! # Describe
//! Each setting is a public field of [`HyperKit`] and a method of the same name that sets it. [`check`](HyperKit::check) finds
//! everything that is wrong with a description and its files, and changes nothing.
//!
//! ```
//! use hyperkit::{ConfigError, HyperKit};
//!
//! let error = HyperKit::new().kernel("no/such/file").cpus(65).check().unwrap_err();
//! assert!(error.violations().contains(&ConfigError::InvalidCpus { value: 65 }));
//! println!("{error:#}"); // all in one line
//! ```
//!
//! # Start
//! - [`start`](HyperKit::start) leaves the VM running in the background, also after this program has ended.
//! - [`start_scoped`](HyperKit::start_scoped) kills the VM when its handle is dropped, and when this process ends, even by
//!   SIGKILL. Tests use it.
//! - [`run`](HyperKit::run) makes your terminal the VM's console, and waits until the VM has exited. Only `run` works without a
//!   state directory.
//!
//! All of them check everything before they create anything. If the hypervisor fails at its start, the error contains what it
//! printed.
//!
//! # Find again
//! [`from_state`](HyperKit::from_state) reads a state directory. [`list`](HyperKit::list) reads every state directory in a
//! directory, but not that directory itself. [`vm`](HyperKit::vm) returns the VM if it runs. If the VM has exited and another process
//! has reused its process ID, `vm` returns `None`.
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
//! - Run a program in it, and copy files in and out, with a small program in the guest, the [agent](guide::agent): [`Vm::command`],
//!   [`Vm::copy_in`].
//! - Run the host's programs in it, on QEMU: [`HyperKit::root`] with [`Root::Host`].
//! - Type on its console, and read what it prints: [`Vm::console`].
//! - Read only what it has printed: [`Vm::console_log`], [`Vm::console_lines`], [`Vm::wait_for_console`].
//! - Give it a network: [`Network::Nat`]. On QEMU, ports of the host can lead to the guest: [`PortForward`], [`Vm::host_port`].
//! - Connect VMs to each other, on QEMU: [`HyperKit::internal_network`].
//! - Share a directory of the host with it, on QEMU: [`HyperKit::share_dir`], [`HyperKit::share_virtiofs`].
//! - Connect to it without a network: [`Vm::vsock_connect`], [`Vm::vsock_listen`].
//!
//! # End
//! [`shutdown`](Vm::shutdown) presses the VM's power button, and kills the hypervisor if the guest has not powered off in time.
//! [`kill`](Vm::kill) kills the hypervisor at once; data that the guest has not written to its disks is lost.
//! [`remove`](Vm::remove) deletes what the VM and the crate created in the state directory, and the directory if it is then empty;
//! [`Disks`] says whether that includes disk images.
//!
//! # When something fails
//! Every call that can fail returns an [`Error`]. Match on its [`kind`](Error::kind) to decide how your program reacts. Its message names
//! the field or path, and says what is wrong and what to do. Most errors about a VM contain the last lines from hypervisor and guest
//! ([`LogTail`]).
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | engine | which program runs VMs: hyperkit, QEMU for x86-64 guests, or QEMU for arm64 guests |
//! | hypervisor | the running process of an engine, one for each VM |
//! | VM | the virtual machine that the hypervisor runs |
//! | guest | the software in the VM: kernel and programs |
//! | host | the computer and the operating system on which the hypervisor runs |
//! | description | what a VM shall have: kernel, memory, disks and so on; a [`HyperKit`] value |
//! | state directory | the directory of one VM, with its record, its console's log and its sockets ([file by file](guide::state_directory)) |
//! | record | what a start writes into the state directory: the description, process ID, arguments, start time |
//! | console | the first serial port of the VM, to which a Linux guest writes with `console=ttyS0` on its command line, or `console=ttyAMA0` on arm64 ([`kernel_console`](Engine::kernel_console)) |
//! | pty | a pseudo-terminal: a terminal whose other end is a program, here the hypervisor |
//! | 9p | a file system protocol, with which a guest mounts a directory of the host |
//! | virtiofs | a faster file system for the same purpose, which a program of the host serves: `virtiofsd` |
//! | vsock | sockets between a host and its guests, without a network card |
//! | VPNKit | Docker Desktop's network stack, through which a guest on hyperkit reaches the network without root |
//!
//! # What the library does not do
//! Except in [`run`](HyperKit::run), which uses your terminal, it reads and prints nothing. It installs no signal handler, and never
//! ends your process. Invalid settings and files never make it panic. The hypervisor's output goes to
//! `hyperkit.log` in the state directory, and to the `log` crate with the target `hyperkit`. It downloads no images, and has no
//! graphics and no snapshots.
//!
//! The [`guide`] answers "How do I …" with programs. It has pages on commands in the guest, on tests in a VM, on the engines, on crash
//! recovery, on the state directory, on use in a larger program, on security, and for users of the Go package that this crate mirrors.

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
    Architecture, Console, HyperKit, InternalNetwork, Multiboot, MultibootModule, Network, PortForward, Protocol, Root,
    Serial, SerialBackend, Share9p, Share9pSource, ShareVirtiofs,
};
pub use engine::{Engine, hyperkit::parse::parse_arguments};
pub use error::{ConfigError, Error, ErrorKind, NotStarted, Result};
pub use exit::{Exit, ShutdownOutcome};
pub use machine::{Found, StartOrAttach, Starting};
pub use preflight::image::create_disk_image;
pub use preflight::kernel::{Kernel, KernelFormat};
pub use runtime::log_tail::LogTail;
pub use vm::command::{GuestChild, GuestCommand, GuestOutput, GuestReader, GuestStatus, GuestStdin};
pub use vm::console::ConsoleStream;
pub use vm::console_log::{ConsoleLines, ConsoleLinesCloser, NextLine};
pub use vm::network::NicKind;
pub use vm::scoped::ScopedVm;
pub use vm::{Disks, Exited, Vm, VmStatus};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
