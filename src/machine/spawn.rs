//! The hypervisor's process: its standard streams, its process group and the programs that serve it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::config::HyperKit;
use crate::engine::driver_of;
use crate::error::{Error, Result};
use crate::machine::start::Mode;
use crate::plan::serial_ports::uses_stdio;
use crate::runtime::child::{Child, Resources};
use crate::runtime::console_stdio::ConsoleRelay;
use crate::runtime::daemons::Daemons;
use crate::runtime::output::Output;
use crate::runtime::owner::OwnerLink;
use crate::state::StateDir;
use crate::sys::terminal::TerminalSettings;

/// Spawns the hypervisor. Its output goes to the log, and to the caller's terminal if the console is there.
pub(super) fn spawn(
    description: &HyperKit,
    state: Option<&StateDir>,
    mode: Mode,
    customize: &mut dyn FnMut(&mut Command),
) -> Result<(Arc<Child>, Output)> {
    let output = Output::create(state)?;
    state.map_or(Ok(()), |state| state.create_logs(description))?;
    let child = spawn_with_output(description, state, mode, customize, &output);
    Ok((child.inspect_err(|_| drop(output.remove_temporary()))?, output))
}

fn spawn_with_output(
    description: &HyperKit,
    state: Option<&StateDir>,
    mode: Mode,
    customize: impl FnOnce(&mut Command),
    output: &Output,
) -> Result<Arc<Child>> {
    let driver = driver_of(description);
    let start = |state| Daemons::start(&driver.daemons(description, state)?, state, output, driver);
    let daemons = state.map(start).transpose()?.flatten();
    let program = description.hyperkit.as_deref().unwrap_or(Path::new(""));
    let (mut command, owner) = if mode == Mode::Background || description.argv0.is_some() {
        let mut command = Command::new(program);
        command.stderr(output.writer()?);
        output.remove_temporary()?;
        (command, None)
    } else {
        let (command, owner) = OwnerLink::command(program, output)?;
        (command, Some(owner))
    };
    command.args(&description.record.arguments);
    description.argv0.as_ref().map(|name| command.arg0(name));
    let mut console = None;
    let terminal = if uses_stdio(description) {
        if driver.console_is_standard_input() {
            let relay = ConsoleRelay::connect(&mut command, mode == Mode::Background);
            console = relay.map_err(Error::io("connect the console of", program))?;
            command.stdout(output.writer()?); // it carries only the hypervisor's own messages
        }
        Some(TerminalSettings::save())
    } else {
        let stdin = daemons.as_ref().map_or(Ok(Stdio::null()), Daemons::lifetime)?;
        command.stdin(stdin).stdout(output.writer()?);
        None
    };
    // ^C does not reach a separate process group, but such a group must not read from the terminal.
    if mode != Mode::Foreground && !terminal.as_ref().is_some_and(TerminalSettings::is_terminal) {
        command.process_group(0);
    }
    customize(&mut command);
    let resources = Resources { terminal, console, daemons, owner, has_overlays: description.has_overlays() };
    Child::spawn(driver, command, output.try_clone()?, state.cloned(), resources)
}
