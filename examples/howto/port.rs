//! Reaches a TCP port of the guest. The guest in `target/guest` has an echo server.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hyperkit::{Disks, HyperKit, Network, PortForward};

/// Sends a line to the echo server and returns its answer.
fn ask(port: u16, line: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer)? {
        0 => Err(io::ErrorKind::ConnectionReset.into()), // nobody listens in the guest yet
        _ => Ok(answer),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    // Port 0 of the host: any free one.
    let description = description.network(Network::Nat).port_forward(PortForward::tcp(0, 7));
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check hyperkit.echo=7"))?;
    let port = vm.host_port(7)?.ok_or("port 7 of the guest is not forwarded")?;
    let deadline = Instant::now() + Duration::from_secs(300);
    let answer = loop {
        match ask(port, "hello") {
            Ok(answer) => break answer,
            Err(error) if Instant::now() > deadline || vm.try_wait().is_some() => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    print!("port {port} of 127.0.0.1 is port 7 of the guest, which answers: {answer}");
    vm.kill()?;
    vm.remove(Disks::Delete)?;
    Ok(())
}
