//! Disks whose writes go to an overlay of their image.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hyperkit::{Disk, Disks, Exit, HyperKit, ShutdownOutcome};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{BOOT_TIMEOUT, QUIET_CMDLINE, description_in, guest_file, open_shell, run_in_guest};
use crate::common::platform::PLATFORM;
use crate::common::tools::run_tool;
use crate::common::{StopOnDrop, example_path, file_names, to_pid};

const MIB: usize = 1 << 20;
/// Not a multiple of a sector.
const BASE_BYTES: usize = 2 * MIB + 100;
const OVERLAY: &str = "hyperkit.overlay0";

/// A directory with a base, and guards for the VMs `a`, `b` and `writer` in it.
struct Site {
    dir: PathBuf,
    base: PathBuf,
    content: Vec<u8>,
    _stops: [StopOnDrop; 3],
    _dir: tempfile::TempDir,
}

impl Site {
    /// Creates a base that begins with `base content`.
    fn new(format: &str) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        let mut bytes = b"base content".to_vec();
        bytes.resize(BASE_BYTES, 7);
        fs::write(dir.join("raw"), bytes).unwrap();
        let base = dir.join("base of: 100%.img");
        run_tool("qemu-img", &["convert", "-f", "raw", "-O", format, "raw", base.to_str().unwrap()], &dir);
        let _stops = ["a", "b", "writer"].map(|name| StopOnDrop(dir.join(name)));
        let content = fs::read(&base).unwrap();
        Self { dir, base, content, _stops, _dir: temporary }
    }

    fn state_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn overlay(&self, name: &str) -> PathBuf {
        self.state_dir(name).join(OVERLAY)
    }

    fn description(&self, name: &str) -> HyperKit {
        description_in(&self.state_dir(name)).disk(Disk::new(&self.base).overlay())
    }

    fn assert_base_unchanged(&self) {
        assert!(fs::read(&self.base).unwrap() == self.content, "the base has changed");
    }
}

/// The first 12 bytes of the disk, and those at 1 MiB.
const READ: &str = "head -c 12 /dev/vda; echo; dd if=/dev/vda bs=1M skip=1 count=1 2>/dev/null | head -c 12; echo";

/// Writes a word of 12 bytes to the start of the disk and to 1 MiB.
fn write(word: &str) -> String {
    format!(
        "for at in 0 1; do printf {word} | dd of=/dev/vda bs=1M seek=$at conv=notrunc,fsync 2>/dev/null; done; \
         echo 3 >/proc/sys/vm/drop_caches; {READ}"
    )
}

