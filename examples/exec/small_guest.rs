//! Runs a static program in the small guest, which has no files of the host. The output comes over serial ports.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use hyperkit::{Architecture, Serial, Vm};

use crate::command_line::Options;
use crate::shell::quoted;
use crate::signals::EndingSignal;
use crate::unread::when_unread;
use crate::{Ended, cpio, guest, regular_file};

const BEGIN: &str = "exec: begin";
/// CPUs in the header of an ELF file, from Linux's `include/uapi/linux/elf-em.h`.
const EM_X86_64: usize = 62;
const EM_AARCH64: usize = 183;

/// Runs the program in a VM that lasts as long as this call.
pub fn run(
    options: &Options,
    is_child: bool,
    kernel: Option<&Path>,
    ending: &EndingSignal,
) -> Result<Ended, Box<dyn Error>> {
    let mut description = options.description.clone();
    description.kernel = kernel.map(Into::into);
    let engine = guest::engine(options.architecture, &description)?;
    let (guest_kernel, guest_initrd) = guest::kernel_and_initrd(engine)?;
    let temporary = std::env::temp_dir();
    let in_temporary = |error| format!("cannot create the VM's files in {}: {error}", temporary.display());
    let dir = tempfile::tempdir_in(&temporary).map_err(in_temporary)?;
    let initrd = dir.path().join("initrd.img");
    // No program prints this by itself.
    let end = format!("exec {}: status ", dir.path().display());
    fs::write(&initrd, initrd_for(&options.command, engine.architecture(), &end, &guest_initrd)?)
        .map_err(in_temporary)?;
    let description =
        description.state_dir(dir.path().join("vm")).kernel(kernel.unwrap_or(&guest_kernel)).initrd(initrd);
    let description = description.serial(Serial::none().log()).serial(Serial::stdio());
    let terminal = if stdin().is_terminal() && stdout().is_terminal() {
        " exec.terminal"
    } else {
        // The hypervisor would read it, and a serial port cannot pass on the end of a file.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        ""
    };

    if stderr().is_terminal() {
        write_stderr("exec: booting a VM, which takes a few seconds\n")?;
    }
    let child = if is_child { " exec.child" } else { "" };
    let console = engine.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=-1 no_timer_check{terminal}{child}"))?;
    // The program in the guest does not notice that nobody reads its output.
    let is_unread = Arc::new(AtomicBool::new(false));
    let (unread_vm, was_unread) = (Vm::clone(&vm), is_unread.clone());
    when_unread(move || {
        was_unread.store(true, Ordering::Relaxed);
        let _ = unread_vm.kill();
    });
    let signalled_vm = Vm::clone(&vm);
    ending.on_signal(move |_| drop(signalled_vm.kill()));
    let status = vm.console_lines().map_err(Into::into).and_then(|lines| pass_on_stderr(lines, &end));
    if status.is_err() {
        vm.kill()?; // nobody reads the output any more
    }
    let exit = vm.wait(); // this also restores the terminal
    if let Some(signal) = ending.signal() {
        return Ok(Ended::Signalled(signal));
    }
    if is_unread.load(Ordering::Relaxed) && !matches!(status, Ok(Some(_))) {
        return Ok(Ended::Unread);
    }
    let status = status?.ok_or_else(|| format!("the VM {exit} before the program ended; {}", vm.log_tail()))?;
    Ok(Ended::Status(status))
}

/// Copies the output of the first serial port to standard error, except what the kernel prints before the program starts. Returns the
/// status, which follows `end`.
fn pass_on_stderr(
    lines: impl Iterator<Item = hyperkit::Result<String>>,
    end: &str,
) -> Result<Option<u8>, Box<dyn Error>> {
    for line in lines.skip_while(|line| line.as_ref().is_ok_and(|line| line != BEGIN)).skip(1) {
        let line = line?;
        // The program's last line may have no newline.
        let Some((errors, status)) = line.split_once(end) else {
            // A terminal is in raw mode while the VM runs.
            write_stderr(&format!("{line}{}", if stderr().is_terminal() { "\r\n" } else { "\n" }))?;
            continue;
        };
        write_stderr(errors)?;
        return Ok(Some(status.trim().parse()?));
    }
    Ok(None)
}

