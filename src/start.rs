//! From the description to a running machine and back: check, create, spawn, record; find again, end, remove.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::check::{canonical, command_line};
use crate::child::Child;
use crate::config::{Console, HyperKit};
use crate::console::Terminal;
use crate::disk::create_disk_image;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::process::{Process, look};
use crate::state::{Lock, StateDir};
use crate::vm::{Exit, Handle, Vm};

/// How long a program may take until the machine's devices are there. Far more than any takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

impl HyperKit {
    /// The arguments of the program for this machine and this kernel command line.
    ///
    /// Looks at no file, so relative paths stay so, and QEMU's accelerator, which depends on the host, is left out.
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
    /// What [`check`](Self::check) finds wrong without looking at files.
    pub fn arguments(&self, cmdline: &str) -> Result<Vec<String>> {
        crate::check::description(self)?;
        Engine::of_machine(self).arguments(self, cmdline)
    }

    /// Starts the machine in the background.
    ///
    /// Returns when the program has written its pid file and has the machine's devices ready. hyperkit does not tell
    /// of its devices with the console on stdio, and without a state directory nothing tells of anything: then a
    /// program that fails a moment later is found out by [`Vm::wait`].
    ///
    /// The machine outlives this program, unless its console is on a terminal that goes away. With the console on stdio
    /// it keeps the caller's standard input and output open. What was filled in on the way (the program, absolute paths, pid, arguments) is in `self` afterwards, and in `hyperkit.json`.
    ///
    /// # Errors
    /// What [`check`](Self::check) finds, before anything is made; [`Error::AlreadyRunning`];
    /// [`Error::ProgramFailed`] and [`Error::StartTimedOut`] with what the program printed; [`Error::Io`].
    pub fn start(&mut self, cmdline: &str) -> Result<Vm> {
        self.launch(cmdline, false)
    }

    /// Runs the machine in the foreground, until it ends.
    ///
    /// A console on stdio is the caller's terminal, which is afterwards as it was.
    ///
    /// # Errors
    /// Those of [`start`](Self::start); [`Error::ProgramFailed`] also if the program fails or is killed later on.
    pub fn run(&mut self, cmdline: &str) -> Result<Exit> {
        let vm = self.launch(cmdline, true)?;
        match vm.wait()? {
            exit @ (Exit::Failed(_) | Exit::Killed(_)) => {
                Err(Error::ProgramFailed { exit, last_words: vm.output.map(|o| o.last_words()).unwrap_or_default() })
            }
            exit => Ok(exit),
        }
    }

