//! One description for both architectures, and VMs of both together.

use std::path::Path;

use hyperkit::{Disk, Engine, HyperKit, Network, PortForward, Vm};

use crate::common::StopOnDrop;
use crate::common::guest::{BOOT_TIMEOUT, create_share};
use crate::common::platform::{OTHER_PLATFORM, PLATFORM, Platform};

/// Starts a VM that is described as for x86-64. Only the paths of kernel and initrd differ. The command line is the one of the examples;
/// a kernel ignores a parameter that is not for its architecture.
fn start(dir: &Path, platform: &Platform, change: impl FnOnce(HyperKit) -> HyperKit) -> Vm {
    let description = HyperKit::new()
        .state_dir(dir.join(platform.qemu))
        .kernel(platform.guest_file("vmlinuz"))
        .initrd(platform.guest_file("initrd.img"))
        .memory_mib(256)
        .agent(true);
    let description = change(description);
    let console = description.engine().unwrap().kernel_console();
    description.start(&format!("console={console} panic=1 no_timer_check quiet")).unwrap()
}

/// Returns what a script in the guest prints.
fn answer(vm: &Vm, script: &str) -> String {
    let command = vm.command("sh").args(["-ec", script]).agent_timeout(BOOT_TIMEOUT).timeout(BOOT_TIMEOUT);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn description_for_x86_64_boots_on_arm64_with_two_paths_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let share = create_share(&dir, "share", "from the share\n");
    let outputs = [OTHER_PLATFORM, PLATFORM].map(|platform| {
        let _stop = StopOnDrop(dir.join(platform.qemu));
        let vm = start(&dir, &platform, |description| {
            let description = description.cpus(2).network(Network::Nat).port_forward(PortForward::tcp(0, 7));
            description.disk(Disk::in_state_dir(8)).share_dir(&share, "tag")
        });
        assert_eq!(vm.description().engine().unwrap().architecture(), platform.architecture);
        let script = "grep -c ^processor /proc/cpuinfo; ls /sys/bus/pci/devices | grep -v :1f
            until ip -4 addr show eth0 | grep -q inet; do sleep 1; done; ip -4 -o addr show eth0 | awk '{print $4}'
            mount -t 9p -o trans=virtio tag /mnt; cat /mnt/hello.txt; uname -m >/mnt/machine
            echo written | dd of=/dev/vda conv=fsync 2>/dev/null; head -c 8 /dev/vda; cat /sys/block/vda/size";
        let output = answer(&vm, script);
        let mut machine = std::fs::read_to_string(share.join("machine")).unwrap();
        machine.retain(|letter| letter != '\n');
        assert!(platform.qemu.ends_with(&machine), "{machine}");
        assert!(vm.host_port(7).unwrap().is_some());
        vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap();
        vm.kill().unwrap();
        output
    });
    assert_eq!(outputs[0], outputs[1]);
    let devices = (0..=5).map(|slot| format!("0000:00:{slot:02x}.0\n")).collect::<Vec<_>>().concat();
    assert_eq!(outputs[0], format!("2\n{devices}10.0.2.15/24\nfrom the share\nwritten\n16384\n"));
}

#[test]
fn guests_of_both_architectures_share_an_internal_network() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let _stops = [PLATFORM, OTHER_PLATFORM].map(|platform| StopOnDrop(dir.join(platform.qemu)));
    let vms = [(PLATFORM, 1), (OTHER_PLATFORM, 2)]
        .map(|(platform, number)| start(&dir, &platform, |it| it.internal_network(dir.join("net"), number)));
    assert_eq!(vms.each_ref().map(|vm| vm.description().engine().unwrap()), [Engine::QemuArm64, Engine::Qemu]);
    for (vm, number) in vms.iter().zip(1..) {
        answer(vm, &format!("ip addr add 10.9.8.{number}/24 dev eth0"));
    }
    for (vm, other) in vms.iter().zip([2, 1]) {
        let printed = answer(vm, &format!("ping -c 3 -W 10 10.9.8.{other}"));
        assert_eq!(printed.matches(" bytes from ").count(), 3, "{printed}");
    }
}
