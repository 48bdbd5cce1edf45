//! A real guest: the one that `examples/setup.sh` makes, what it is given, and what it reports from inside.

#[path = "../../examples/shared/cpio.rs"]
mod cpio;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyperkit::{Console, HyperKit};

use super::StopOnDrop;

/// Far longer than a boot takes under emulation on a busy machine.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Has the guest report, and power off then.
pub const REPORT_CMDLINE: &str = "console=ttyS0 panic=1 quiet hyperkit.report";

pub const QUIET_CMDLINE: &str = "console=ttyS0 panic=1 quiet";

/// A file of the guest.
pub fn guest_file(name: &str) -> PathBuf {
    setup_file("target/guest", name)
}

/// What `examples/setup.sh --tests` has put there.
pub fn setup_file(dir: &str, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join(name);
    assert!(path.exists(), "{} is missing: run examples/setup.sh --tests first", path.display());
    path
}

/// A machine on QEMU that boots the guest.
pub fn description() -> HyperKit {
    HyperKit::new().hyperkit("qemu-system-x86_64").kernel(guest_file("vmlinuz")).initrd(guest_file("initrd.img"))
}

/// A VM with 256 MiB that boots the guest and writes its console to a file.
pub struct Guest {
    pub description: HyperKit,
    pub state: PathBuf,
    _stop: StopOnDrop,
    _dir: tempfile::TempDir,
}

pub fn new_guest() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let description = description().state_dir(&state).console(Console::File).memory(256);
    Guest { description, _stop: StopOnDrop(state.clone()), state, _dir: dir }
}

/// `tests/data/guest-program.c` as a program for the guest.
pub fn compile_program(dir: &Path) -> PathBuf {
    let (source, program) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/guest-program.c"), dir.join("program"));
    let cc = if cfg!(target_arch = "x86_64") { "cc" } else { "x86_64-linux-gnu-gcc" };
    let made = Command::new(cc).args(["-static", "-O", "-o"]).args([&program, &source]).status();
    assert!(made.unwrap_or_else(|error| panic!("{cc}: {error}")).success());
    program
}

/// An initial RAM disk with this program in it, as `/bin/program`.
pub fn initrd_with(program: &Path) -> PathBuf {
    let mut initrd = fs::read(guest_file("initrd.img")).unwrap();
    cpio::append(&mut initrd, &[("bin/program", 0o100_755, &fs::read(program).unwrap())]);
    let path = program.with_file_name("initrd.img");
    fs::write(&path, initrd).unwrap();
    path
}

/// A directory to share in which `hello.txt` has this text.
pub fn create_share(dir: &Path, name: &str, text: &str) -> PathBuf {
    let share = dir.join(name);
    fs::create_dir(&share).unwrap();
    fs::write(share.join("hello.txt"), text).unwrap();
    share
}

/// An ISO image in which `hello.txt` has this text.
pub fn create_iso(dir: &Path, name: &str, text: &str) -> PathBuf {
    let test_dir = create_share(dir, &format!("{name}.files"), text);
    create_iso_from(&test_dir, &dir.join(format!("{name}.iso")))
}

/// An ISO image of a directory: with lower-case names by Rock Ridge, and with UDF, which UEFI reads.
pub fn create_iso_from(test_dir: &Path, iso: &Path) -> PathBuf {
    let made = Command::new("genisoimage").args(["-quiet", "-r", "-udf", "-o"]).args([iso, test_dir]).status();
    assert!(made.expect("genisoimage is missing: run examples/setup.sh --tests first").success());
    iso.to_owned()
}

/// What the guest reported on its console, by key.
pub struct Report(BTreeMap<String, Vec<String>>);

impl Report {
    pub fn parse(console: &[u8]) -> Self {
        let console = String::from_utf8_lossy(console);
        let mut report = BTreeMap::<_, Vec<_>>::new();
        for line in console.lines().filter_map(|line| line.trim_end().strip_prefix("REPORT ")) {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            report.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        assert!(report.contains_key("end"), "the guest did not report:\n{console}");
        Self(report)
    }

    /// What was reported once.
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