    /// The machine that a state directory remembers, running or not.
    ///
    /// ```no_run
    /// let machine = hyperkit::HyperKit::from_state("vm")?;
    /// if machine.is_running() {
    ///     machine.stop()?;
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoState`], [`Error::DamagedState`], [`Error::Io`].
    pub fn from_state(dir: impl AsRef<Path>) -> Result<Self> {
        let state = StateDir::new(dir.as_ref())?;
        let mut machine = state.load()?;
        if let Some(process) = state.running(Some(&machine)) {
            machine.pid = Some(process.pid());
        }
        Ok(machine)
    }

    /// Takes up the running machine; `None` if it does not run.
    ///
    /// A program that has not started it learns when it ends, but not how: [`Exit::Unknown`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no telling where the state directory is.
    pub fn vm(&self) -> Result<Option<Vm>> {
        let state = self.state_dir.as_deref().map(StateDir::new).transpose()?;
        let process = match &state {
            Some(state) => state.running(Some(self)),
            None => self.pid.and_then(|pid| {
                Process::find(pid, |seen| {
                    seen.has_arguments(&self.arguments)
                        && self.pid_started.is_some_and(|started| seen.began_at(started))
                })
            }),
        };
        let engine = Engine::of_machine(self);
        let handle = |process: Process| match Child::with_pid(process.pid()) {
            Some(child) => Handle::Child(child),
            None => Handle::Found(process),
        };
        Ok(process.map(|process| Vm { process: handle(process), engine, state, output: None }))
    }

    /// Whether the machine runs: the process that was started, and no other that has its pid now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.vm().is_ok_and(|vm| vm.is_some())
    }

    /// Pulls the plug, as [`Vm::stop`]. A machine that does not run is no error.
    ///
    /// # Errors
    /// Those of [`Vm::stop`].
    pub fn stop(&self) -> Result<()> {
        match self.vm()? {
            Some(vm) => vm.stop(),
            None => Ok(()),
        }
    }

    /// Forgets the machine: deletes from the state directory what the machine and this crate have put there, and the
    /// directory if that leaves it empty. With `keep_disk`, the disk images stay; images that this crate did not make,
    /// or that are elsewhere, stay in any case. (Images are remembered by name: what you put in the place of one that
    /// was made counts as made.)
    ///
    /// # Errors
    /// [`Error::StillRunning`]; [`Error::Io`].
    pub fn remove(&self, keep_disk: bool) -> Result<()> {
        let Some(dir) = &self.state_dir else { return Ok(()) };
        let state = StateDir::new(dir)?;
        if !state.path().exists() {
            return Ok(());
        }
        let lock = state.lock()?;
        let recorded = match state.load() {
            Err(Error::NoState { .. }) => return Ok(()), // then there is nothing of ours
            Err(Error::DamagedState { .. }) => self.clone(),
            loaded => loaded?,
        };
        if let Some(process) = state.running(Some(&recorded)) {
            return Err(Error::StillRunning { pid: process.pid() });
        }
        state.remove(if keep_disk { &[] } else { &recorded.made_disks }, lock)
    }

    /// `start` and `run` up to where they part.
    fn launch(&mut self, cmdline: &str, foreground: bool) -> Result<Vm> {
        let mut machine = self.effective()?;
        machine.check_all()?;
        command_line(&machine, cmdline)?;
        let engine = Engine::of_machine(&machine);
        let state = machine.state_dir.as_deref().map(StateDir::new).transpose()?;
        let lock = match (&state, self.vm()?) {
            (_, Some(vm)) => return Err(Error::AlreadyRunning { pid: vm.pid() }),
            (Some(state), None) => Some(claim(state, &mut machine)?),
            (None, None) => None,
        };

        machine.arguments = engine.host_arguments();
        machine.arguments.extend(engine.arguments(&machine, cmdline)?);
        let program = machine.hyperkit.clone().unwrap_or_default();
        machine.cmdline = format!("{} {}", program.display(), machine.arguments.join(" "));
        machine.pid = None;
        machine.pid_started = None;
        let missing = name_missing_disks(&mut machine, state.as_ref())?;
        // Before the machine is there, so that a crash in between leaves nothing unknown.
        state.iter().try_for_each(|state| state.save(&machine))?;
        for (path, size) in missing {
            create_disk_image(&path, size).inspect_err(|_| {
                // What somebody else has made in the meantime is not ours.
                machine.made_disks.retain(|name| Some(OsStr::new(name)) != path.file_name());
                let _ = state.as_ref().map(|state| state.save(&machine));
            })?;
        }

        let output = Output::create(state.as_ref())?;
        let mut command = Command::new(&program);
        command.args(&machine.arguments).stderr(output.writer()?);
        let terminal = if machine.console == Console::Stdio {
            Some(Terminal::remember())
        } else {
            command.stdin(Stdio::null()).stdout(output.writer()?);
            None
        };
        // A group of its own is out of reach of ^C, but may not read from the terminal.
        if !foreground && !terminal.as_ref().is_some_and(Terminal::is_one) {
            command.process_group(0);
        }
        let child = Child::spawn(engine, command, output.another()?, terminal)?;
        machine.pid = Some(child.pid());
        machine.pid_started = look(child.pid()).map(|seen| seen.started);
        let vm = Vm { process: Handle::Child(child.clone()), engine, state, output: Some(output) };

        if let Some((state, lock)) = vm.state.as_ref().zip(lock) {
            let started = match await_start(&machine, &vm, state, &child) {
                // Who waits for the end may have it so soon.
                Err(Error::ProgramFailed { exit, .. }) if foreground && exit.is_the_guests() => Ok(()),
                started => started,
            };
            let listened = || engine.listen(state).map_or(Ok(()), |tell| child.listen(tell));
            if let Err(error) = started.and_then(|()| state.save(&machine)).and_then(|()| listened()) {
                give_up(&vm, state, &machine, &lock);
                return Err(error);
            }
        }
        *self = machine;
        Ok(vm)
    }
}

/// Makes the state directory ours, if no machine runs there, and clears away what the last one left.
fn claim(state: &StateDir, machine: &mut HyperKit) -> Result<Lock> {
    state.create()?;
    let lock = state.lock()?;
    let recorded = state.load().ok();
    if let Some(process) = state.running(recorded.as_ref()) {
        return Err(Error::AlreadyRunning { pid: process.pid() });
    }
    state.prepare(&lock)?;
    // What this crate has made there before is still its own.
    for name in recorded.into_iter().flat_map(|recorded| recorded.made_disks) {
        if !machine.made_disks.contains(&name) {
            machine.made_disks.push(name);
        }
    }
    Ok(lock)
}

/// Gives each disk its path, and returns those to be made. Of those in the state directory a record is kept.
fn name_missing_disks(machine: &mut HyperKit, state: Option<&StateDir>) -> Result<Vec<(std::path::PathBuf, u64)>> {
    let mut missing = Vec::new();
    for (index, disk) in machine.disks.iter_mut().enumerate() {
        let path = disk.place(index, state.map(StateDir::path))?;
        disk.path = Some(path.clone());
        if let (Some(size), false) = (disk.size, path.exists()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.parent().map(canonical).as_deref() == state.map(StateDir::path)
                && !machine.made_disks.contains(&name)
            {
                machine.made_disks.push(name);
            }
            missing.push((path, size));
        }
    }
    Ok(missing)
}

/// Waits until the program has written its pid file and has the devices ready, or has died.
fn await_start(machine: &HyperKit, vm: &Vm, state: &StateDir, child: &Child) -> Result<()> {
    let last_words = || vm.output.as_ref().map(Output::last_words).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        let is_there = state.pid() == Some(child.pid());
        if is_there && vm.engine.is_set_up(machine, state, PATIENCE)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::StartTimedOut { patience: PATIENCE, last_words: last_words() });
        }
        if let Some(exit) = child.wait(Some(Instant::now() + pause)) {
            return Err(Error::ProgramFailed { exit, last_words: last_words() });
        }
        pause = (pause * 2).min(Duration::from_millis(10));
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
