//! The command line: what runs, and how.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyperkit::{Architecture, HyperKit};

use crate::guest;
use crate::usage::{number, print_help, text, unexpected};

const HELP: &str = "\
Runs a program in a new VM, which ends with the program.

    cargo run --example exec -- --host-root [OPTIONS] -- PROGRAM [ARGUMENTS]
    cargo run --example exec -- [OPTIONS] PROGRAM [ARGUMENTS]

  --host-root           runs any program of this host, with its files. QEMU on Linux only
  --share DIR           lets the program write to DIR, in the directories of the host; otherwise it changes nothing on the
                        host. Any number of times
  --env NAME[=VALUE]    sets a variable, or passes on one of exec. Any number of times
  --timeout SECONDS     kills the program after this time, which begins when the guest has booted
  --boot-timeout SECONDS  how long the guest may take to boot (default: 120)
  --arch amd64|arm64    the architecture of the guest and of the program (default: that of the kernel or of --hyperkit,
                        otherwise the host's). With --host-root, it must be the host's
  --kernel FILE         the kernel: an x86 bzImage, an arm64 Image, or on QEMU a vmlinux for x86. Several times: runs the
                        program with each kernel, and prints a table at the end
  --kernels FILE        runs the program with each kernel that FILE names: one path on each line, relative to FILE, and
                        comments after #
  --child               runs the program as an ordinary process instead of as process 1 (only without --host-root)
  --cpus N              vCPUs (default: 1)
  --memory MIB          memory (default: 1024)
  --hyperkit PROGRAM    hyperkit, qemu-system-x86_64 or qemu-system-aarch64, by name or path (default: the first that is
                        installed for the guest's architecture)
  --help                prints this text

With --host-root, the program has the files, the working directory and the user of exec. Standard input, output and error
are passed on, also binary data; a terminal is not read. Of the environment the program gets PATH, HOME, USER, LANG, TERM,
those of Rust, Cargo, nextest and Go, and some others, but no secrets: the guide's page `tests_in_a_vm` lists them.
The program can read what exec may read. What it writes is lost, except in DIR.

The exit status is that of the program, 128 plus the number of the signal if a signal killed the program or exec, 124 after
--timeout, 125 if the program could not be run, 141 if nobody reads the output any more, and 2 if the command line is wrong.
With several kernels it is that of the first run that failed. The VM ends with exec, also if exec is killed. Only SIGKILL
leaves its state directory, which `ctl list` shows and `ctl rm` deletes. The next run deletes one that is empty.

Without --host-root, the program is a statically linked one, or a script for /bin/sh. Without --child, it is process 1 of
the guest. Linux does not deliver to process 1 signals that it does not handle, not even those that it sends to itself. With
--child, abort and alarm, for instance, work as elsewhere. The output passes through serial ports: on an emulated CPU, these
are slow (400 KB/s). On standard error, bytes that are not UTF-8 are replaced. If standard input and output are both a
terminal, the program reads from the terminal once it runs; otherwise its standard input is empty. The guest has a /bin/sh,
/proc, /sys, /dev and /tmp, and no files of the host. Here SIGKILL of exec leaves a temporary directory.
";

/// How long the guest may take to boot. An emulated guest on an idle host takes 2 s from its vmlinux.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// What to run, and how.
pub struct Options {
    /// vCPUs, memory and hypervisor.
    pub description: HyperKit,
    /// The architecture of the guest, if the command line names one.
    pub architecture: Option<Architecture>,
    pub mode: Mode,
    /// If empty, the program runs with the kernel of the small guest.
    pub kernels: Vec<PathBuf>,
    /// Whether a table says at the end with which kernels the program passed.
    pub has_table: bool,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

pub enum Mode {
    /// In the small guest, without the host's files: as process 1 or as its child.
    SmallGuest {
        is_child: bool,
    },
    HostRoot(HostOptions),
}

/// Options of [`Mode::HostRoot`].
pub struct HostOptions {
    pub shares: Vec<PathBuf>,
    /// Variables. Those without a value are passed on.
    pub env: Vec<(OsString, Option<OsString>)>,
    pub timeout: Option<Duration>,
    pub boot_timeout: Duration,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Returns the options; `None` after printing help.
pub fn parse() -> Result<Option<Options>> {
    use lexopt::prelude::*;
    let (mut description, mut is_child, mut is_host_root) = (HyperKit::new(), false, false);
    let mut host = HostOptions { shares: vec![], env: vec![], timeout: None, boot_timeout: BOOT_TIMEOUT };
    let (mut kernels, mut has_table, mut architecture) = (Vec::new(), false, None);
    // The first option that has no meaning without --host-root.
    let mut host_option = None;
    let mut args = lexopt::Parser::from_env();
    let program = loop {
        let Some(arg) = args.next()? else { return Err("missing PROGRAM".into()) };
        if let Long(name @ ("share" | "env" | "timeout" | "boot-timeout")) = arg {
            host_option.get_or_insert(format!("--{name}"));
        }
        match arg {
            Long("help") | Short('h') => {
                print_help("exec", HELP);
                return Ok(None);
            }
            Long("host-root") => is_host_root = true,
            Long("share") => host.shares.push(args.value()?.into()),
            Long("env") => host.env.push(variable(&args.value()?)?),
            Long("timeout") => host.timeout = Some(seconds(&mut args, "--timeout")?),
            Long("boot-timeout") => host.boot_timeout = seconds(&mut args, "--boot-timeout")?,
            Long("arch") => architecture = Some(guest::architecture(&text(&mut args, "--arch")?)?),
            Long("kernel") => kernels.push(args.value()?.into()),
            Long("kernels") => {
                kernels.extend(read_kernels(args.value()?.as_ref())?);
                has_table = true;
            }
            Long("child") => is_child = true,
            Long("cpus") => description = description.cpus(number(&mut args, "--cpus")?),
            Long("memory") => description = description.memory_mib(number(&mut args, "--memory")?),
            Long("hyperkit") => description = description.hyperkit(args.value()?),
            Value(program) => break program,
            _ => return Err(unexpected(arg, HELP).into()),
        }
    };
    let mode = match (is_host_root, host_option) {
        (true, _) if is_child => return Err("--child and --host-root exclude each other".into()),
        (true, _) => match architecture.filter(|it| Some(*it) != Architecture::host()) {
            Some(other) => {
                return Err(format!("--host-root runs programs of this host, not of {other}; leave out --arch").into());
            }
            None => Mode::HostRoot(host),
        },
        (false, Some(option)) => return Err(format!("{option} requires --host-root").into()),
        (false, None) => Mode::SmallGuest { is_child },
    };
    has_table |= kernels.len() > 1;
    let command = [program].into_iter().chain(args.raw_args()?).collect();
    Ok(Some(Options { description, architecture, mode, kernels, has_table, command }))
}

fn seconds(args: &mut lexopt::Parser, flag: &str) -> Result<Duration> {
    match number(args, flag)? {
        0 => Err(format!("{flag} must be at least 1: 0").into()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// Splits `NAME=VALUE`.
fn variable(text: &OsString) -> Result<(OsString, Option<OsString>)> {
    let mut parts = text.as_bytes().splitn(2, |&byte| byte == b'=');
    let name = parts.next().unwrap_or_default().to_vec();
    if name.is_empty() {
        return Err(format!("--env takes NAME or NAME=VALUE: {text:?}").into());
    }
    Ok((OsString::from_vec(name), parts.next().map(|value| OsString::from_vec(value.to_vec()))))
}

/// Reads a file that names kernels.
fn read_kernels(file: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read(file).map_err(|error| format!("--kernels {}: {error}", file.display()))?;
    let dir = file.parent().unwrap_or(Path::new(""));
    let lines = text.split(|&byte| byte == b'\n');
    let names = lines.map(|line| line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii());
    let names = names.filter(|name| !name.is_empty());
    let kernels: Vec<_> = names.map(|name| dir.join(OsString::from_vec(name.to_vec()))).collect();
    match kernels.is_empty() {
        true => Err(format!("--kernels {}: the file names no kernel", file.display()).into()),
        false => Ok(kernels),
    }
}
