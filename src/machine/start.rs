//! From the description to a running machine and back: check, create, spawn, record; find again, end, remove.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::engine::hyperkit::vmnet::vmnet_mac;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::machine::prepare::{claim, do_work, refuse_what_others_use, work_on_disks};
use crate::plan::serial_ports::on_stdio;
use crate::plan::validate::command_line_text;
use crate::preflight::files::command_line;
use crate::process::started;
use crate::runtime::child::Child;
use crate::runtime::output::Output;
use crate::runtime::vhost_vsock::Companion;
use crate::state::{Lock, StateDir};
use crate::sys::terminal::Terminal;
use crate::vm::{Handle, Vm};

/// How long a program may take until the machine's devices are there. Far more than any takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

impl HyperKit {
    /// The arguments of the program for this machine and this kernel command line.
    ///
    /// Looks at no file, so relative paths stay so (for a qcow2 image on hyperkit it has to be absolute, which a start makes
    /// it), and QEMU's accelerator, which depends on the host, is left out.
    /// Without a program set these are hyperkit's arguments.
    ///
    /// ```
    /// let machine = hyperkit::HyperKit::new().kernel("/boot/vmlinuz");
    /// let arguments = machine.arguments("console=ttyS0")?;
    /// assert_eq!(arguments.last().unwrap(), "kexec,/boot/vmlinuz,,earlyprintk=serial console=ttyS0");
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// What [`check`](Self::check) finds wrong without looking at files or at the host.
    pub fn arguments(&self, cmdline: &str) -> Result<Vec<String>> {
        crate::plan::validate::description(self)?;
        command_line_text(self, cmdline)?;
        Engine::of_machine(self).arguments(self, cmdline)
    }

    /// The kernel command line that the machine was started with last, as it was given; `None` if it never was. A machine
    /// that is taken up from its state directory can be started again as it was:
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let mut machine = hyperkit::HyperKit::from_state("vm")?;
    /// machine.stop()?;
    /// let cmdline = machine.kernel_cmdline().unwrap_or_default();
    /// machine.start(&cmdline)?;
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    #[must_use]
    pub fn kernel_cmdline(&self) -> Option<String> {
        Engine::of_machine(self).command_line(self)
    }

    /// Starts the machine in the background.
    ///
    /// Returns when the program has written its pid file and has the machine's devices ready. hyperkit does not tell
    /// of its devices with the console on stdio, and without a state directory nothing tells of anything: then a
    /// program that fails a moment later is found out by [`Vm::wait`].
    ///
    /// The machine outlives this program, unless its console is on a terminal that goes away. With the console on stdio
    /// it keeps the caller's standard input and output open. What was filled in on the way (the program, absolute paths,
    /// pid, arguments) is in `self` afterwards, and in `hyperkit.json`.
    ///
    /// # Errors
    /// What [`check`](Self::check) finds, before anything is made; [`Error::AlreadyRunning`];
    /// [`Error::ProgramFailed`] and [`Error::StartTimedOut`] with what the program printed; [`Error::Io`].
    pub fn start(&mut self, cmdline: &str) -> Result<Vm> {
        self.launch(cmdline, false, PATIENCE)
    }

    /// Runs the machine in the foreground, until it ends.
    ///
    /// A console on stdio is the caller's terminal, which is afterwards as it was.
    ///
    /// # Errors
    /// Those of [`start`](Self::start); [`Error::ProgramFailed`] also if the program fails or is killed later on.
    pub fn run(&mut self, cmdline: &str) -> Result<Exit> {
        let vm = self.launch(cmdline, true, PATIENCE)?;
        match vm.wait()? {
            exit @ (Exit::Failed(_) | Exit::Killed(_)) => {
                Err(Error::ProgramFailed { exit, last_words: vm.last_words() })
            }
            exit => Ok(exit),
        }
    }

    /// Runs the machine as [`run`](Self::run) does, and starts it again each time the guest has asked for a reset.
    ///
    /// A machine does not reboot in place. One that asks for it soon after its start is started again after a pause,
    /// which grows from a tenth of a second to ten, so that a guest that cannot boot costs little.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let mut machine = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let cmdline = "console=ttyS0";
    /// # let cmdline = here::POWERS_OFF;
    /// let exit = machine.run_through_resets(cmdline)?;
    /// println!("the machine {exit}"); // and has not asked for a reset
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_through_resets(&mut self, cmdline: &str) -> Result<Exit> {
        let mut pause = Duration::ZERO;
        loop {
            let began = Instant::now();
            let exit = self.run(cmdline)?;
            if exit != Exit::Reset {
                return Ok(exit);
            }
            pause = pause_before_next(pause, began.elapsed());
            std::thread::sleep(pause);
        }
    }

