//! Starts a VM from async code, talks to its guest, and shuts it down at ^C.

use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hyperkit::{Disks, HyperKit, Vm};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Starts a VM. Kills it instead if `cancelled` completes first.
async fn start(description: HyperKit, cancelled: impl Future) -> Result<Option<Vm>> {
    let cmdline = format!("console={} quiet panic=1 no_timer_check", description.engine()?.kernel_console());
    let starting = Arc::new(spawn_blocking(move || description.spawn(&cmdline)).await??);
    let waiting = starting.clone();
    tokio::select! {
        vm = spawn_blocking(move || waiting.wait_ready(Duration::from_secs(30))) => Ok(Some(vm??)),
        _ = cancelled => {
            spawn_blocking(move || starting.kill()).await??; // this also ends `wait_ready`
            Ok(None)
        }
    }
}

/// Waits for the shell's prompt. Unlike `wait_for_console` in a thread, this ends when it is dropped.
async fn wait_for_prompt(vm: &Vm) -> Result {
    while !String::from_utf8_lossy(&vm.console_log()?).contains("# ") {
        if let Some(exit) = vm.try_wait() {
            return Err(format!("the VM {exit}; {}", vm.log_tail()).into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Sends a line to the guest's shell and returns the first line that contains `answer`.
async fn ask(vm: &Vm, line: &str, answer: &str) -> Result<String> {
    // tokio treats the console's descriptor as the two ends of a pipe, so it needs no thread.
    let console = vm.console()?;
    let output = pipe::Receiver::from_file_unchecked(File::from(OwnedFd::from(console.try_clone()?)))?;
    let mut input = pipe::Sender::from_file_unchecked(File::from(OwnedFd::from(console)))?;
    input.write_all(format!("{line}\r").as_bytes()).await?;
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        if line.contains(answer) {
            return Ok(line.trim_end().to_owned());
        }
    }
    Err("the VM has exited".into())
}

async fn talk(vm: &Vm) -> Result {
    wait_for_prompt(vm).await?;
    println!("the guest says: {}", ask(vm, "echo $((6 * 7)) is the answer", "42 is").await?);
    println!("^C shuts the VM down");
    println!("the VM {}", vm.exited().await);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    // Before the start: until then, ^C would end this program, and leave the VM running.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    let Some(vm) = start(description, interrupt.recv()).await? else {
        println!("the start was cancelled");
        return Ok(());
    };
    let talked = tokio::select! {
        talked = talk(&vm) => talked,
        _ = interrupt.recv() => Ok(()),
    };
    // In a thread, which ends after the grace period of 60 s at the latest.
    let shut_down = spawn_blocking(move || {
        let outcome = vm.shutdown(Duration::from_secs(60))?;
        vm.remove(Disks::Delete).map(|()| outcome)
    });
    println!("{}", shut_down.await??);
    talked
}
