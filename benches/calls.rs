//! Measures how long calls take, each together with a lower bound: the least that any program has to do for the same result.
//! `cargo build --release && cargo bench --bench calls` runs it.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::{self, File};
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{TestDir, standin_path};
use divan::Bencher;
use hyperkit::{Disk, HyperKit, Vm, create_disk_image};

fn main() {
    divan::main();
}

/// Kills a VM on drop. divan drops results after the measurement, so the kill is not measured.
struct KillOnDrop(Vm);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill().unwrap();
    }
}

/// A running VM.
struct Running {
    _kill: KillOnDrop, // dropped before the directory
    description: HyperKit,
    test_dir: TestDir,
}

impl Running {
    fn new() -> Self {
        let test_dir = TestDir::new();
        let description = test_dir.description();
        Self { _kill: KillOnDrop(description.start("guest").unwrap()), description, test_dir }
    }

    fn dir(&self) -> PathBuf {
        self.test_dir.path("vm")
    }
}

/// A hypervisor with the arguments of a VM, but started without the crate, and its pid file. Killed on drop.
struct KillProcessOnDrop(Child, PathBuf);

impl KillProcessOnDrop {
    fn spawn(vm: &Vm) -> Self {
        let mut command = Command::new(standin_path());
        command.args(vm.description().recorded_arguments());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap(), vm.state_dir().unwrap().join("hyperkit.pid"))
    }

    /// Waits until the hypervisor is set up: until the log of com1 exists, the last file that it creates.
    fn wait_until_set_up(self) -> Self {
        let ring = self.1.with_file_name("console-ring");
        while !ring.exists() {
            std::thread::yield_now();
        }
        self
    }
}

impl Drop for KillProcessOnDrop {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        for file in ["hyperkit.pid", "tty", "console-ring"] {
            let _ = fs::remove_file(self.1.with_file_name(file));
        }
    }
}

/// Measures from the call until the VM is ready. The lower bound starts the hypervisor without the crate and waits until it
/// is set up. `bare_spawn` does not wait.
#[divan::bench_group(sample_size = 1, sample_count = 300)]
mod start {
    use super::*;

    /// Returns a VM that has exited, whose recorded arguments the lower bounds use.
    fn exited_vm(test_dir: &TestDir) -> Vm {
        let vm = test_dir.description().start("guest").unwrap();
        vm.kill().unwrap();
        fs::remove_file(test_dir.path("vm/console-ring")).unwrap();
        vm
    }

    #[divan::bench]
    fn bare_spawn(bencher: Bencher) {
        let test_dir = TestDir::new();
        let vm = exited_vm(&test_dir);
        bencher.bench_local(|| KillProcessOnDrop::spawn(&vm));
    }

    #[divan::bench]
    fn bare_spawn_until_set_up(bencher: Bencher) {
        let test_dir = TestDir::new();
        let vm = exited_vm(&test_dir);
        bencher.bench_local(|| KillProcessOnDrop::spawn(&vm).wait_until_set_up());
    }

    #[divan::bench]
    fn start(bencher: Bencher) {
        let test_dir = TestDir::new();
        exited_vm(&test_dir); // all three benchmarks start in a state directory that was used before
        let description = test_dir.description();
        bencher.bench_local(|| KillOnDrop(description.start("guest").unwrap()));
    }
}

mod arguments {
    use super::*;

    /// Measures `arguments` for this number of devices: disks and the random number generator.
    fn of(bencher: Bencher, program: &str, devices: usize) {
        let disks = (1..devices).map(|number| Disk::raw(format!("/images/{number}.img")).size_mib(64));
        let description = HyperKit::new().hyperkit(program).kernel("/vmlinuz").state_dir("/vm");
        let description = disks.fold(description, HyperKit::disk);
        bencher.bench_local(|| black_box(&description).arguments("console=ttyS0").unwrap());
    }

    #[divan::bench(args = [1, 30])]
    fn hyperkit(bencher: Bencher, devices: usize) {
        of(bencher, "hyperkit", devices);
    }

    #[divan::bench(args = [1, 30])]
    fn qemu(bencher: Bencher, devices: usize) {
        of(bencher, "qemu-system-x86_64", devices);
    }
}

/// The lower bound creates a file of the same length.
#[divan::bench_group(sample_size = 1, sample_count = 300)]
mod image_of_64_gib {
    use super::*;

    #[divan::bench]
    fn bare_file(bencher: Bencher) {
        let test_dir = TestDir::new();
        let path = test_dir.path("disk.img");
        let before = || drop(fs::remove_file(&path));
        bencher
            .with_inputs(before)
            .bench_local_values(|()| File::create_new(&path).unwrap().set_len(64 << 30).unwrap());
    }

    #[divan::bench]
    fn create_disk_image(bencher: Bencher) {
        let test_dir = TestDir::new();
        let path = test_dir.path("disk.img");
        let before = || drop(fs::remove_file(&path));
        bencher.with_inputs(before).bench_local_values(|()| super::create_disk_image(&path, 64 << 10).unwrap());
    }
}

/// The lower bound only reads and parses the file.
mod from_state {
    use super::*;

    #[divan::bench]
    fn read_and_parse(bencher: Bencher) {
        let running = Running::new();
        let path = running.dir().join("hyperkit.json");
        bencher.bench_local(|| serde_json::from_slice::<HyperKit>(&fs::read(&path).unwrap()).unwrap());
    }

    #[divan::bench]
    fn from_state(bencher: Bencher) {
        let running = Running::new();
        let dir = running.dir();
        bencher.bench_local(|| HyperKit::from_state(&dir).unwrap());
    }
}

/// The lower bound reads the pid file and the command line of the process.
mod is_running {
    use super::*;

    #[divan::bench]
    fn pid_file_and_command_line(bencher: Bencher) {
        let running = Running::new();
        let path = running.dir().join("hyperkit.pid");
        bencher.bench_local(|| {
            let pid = fs::read_to_string(&path).unwrap();
            fs::read(format!("/proc/{pid}/cmdline")).unwrap()
        });
    }

    #[divan::bench]
    fn running_vm(bencher: Bencher) {
        let running = Running::new();
        bencher.bench_local(|| assert!(black_box(&running.description).is_running().unwrap()));
    }

    #[divan::bench]
    fn exited_vm(bencher: Bencher) {
        let running = Running::new();
        running.description.stop().unwrap();
        bencher.bench_local(|| assert!(!black_box(&running.description).is_running().unwrap()));
    }
}

/// One VM in ten runs.
#[divan::bench_group(sample_size = 1, sample_count = 50)]
mod list {
    use super::*;

    #[divan::bench(args = [10, 100, 1000])]
    fn of_state_directories(bencher: Bencher, count: usize) {
        let test_dir = TestDir::new();
        let root = test_dir.path("vms");
        let start = |number: usize| {
            let description = test_dir.description().state_dir(root.join(number.to_string()));
            KillOnDrop(description.start("guest").unwrap())
        };
        let running: Vec<_> = (0..count / 10).map(start).collect();
        for number in count / 10..count {
            drop(start(number));
        }
        bencher.bench_local(|| {
            let found = HyperKit::list(&root).unwrap();
            assert_eq!(found.len(), count);
            found
        });
        drop(running);
    }
}
