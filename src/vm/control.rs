//! Pausing and ending a VM.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Control;
use crate::error::Result;
use crate::exit::{Exit, ShutdownOutcome};
use crate::state::{PID_FILE, StateDir};
use crate::sys::file::inode;
use crate::vm::{CONTROL_TIMEOUT, Vm, VmStatus};

/// How often the power button is pressed: a guest that is not ready loses a press.
const PRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long a hypervisor may take to answer at the first press. Another client may keep it from answering at all.
const PRESS_TIMEOUT: Duration = Duration::from_secs(1);

/// # End
impl Vm {
    /// Presses the power button, waits for the guest to power off, and kills the hypervisor if that takes longer than
    /// `grace`.
    ///
    /// It presses the button every half second, since a guest that is not ready ignores it. It resumes a paused VM. On
    /// hyperkit, a press before the guest has turned ACPI on kills the VM. It returns when the hypervisor's process and pid
    /// file are gone.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// use hyperkit::{HyperKit, ShutdownOutcome};
    /// use std::time::Duration;
    ///
    /// if let Some(vm) = HyperKit::from_state("vm")?.vm()? {
    ///     match vm.shutdown(Duration::from_secs(30))? {
    ///         ShutdownOutcome::Graceful(exit) => println!("the guest {exit}"),
    ///         other => println!("{other}"),
    ///     }
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`kill`](Self::kill). If the power button cannot be pressed, the VM is killed, which is no error.
    #[doc(alias = "stop")]
    #[doc(alias = "poweroff")]
    #[doc(alias = "acpi")]
    pub fn shutdown(&self, grace: Duration) -> Result<ShutdownOutcome> {
        if let Some(exit) = self.try_wait() {
            self.clean_up(false)?;
            return Ok(ShutdownOutcome::AlreadyExited(exit));
        }
        let (start, mut presses) = (Instant::now(), 0);
        while start.elapsed() < grace {
            self.press_power_button(presses, start, grace);
            presses += 1;
            if let Some(exit) = self.wait_timeout(grace.saturating_sub(start.elapsed()).min(PRESS_INTERVAL)) {
                let outcome = self.outcome(exit)?;
                self.clean_up(false)?;
                return Ok(outcome);
            }
        }
        self.kill()?;
        Ok(match self.wait() {
            exit if exit.is_guest() => ShutdownOutcome::Graceful(exit), // at the last moment
            exit => ShutdownOutcome::Forced(exit),
        })
    }

    /// Kills the hypervisor (SIGKILL), and returns when its process and its pid file are gone.
    ///
    /// Data that the guest has not written to its disks is lost. It is no error if the VM has exited already.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// if let Some(vm) = hyperkit::HyperKit::from_state("vm")?.vm()? {
    ///     vm.kill()?;
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the operating system refuses the signal, or the pid file cannot be removed;
    /// [`Error::CannotTell`](crate::Error::CannotTell) if it cannot find out whether another VM was started in the state directory meanwhile.
    #[doc(alias = "destroy")]
    #[doc(alias = "SIGKILL")]
    pub fn kill(&self) -> Result<()> {
        let was_running = self.try_wait().is_none();
        self.kill_process()?;
        self.clean_up(was_running)
    }

    /// Resumes the guest if it is paused, and presses the power button. Both calls together end within `grace` from `start`.
    fn press_power_button(&self, presses: u32, start: Instant, grace: Duration) {
        // On a busy host the answer may be late, so the next press waits longer.
        let timeout = (PRESS_TIMEOUT * 2_u32.pow(presses.min(8))).min(CONTROL_TIMEOUT);
        let left = || grace.saturating_sub(start.elapsed()).min(timeout);
        let dir = self.state_dir().unwrap_or(Path::new("")).display();
        let is_paused = match self.driver().is_paused(self.hypervisor(), left()) {
            // hyperkit does not report it, and a resume kills it if its first vCPU does not run yet.
            Ok(is_paused) => is_paused.unwrap_or(presses > 0),
            Err(error) => {
                log::debug!(target: "hyperkit", "{dir}: cannot find out whether the VM is paused: {error:#}");
                let events = self.child().and_then(|child| child.events());
                let pressed =
                    self.driver().press_power_button_over_events(self.hypervisor(), events.as_deref(), left());
                if let Err(error) = pressed {
                    log::debug!(target: "hyperkit", "{dir}: cannot press the power button over the events socket: {error:#}");
                }
                return;
            }
        };
        for control in [Control::Resume, Control::PressPowerButton] {
            if control == Control::Resume && !is_paused {
                continue;
            }
            if let Err(error) = self.send_control(control, left()) {
                log::debug!(target: "hyperkit", "{dir}: {control:?}: {error:#}");
            }
        }
    }

    fn is_recorded_as_killed(&self, state: &StateDir) -> Result<bool> {
        Ok(state.load_whole_record()?.is_some_and(|record| record.pid == Some(self.pid()) && record.killed))
    }

    /// Classifies an exit within the grace period. Only the parent learns the exit status. For others, the pid file shows
    /// whether the exit was normal: hyperkit and QEMU then remove it. The record shows whether another program has killed the VM
    /// with this crate.
    fn outcome(&self, exit: Exit) -> Result<ShutdownOutcome> {
        Ok(match (exit, self.state()) {
            (Exit::Unknown, Some(state)) if self.is_recorded_as_killed(state)? => ShutdownOutcome::Forced(exit),
            (Exit::Unknown, Some(state)) if state.pid()? != Some(self.pid()) => ShutdownOutcome::Graceful(exit),
            // The directory was moved. The hypervisor removes its pid file at the old path, so the file proves nothing.
            (Exit::Unknown, Some(state)) if !has_recorded_pid_file(state)? => ShutdownOutcome::Unknown,
            (Exit::Unknown, Some(_)) => ShutdownOutcome::Forced(exit),
            (Exit::Unknown, None) => ShutdownOutcome::Unknown,
            (exit, _) if exit.is_guest() => ShutdownOutcome::Graceful(exit),
            (exit, _) => ShutdownOutcome::Forced(exit),
        })
    }
}