    /// `start` and `run` up to where they part.
    fn launch(&mut self, cmdline: &str, foreground: bool, patience: Duration) -> Result<Vm> {
        let mut machine = self.effective()?;
        machine.check_all()?;
        command_line_text(&machine, cmdline)?;
        command_line(&machine, cmdline)?;
        let engine = Engine::of_machine(&machine);
        let state = machine.state_dir.as_deref().map(StateDir::new).transpose()?;
        let (lock, held) = match (&state, self.vm()?) {
            (_, Some(vm)) => return Err(Error::AlreadyRunning { pid: vm.pid() }),
            (Some(state), None) => {
                let (lock, held) = claim(state, &mut machine)?;
                (Some(lock), held)
            }
            (None, None) => (None, refuse_what_others_use(&machine)?),
        };

        machine.arguments = engine.host_arguments();
        machine.arguments.extend(engine.arguments(&machine, cmdline)?);
        let program = machine.hyperkit.as_deref().unwrap_or(Path::new("")).display();
        machine.cmdline = format!("{program} {}", machine.arguments.join(" "));
        machine.pid = None;
        machine.pid_started = None;
        machine.vmnet_mac = vmnet_mac(&machine);
        let work = work_on_disks(&mut machine, state.as_ref())?;
        // Before the machine is there, so that a crash in between leaves nothing unknown.
        state.iter().try_for_each(|state| state.save(&machine))?;
        do_work(work, &mut machine, state.as_ref())?;

        let spawned = spawn(&machine, state.as_ref(), foreground);
        let (child, output) = spawned.inspect_err(|_| {
            let _ = state.as_ref().zip(lock.as_ref()).map(|(state, lock)| state.clear(lock));
        })?;
        drop(held); // whom it kept away sees the machine now
        machine.pid = Some(child.pid());
        machine.pid_started = started(child.pid());
        let vm = Vm { process: Handle::Child(child.clone()), engine, state, output: Some(output) };

        if let Some((state, lock)) = vm.state.as_ref().zip(lock) {
            let started = match await_start(&machine, &vm, state, &child, patience) {
                // Who waits for the end may have it so soon.
                Err(Error::ProgramFailed { exit, .. }) if foreground && exit.is_the_guests() => Ok(()),
                started => started,
            };
            let listened = || engine.listen(state).map_or(Ok(()), |tell| child.listen(tell));
            if let Err(error) = started.and_then(|()| state.save(&machine)).and_then(|()| listened()) {
                give_up(&vm, state, &machine, &lock);
                return Err(error);
            }
            child.is_set_up();
        }
        *self = machine;
        Ok(vm)
    }
}

/// How long to wait before a machine that asked for a reset is started again, after the `last` such wait and a life of
/// `lived`.
fn pause_before_next(last: Duration, lived: Duration) -> Duration {
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(10));
    if lived >= longest { Duration::ZERO } else { (last * 2).clamp(shortest, longest) }
}

/// Starts the program. What it prints goes to the log, and to the caller if the console is there.
fn spawn(machine: &HyperKit, state: Option<&StateDir>, foreground: bool) -> Result<(Arc<Child>, Output)> {
    let output = Output::create(state)?;
    let companion = Companion::start(machine, state, &output)?;
    let mut command = Command::new(machine.hyperkit.as_deref().unwrap_or(Path::new("")));
    command.args(&machine.arguments).stderr(output.writer()?);
    machine.argv0.as_ref().map(|name| command.arg0(name));
    let terminal = if on_stdio(machine) {
        Some(Terminal::remember())
    } else {
        command.stdin(Stdio::null()).stdout(output.writer()?);
        None
    };
    // A group of its own is out of reach of ^C, but may not read from the terminal.
    if !foreground && !terminal.as_ref().is_some_and(Terminal::is_one) {
        command.process_group(0);
    }
    let child = Child::spawn(Engine::of_machine(machine), command, output.another()?, terminal, companion)?;
    Ok((child, output))
}

/// Waits until the program has written its pid file and has the devices ready, or has died.
fn await_start(machine: &HyperKit, vm: &Vm, state: &StateDir, child: &Child, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(100);
    loop {
        let is_there = state.pid() == Some(child.pid());
        let left = deadline.saturating_duration_since(Instant::now());
        if is_there && vm.engine.is_set_up(machine, state, left)? {
            return Ok(());
        }
        if left.is_zero() {
            return Err(Error::StartTimedOut { patience, last_words: vm.last_words() });
        }
        if let Some(exit) = child.wait(Some(Instant::now() + pause)) {
            return Err(Error::ProgramFailed { exit, last_words: vm.last_words() });
        }
        // What is waited in vain is a fifth of all at most.
        pause = (pause * 5 / 4).min(Duration::from_millis(10));
    }
}

/// Ends what was started in vain, also if the program had started another in its place.
fn give_up(vm: &Vm, state: &StateDir, machine: &HyperKit, lock: &Lock) {
    let ended = vm.end().and_then(|()| match state.running(Some(machine)) {
        Some(process) => Vm { process: Handle::Found(process), engine: vm.engine, state: None, output: None }.end(),
        None => state.clear(lock),
    });
    if let Err(error) = ended {
        log::warn!(target: "hyperkit", "after a start that failed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Console;

    #[test]
    fn a_guest_that_resets_at_once_is_started_ever_later() {
        let mut pauses = vec![Duration::ZERO];
        for _ in 0..9 {
            pauses.push(pause_before_next(pauses[pauses.len() - 1], Duration::from_millis(5)));
        }
        let milliseconds: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(milliseconds, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(pause_before_next(pauses[9], Duration::from_secs(60)), Duration::ZERO);
    }

    /// A program that neither writes its pid file nor ends is ended, and nothing of it is left.
    #[test]
    fn a_program_that_never_writes_its_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let test = std::env::current_exe().unwrap();
        let standin = test.parent().unwrap().with_file_name("examples").join("standin-hyperkit");
        let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest/vmlinuz");
        let mut machine = HyperKit::new().hyperkit(standin).state_dir(dir.path()).kernel(kernel).console(Console::File);
        match machine.launch("vmm.no-pid-file vmm.say=here", false, Duration::from_millis(300)) {
            Err(Error::StartTimedOut { last_words, .. }) => assert!(last_words.program.starts_with("here")),
            other => panic!("{other:?}"),
        }
        let state = StateDir::new(dir.path()).unwrap();
        let recorded = state.load().unwrap();
        assert!(state.running(Some(&recorded)).is_none());
        assert!(crate::process::look_at_all().iter().all(|seen| !seen.has_arguments(&recorded.arguments)));
        machine.start("guest").unwrap().stop().unwrap();
    }
}
