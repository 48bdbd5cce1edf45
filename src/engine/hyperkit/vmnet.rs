//! The MAC address that Apple's vmnet will give the guest.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::engine::dhcp_leases::bytes;
use crate::vm::PATIENCE;

/// The MAC address that vmnet will give the guest. It follows from the machine's UUID, and only hyperkit's `-M` tells it:
/// of a machine that runs it might not be had any more. Nothing depends on it but [`Vm::addresses`].
pub(crate) fn vmnet_mac(machine: &HyperKit) -> Option<String> {
    let uuid = machine.uuid.as_ref().filter(|_| machine.vmnet && Engine::of_machine(machine) == Engine::HyperKit)?;
    let firmware = machine.arguments.iter().position(|argument| argument == "-f")?;
    let mut hyperkit = Command::new(machine.hyperkit.as_deref()?);
    hyperkit.args(["-A", "-M", "-U", uuid, "-s", "0:0,hostbridge", "-s", "31,lpc", "-s", "1:0,virtio-net"]);
    hyperkit.args(machine.arguments.get(firmware..firmware + 2)?);
    let said = output_of(hyperkit, PATIENCE).inspect_err(|error| {
        log::debug!(target: "hyperkit", "the guest's address will not be known: {error}");
    });
    let mac = said.ok()?.lines().find_map(|line| line.strip_prefix("MAC:").map(str::trim).map(str::to_owned));
    mac.filter(|mac| bytes(mac).is_some())
}

/// What a program prints that has to end in time.
fn output_of(mut command: Command, patience: Duration) -> std::io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut pipe = child.stdout.take();
    let (send, receive) = std::sync::mpsc::channel();
    let reader = std::thread::Builder::new().name("hyperkit-mac".to_owned()).spawn(move || {
        let mut said = String::new();
        let read = pipe.as_mut().map_or(Ok(0), |pipe| pipe.read_to_string(&mut said));
        let _ = send.send(read.map(|_| said));
    });
    let said = reader
        .and_then(|_| receive.recv_timeout(patience).unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())));
    let _ = child.kill(); // it has closed its output, or hangs
    child.wait()?;
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_prints_no_address_or_hangs_is_no_obstacle() {
        let mut hangs = Command::new("sleep");
        hangs.arg("1000");
        let error = output_of(hangs, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        let mut says = Command::new("echo");
        says.arg("something");
        assert_eq!(output_of(says, Duration::from_secs(60)).unwrap(), "something\n");
    }
}