#[test]
fn two_vms_write_to_overlays_of_one_base_that_stays_unchanged() {
    for format in ["raw", "qcow2"] {
        let site = Site::new(format);
        let unread = "\u{7}".repeat(12);
        let vms = ["a", "b"].map(|name| site.description(name).start(QUIET_CMDLINE).unwrap());
        let consoles = [0, 1].map(|index| open_shell(&vms[index]));
        for (console, word) in consoles.iter().zip(["written-by-a", "written-by-b"]) {
            assert_eq!(run_in_guest(console, READ), format!("base content\n{unread}\n"));
            assert_eq!(run_in_guest(console, &write(word)), format!("{word}\n{word}\n"));
        }
        assert_eq!(run_in_guest(&consoles[0], READ), "written-by-a\nwritten-by-a\n");
        // Rounded up to a sector. After the end of the base, there are zeros.
        let size = run_in_guest(
            &consoles[0],
            "cat /sys/class/block/vda/size; tail -c 413 /dev/vda | tr '\\0' z | tail -c 414",
        );
        let sectors = BASE_BYTES.div_ceil(512);
        let zeros = if format == "raw" { sectors * 512 - BASE_BYTES } else { 512 - 100 };
        assert_eq!(size, format!("{sectors}\n\u{7}{}", "z".repeat(zeros)));
        site.assert_base_unchanged();
        // This program has started both VMs, so it deletes the overlays however they end.
        assert_eq!(vms[0].shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
        vms[1].kill().unwrap();
        for name in ["a", "b"] {
            assert!(!site.overlay(name).exists(), "{:?}", file_names(&site.state_dir(name)));
        }
        site.assert_base_unchanged();
    }
}

#[test]
fn overlay_is_deleted_when_the_guest_powers_off_by_itself() {
    let site = Site::new("raw");
    let vm = site.description("a").start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    assert!(site.overlay("a").exists());
    console.send_line("poweroff -f").unwrap();
    assert_eq!(vm.wait(), Exit::PowerOff);
    assert!(!site.overlay("a").exists());
}

/// Another program has started the VM, so nobody deletes the overlay before the next start.
#[test]
fn next_start_begins_with_the_base_again() {
    let site = Site::new("raw");
    let mut boot = Command::new(example_path("boot"));
    boot.args(["--background", "--hyperkit", PLATFORM.qemu, "--memory", "256", "--cmdline", QUIET_CMDLINE]);
    boot.arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    boot.arg("--state-dir").arg(site.state_dir("a")).arg("--disk").arg(&site.base);
    assert!(boot.args(["--disk-size", "4", "--overlay"]).output().unwrap().status.success());
    let found = HyperKit::from_state(site.state_dir("a")).unwrap();
    assert!(found.disks[0].overlay && found.disks[0].path.as_ref() == Some(&site.base));
    let vm = found.vm().unwrap().unwrap();
    let console = open_shell(&vm);
    assert_eq!(run_in_guest(&console, &write("written-once")), "written-once\nwritten-once\n");
    assert_eq!(run_in_guest(&console, "cat /sys/class/block/vda/size"), format!("{}\n", 4 * MIB / 512));
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    let _ = vm.wait();
    let overlay = site.overlay("a");
    run_tool("qemu-img", &["check", "-q", overlay.to_str().unwrap()], &site.dir);
    site.assert_base_unchanged();

    let vm = found.start(QUIET_CMDLINE).unwrap();
    let content = run_in_guest(&open_shell(&vm), "head -c 12 /dev/vda; echo");
    assert_eq!(content, "base content\n");
    vm.kill().unwrap();
    assert!(!overlay.exists());
    found.remove(Disks::Delete).unwrap();
    assert!(!site.state_dir("a").exists());
    site.assert_base_unchanged();
}

/// QEMU holds locks on the base, too. On other systems, it takes none.
#[cfg(target_os = "linux")]
#[test]
fn vm_that_would_write_to_a_base_in_use_is_refused() {
    use std::path::Path;

    use hyperkit::{Error, QcowOptions};

    use crate::common::wait_until;

    for format in ["raw", "qcow2"] {
        let site = Site::new(format);
        let vm = site.description("a").start(QUIET_CMDLINE).unwrap();
        let qemu_io = || {
            let mut qemu_io = Command::new("qemu-io");
            let output = qemu_io.args(["-f", format, "-c", "write 0 512"]).arg(&site.base).output().unwrap();
            (output.status.success(), String::from_utf8(output.stderr).unwrap())
        };
        let (is_written, stderr) = qemu_io();
        assert!(!is_written && stderr.contains("lock"), "{stderr}");
        let image = |path: &Path| match format {
            "raw" => Disk::raw(path),
            _ => Disk::qcow2(path, QcowOptions::default()),
        };
        let writer = description_in(&site.state_dir("writer")).disk(image(&site.base));
        let is_in_use = |error: Error| matches!(error, Error::DiskInUse { path } if path == site.base);
        assert!(is_in_use(writer.start(QUIET_CMDLINE).unwrap_err()));
        assert!(is_in_use(image(&site.base).size_mib(64).grow().unwrap_err()));
        assert!(!site.state_dir("writer").exists());
        vm.kill().unwrap();
        site.assert_base_unchanged();

        // The other way round.
        let vm = writer.start(QUIET_CMDLINE).unwrap();
        assert!(is_in_use(site.description("b").start(QUIET_CMDLINE).unwrap_err()));
        assert!(!site.state_dir("b").exists());
        vm.kill().unwrap();
        let reader = description_in(&site.state_dir("writer")).disk(image(&site.base).read_only());
        let vms = [reader, site.description("b")].map(|description| description.start(QUIET_CMDLINE).unwrap());
        vms.iter().for_each(|vm| vm.kill().unwrap());
        wait_until("the base can be written to", || qemu_io().0);
    }
}
