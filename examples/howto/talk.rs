//! Runs commands in the guest's shell, over its console.

use std::time::Duration;

use hyperkit::{ConsoleStream, Disks, HyperKit, Result};

const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs a command in the guest's shell. Returns its output and its exit status.
fn run(console: &ConsoleStream, command: &str) -> Result<(String, String)> {
    // The console echoes this line. The two quotes keep the markers out of the echo.
    console.send_line(&format!("echo :be''gin:; {command}; echo :e''nd:$?"))?;
    console.expect(":begin:\r\n", TIMEOUT)?;
    let output = console.expect(":end:", TIMEOUT)?.replace("\r\n", "\n");
    let status = console.expect("\r\n", TIMEOUT)?;
    Ok((output.trim_end_matches(":end:").to_owned(), status.trim_end().to_owned()))
}

fn main() -> Result<()> {
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))?;
    // The shell reads what is typed once it has printed its prompt.
    vm.wait_for_console("# ", TIMEOUT)?;
    let console = vm.console()?;
    for command in ["uname -m", "grep -c ^processor /proc/cpuinfo", "ls /no-such-file"] {
        let (output, status) = run(&console, command)?;
        print!("{command}: exit status {status}\n{output}");
    }
    vm.kill()?;
    vm.remove(Disks::Delete)
}
