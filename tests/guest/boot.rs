//! A booted guest reports the hardware of the description, on its console.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use hyperkit::{Console, Disk, Disks, Error, Exit, HyperKit, Network, NicKind};

use crate::common::guest::{self, BOOT_TIMEOUT, REPORT_CMDLINE, Report, description, guest_file};
use crate::common::{StopOnDrop, example_path, file_names};

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
    let description = description()
        .state_dir(&state)
        .cpus(2)
        .memory_mib(768)
        .uuid(UUID)
        .network(Network::Nat)
        .disk(Disk::in_state_dir(64))
        .disk(Disk::raw(dir.join("second.img")).size_mib(8))
        .iso(&iso)
        .share_dir(&share, "share")
        .console(Console::Pty);
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
    assert_eq!(single("uuid"), UUID);
    // PCI address, vendor, device, subsystem device (for virtio: the kind of device), class.
    let pci = [
        "0000:00:00.0 0x8086 0x29c0 0x1100 0x060000", // host bridge
        "0000:00:01.0 0x1af4 0x1000 0x0001 0x020000", // the network card of `network`
        "0000:00:02.0 0x1af4 0x1001 0x0002 0x010000", // disk
        "0000:00:03.0 0x1af4 0x1001 0x0002 0x010000", // disk
        "0000:00:04.0 0x8086 0x2922 0x1100 0x010601", // AHCI with the ISO
        "0000:00:05.0 0x1af4 0x1005 0x0004 0x00ff00", // random number generator
        "0000:00:06.0 0x1af4 0x1009 0x0009 0x000200", // 9p
        "0000:00:1f.0 0x8086 0x2918 0x1100 0x060100", // LPC bridge
    ];
    assert_eq!(report["pci"], pci);
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
    boot.args(["--no-state", "--hyperkit", "qemu-system-x86_64", "--cmdline", REPORT_CMDLINE]);
    boot.arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    let output = boot.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the VM powered off"));
    let report = Report::parse(&output.stdout);
    assert_eq!(report["vcpus"], ["1"]);
    assert_eq!(report["memory-mib"], ["1024"]);
    assert_eq!(report["pci"].len(), 3, "the number of devices: two bridges and the random number generator");
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
    boot.args(["--background", "--disk-size", "4", "--hyperkit", "qemu-system-x86_64", "--state-dir"]).arg(&state);
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
    match description.start("console=ttyS0") {
        Err(Error::HypervisorFailed { exit: Exit::Failed(1), state_dir, log_tail }) => {
            assert_eq!(state_dir, Some(state.clone()));
            assert!(log_tail.hypervisor.contains("no-such-option"), "{log_tail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!HyperKit::from_state(&state).unwrap().is_running().unwrap());
}
