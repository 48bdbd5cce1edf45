//! `qemu-system-x86_64`: how it is told of a machine, and what is said over QMP that hyperkit says by signals and exit codes.

mod arguments;
mod limits;
mod network;
mod qmp;
pub(crate) mod vsock_device;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::config::{HyperKit, PortForward, Protocol};
use crate::engine::Control;
use crate::engine::qemu::qmp::Qmp;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::plan::serial_ports::{Line, ports};
use crate::state::{EVENTS_SOCKET, QMP_SOCKET, StateDir};

pub(crate) use arguments::arguments;
pub(crate) use limits::{check, supports};
pub(crate) use network::{VMNET_ADDRESS, vpnkit_address};

/// How long a QEMU that is up may take to let us listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// QEMU answers on its QMP socket when all devices are there. It names the console's pty only there, so the `tty`
/// file that hyperkit makes is made here.
pub(crate) fn is_set_up(machine: &HyperKit, state: &StateDir, patience: Duration) -> Result<bool> {
    let console = Qmp::connect(&state.file(QMP_SOCKET), patience).and_then(|mut qmp| qmp.execute("query-chardev"));
    let chardevs = match console {
        Ok(chardevs) => chardevs,
        Err(error) => {
            log::trace!(target: "hyperkit", "not yet: {error}");
            return Ok(false);
        }
    };
    for port in ports(machine)? {
        let Line::Tty(file) = port.line else { continue };
        let chardev = chardevs.as_array().into_iter().flatten().find(|chardev| chardev["label"] == port.name);
        let pty = chardev.and_then(|chardev| chardev["filename"].as_str()?.strip_prefix("pty:"));
        let pty = pty.ok_or_else(|| Error::Qmp { reason: format!("no pty for {} in {chardevs}", port.name) })?;
        state.write(file, pty.as_bytes())?;
    }
    Ok(true)
}

/// The exit code is 0 for a power-off and for a reset; the event before it says which.
pub(crate) fn listen(state: &StateDir) -> Option<impl FnOnce() -> Option<Exit> + Send + 'static> {
    let mut events = match Qmp::connect(&state.file(EVENTS_SOCKET), PATIENCE) {
        Ok(events) => events,
        Err(error) => {
            log::warn!(target: "hyperkit", "a reset of the guest will pass for a power-off: {error}");
            return None;
        }
    };
    Some(move || {
        let mut told = None;
        while let Some(event) = events.next_event() {
            if event["event"] == "SHUTDOWN" {
                told = match event["data"]["reason"].as_str() {
                    Some("guest-shutdown") => Some(Exit::PowerOff),
                    Some("guest-reset") => Some(Exit::Reset),
                    Some("host-signal") => Some(Exit::Killed(Signal::TERM.as_raw())),
                    _ => Some(Exit::Unknown),
                };
            }
        }
        told
    })
}

pub(crate) fn control(what: Control, state: &StateDir, patience: Duration) -> Result<()> {
    let command = match what {
        Control::PressPowerButton => "system_powerdown",
        Control::Pause => "stop",
        Control::Resume => "cont",
    };
    Qmp::connect(&state.file(QMP_SOCKET), patience)?.execute(command).map(drop)
}

/// A table for people, in which each line of a forwarded port has protocol, descriptor, address, port, address, port.
pub(crate) fn port_forwards(state: &StateDir, patience: Duration) -> Result<Vec<PortForward>> {
    let mut qmp = Qmp::connect(&state.file(QMP_SOCKET), patience)?;
    let table = qmp.execute_with("human-monitor-command", json!({ "command-line": "info usernet" }))?;
    let forward = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let protocol = match words.next()? {
            "TCP[HOST_FORWARD]" => Protocol::Tcp,
            "UDP[HOST_FORWARD]" => Protocol::Udp,
            _ => return None,
        };
        Some(PortForward { protocol, host: words.nth(2)?.parse().ok()?, guest: words.nth(1)?.parse().ok()? })
    };
    Ok(table.as_str().unwrap_or_default().lines().filter_map(forward).collect())
}

/// What runs the guest's instructions. /dev/kvm alone proves nothing: on hosts whose CPU has no virtualization it can
/// open, pass every probe, and then hang the guest.
pub(crate) fn accelerator() -> &'static str {
    if !cfg!(target_arch = "x86_64") {
        return "tcg";
    }
    if cfg!(target_os = "macos") {
        return "hvf";
    }
    let can_virtualize = fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
        cpus.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    });
    let opens = || OpenOptions::new().read(true).write(true).open(Path::new("/dev/kvm")).is_ok();
    if can_virtualize && opens() { "kvm" } else { "tcg" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// What is told of the end of a QEMU that says these reasons.
    fn told(reasons: &[&str]) -> Option<Exit> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        assert!(listen(&state).is_none(), "nobody is there");
        let listener = UnixListener::bind(state.file(EVENTS_SOCKET)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                let mut say = |line| writeln!(stream.get_mut(), "{line}").unwrap();
                say(json!({ "QMP": {} }));
                say(json!({ "return": {} }));
                say(json!({ "event": "RESUME" }));
                reasons.iter().for_each(|reason| say(json!({ "event": "SHUTDOWN", "data": { "reason": reason } })));
                stream.read_line(&mut String::new()).unwrap(); // what was asked, or the other would fail to ask
            });
            listen(&state).unwrap()()
        })
    }

    #[test]
    fn the_last_shutdown_event_tells_how_the_guest_ended() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["guest-shutdown"]), Some(Exit::PowerOff));
        assert_eq!(told(&["guest-shutdown", "guest-reset"]), Some(Exit::Reset));
        assert_eq!(told(&["host-signal"]), Some(Exit::Killed(15)));
        assert_eq!(told(&["host-qmp-quit"]), Some(Exit::Unknown));
    }
}
