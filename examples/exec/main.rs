//! Runs a program in a VM: `cargo run --example exec -- --host-root -- uname -a`.

mod command_line;
#[path = "../shared/cpio.rs"]
mod cpio;
#[path = "../shared/ctl_command.rs"]
mod ctl_command;
mod environment;
mod failure;
#[path = "../shared/guest.rs"]
mod guest;
mod host;
mod input;
mod kernel_initrd;
mod kernels;
#[path = "../shared/messages.rs"]
mod messages;
#[path = "../shared/output.rs"]
mod output;
mod output_copy;
mod regular_file;
mod run_dir;
#[path = "../shared/shell.rs"]
mod shell;
mod signals;
mod small_guest;
#[path = "../shared/unread.rs"]
mod unread;
#[path = "../shared/usage.rs"]
mod usage;
#[path = "../shared/vms.rs"]
mod vms;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use command_line::{Mode, Options};
use input::Input;
use signal_hook::consts::SIGPIPE;
use signals::EndingSignal;

/// The exit status if the program could not be run.
const FAILED: u8 = 125;
/// The exit status after a timeout, as of `timeout` of the GNU coreutils.
const TIMED_OUT: u8 = 124;

/// How a run of the program has ended.
#[derive(Clone, Copy)]
enum Ended {
    /// With this status, or by a signal, which is added to 128.
    Status(u8),
    TimedOut,
    /// Nobody reads the output any more.
    Unread,
    /// A signal has ended `exec`.
    Signalled(i32),
}

impl Ended {
    fn status(self) -> u8 {
        let of_signal = |signal: i32| 128 + u8::try_from(signal).unwrap_or(0);
        match self {
            Self::Status(status) => status,
            Self::TimedOut => TIMED_OUT,
            Self::Unread => of_signal(SIGPIPE),
            Self::Signalled(signal) => of_signal(signal),
        }
    }

    /// Whether `exec` exits, too, and does not run the program with further kernels.
    fn ends_exec(self) -> bool {
        matches!(self, Self::Unread | Self::Signalled(_))
    }
}

fn main() -> ExitCode {
    let options = match command_line::parse() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return usage::refuse("exec", &*error),
    };
    match exec(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report(&*error);
            ExitCode::from(FAILED)
        }
    }
}

fn exec(options: &Options) -> Result<u8, Box<dyn Error>> {
    let ending = EndingSignal::new()?;
    Ok(match &options.mode {
        Mode::SmallGuest { is_child } => {
            kernels::run_all(options, |kernel| small_guest::run(options, *is_child, kernel, &ending))
        }
        Mode::HostRoot(host) => {
            let input = Input::new(options.has_table);
            kernels::run_all(options, |kernel: Option<&Path>| host::run(options, host, kernel, &input, &ending))
        }
    })
}

/// Prints an error.
fn report(error: &(dyn Error + 'static)) {
    let _ = small_guest::write_stderr(&format!("exec: {}\n", messages::explain(error, true)));
}
