//! Helpers of all test binaries: valid descriptions, the programs that tests run, waiting, and cleanup.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test binary uses a part")]

pub mod arm_image;
pub mod child_process;
pub mod elf_kernel;
pub mod guest;
pub mod inputs;
pub mod platform;
pub mod rejection;
pub mod tools;
pub mod vpnkit;
#[cfg(target_os = "linux")]
pub mod vsock_agent;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::{HyperKit, Vm};
use rustix::process::Pid;
use tempfile::TempDir;

/// Returns an x86 bzImage with a valid header and nothing else, for a command line of at most `cmdline_size` bytes.
pub fn bz_image(cmdline_size: u32) -> Vec<u8> {
    let mut image = vec![0; 2 * 512 + 0x40 * 16];
    image[0x1f1] = 1; // setup sectors
    image[0x1f4..0x1f8].copy_from_slice(&0x40_u32.to_le_bytes()); // size in paragraphs
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020a_u16.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes()); // highest address of the initrd
    image[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes()); // alignment
    image[0x234] = 1; // relocatable
    image[0x238..0x23c].copy_from_slice(&cmdline_size.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000_u32.to_le_bytes()); // memory that it needs to unpack itself
    image
}

/// Returns the header of an empty qcow2 image of 1 MiB.
pub fn qcow2_header() -> Vec<u8> {
    let mut header = vec![0; 104];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03"); // version 3
    header[23] = 16; // clusters of 64 KiB
    header[29] = 16; // the size: 1 MiB
    header[99] = 4; // reference counts of 16 bits
    header[103] = 104; // the length of the header
    header[39] = 1; // entries of the table of clusters
    header[59] = 1; // clusters of reference counts
    header
}

/// A temporary directory with a kernel and an initrd, deleted on drop.
pub struct TestDir {
    dir: TempDir,
}

impl TestDir {
    pub fn new() -> Self {
        Self::in_dir(&std::env::temp_dir())
    }

    /// Creates the directory in another one.
    pub fn in_dir(parent: &Path) -> Self {
        let test_dir = Self { dir: tempfile::tempdir_in(parent).unwrap() };
        test_dir.write("vmlinuz", &bz_image(2047));
        test_dir.write("initrd.img", b"initrd");
        test_dir
    }

    /// Returns the path of the directory, without symlinks.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Writes an executable file and returns its path.
    pub fn write_executable(&self, name: &str, content: &[u8]) -> PathBuf {
        write_executable(&self.path(name), content);
        self.path(name)
    }

    /// Returns a valid description of a VM on the stand-in. Its state directory is `vm`.
    pub fn description(&self) -> HyperKit {
        HyperKit::new()
            .hyperkit(standin_path())
            .state_dir(self.path("vm"))
            .kernel(self.path("vmlinuz"))
            .initrd(self.path("initrd.img"))
    }

    /// Returns a guard that kills the VM in the state directory on drop.
    pub fn stop_on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.path("vm"))
    }

    /// Returns the names of the files in the state directory.
    pub fn state_files(&self) -> Vec<String> {
        file_names(&self.path("vm"))
    }
}

/// Writes an executable file.
///
/// A child process writes it. If this process had the file open for writing, a child that another test is starting at that
/// moment would have it open as well, and executing the file would fail with `ETXTBSY`.
pub fn write_executable(path: &Path, content: &[u8]) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(content).unwrap();
    assert!(writer.wait().unwrap().success(), "cannot write {}", path.display());
}

/// Creates a FIFO. macOS has no system call that rustix knows for it.
pub fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Returns the names of the files in a directory, sorted; none if there is no such directory.
pub fn file_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns the path of the stand-in for hyperkit, which Cargo builds before the tests.
pub fn standin_path() -> PathBuf {
    built_path("standin-hyperkit")
}

/// Returns the path of the agent for the stand-in's guest.
pub fn agent_path() -> PathBuf {
    built_path("standin-agent")
}

