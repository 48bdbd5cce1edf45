//! The actions whose callers get faults, and the files and VMs that they find.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hyperkit::{Disk, Disks, HyperKit};

use crate::common::guest::setup_file;
use crate::common::{TestDir, bz_image, example_path, standin_path};
use crate::tracer::Status;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// In a state directory that does not exist.
    Start,
    /// In the state directory of a VM that was stopped, and whose disk has data.
    StartAgain,
    Stop,
    Shutdown,
    /// Of a VM that was stopped.
    Remove,
    /// Which is refused.
    RemoveRunning,
}

impl Action {
    pub fn status_without_fault(self) -> Status {
        if self == Self::RemoveRunning { Status::Failure } else { Status::Success }
    }

    pub fn has_vm_before(self) -> bool {
        matches!(self, Self::Stop | Self::Shutdown | Self::RemoveRunning)
    }
}

/// The engine of the VM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Standin,
    /// With a qcow2 image, which `qemu-img` creates, and an overlay.
    Qemu,
    QemuWithVsock,
}

/// QEMU's option with which the guest does not run, so that it needs no CPU.
const PAUSED: &str = "-S";
/// How long `shutdown` waits before it kills QEMU, in seconds. The kernel file is not a kernel, so the guest never powers off.
const GRACE_QEMU: &str = "1";
/// Where `vhost-device-vsock` is.
pub const TOOLS: &str = "target/tools/bin";

/// What the guest has written to the disk in the state directory, and what the user's files contain.
pub const DATA: &[u8] = b"precious data";
pub const DISK_MIB: u64 = 1;
/// The user's files beside the state directory. The first is the VM's second disk. On QEMU, the second is the base of an overlay.
const USER_FILES: [&str; 2] = ["user.img", "mine.txt"];

/// A directory with the user's files and the state directory `vm`.
pub struct Site {
    pub action: Action,
    kind: Kind,
    test_dir: TestDir,
    scratch: TestDir,
    names: Vec<String>,
}

impl Site {
    pub fn new(action: Action, kind: Kind) -> Self {
        let test_dir = TestDir::new();
        for name in USER_FILES {
            test_dir.write(name, DATA);
            fs::File::options().write(true).open(test_dir.path(name)).unwrap().set_len(DISK_MIB << 20).unwrap();
        }
        test_dir.write("vmlinuz", &bz_image(2047));
        let names = crate::common::file_names(&test_dir.dir());
        Self { action, kind, test_dir, scratch: TestDir::new(), names }
    }

    pub fn dir(&self) -> PathBuf {
        self.test_dir.dir()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.test_dir.path("vm")
    }

    /// Where logs are.
    pub fn scratch(&self) -> PathBuf {
        self.scratch.dir()
    }

    fn is_qemu(&self) -> bool {
        self.kind != Kind::Standin
    }

    pub fn has_vsock(&self) -> bool {
        self.kind == Kind::QemuWithVsock
    }

    fn hypervisor(&self) -> PathBuf {
        if self.is_qemu() { "qemu-system-x86_64".into() } else { standin_path() }
    }

    /// The disk that the crate creates in the state directory.
    pub fn disk(&self) -> PathBuf {
        self.state_dir().join(if self.is_qemu() { "disk.qcow2" } else { "disk.img" })
    }

    pub fn description(&self) -> HyperKit {
        let disk =
            if self.is_qemu() { Disk::new(self.disk()).size_mib(DISK_MIB) } else { Disk::in_state_dir(DISK_MIB) };
        let description = self.test_dir.description().hyperkit(self.hypervisor()).memory_mib(64);
        let mut description = description.disk(disk).disk(Disk::raw(self.test_dir.path(USER_FILES[0])));
        if self.is_qemu() {
            description = description.extra_argument(PAUSED);
            description = description.disk(Disk::new(self.test_dir.path(USER_FILES[1])).overlay());
        }
        if self.has_vsock() {
            description = description.vsock(true).vhost_device_vsock(setup_file(TOOLS, "vhost-device-vsock"));
        }
        description
    }

    /// The command that does the action.
    pub fn command(&self) -> Vec<OsString> {
        let ctl = |words: &[&str]| {
            let program = [example_path("ctl").into_os_string()].into_iter();
            program.chain(words.iter().map(OsString::from)).chain([self.state_dir().into()]).collect()
        };
        match self.action {
            Action::Start => {
                let mut words = vec![example_path("boot").into_os_string(), "--background".into()];
                let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
                add("--hyperkit", self.hypervisor().into());
                add("--state-dir", self.state_dir().into());
                add("--kernel", self.test_dir.path("vmlinuz").into());
                add("--initrd", self.test_dir.path("initrd.img").into());
                add("--memory", "64".into());
                if self.is_qemu() {
                    add("--disk", self.disk().into());
                }
                add("--disk-size", DISK_MIB.to_string().into());
                add("--disk", self.test_dir.path(USER_FILES[0]).into());
                add("--cmdline", "guest".into());
                if self.is_qemu() {
                    add("--extra", PAUSED.into());
                    add("--disk", self.test_dir.path(USER_FILES[1]).into());
                    words.push("--overlay".into());
                }
                if self.has_vsock() {
                    words.push("--vsock".into());
                }
                words
            }
            Action::StartAgain => ctl(&["start"]),
            Action::Stop => ctl(&["stop"]),
            Action::Shutdown => ctl(&["shutdown", "--grace", if self.is_qemu() { GRACE_QEMU } else { "3" }]),
            Action::Remove | Action::RemoveRunning => ctl(&["rm", "--yes"]),
        }
    }

    /// Puts everything into the state in which the action begins.
    pub fn prepare(&self) {
        let old = HyperKit::new().state_dir(self.state_dir());
        old.stop().and_then(|()| old.remove(Disks::Delete)).unwrap();
        if self.action == Action::Start {
            return;
        }
        let vm = self.description().start("console=ttyS0 panic=1 guest").unwrap();
        fs::File::options().write(true).open(self.disk()).unwrap().write_at(DATA, self.data_offset()).unwrap();
        if !self.action.has_vm_before() {
            vm.kill().unwrap();
        }
    }

    /// Where the data is in the disk's image. A qcow2 image begins with a header; the data comes after its end.
    fn data_offset(&self) -> u64 {
        if self.is_qemu() { DISK_MIB << 20 } else { 0 }
    }

    pub fn has_data(&self) -> bool {
        let content = fs::read(self.disk()).unwrap_or_default();
        content.get(self.data_offset() as usize..).is_some_and(|content| content.starts_with(DATA))
    }

    /// Whether nothing was added or changed beside the state directory.
    pub fn check_user_files(&self) -> Result<(), String> {
        let names: Vec<_> = crate::common::file_names(&self.dir()).into_iter().filter(|name| name != "vm").collect();
        if names != self.names {
            return Err(format!("beside the state directory there are {names:?}"));
        }
        for name in USER_FILES {
            let content = fs::read(self.test_dir.path(name)).unwrap();
            if !content.starts_with(DATA) || content.len() as u64 != DISK_MIB << 20 {
                return Err(format!("{name} has changed"));
            }
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = HyperKit::new().state_dir(self.state_dir()).stop();
    }
}
