//! Runs programs in the guest, and copies files in and out.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use hyperkit::{Disks, HyperKit};

const TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))?;

    // The first command waits until the guest has booted.
    let uname = vm.command("uname").args(["-s", "-m"]).agent_timeout(TIMEOUT).output()?;
    print!("{}: {}", uname.status, String::from_utf8_lossy(&uname.stdout));

    let failed = vm.command("sh").args(["-c", "echo no >&2; exit 3"]).timeout(TIMEOUT).output()?;
    print!("{}: {}", failed.status, String::from_utf8_lossy(&failed.stderr));

    // A program that runs meanwhile, with streams.
    let mut sort = vm.command("sort").stdin_piped().spawn()?;
    let mut input = sort.stdin.take().ok_or("no standard input")?;
    input.write_all(b"pear\napple\n")?;
    drop(input); // the end of the input
    let output = BufReader::new(sort.stdout.take().ok_or("no standard output")?);
    for line in output.lines() {
        println!("sorted: {}", line?);
    }
    println!("sort {}", sort.wait()?);

    fs::write("question.txt", "6 * 7\n")?;
    vm.copy_in("question.txt", "/tmp/question.txt")?;
    vm.command("sh").args(["-c", "echo $(($(cat question.txt))) >answer.txt"]).current_dir("/tmp").status()?;
    vm.copy_out("/tmp/answer.txt", "answer.txt")?;
    print!("answer: {}", fs::read_to_string("answer.txt")?);

    vm.kill()?;
    vm.remove(Disks::Delete)?;
    Ok(())
}
