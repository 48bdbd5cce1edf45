//! The real guest that `examples/setup.sh` makes: descriptions that boot it, files for it, and the report that it prints.

#[path = "../../examples/shared/cpio.rs"]
mod cpio;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyperkit::{ConsoleStream, HyperKit, Vm};

use super::platform::PLATFORM;
use super::{StopOnDrop, processes_matching};

/// How long a test waits for the guest. Booting on an emulated CPU and a busy host takes far less.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// A kernel command line with which the guest prints a report of its devices and powers off.
pub const REPORT_CMDLINE: &str = PLATFORM.report_cmdline;
/// The end of the prompt of the guest's shell.
pub const PROMPT: &str = "# ";
/// A kernel command line with which the guest boots to a shell, and reboots after a kernel panic. Without `no_timer_check`,
/// the kernel panics if an emulated timer interrupt is late, which happens on busy hosts.
pub const QUIET_CMDLINE: &str = PLATFORM.cmdline;

/// Returns the path of a file of the guest, such as `initrd.img`.
pub fn guest_file(name: &str) -> PathBuf {
    PLATFORM.guest_file(name)
}

/// Returns the path of a file that `examples/setup.sh --tests` creates.
pub fn setup_file(dir: &str, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir).join(name);
    assert!(path.exists(), "{} is missing: run examples/setup.sh --tests first", path.display());
    path
}

/// Returns the description of a VM on QEMU that boots the guest. Tests of `boot` and of the documentation boot `vmlinuz`.
pub fn description() -> HyperKit {
    PLATFORM.description()
}

/// Returns the description of a VM on QEMU with 256 MiB and a state directory that boots the guest.
pub fn description_in(state_dir: &Path) -> HyperKit {
    description().state_dir(state_dir).memory_mib(256)
}

/// A VM that is not started yet: [`description_in`] a temporary directory. On drop, the VM is killed and the directory is
/// deleted.
pub struct Guest {
    pub description: HyperKit,
    pub state_dir: PathBuf,
    _stop: StopOnDrop,
    _dir: tempfile::TempDir,
}

impl Guest {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().canonicalize().unwrap().join("vm");
        Self { description: description_in(&state_dir), _stop: StopOnDrop(state_dir.clone()), state_dir, _dir: dir }
    }
}

/// Waits for the prompt of the guest's shell and opens the console.
pub fn open_shell(vm: &Vm) -> ConsoleStream {
    vm.wait_for_console(PROMPT, BOOT_TIMEOUT).unwrap();
    vm.console().unwrap()
}

/// Runs a command in the guest's shell, and returns what it prints.
pub fn run_in_guest(console: &ConsoleStream, command: &str) -> String {
    // The shell's echo of the command contains neither mark.
    console.send_line(&format!("echo begin-$((6 * 7)); {command}; echo end-$((6 * 7))")).unwrap();
    console.expect("begin-42\r\n", BOOT_TIMEOUT).unwrap();
    let output = console.expect("end-42", BOOT_TIMEOUT).unwrap();
    console.expect(PROMPT, BOOT_TIMEOUT).unwrap();
    output.strip_suffix("end-42").unwrap_or(&output).replace('\r', "")
}

/// Creates a script that runs shell commands and then QEMU in a new mount namespace. It needs no root.
#[cfg(target_os = "linux")]
pub fn qemu_in_mount_namespace(dir: &Path, commands: &str) -> PathBuf {
    let setup = dir.join("setup.sh");
    fs::write(&setup, format!("{commands}\nexec {} \"$@\"\n", PLATFORM.qemu)).unwrap();
    let script =
        format!("#!/bin/sh\nexec unshare --user --map-root-user --mount /bin/sh -e {} \"$@\"\n", setup.display());
    let program = dir.join(PLATFORM.qemu);
    super::write_executable(&program, script.as_bytes());
    program
}

/// Returns the processes with a state directory on their command line: the hypervisor, its vsock daemon, and the shells that
/// watch them.
pub fn processes_in(state_dir: &Path) -> Vec<u32> {
    let state_dir = state_dir.as_os_str().as_encoded_bytes();
    processes_matching(|command| {
        command.iter().any(|word| word.as_encoded_bytes().windows(state_dir.len()).any(|part| part == state_dir))
    })
}

/// Compiles `tests/data/guest-program.c` for the guest.
pub fn compile_program(dir: &Path) -> PathBuf {
    let (source, program) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("data/guest-program.c"), dir.join("program"));
    let cc = PLATFORM.compiler();
    let status = Command::new(cc).args(["-static", "-O", "-o"]).args([&program, &source]).status();
    assert!(status.unwrap_or_else(|error| panic!("{cc}: {error}")).success());
    program
}

/// Creates an initrd that contains a program as `/bin/program`.
pub fn initrd_with(program: &Path) -> PathBuf {
    let initrd = initrd_with_files(&[("bin/program", 0o100_755, &fs::read(program).unwrap())]);
    let path = program.with_file_name("initrd.img");
    fs::write(&path, initrd).unwrap();
    path
}

/// Returns the guest's initrd with more files, or others instead: names, modes and contents.
pub fn initrd_with_files(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut initrd = fs::read(guest_file("initrd.img")).unwrap();
    cpio::append(&mut initrd, files);
    initrd
}

/// Creates a directory whose file `hello.txt` contains a text.
pub fn create_share(dir: &Path, name: &str, text: &str) -> PathBuf {
    let share = dir.join(name);
    fs::create_dir(&share).unwrap();
    fs::write(share.join("hello.txt"), text).unwrap();
    share
}

/// Creates an ISO image whose file `hello.txt` contains a text.
pub fn create_iso(dir: &Path, name: &str, text: &str) -> PathBuf {
    let files = create_share(dir, &format!("{name}.files"), text);
    create_iso_from(&files, &dir.join(format!("{name}.iso")))
}

/// Creates an ISO image of a directory. It has the Rock Ridge extension, for lower-case names, and a UDF file system, which
/// UEFI can read.
pub fn create_iso_from(files: &Path, iso: &Path) -> PathBuf {
    let status = Command::new("genisoimage").args(["-quiet", "-r", "-udf", "-o"]).args([iso, files]).status();
    assert!(status.expect("genisoimage is missing: run examples/setup.sh --tests first").success());
    iso.to_owned()
}

/// The guest's report, which consists of lines `REPORT KEY VALUE` on its console.
pub struct Report(BTreeMap<String, Vec<String>>);

impl Report {
    pub fn parse(console: &[u8]) -> Self {
        let console = String::from_utf8_lossy(console);
        let mut report = BTreeMap::<_, Vec<_>>::new();
        for line in console.lines().filter_map(|line| line.trim_end().strip_prefix("REPORT ")) {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            report.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        assert!(report.contains_key("end"), "the guest printed no complete report:\n{console}");
        Self(report)
    }

    /// Returns the value of a key that has one value.
    pub fn single(&self, key: &str) -> &str {
        match &self[key] {
            [value] => value,
            other => panic!("{key}: {other:?}"),
        }
    }
}

impl Index<&str> for Report {
    type Output = [String];

    fn index(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }
}
