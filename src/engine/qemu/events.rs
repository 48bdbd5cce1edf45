//! QEMU's events: how the guest ends, and I/O errors of images.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::config::HyperKit;
use crate::engine::driver::ExitListener;
use crate::engine::qemu::arguments::{cd_id, disk_id};
use crate::engine::qemu::qmp::Qmp;
use crate::exit::Exit;
use crate::plan::slots::{Device, layout};
use crate::state::{EVENTS_SOCKET, StateDir};

/// How long a QEMU that is ready may take to accept a connection for events.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two warnings about a drive. A guest can cause any number of errors.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Connects to QEMU's source of events. The listener warns about I/O errors, and returns how the guest ended.
pub(super) fn listener(description: &HyperKit, state: &StateDir, pid: u32) -> Option<ExitListener> {
    let dir = state.path().display().to_string();
    let mut events = match Qmp::connect(&state.file(EVENTS_SOCKET), pid, EVENTS_TIMEOUT) {
        Ok(events) => events,
        Err(error) => {
            log::warn!(target: "hyperkit", "{dir}: a reset of the guest will be reported as a power-off: {error}");
            return None;
        }
    };
    let mut io_errors = IoErrors { images: images(description), warned: HashMap::new() };
    let connection = events.connection();
    let listen = Box::new(move || {
        let mut exit = None;
        while let Some(event) = events.next_event() {
            match event["event"].as_str() {
                Some("SHUTDOWN") => exit = Some(reported_exit(&event["data"])),
                Some("BLOCK_IO_ERROR") => {
                    if let Some(warning) = io_errors.warning(&event["data"], Instant::now()) {
                        log::warn!(target: "hyperkit", "{dir}: {warning}");
                    }
                }
                _ => {}
            }
        }
        exit
    });
    Some(ExitListener { listen, connection })
}

fn reported_exit(shutdown: &Value) -> Exit {
    match shutdown["reason"].as_str() {
        Some("guest-shutdown") => Exit::PowerOff,
        Some("guest-reset") => Exit::Reset,
        Some("host-signal") => Exit::Killed(Signal::TERM.as_raw()),
        _ => Exit::Unknown,
    }
}

/// The image of each drive, by the drive's name on QEMU's command line.
fn images(description: &HyperKit) -> HashMap<String, PathBuf> {
    let layout = layout(description).unwrap_or_default().into_iter();
    let image = |(slot, device)| match device {
        Device::Disk { image, index } => {
            Some((disk_id(slot), image.attached_path(index, description.state_dir.as_deref()).ok()?))
        }
        Device::Iso(image) => Some((cd_id(slot), image.to_owned())),
        _ => None,
    };
    layout.filter_map(image).collect()
}

/// I/O errors of images, which the guest gets, too.
struct IoErrors {
    images: HashMap<String, PathBuf>,
    /// When each drive had its last warning.
    warned: HashMap<String, Instant>,
}

impl IoErrors {
    /// The warning for an event, unless there was one for this drive a short time ago.
    fn warning(&mut self, event: &Value, now: Instant) -> Option<String> {
        let drive = event["device"].as_str().unwrap_or_default();
        if self.warned.get(drive).is_some_and(|last| now.duration_since(*last) < WARNING_INTERVAL) {
            return None;
        }
        self.warned.insert(drive.to_owned(), now);
        let image = self.images.get(drive).map_or(drive.to_owned(), |image| image.display().to_string());
        let operation = event["operation"].as_str().unwrap_or("access");
        let reason = event["reason"].as_str().unwrap_or("I/O error");
        Some(format!("cannot {operation} {image}, so the guest gets an I/O error: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use serde_json::json;

    use crate::config::disk::Disk;

    /// What the listener reports of a QEMU that sends shutdown events with these reasons.
    fn reported_exit(reasons: &[&str]) -> Option<Exit> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        assert!(listener(&HyperKit::new(), &state, std::process::id()).is_none(), "no QEMU listens");
        let socket = UnixListener::bind(state.file(EVENTS_SOCKET)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = BufReader::new(socket.accept().unwrap().0);
                let mut send = |line| writeln!(stream.get_mut(), "{line}").unwrap();
                send(json!({ "QMP": {} }));
                send(json!({ "return": {} }));
                send(json!({ "event": "RESUME" }));
                reasons.iter().for_each(|reason| send(json!({ "event": "SHUTDOWN", "data": { "reason": reason } })));
                stream.read_line(&mut String::new()).unwrap(); // the request, or the other end would fail to send it
            });
            (listener(&HyperKit::new(), &state, std::process::id()).unwrap().listen)()
        })
    }

    #[test]
    fn last_shutdown_event_determines_the_exit() {
        assert_eq!(reported_exit(&[]), None);
        assert_eq!(reported_exit(&["guest-shutdown"]), Some(Exit::PowerOff));
        assert_eq!(reported_exit(&["guest-shutdown", "guest-reset"]), Some(Exit::Reset));
        assert_eq!(reported_exit(&["host-signal"]), Some(Exit::Killed(15)));
        assert_eq!(reported_exit(&["host-qmp-quit"]), Some(Exit::Unknown));
    }

    #[test]
    fn each_drive_has_one_warning_a_minute() {
        let description = HyperKit::new().disk(Disk::raw("/a.img")).iso("/b.iso");
        let mut errors = IoErrors { images: images(&description), warned: HashMap::new() };
        let error = |drive| json!({ "device": drive, "operation": "write", "reason": "No space left on device" });
        let start = Instant::now();
        let warning = errors.warning(&error("disk1"), start).unwrap();
        assert_eq!(warning, "cannot write /a.img, so the guest gets an I/O error: No space left on device");
        assert_eq!(errors.warning(&error("disk1"), start + WARNING_INTERVAL / 2), None);
        assert!(errors.warning(&error("cd2"), start).unwrap().contains("/b.iso"));
        assert!(errors.warning(&error("other"), start).unwrap().contains("other"));
        assert!(errors.warning(&error("disk1"), start + WARNING_INTERVAL).is_some());
    }
}
