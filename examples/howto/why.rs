//! Provokes three failures, and prints of each what helps to find its cause.

use std::time::Duration;

use hyperkit::{Disks, Error, HyperKit, Result};

/// Prints the library's log records: each line that the hypervisor prints, and warnings. A program of
/// yours would use a crate such as env_logger, with `RUST_LOG=hyperkit=info` in its environment.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            println!("[{} {}] {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

fn explain(error: &Error) {
    println!("kind: {:?}", error.kind());
    match error {
        Error::InvalidConfig(violations) => violations.iter().for_each(|violation| println!("- {violation}")),
        Error::HypervisorFailed { exit, log_tail, .. } => {
            println!("the hypervisor {exit}; the end of its output is:\n{}", log_tail.hypervisor);
        }
        Error::ConsoleTextNotFound { text, exit: Some(exit), state_dir: Some(dir), .. } => {
            println!("the VM {exit} before the guest wrote {text:?}; its console's log has these lines:");
            // The ten lines of `log_tail` end a panic. Its reason is further up.
            let log = HyperKit::new().state_dir(dir).console_log().unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            log.lines().filter(|line| line.contains("panic")).for_each(|line| println!("{line}"));
        }
        _ => println!("{error:#}"), // the message, with its causes, in one line
    }
}

/// Boots the guest and waits until it is up.
fn boot(description: &HyperKit, cmdline: &str) -> Result<()> {
    let vm = description.start_scoped(cmdline)?;
    vm.wait_for_console("is up", Duration::from_secs(300))?;
    Ok(())
}

fn main() -> Result<()> {
    log::set_logger(&Logger).expect("this is the only logger");
    log::set_max_level(log::LevelFilter::Info);
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    let cmdline = format!("console={} quiet panic=1 no_timer_check", description.engine()?.kernel_console());
    let failures = [
        ("a missing kernel and too many vCPUs", description.clone().kernel("no-such-kernel").cpus(65), cmdline.clone()),
        ("more memory than any host has", description.clone().memory_mib(1 << 30), cmdline.clone()),
        ("a kernel that finds no /init and panics", description.clone(), format!("{cmdline} rdinit=/nope")),
    ];
    for (title, description, cmdline) in failures {
        println!("\n# {title}");
        match boot(&description, &cmdline) {
            Ok(()) => println!("it started"),
            Err(error) => explain(&error),
        }
    }
    description.remove(Disks::Delete)
}
