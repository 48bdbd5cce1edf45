//! Which process is the VM of a state directory.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use crate::config::HyperKit;
use crate::engine::hyperkit;
use crate::process::Process;
use crate::process::{Seen, look_at_all};
use crate::state::{PID_FILE, StateDir};
use crate::sys::path::canonical;

impl StateDir {
    /// The machine that runs in this directory, going by the pid file and by what was recorded.
    pub fn running(&self, recorded: Option<&HyperKit>) -> Option<Process> {
        let recorded_pid = recorded.and_then(|machine| machine.pid);
        let in_file = self.pid();
        let is_ours =
            |seen: &Seen| self.is_named_by(seen) && recorded.is_none_or(|machine| fits(machine, in_file, seen));
        [in_file, recorded_pid.filter(|_| in_file != recorded_pid)]
            .into_iter()
            .flatten()
            .find_map(|pid| Process::find(pid, is_ours))
            .or_else(|| {
                // A starter may have died before its machine wrote a pid file, or the state file is unreadable: then
                // there is only the command line. In an empty directory there has been nothing.
                let may_be = |seen: &Seen| match recorded {
                    Some(machine) => seen.has_arguments(&machine.arguments),
                    None => self.is_named_by(seen),
                };
                let is_worth_it = match recorded {
                    Some(machine) => recorded_pid.is_none() && !machine.arguments.is_empty(),
                    None => fs::read_dir(&self.0).is_ok_and(|mut entries| entries.next().is_some()),
                };
                let seen = is_worth_it.then(look_at_all)?.into_iter().find(may_be)?;
                Process::find(seen.pid, is_ours)
            })
    }

    /// Whether a process was told to write our pid file.
    fn is_named_by(&self, seen: &Seen) -> bool {
        pid_files(&seen.command).any(|file| {
            // The Go package passes on a relative path as it is.
            let file = Path::new(file);
            let path =
                if file.is_absolute() { file.to_owned() } else { seen.directory().unwrap_or_default().join(file) };
            path.file_name() == Some(OsStr::new(PID_FILE))
                && path.parent().is_some_and(|dir| dir == self.0 || canonical(dir) == self.0)
        })
    }
}

/// Whether a process is the one that was recorded; another may have been started since, if it wrote the pid file.
/// The clock may have been set since the start, so the time only decides where the pid file does not.
fn fits(recorded: &HyperKit, in_file: Option<u32>, seen: &Seen) -> bool {
    if recorded.pid != Some(seen.pid) {
        return true;
    }
    let same_time = || recorded.pid_started.is_none_or(|started| seen.began_at(started));
    seen.has_arguments(&recorded.arguments) && (in_file == Some(seen.pid) || same_time())
}

/// What stands behind QEMU's `-pidfile` or hyperkit's `-F`, which may share its dash with other letters, and be one word
/// with the file.
fn pid_files(command: &[OsString]) -> impl Iterator<Item = &OsStr> {
    command.iter().enumerate().filter_map(|(at, word)| {
        let file = match word.to_str()? {
            "-pidfile" => "",
            letters => letters.strip_prefix('-')?.trim_start_matches(hyperkit::SWITCHES).strip_prefix('F')?,
        };
        if file.is_empty() { command.get(at + 1).map(OsString::as_os_str) } else { Some(OsStr::new(file)) }
    })
}
