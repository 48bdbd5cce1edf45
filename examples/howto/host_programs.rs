//! Runs the host's programs in a guest, which can change one directory of the host.

use std::env;
use std::error::Error;
use std::fs;
use std::time::Duration;

use hyperkit::{Disks, HyperKit, Root};

const TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    fs::create_dir_all("results")?;
    fs::write("input.txt", "pear\napple\n")?;

    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("host-root.img").agent(true);
    let description = description.root(Root::Host).share_dir("results", "results");
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))?;

    // The environment and the directory of this program, as for a program that it starts on the host.
    let here = env::current_dir()?;
    let command = |program: &str| vm.command(program).envs(env::vars_os()).current_dir(&here).agent_timeout(TIMEOUT);

    let pipeline = "sort input.txt | tee results/sorted.txt; rm input.txt; echo gone >input2.txt; ls";
    let sorted = command("bash").args(["-c", pipeline]).output()?;
    print!("{}:\n{}", sorted.status, String::from_utf8_lossy(&sorted.stdout));
    let python = command("python3").args(["-c", "import sys; sys.exit(7)"]).output()?;
    println!("python3 {}", python.status);

    println!("on the host, input.txt is {:?}", fs::read_to_string("input.txt")?);
    println!("and results/sorted.txt is {:?}", fs::read_to_string("results/sorted.txt")?);
    vm.kill()?;
    vm.remove(Disks::Delete)?;
    Ok(())
}
