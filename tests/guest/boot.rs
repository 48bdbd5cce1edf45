//! A booted guest reports the hardware of the description, on its console.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use hyperkit::{ConfigError, Console, Disk, Disks, Error, Exit, HyperKit, Network, NicKind};

use crate::common::guest::{
    self, BOOT_TIMEOUT, Guest, QUIET_CMDLINE, REPORT_CMDLINE, Report, description, guest_file, open_shell, run_in_guest,
};
use crate::common::platform::PLATFORM;
use crate::common::rejection::only_violation;
use crate::common::{StopOnDrop, example_path, file_names};
use crate::devices::{AHCI, BLOCK, NETWORK, RANDOM, SHARE, bus};

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn guest_reports_the_described_hardware() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let share = guest::create_share(&dir, "share", "from the share");
    let iso = guest::create_iso(&dir, "hello", "from the image");

    let state = dir.join("vm");
    let _stop = StopOnDrop(state.clone());
    let mut description = description()
        .state_dir(&state)
        .cpus(2)
        .memory_mib(768)
        .network(Network::Nat)
        .disk(Disk::in_state_dir(64))
        .disk(Disk::raw(dir.join("second.img")).size_mib(8))
        .iso(&iso)
        .share_dir(&share, "share")
        .console(Console::Pty);
    description.uuid = PLATFORM.has_uuid_without_firmware.then(|| UUID.to_owned());
    let marker = format!("marker-{}", std::process::id());
    let cmdline = format!("{REPORT_CMDLINE} hyperkit.marker={marker}");
    let began = seconds();
    let vm = description.start(&cmdline).unwrap();
    let addresses = vm.addresses().unwrap();
    let pty = fs::read_to_string(state.join("tty")).unwrap();
    assert!(fs::metadata(&pty).unwrap().file_type().is_char_device(), "{pty}");
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::PowerOff));
    assert!(!description.is_running().unwrap());
    assert!(!state.join("hyperkit.pid").exists());

    let report = Report::parse(&fs::read(state.join("console-ring")).unwrap());
    let single = |key: &str| report.single(key);
    assert_eq!(single("cmdline"), cmdline);
    assert_eq!(single("vcpus"), "2");
    assert_eq!(single("memory-mib"), "768");
    assert_eq!(single("uuid"), description.uuid.as_deref().unwrap_or_default());
    assert_eq!(report["pci"], bus(&[NETWORK, BLOCK, BLOCK, AHCI, RANDOM, SHARE], 1));
    let disk = "ro=0 sectors=512/512 cache=write-back discard=1 begin=";
    let (first, second) = (64 * 2048, 8 * 2048);
    assert_eq!(
        report["disk"],
        [format!("0000:00:02.0 vda {first} {disk}"), format!("0000:00:03.0 vdb {second} {disk}")]
    );
    assert_eq!(single("marker"), marker);
    let mut written = vec![0; marker.len()];
    fs::File::open(state.join("disk.img")).unwrap().read_exact_at(&mut written, 1024 * 1024).unwrap();
    assert_eq!(written, marker.as_bytes());
    assert_eq!(single("iso"), "0000:00:04.0 sr0 hello.txt from the image");
    assert_eq!(single("9p"), "0000:00:06.0 share hello.txt from the share");
    let (source, bytes) = single("random").split_once(' ').unwrap();
    assert_eq!(source, "virtio_rng.0");
    assert!(bytes.len() == 32 && bytes.bytes().any(|digit| digit != b'0'), "{bytes}");
    let (_, address) = single("net").rsplit_once(' ').unwrap();
    assert!(single("net").starts_with("0000:00:01.0 "), "{}", single("net"));
    assert_eq!(addresses, [(NicKind::Network, address.trim_end_matches("/24").parse().unwrap())]);
    assert!(matches!(vm.addresses(), Err(Error::NotRunning { .. })));
    let clock: u64 = single("clock").parse().unwrap();
    assert!((began - 60..seconds() + 60).contains(&clock), "the guest's clock is {clock}");

    description.remove(Disks::Keep).unwrap();
    assert_eq!(file_names(&state), ["disk.img"]);
}

#[test]
fn run_prints_the_console_on_stdout() {
    let mut boot = Command::new(example_path("boot"));
    boot.args(["--no-state", "--hyperkit", PLATFORM.qemu, "--cmdline", REPORT_CMDLINE]);
    boot.arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    let output = boot.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the VM powered off"));
    let report = Report::parse(&output.stdout);
    assert_eq!(report["vcpus"], ["1"]);
    assert_eq!(report["memory-mib"], ["1024"]);
    assert_eq!(report["pci"], bus(&[RANDOM], 1));
}

#[test]
fn another_process_attaches_and_stops_the_vm() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let ctl = |command: &str| run(Command::new(example_path("ctl")).arg(command).arg(&state));
    let mut boot = Command::new(example_path("boot"));
    boot.args(["--background", "--disk-size", "4", "--hyperkit", PLATFORM.qemu, "--state-dir"]).arg(&state);
    boot.arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    let output = run(&mut boot);
    let description = HyperKit::from_state(&state).unwrap();
    let vm = description.vm().unwrap().expect("the VM is running");
    assert!(output.contains(&format!("process {}", vm.pid())), "{output}");
    assert!(output.contains(&fs::read_to_string(state.join("tty")).unwrap()), "{output}");
    assert!(matches!(description.remove(Disks::Delete), Err(Error::StillRunning { .. })));
    ctl("stop");
    assert_eq!(vm.wait(), Exit::Unknown);
    assert!(!description.is_running().unwrap());
    ctl("rm");
    assert!(!state.exists());
}

#[test]
fn error_contains_qemu_output_when_start_fails() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    let description = description().state_dir(&state).console(Console::Pty).extra_argument("-no-such-option");
    match description.start(QUIET_CMDLINE) {
        Err(Error::HypervisorFailed { exit: Exit::Failed(1), state_dir, log_tail }) => {
            assert_eq!(state_dir, Some(state.clone()));
            assert!(log_tail.hypervisor.contains("no-such-option"), "{log_tail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!HyperKit::from_state(&state).unwrap().is_running().unwrap());
}

#[test]
fn longest_command_line_reaches_linux_as_a_whole() {
    let guest = Guest::new();
    let padding = "x".repeat(2047 - QUIET_CMDLINE.len() - " ".len());
    let cmdline = format!("{QUIET_CMDLINE} {padding}");
    let vm = guest.description.start(&cmdline).unwrap();
    // With the newline.
    assert_eq!(run_in_guest(&open_shell(&vm), "wc -c </proc/cmdline"), "2048\n");
    vm.kill().unwrap();
    let too_long = only_violation(guest.description.start(&format!("{cmdline}x")));
    assert_eq!(too_long, ConfigError::CommandLineTooLong { length: 2048, limit: 2047 });
}