/// Writes a text to standard error, which the hypervisor may have made non-blocking.
pub fn write_stderr(text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match stderr().write(rest) {
            Ok(length) => rest = &rest[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the initrd of `examples/setup.sh` with another first process, and with the program.
fn initrd_for(
    command: &[OsString],
    architecture: Architecture,
    end: &str,
    guest_initrd: &Path,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let (program, arguments) = command.split_first().ok_or("no program")?;
    let path = Path::new(program);
    let name = path.file_name().ok_or_else(|| format!("not the path of a program: {path:?}"))?;
    let name = name.to_str().ok_or_else(|| format!("the name of the program is not valid UTF-8: {name:?}"))?;
    let mut content = Vec::new();
    let read = regular_file::open(path).and_then(|mut file| file.read_to_end(&mut content));
    read.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("program not found: {}; set its path, or --host-root for the programs of this host", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    })?;
    check_program(&content, architecture).map_err(|why| format!("{}: {why}", path.display()))?;
    let mut initrd = fs::read(guest_initrd)?;
    let run = [b"#!/bin/sh\ncd /exec/bin\nexec ./", &quoted(OsStr::new(name))[..]].concat();
    let run = arguments.iter().fold(run, |run, argument| [&run[..], b" ", &quoted(argument)].concat());
    let (directory, executable) = (0o040_755, 0o100_755);
    cpio::append(
        &mut initrd,
        &[
            ("init", executable, include_bytes!("init")),
            ("exec", directory, b""),
            ("exec/run", executable, &run),
            ("exec/end", 0o100_644, end.as_bytes()),
            ("exec/bin", directory, b""),
            (&format!("exec/bin/{name}"), executable, &content),
        ],
    );
    Ok(initrd)
}

/// Refuses programs for another system, and programs that need a loader: the shell in the guest would report them as "not found". A
/// file that is not ELF may be a script.
fn check_program(program: &[u8], architecture: Architecture) -> Result<(), String> {
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0, |number, &byte| (number << 8) | usize::from(byte)))
    };
    if !program.starts_with(b"\x7fELF") {
        let first_line = program.split(|&byte| byte == b'\n').next().unwrap_or_default();
        return match first_line.strip_prefix(b"#!").map(<[u8]>::trim_ascii) {
            Some(b"/bin/sh") => Ok(()),
            Some(_) => Err("a script for another interpreter than /bin/sh, which is the only one in the guest".into()),
            None => Err("neither a program for Linux nor a script with #!/bin/sh in its first line".into()),
        };
    }
    // 64 bits, and the CPU.
    let built_for = match (number(4, 1), number(18, 2)) {
        (Some(2), Some(EM_X86_64)) => Some(Architecture::X86_64),
        (Some(2), Some(EM_AARCH64)) => Some(Architecture::Arm64),
        _ => None,
    };
    if built_for != Some(architecture) {
        let advice = built_for.map(|other| format!("; set --arch {}", guest::debian_name(other))).unwrap_or_default();
        return Err(format!("not for {architecture}{advice}"));
    }
    let header = |index: usize| number(number(32, 8)? + index * number(54, 2)?, 4);
    let is_interpreter = |index| header(index) == Some(3);
    if (0..number(56, 2).unwrap_or(0)).any(is_interpreter) {
        let host_root = if Some(architecture) == Architecture::host() { "set --host-root, or " } else { "" };
        return Err(format!(
            "it needs shared libraries: {host_root}link it statically (cc -static, or one of Rust's musl targets)"
        ));
    }
    Ok(())
}
