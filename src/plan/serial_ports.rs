//! The serial ports of a machine and the files they leave in the state directory, the same for every engine.

use crate::config::{Console, HyperKit, Serial, SerialLine};
use crate::error::{Error, Result};

/// hyperkit and the PC have these two.
pub(crate) const NAMES: [&str; 2] = ["com1", "com2"];
/// Files that name the pty of a port: the console's, and those of `serials`.
pub(crate) const CONSOLE_TTY: &str = "tty";
const TTYS: [&str; 2] = ["tty1", "tty2"];
/// Files that keep what a port says. The Go package keeps both in the first, where the one overwrites the other.
const LOGS: [&str; 2] = ["console-ring", "console-ring2"];

/// Every name of a file that leads to a pty, and that keeps a log.
pub(crate) const ALL_TTYS: [&str; 3] = [CONSOLE_TTY, TTYS[0], TTYS[1]];
pub(crate) const ALL_LOGS: [&str; 2] = LOGS;

/// A serial port with its files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Port {
    pub name: &'static str,
    pub line: Line,
    pub log: Option<&'static str>,
    pub asl: bool,
}

/// Where a port leads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    None,
    Stdio,
    /// A pty, which this file names.
    Tty(&'static str),
}

/// The ports in order. `serials` counts where it is set, else `console`.
pub(crate) fn ports(machine: &HyperKit) -> Result<Vec<Port>> {
    let Some(serials) = &machine.serials else { return Ok(vec![console(machine.console)]) };
    if serials.len() > NAMES.len() {
        return Err(Error::TooManySerials { count: serials.len() });
    }
    if serials.iter().filter(|serial| serial.line == SerialLine::Stdio).count() > 1 {
        return Err(Error::StdioTwice);
    }
    Ok(serials.iter().enumerate().map(|(index, &serial)| port(index, serial, TTYS[index])).collect())
}

/// What `console` is short for.
fn console(console: Console) -> Port {
    let serial = match console {
        Console::Stdio => Serial::stdio(),
        Console::File => Serial::tty().log(),
        Console::Log => Serial::tty().asl(),
    };
    port(0, serial, CONSOLE_TTY)
}

fn port(index: usize, serial: Serial, tty: &'static str) -> Port {
    let line = match serial.line {
        SerialLine::None => Line::None,
        SerialLine::Stdio => Line::Stdio,
        SerialLine::Tty => Line::Tty(tty),
    };
    Port { name: NAMES[index], line, log: serial.log.then_some(LOGS[index]), asl: serial.asl }
}

/// The machine's fields for these ports, if there are any: the inverse of [`ports`], for who reads arguments.
pub(crate) fn fields(found: &[Port]) -> Option<(Console, Option<Vec<Serial>>)> {
    let alone = |known: &Console| found == [console(*known)];
    if let Some(known) = [Console::Stdio, Console::File, Console::Log].into_iter().find(alone) {
        return Some((known, None));
    }
    let serials: Vec<_> = found
        .iter()
        .map(|port| {
            let line = match port.line {
                Line::None => SerialLine::None,
                Line::Stdio => SerialLine::Stdio,
                Line::Tty(_) => SerialLine::Tty,
            };
            Serial { line, log: port.log.is_some(), asl: port.asl }
        })
        .collect();
    let machine = HyperKit { serials: Some(serials), ..HyperKit::default() };
    (ports(&machine).ok()? == found).then_some((Console::default(), machine.serials))
}

/// Whether a port is on the caller's standard input and output.
pub(crate) fn on_stdio(machine: &HyperKit) -> bool {
    ports(machine).is_ok_and(|ports| ports.iter().any(|port| port.line == Line::Stdio))
}

impl Port {
    /// Whether it leaves files in the state directory.
    pub(crate) fn has_files(&self) -> bool {
        self.log.is_some() || matches!(self.line, Line::Tty(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_port_can_be_on_the_callers_terminal() {
        assert!(on_stdio(&HyperKit::new()));
        assert!(on_stdio(&HyperKit::new().serial(Serial::none()).serial(Serial::stdio())));
        assert!(!on_stdio(&HyperKit::new().serial(Serial::tty()).serial(Serial::none())));
    }
}
