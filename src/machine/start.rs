//! Starting VMs: in the background, for the lifetime of a scope, or in the foreground.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::config::record::{Home, Record};
use crate::config::{Console, HyperKit};
use crate::engine::driver_of;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::machine::lookup::refuse_running;
use crate::machine::prepare::{Acquired, acquire, apply, plan_disks, refuse_resources_in_use};
use crate::machine::spawn::spawn;
use crate::machine::starting::Starting;
use crate::machine::undo::Undo;
use crate::plan::validate::check_cmdline;
use crate::preflight::checked;
use crate::preflight::files::check_cmdline_length;
use crate::preflight::image_lock::ImageLock;
use crate::process::start_time;
use crate::state::StateDir;
use crate::vm::scoped::ScopedVm;
use crate::vm::{Handle, Vm};

/// How long a hypervisor may take until all devices are there. Far more than any takes that does not hang.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a VM is started again after a reset.
const MIN_RESTART_PAUSE: Duration = Duration::from_millis(100);
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(10);
/// How often a start runs the hypervisor if it finds an image locked. Each failure requires another start that checks the image at that
/// moment.
const IMAGE_ATTEMPTS: u32 = 10;
/// How often `start_or_attach` tries: the running VM may exit before it can be attached to.
const ATTACH_ATTEMPTS: u32 = 10;

/// The result of [`HyperKit::start_or_attach`], which has an example.
#[derive(Debug)]
pub enum StartOrAttach {
    /// The VM was started by this call.
    Started(Vm),
    /// The VM was running already.
    Attached(Vm),
}

impl StartOrAttach {
    /// Returns the VM in either case.
    #[must_use]
    pub fn into_vm(self) -> Vm {
        match self {
            Self::Started(vm) | Self::Attached(vm) => vm,
        }
    }
}

/// What happens to the VM when this program ends, and who has the terminal.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Mode {
    /// Outlives this program.
    Background,
    /// Ends with this program.
    Scoped,
    /// Ends with this program, and uses its terminal.
    Foreground,
}

/// # Start
///
/// | call | returns | when this program ends |
/// |---|---|---|
/// | [`start`](Self::start), [`start_or_attach`](Self::start_or_attach), [`spawn`](Self::spawn) | when the hypervisor is ready; `spawn` at once | the VM runs on |
/// | [`start_scoped`](Self::start_scoped) | when the hypervisor is ready | the VM is killed |
/// | [`run`](Self::run), [`run_restarting_on_reset`](Self::run_restarting_on_reset) | when the VM has exited | the VM is killed |
///
/// Each checks the description first, and creates nothing if it is not valid. The kernel command line is an argument of
/// the call. A boot ROM takes none: pass `""`.
impl HyperKit {
    /// Starts the VM in the background and waits until the hypervisor is ready, at most 30 s.
    ///
    /// Ready means that all devices exist. The guest then begins to boot;
    /// [`Vm::wait_for_console`] waits for a text of the guest.
    ///
    /// The VM outlives this program, and [`from_state`](Self::from_state) finds it again. An unset
    /// [`console`](Self#structfield.console) is a [`Pty`](Console::Pty). With [`Console::Stdio`], the VM keeps using the
    /// caller's standard input and output after this program has ended.
    ///
    /// `start` is [`spawn`](Self::spawn) followed by [`Starting::wait_ready`]. But `start` tries again if the hypervisor found a disk image
    /// locked only because another start was checking whether the image is in use.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let vm = description.start("console=ttyS0")?;
    /// println!("runs as process {}", vm.pid());
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Before anything is created: [`Error::InvalidConfig`], [`Error::HypervisorNotFound`], [`Error::AlreadyRunning`],
    /// [`Error::DiskInUse`], [`Error::PortInUse`], [`Error::NetworkNumberInUse`], [`Error::CannotTell`]. Later:
    /// [`Error::HypervisorFailed`] and [`Error::StartTimedOut`] with its output; [`Error::VsockDaemonFailed`],
    /// [`Error::VirtiofsdFailed`]; [`Error::Io`].
    #[doc(alias = "boot")]
    #[doc(alias = "launch")]
    pub fn start(&self, kernel_cmdline: &str) -> Result<Vm> {
        launch_ready(self, kernel_cmdline, Mode::Background)
    }

    /// Starts the hypervisor without waiting until it is ready. [`Starting`] has an example.
    ///
    /// # Errors
    /// Those of [`start`](Self::start), except those that occur while waiting.
    pub fn spawn(&self, kernel_cmdline: &str) -> Result<Starting> {
        self.spawn_with(kernel_cmdline, |_| ())
    }

