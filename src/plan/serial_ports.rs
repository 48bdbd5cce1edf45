//! The serial ports of a VM and their files in the state directory, the same for every engine.

use crate::config::{Console, HyperKit, Serial, SerialBackend};
use crate::error::ConfigError;
use crate::plan::limits::MAX_SERIALS;

pub(crate) const NAMES: [&str; MAX_SERIALS] = ["com1", "com2"];
/// The file that names the pty of `console`.
pub(crate) const CONSOLE_TTY: &str = "tty";
/// The files that name the ptys of `serials`.
const SERIAL_TTYS: [&str; MAX_SERIALS] = ["tty1", "tty2"];

/// All files that name ptys.
pub(crate) const ALL_TTYS: [&str; 3] = [CONSOLE_TTY, SERIAL_TTYS[0], SERIAL_TTYS[1]];
/// The logs of the ports. The Go package logs both ports to the first file, where they overwrite each other.
pub(crate) const ALL_LOGS: [&str; MAX_SERIALS] = ["console-ring", "console-ring2"];

/// A serial port with its files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Port {
    pub name: &'static str,
    pub line: Line,
    pub log: Option<&'static str>,
    pub apple_log: bool,
}

/// What a port is connected to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    None,
    Stdio,
    /// A pty, which this file names.
    Pty(&'static str),
}

/// The ports in order: `serials` if that is set, else `console`.
pub(crate) fn ports(description: &HyperKit) -> Result<Vec<Port>, ConfigError> {
    let Some(serials) = &description.serials else {
        return Ok(vec![console_port(description.console.unwrap_or(Console::Stdio))]);
    };
    if serials.len() > MAX_SERIALS {
        return Err(ConfigError::TooManyPorts { field: "serials", count: serials.len(), max: MAX_SERIALS });
    }
    if serials.iter().filter(|serial| serial.backend == SerialBackend::Stdio).count() > 1 {
        return Err(ConfigError::DuplicateStdio);
    }
    Ok(serials.iter().enumerate().map(|(index, &serial)| port(index, serial, SERIAL_TTYS[index])).collect())
}

/// The port that `console` stands for.
fn console_port(console: Console) -> Port {
    let serial = match console {
        Console::Stdio => Serial::stdio(),
        Console::Pty => Serial::pty().log(),
        Console::AppleLog => Serial::pty().apple_log(),
    };
    port(0, serial, CONSOLE_TTY)
}

fn port(index: usize, serial: Serial, tty: &'static str) -> Port {
    let line = match serial.backend {
        SerialBackend::None => Line::None,
        SerialBackend::Stdio => Line::Stdio,
        SerialBackend::Pty => Line::Pty(tty),
    };
    Port { name: NAMES[index], line, log: serial.log.then_some(ALL_LOGS[index]), apple_log: serial.apple_log }
}

/// The inverse of [`ports`]: `console` and `serials` of a VM with these ports, if a description can express them.
pub(crate) fn fields(found: &[Port]) -> Option<(Option<Console>, Option<Vec<Serial>>)> {
    let alone = |known: &Console| found == [console_port(*known)];
    if let Some(known) = [Console::Stdio, Console::Pty, Console::AppleLog].into_iter().find(alone) {
        return Some((Some(known), None));
    }
    let serials: Vec<_> = found
        .iter()
        .map(|port| {
            let backend = match port.line {
                Line::None => SerialBackend::None,
                Line::Stdio => SerialBackend::Stdio,
                Line::Pty(_) => SerialBackend::Pty,
            };
            Serial { backend, log: port.log.is_some(), apple_log: port.apple_log }
        })
        .collect();
    let description = HyperKit { serials: Some(serials), ..HyperKit::default() };
    (ports(&description).ok()? == found).then_some((None, description.serials))
}

/// Whether a port uses the caller's standard input and output.
pub(crate) fn uses_stdio(description: &HyperKit) -> bool {
    ports(description).is_ok_and(|ports| ports.iter().any(|port| port.line == Line::Stdio))
}

impl Port {
    /// Whether the port has files in the state directory.
    pub(crate) fn has_files(&self) -> bool {
        self.log.is_some() || matches!(self.line, Line::Pty(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_port_can_use_stdio() {
        assert!(uses_stdio(&HyperKit::new()));
        assert!(uses_stdio(&HyperKit::new().serial(Serial::none()).serial(Serial::stdio())));
        assert!(!uses_stdio(&HyperKit::new().serial(Serial::pty()).serial(Serial::none())));
    }
}
