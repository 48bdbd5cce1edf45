//! The MAC address that Apple's vmnet will give the guest.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::config::HyperKit;
use crate::engine::dhcp_leases::mac_bytes;

/// How long hyperkit may take to print the address.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The MAC address that vmnet will give the guest. It follows from the VM's UUID, and `hyperkit -M` prints it. This is
/// called before the start, since hyperkit may not print the address while the VM runs. Only `Vm::addresses` depends on it.
pub(super) fn mac(description: &HyperKit) -> Option<String> {
    let uuid = description.uuid.as_ref().filter(|_| description.vmnet)?;
    let arguments = &description.record.arguments;
    let firmware = arguments.iter().position(|argument| argument == "-f")?;
    let mut hyperkit = Command::new(description.hyperkit.as_deref()?);
    hyperkit.args(["-A", "-M", "-U", uuid, "-s", "0:0,hostbridge", "-s", "31,lpc", "-s", "1:0,virtio-net"]);
    hyperkit.args(arguments.get(firmware..firmware + 2)?);
    let output = stdout_of(hyperkit, TIMEOUT).inspect_err(|error| {
        log::debug!(target: "hyperkit", "the guest's address will not be known: {error}");
    });
    let mac = output.ok()?.lines().find_map(|line| line.strip_prefix("MAC:").map(str::trim).map(str::to_owned));
    mac.filter(|mac| mac_bytes(mac).is_some())
}

/// The output of a program, which must end before the timeout.
fn stdout_of(mut command: Command, timeout: Duration) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = child.stdout.take().map_or(Ok(Vec::new()), |mut pipe| read_until(&mut pipe, Instant::now() + timeout));
    let _ = child.kill(); // it has closed its output, or hangs
    child.wait()?;
    Ok(String::from_utf8_lossy(&output?).into_owned())
}

/// Reads to the end, which must come before the deadline.
fn read_until(pipe: &mut (impl Read + AsFd), deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut output, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => match pipe.read(&mut buffer)? {
                0 => return Ok(output),
                length => output.extend_from_slice(&buffer[..length]),
            },
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_hanging_program_times_out() {
        let mut hangs = Command::new("sleep");
        hangs.arg("1000");
        let error = stdout_of(hangs, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        let mut prints = Command::new("echo");
        prints.arg("something");
        assert_eq!(stdout_of(prints, Duration::from_secs(60)).unwrap(), "something\n");
    }
}
