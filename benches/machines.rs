//! Measures what running VMs cost the program that started them, and how soon real guests print their first line and their prompt.
//! `examples/setup.sh --arch both && cargo build --release && cargo bench --bench machines` runs it.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::platform::{OTHER_PLATFORM, PLATFORM};
use common::{TestDir, guest};
use hyperkit::{Console, HyperKit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() {
    // `cargo bench` passes --bench. Without it, as in `cargo test --benches`, nothing is measured.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    idle_vms();
    // With the early console, since the kernel takes seconds until the other one prints.
    time_to_text("first line", guest::description(), "console=ttyS0 earlyprintk=serial panic=1", "\n");
    for platform in [PLATFORM, OTHER_PLATFORM] {
        let name = format!("prompt ({})", platform.architecture);
        time_to_text(&name, platform.description(), platform.cmdline, guest::PROMPT);
    }
}

/// Returns the number of threads and open files of this process, its memory in KiB, and how often its threads were woken up.
fn usage() -> [usize; 4] {
    let value = |status: &str, key: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| task.ok());
    let woken = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let woken = woken.map(|status| value(&status, "voluntary_ctxt_switches:")).sum();
    [value(&status, "Threads:"), fs::read_dir("/proc/self/fd").unwrap().count(), value(&status, "VmRSS:"), woken]
}

/// Measures what idle VMs cost. Each has a thread in this process, which sleeps.
fn idle_vms() {
    // A thousand VMs need more open files than a shell usually allows.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    println!("     idle VMs  threads each  files each  KiB each  wake-ups in 1 s");
    for count in [1, 100, 1000] {
        let test_dir = TestDir::new();
        let before = usage();
        let start = |number: usize| {
            let description = test_dir.description().state_dir(test_dir.path(&number.to_string()));
            description.start("guest").unwrap()
        };
        let vms: Vec<_> = (0..count).map(start).collect();
        std::thread::sleep(Duration::from_secs(1)); // until the last guest has printed its lines
        let after = usage();
        std::thread::sleep(Duration::from_secs(1));
        let later = usage();
        let each = |index: usize| (after[index] as f64 - before[index] as f64) / count as f64;
        // This thread has woken up once, from its sleep.
        let woken = later[3].saturating_sub(after[3] + 1);
        println!("{count:>13}  {:>12.2}  {:>10.2}  {:>8.1}  {woken:>15}", each(0), each(1), each(2));
        vms.iter().for_each(|vm| vm.kill().unwrap());
    }
}

/// Kills a process on drop.
struct KillProcessOnDrop(Child);

impl Drop for KillProcessOnDrop {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Measures the time from the start until the guest has printed a text: by this crate and, in turn, by starting QEMU with the same
/// arguments.
fn time_to_text(name: &str, description: HyperKit, cmdline: &str, text: &str) {
    const ROUNDS: usize = 10;
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let state = test_dir.path("vm");
    let description: HyperKit = description.state_dir(&state).console(Console::Pty);
    let first = description.start(cmdline).unwrap(); // records the arguments, and brings the files into the page cache
    first.kill().unwrap();
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let vm = description.start(cmdline).unwrap();
        ours.push(wait_for_text(&state, text, began));
        vm.kill().unwrap();
        let _ = fs::remove_file(state.join("console-ring"));

        let started = first.description();
        let mut qemu = Command::new(started.hyperkit.as_ref().unwrap());
        qemu.args(started.recorded_arguments()).stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let qemu = KillProcessOnDrop(qemu.spawn().unwrap());
        by_hand.push(wait_for_text(&state, text, began));
        drop(qemu);
        for file in
            fs::read_dir(&state).unwrap().map(|file| file.unwrap()).filter(|file| file.file_name() != "hyperkit.json")
        {
            fs::remove_file(file.path()).unwrap();
        }
    }
    let mut ratios: Vec<_> = ours.iter().zip(&by_hand).map(|(ours, hand)| ours.div_duration_f64(*hand)).collect();
    ratios.sort_by(f64::total_cmp);
    let (ours, by_hand) = (median(ours), median(by_hand));
    let (ratio, pairs) = (ours.div_duration_f64(by_hand), ratios[ROUNDS / 2]);
    println!(
        "guest's {name}, median of {ROUNDS}: {ours:.1?} with this crate, {by_hand:.1?} without: {ratio:.3}; of the pairs {pairs:.3}"
    );
}

/// Waits until the guest has printed a text, and returns the time that passed since `began`.
fn wait_for_text(state: &Path, text: &str, began: Instant) -> Duration {
    while !fs::read_to_string(state.join("console-ring")).is_ok_and(|output| output.contains(text)) {
        std::thread::sleep(Duration::from_micros(200));
    }
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