    /// Starts the hypervisor as [`spawn`](Self::spawn) does, after `customize` has changed its [`Command`]: its
    /// environment, for instance, or its working directory. `customize` must not change arguments and standard streams.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// use std::time::Duration;
    ///
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let starting = description.spawn_with("console=ttyS0", |command| {
    ///     command.env("QEMU_AUDIO_DRV", "none");
    /// })?;
    /// let vm = starting.wait_ready(Duration::from_secs(30))?;
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn).
    pub fn spawn_with(&self, kernel_cmdline: &str, customize: impl FnOnce(&mut Command)) -> Result<Starting> {
        let mut customize = Some(customize);
        launch(self, kernel_cmdline, Mode::Background, &mut |command| {
            customize.take().into_iter().for_each(|customize| customize(command));
        })
    }

    /// Starts the VM as [`start`](Self::start) does, or returns the VM that runs in the state directory already.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// use hyperkit::{HyperKit, StartOrAttach};
    ///
    /// let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let vm = match description.start_or_attach("console=ttyS0")? {
    ///     StartOrAttach::Started(vm) => vm,
    ///     StartOrAttach::Attached(vm) => vm, // its description may be another one: see `Vm::description`
    /// };
    /// # let again = description.start_or_attach("console=ttyS0")?;
    /// # assert!(matches!(&again, StartOrAttach::Attached(_)));
    /// # assert_eq!(again.into_vm().pid(), vm.pid());
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn start_or_attach(&self, kernel_cmdline: &str) -> Result<StartOrAttach> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.start(kernel_cmdline) {
                Err(error @ Error::AlreadyRunning { .. }) => match self.vm()? {
                    Some(vm) => return Ok(StartOrAttach::Attached(vm)),
                    // It has exited meanwhile.
                    None if attempts < ATTACH_ATTEMPTS => {}
                    None => return Err(error),
                },
                // A VM that runs already need not pass the checks of a start.
                Err(error) if self.state_dir.is_some() && error.is_refusal() => {
                    return self.vm()?.map(StartOrAttach::Attached).ok_or(error);
                }
                started => return started.map(StartOrAttach::Started),
            }
        }
    }

    /// Starts the VM for the lifetime of the returned [`ScopedVm`], which has an example. The VM is killed when the
    /// `ScopedVm` is dropped, and when this program ends in any way, SIGKILL included.
    ///
    /// A shell starts the hypervisor, and two small processes that watch this program. If
    /// [`argv0`](Self#structfield.argv0) is set, there is no shell, and the VM outlives a SIGKILL of this program.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn start_scoped(&self, kernel_cmdline: &str) -> Result<ScopedVm> {
        launch_ready(self, kernel_cmdline, Mode::Scoped).map(ScopedVm::new)
    }

    /// Runs the VM in the foreground until it exits.
    ///
    /// An unset [`console`](Self#structfield.console) is the caller's terminal, which is restored afterwards. The VM is
    /// killed when this program ends, as with [`start_scoped`](Self::start_scoped).
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let kernel_cmdline = "console=ttyS0";
    /// # let kernel_cmdline = here::POWERS_OFF;
    /// let exit = description.run(kernel_cmdline)?;
    /// println!("the VM {exit}");
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`start`](Self::start); [`Error::HypervisorFailed`] also if the hypervisor fails or is killed later.
    pub fn run(&self, kernel_cmdline: &str) -> Result<Exit> {
        let vm = ScopedVm::new(launch_ready(self, kernel_cmdline, Mode::Foreground)?);
        match vm.wait() {
            exit @ (Exit::Failed(_) | Exit::Killed(_)) => {
                let state_dir = vm.state_dir().map(Path::to_owned);
                Err(Error::HypervisorFailed { exit, state_dir, log_tail: vm.log_tail() })
            }
            exit => Ok(exit),
        }
    }

    /// Runs the VM as [`run`](Self::run) does, and starts it again each time the guest requests a reset (reboots).
    ///
    /// A hypervisor exits when the guest requests a reset. If that happens within 10 s of the start, the next start
    /// waits. The pause doubles from 100 ms to at most 10 s, so that a guest that cannot boot does not keep the host busy.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let kernel_cmdline = "console=ttyS0";
    /// # let kernel_cmdline = here::POWERS_OFF;
    /// let exit = description.run_restarting_on_reset(kernel_cmdline)?;
    /// println!("the VM {exit}"); // and did not request a reset
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_restarting_on_reset(&self, kernel_cmdline: &str) -> Result<Exit> {
        let mut pause = Duration::ZERO;
        loop {
            let start = Instant::now();
            let exit = self.run(kernel_cmdline)?;
            if exit != Exit::Reset {
                return Ok(exit);
            }
            pause = next_pause(pause, start.elapsed());
            std::thread::sleep(pause);
        }
    }
}

