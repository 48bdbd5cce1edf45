//! The agent: a program in the guest that executes the commands of the host's `Vm::command`.
//!
//! ```text
//! hyperkit-agent          waits for the virtio serial port named org.hyperkit.agent or for vsock, and serves it; the port if the VM
//!                         has both
//! hyperkit-agent vsock    serves vsock, also if there is a port
//! hyperkit-agent PATH     serves this device
//! /init                   as the first process: mounts a directory of the host as the root, then serves the port (`init.rs`)
//! ```
//!
//! It needs `/proc`, `/sys` and `/dev`, no privilege and no other file. It runs until it is killed. The process that reads the port, or a
//! connection by vsock, starts a supervisor for each command (`supervisor.rs`): the same program, which finds all descendants of the
//! command.
#![forbid(unsafe_code)]
#![cfg_attr(not(target_os = "linux"), allow(dead_code))]

// The library and the agent have these two files in common.
#[cfg(target_os = "linux")]
#[path = "../../../../src/vm/command/archive.rs"]
mod archive;
#[cfg(target_os = "linux")]
#[path = "../../../../src/vm/command/protocol.rs"]
#[allow(dead_code, reason = "the library uses the other half")]
mod protocol;

#[cfg(target_os = "linux")]
mod command;
#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod port;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
mod supervisors;
#[cfg(target_os = "linux")]
mod vsock;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("hyperkit-agent: runs on Linux only");
    std::process::exit(1);
}

#[cfg(target_os = "linux")]
fn main() {
    use std::io;
    use std::path::Path;

    // Linux passes parameters of the kernel command line to its first process as arguments.
    if init::is_init() {
        let error = init::run();
        eprintln!("hyperkit-agent: cannot power off after that: {error}");
        std::process::exit(1);
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let result = match &words[..] {
        [supervisor::OPTION] => supervisor::run(),
        [archive_option, _] if *archive_option == supervisor::PACK => {
            archive::pack(Path::new(&arguments[1]), &mut io::BufWriter::with_capacity(128 * 1024, io::stdout()))
        }
        [archive_option, _] if *archive_option == supervisor::UNPACK => {
            archive::unpack(Path::new(&arguments[1]), &mut io::BufReader::with_capacity(128 * 1024, io::stdin()))
        }
        [vsock::OPTION] => vsock::run_session(),
        [] => init::check_root().and_then(|()| {
            // A kernel without vsock is no error.
            std::thread::spawn(|| vsock::serve(true));
            port::find().and_then(|port| session::serve(&port, || ()))
        }),
        [init::SERVE] => port::find().and_then(|port| session::serve(&port, init::forget_files)),
        ["vsock"] => vsock::serve(false),
        [path] if !path.starts_with('-') => {
            port::open(Path::new(&arguments[0])).and_then(|port| session::serve(&port, || ()))
        }
        _ => Err(io::Error::other("usage: hyperkit-agent [vsock | DEVICE]")),
    };
    if let Err(error) = result {
        // The host shows what a copy prints.
        eprintln!("{}{error}", if words.len() == 2 { "" } else { "hyperkit-agent: " });
        std::process::exit(1);
    }
}