/// Whether the directory is still where it was at the start. The hypervisor removes its pid file at the path in its
/// arguments.
fn has_recorded_pid_file(state: &StateDir) -> Result<bool> {
    let Some(record) = state.load_whole_record()? else { return Ok(true) };
    let recorded = record.arguments.iter().map(Path::new).find(|path| path.ends_with(PID_FILE) && path.is_absolute());
    Ok(recorded.is_none_or(|path| path.parent().and_then(inode) == inode(state.path())))
}

/// # Status and pause
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
/// vm.pause()?;
/// println!("{}", vm.status()?); // paused
/// vm.resume()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Vm {
    /// Returns whether the VM runs, is paused or has exited. On hyperkit, a paused VM is reported as running.
    ///
    /// # Errors
    /// [`Error::Qmp`](crate::Error::Qmp) or [`Error::Io`](crate::Error::Io) if QEMU does not answer within 5 s.
    pub fn status(&self) -> Result<VmStatus> {
        if let Some(exit) = self.try_wait() {
            return Ok(VmStatus::Exited(exit));
        }
        match self.driver().is_paused(self.hypervisor(), CONTROL_TIMEOUT) {
            Ok(Some(true)) => Ok(VmStatus::Paused),
            Ok(_) => Ok(VmStatus::Running),
            // It may have exited meanwhile.
            Err(error) => self.try_wait().map(VmStatus::Exited).ok_or(error),
        }
    }

    /// Stops the guest's vCPUs until [`resume`](Self::resume). The hypervisor runs on.
    ///
    /// Afterwards the guest's clock is behind by the length of the pause. In a Linux guest, `hwclock -s -u` sets the clock
    /// from the VM's RTC, which runs on during a pause.
    ///
    /// On hyperkit, a pause before the first vCPU runs kills the VM.
    ///
    /// # Errors
    /// [`Error::NotRunning`](crate::Error::NotRunning); [`Error::Io`](crate::Error::Io); on QEMU [`Error::Qmp`](crate::Error::Qmp), and
    /// [`ConfigError::StateDirRequired`](crate::ConfigError::StateDirRequired) for a VM without a state directory.
    #[doc(alias = "suspend")]
    pub fn pause(&self) -> Result<()> {
        self.control(Control::Pause)
    }

    /// Lets a paused guest continue. It does nothing to a guest that is not paused.
    ///
    /// # Errors
    /// Those of [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.control(Control::Resume)
    }
}