/// Returns the path of a built example.
pub fn example_path(name: &str) -> PathBuf {
    built_path(&format!("examples/{name}"))
}

/// Returns the path of a built program in the directory of the build profile, such as `target/debug`.
fn built_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        program.exists(),
        "{} is missing: run `cargo test` or `cargo build --all-targets` first",
        program.display()
    );
    program
}

/// Kills the VM of a state directory on drop, also if the test fails.
pub struct StopOnDrop(pub PathBuf);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // Without its record, the VM is found by its command line.
        let _ = HyperKit::new().state_dir(&self.0).stop();
    }
}

/// Kills a VM on drop, also if the test fails.
///
/// A thread scope needs this if its threads wait for the exit of the VM: the scope joins the threads first, and drops a
/// [`StopOnDrop`] outside of the scope only afterwards.
pub struct KillOnDrop<'a>(pub &'a Vm);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// Kills a process on drop, also if the test fails.
pub struct KillProcessOnDrop(pub Child);

impl KillProcessOnDrop {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for KillProcessOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// How long a test waits for something that takes milliseconds on an idle host.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Converts a process ID for `rustix`.
pub fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Waits until a condition holds. Panics with its name after [`TEST_TIMEOUT`].
pub fn wait_until(condition: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {condition}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a VM on the stand-in. The guard kills the VM at the end of the test.
pub fn start_vm(test_dir: &TestDir, guest: &str) -> (HyperKit, Vm, StopOnDrop) {
    let stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    let vm = description.start(guest).unwrap();
    (description, vm, stop)
}

/// Returns a command that starts a VM on the stand-in in the background, by the example `boot`.
pub fn boot_command(test_dir: &TestDir, guest: &str) -> Command {
    let mut boot = Command::new(example_path("boot"));
    boot.arg("--background").arg("--hyperkit").arg(standin_path()).arg("--state-dir").arg(test_dir.path("vm"));
    boot.arg("--kernel").arg(test_dir.path("vmlinuz")).args(["--cmdline", guest]);
    boot.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    boot
}

/// Returns the process IDs of the hypervisors that run in a state directory. Finds them by their command lines, whatever the
/// directory records.
pub fn hypervisors_in(dir: &Path) -> Vec<u32> {
    let pid_file = dir.join("hyperkit.pid");
    // hyperkit's option and QEMU's.
    let has_pid_file = |pair: &[OsString]| (pair[0] == "-F" || pair[0] == "-pidfile") && *pair[1] == pid_file;
    processes_matching(|command| command.windows(2).any(has_pid_file))
}

/// Returns the processes of vhost-device-vsock for the VM in a state directory, and of the shells that watch the daemon.
pub fn vsock_daemons_in(dir: &Path) -> Vec<u32> {
    let socket = dir.join("vhost.sock");
    let is_daemon = |command: &[OsString]| {
        command.iter().any(|word| word.as_encoded_bytes().ends_with(b"vhost-device-vsock"))
            && command.iter().any(|word| *word == socket)
    };
    processes_matching(is_daemon)
}

/// Returns the process IDs of the processes whose command line matches, without zombies.
fn processes_matching(matches: impl Fn(&[OsString]) -> bool) -> Vec<u32> {
    let mut system = sysinfo::System::new();
    let details = sysinfo::ProcessRefreshKind::nothing().without_tasks().with_cmd(sysinfo::UpdateKind::Always);
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::All, true, details);
    let alive = system.processes().values().filter(|process| process.status() != sysinfo::ProcessStatus::Zombie);
    alive.filter(|process| matches(process.cmd())).map(|process| process.pid().as_u32()).collect()
}

/// Returns what the guest has printed on its console so far.
pub fn console_output(test_dir: &TestDir) -> String {
    let ring = fs::read(test_dir.path("vm/console-ring")).unwrap_or_default();
    String::from_utf8_lossy(&ring).trim_end_matches('\0').to_owned()
}