/// Starts a hypervisor and waits until it is ready.
///
/// A start locks an image for a moment to find out whether it is in use. If the hypervisor of another start opens the image in that
/// moment, that hypervisor fails. The first start may have found that hypervisor's process, and fails, too. So if the hypervisor
/// finds an image locked, the start is repeated with all its checks. If another VM has the image by then, the checks fail at once.
fn launch_ready(description: &HyperKit, kernel_cmdline: &str, mode: Mode) -> Result<Vm> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match launch(description, kernel_cmdline, mode, &mut |_| ())?.wait_ready(START_TIMEOUT) {
            Err(Error::DiskInUse { .. }) if attempts < IMAGE_ATTEMPTS => {}
            ready => return ready,
        }
    }
}

/// Prepares and spawns a hypervisor.
fn launch(
    description: &HyperKit,
    kernel_cmdline: &str,
    mode: Mode,
    customize: &mut dyn FnMut(&mut Command),
) -> Result<Starting> {
    refuse_running(description)?;
    let mut description = description.clone();
    if description.serials.is_none() {
        let default = if mode == Mode::Foreground { Console::Stdio } else { Console::Pty };
        description.console.get_or_insert(default);
    }
    description = checked(&description)?;
    check_cmdline(&description, kernel_cmdline)?;
    check_cmdline_length(&description, kernel_cmdline)?;
    let driver = driver_of(&description);
    let state = StateDir::of(&description)?;
    // Discard the record of an earlier start.
    description.record = Record {
        home: Home {
            dir: state.as_ref().map(|state| state.path().to_owned()),
            lacks_early_console: description.record.home.lacks_early_console,
            ..Home::default()
        },
        ..Record::default()
    };
    let acquired = state.as_ref().map(|state| acquire(state, &mut description)).transpose()?;
    let (lock, image_locks, created) = match acquired {
        Some(Acquired { lock, image_locks, created }) => (Some(lock), image_locks, created),
        None => (None, refuse_resources_in_use(&description)?, Vec::new()),
    };
    let mut undo = Undo::new(&description, state.as_ref().zip(lock.as_ref()), created, image_locks)?;

    let mut arguments = driver.host_arguments(&description);
    arguments.extend(driver.arguments(&description, kernel_cmdline)?);
    let program = description.hyperkit.as_deref().unwrap_or(Path::new("")).display();
    description.record.cmdline = format!("{program} {}", arguments.join(" "));
    description.record.arguments = arguments;
    description.record.vmnet_mac = driver.vmnet_mac(&description);
    let disk_plans = plan_disks(&mut description, state.as_ref())?;
    // Saved before the hypervisor runs, so that a crash in between leaves nothing unknown.
    state.iter().try_for_each(|state| state.save(&description))?;
    apply(disk_plans, state.as_ref().map(StateDir::path), &mut undo.images, &mut undo.image_locks)?;
    undo.image_locks.retain(ImageLock::outlasts_spawn);

    let dir = state.as_ref().map(|state| format!("{}: ", state.path().display())).unwrap_or_default();
    driver.warnings(&description).iter().for_each(|warning| log::warn!(target: "hyperkit", "{dir}{warning}"));
    let (child, output) = spawn(&description, state.as_ref(), mode, customize)?;
    undo.keep(); // and release images and network numbers: other starts see the hypervisor now
    description.record.pid = Some(child.pid());
    description.record.pid_started = start_time(child.pid()).ok().flatten();
    description.record.pid_identity = state.as_ref().and_then(|state| state.identity_of(child.pid()).ok().flatten());
    let vm = Vm::new(Handle::Child(child), description, state, Some(output))?;
    // From now on, dropping `starting` kills the hypervisor.
    let starting = Starting::new(vm.clone(), lock, mode == Mode::Foreground);
    // Saved before waiting. If this program is killed while it waits, the VM is found by its pid.
    vm.state().map_or(Ok(()), |state| state.save(vm.description()))?;
    Ok(starting)
}

/// The pause before the next start of a VM that has requested a reset after `uptime`. The pause before was `last`.
fn next_pause(last: Duration, uptime: Duration) -> Duration {
    match uptime >= MAX_RESTART_PAUSE {
        true => Duration::ZERO,
        false => (last * 2).clamp(MIN_RESTART_PAUSE, MAX_RESTART_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_ten_seconds_while_resets_come_soon() {
        let mut pauses = vec![Duration::ZERO];
        for _ in 0..9 {
            pauses.push(next_pause(pauses[pauses.len() - 1], Duration::from_millis(5)));
        }
        let milliseconds: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(milliseconds, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(next_pause(pauses[9], Duration::from_secs(60)), Duration::ZERO);
    }
}
