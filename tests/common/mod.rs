//! What the tests share: a machine that passes all checks, and the programs that run it.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test binary uses a part")]

pub mod child_process;
pub mod guest;
pub mod inputs;
pub mod rejection;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::{Console, HyperKit, Vm};
use rustix::process::Pid;
use tempfile::TempDir;

/// An x86 bzImage as far as its header goes, with room for a command line of `cmdline_size` bytes.
pub fn bz_image(cmdline_size: u32) -> Vec<u8> {
    let mut image = vec![0; 2 * 512 + 0x40 * 16];
    image[0x1f1] = 1; // setup sectors
    image[0x1f4..0x1f8].copy_from_slice(&0x40_u32.to_le_bytes()); // size in paragraphs
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020a_u16.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes()); // an initrd ends here at most
    image[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes()); // alignment
    image[0x234] = 1; // relocatable
    image[0x238..0x23c].copy_from_slice(&cmdline_size.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000_u32.to_le_bytes()); // what it takes while it unpacks itself
    image
}

/// A directory with a kernel and an initrd, gone with everything in it when dropped.
pub struct TestDir {
    dir: TempDir,
}

impl TestDir {
    pub fn new() -> Self {
        let test_dir = Self { dir: tempfile::tempdir().unwrap() };
        test_dir.write("vmlinuz", &bz_image(2047));
        test_dir.write("initrd.img", b"initrd");
        test_dir
    }

    /// The directory, by its one name without symlinks.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A machine on the stand-in that passes every check. Its state directory is `vm`.
    pub fn description(&self) -> HyperKit {
        HyperKit::new()
            .hyperkit(standin_path())
            .state_dir(self.path("vm"))
            .kernel(self.path("vmlinuz"))
            .initrd(self.path("initrd.img"))
            .console(Console::File)
    }

    /// Ends the machine in the state directory when it goes.
    pub fn stop_on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.path("vm"))
    }

    /// Names of what is in the state directory.
    pub fn state_files(&self) -> Vec<String> {
        file_names(&self.path("vm"))
    }
}

/// Names of what is in a directory, sorted; none if it is not there.
pub fn file_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The stand-in for hyperkit, which `cargo test` builds among the examples.
pub fn standin_path() -> PathBuf {
    example_path("standin-hyperkit")
}

pub fn example_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is missing: run `cargo test` or `cargo build --examples` first", program.display());
    program
}

/// Pulls the plug when the test fails, too.
pub struct StopOnDrop(pub PathBuf);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Ok(description) = HyperKit::from_state(&self.0) {
            let _ = description.stop();
        }
    }
}

/// Stops a machine when the test fails, too: who waits for its end in a scope is joined before anything else is dropped.
pub struct KillOnDrop<'a>(pub &'a Vm);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Waits until something is so; a test that waits in vain fails.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A machine on the stand-in, and what ends it when the test is over, passed or failed.
pub fn start_vm(test_dir: &TestDir, guest: &str) -> (HyperKit, Vm, StopOnDrop) {
    let end = test_dir.stop_on_drop();
    let mut description = test_dir.description();
    let vm = description.start(guest).unwrap();
    (description, vm, end)
}

/// `boot` with the stand-in on the machine in the state directory, in the background.
pub fn boot_command(test_dir: &TestDir, guest: &str) -> Command {
    let mut boot = Command::new(example_path("boot"));
    boot.arg("--background").arg("--hyperkit").arg(standin_path()).arg("--state-dir").arg(test_dir.path("vm"));
    boot.arg("--kernel").arg(test_dir.path("vmlinuz")).args(["--cmdline", guest]);
    boot.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    boot
}

/// The processes that run a machine in the directory, whatever any state says: each has it on its command line.
pub fn hypervisors_in(dir: &Path) -> Vec<u32> {
    let pid_file = dir.join("hyperkit.pid");
    processes(|command| command.windows(2).any(|pair| pair[0] == "-F" && *pair[1] == pid_file))
}

/// The processes, shells among them, that run vhost-device-vsock for a machine in the directory.
pub fn vsock_daemons_in(dir: &Path) -> Vec<u32> {
    let socket = dir.join("vhost.sock");
    let is_one = |command: &[OsString]| {
        command.iter().any(|word| word.as_encoded_bytes().ends_with(b"vhost-device-vsock"))
            && command.iter().any(|word| *word == socket)
    };
    processes(is_one)
}

/// The processes, zombies left out, whose command lines are so.
fn processes(is_one: impl Fn(&[OsString]) -> bool) -> Vec<u32> {
    let mut system = sysinfo::System::new();
    let what = sysinfo::ProcessRefreshKind::nothing().without_tasks().with_cmd(sysinfo::UpdateKind::Always);
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::All, true, what);
    let alive = system.processes().values().filter(|process| process.status() != sysinfo::ProcessStatus::Zombie);
    alive.filter(|process| is_one(process.cmd())).map(|process| process.pid().as_u32()).collect()
}

/// What the guest has said on its console so far.
pub fn console_output(test_dir: &TestDir) -> String {
    let ring = fs::read(test_dir.path("vm/console-ring")).unwrap_or_default();
    String::from_utf8_lossy(&ring).trim_end_matches('\0').to_owned()
}
