//! `define`: writes a state directory without starting a VM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyperkit::{ConfigError, Disk, Disks, Error, HyperKit, Network};

use crate::common::child_process::in_child_process;
use crate::common::{KillOnDrop, TestDir, hypervisors_in, standin_path, start_vm};

#[test]
fn define_writes_the_directory_without_starting_anything() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().cpus(2).disk(Disk::in_state_dir(1)).label("owner", "me");
    description.define().unwrap();
    assert_eq!(test_dir.state_files(), ["hyperkit.json"]);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&test_dir.path("vm")), mode(&test_dir.path("vm/hyperkit.json"))), (0o700, 0o600));
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0]);

    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(found, description);
    assert_eq!((found.recorded_pid(), found.recorded_arguments().len()), (None, 0));
    assert_eq!(found.recorded_kernel_cmdline(), None);
    assert!(!found.is_running().unwrap() && found.vm().unwrap().is_none());
    found.stop().unwrap();

    let vm = found.start("guest").unwrap();
    assert_eq!((vm.description().cpus, &*vm.description().labels["owner"]), (2, "me"));
    vm.kill().unwrap();
    found.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn defined_directory_can_be_removed_and_defined_again() {
    let test_dir = TestDir::new();
    let description = test_dir.description();
    description.define().unwrap();
    description.clone().cpus(3).define().unwrap();
    assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap().cpus, 3);
    test_dir.write("vm/mine", b"not the crate's");
    description.remove(Disks::Delete).unwrap();
    assert_eq!(test_dir.state_files(), ["mine"]);
    fs::write(test_dir.path("vm/hyperkit.json"), "damaged").unwrap();
    description.define().unwrap();
    assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap(), description);
}

#[test]
fn define_refuses_the_directory_of_a_running_vm() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let _kill = KillOnDrop(&vm);
    let json = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    let refused = |description: &HyperKit| match description.clone().cpus(7).define() {
        Err(Error::AlreadyRunning { pid, state_dir }) => (pid, state_dir) == (vm.pid(), test_dir.path("vm")),
        other => panic!("{other:?}"),
    };
    assert!(refused(&description));
    assert_eq!(fs::read(test_dir.path("vm/hyperkit.json")).unwrap(), json);
    // `define` finds the running VM without the record, too.
    fs::remove_file(test_dir.path("vm/hyperkit.json")).unwrap();
    assert!(refused(&description) && !test_dir.path("vm/hyperkit.json").exists());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    assert!(refused(&description) && !test_dir.path("vm/hyperkit.json").exists());
    vm.kill().unwrap();
    description.define().unwrap();
}

#[test]
fn define_keeps_the_record_of_created_disks() {
    let test_dir = TestDir::new();
    let description = test_dir.description().disk(Disk::in_state_dir(1));
    let (_, vm) = (test_dir.stop_on_drop(), description.start("guest").unwrap());
    vm.kill().unwrap();
    test_dir.write("vm/disk1.img", b"not the crate's");
    let content = vec![b'x'; 1 << 20];
    test_dir.write("vm/disk.img", &content);
    description.clone().cpus(2).define().unwrap();
    assert_eq!(fs::read(test_dir.path("vm/disk.img")).unwrap(), content);
    description.clone().disk(Disk::raw(test_dir.path("vm/disk1.img"))).define().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert_eq!(test_dir.state_files(), ["disk1.img"]);
}

#[test]
fn invalid_description_is_refused_before_anything_is_created() {
    let test_dir = TestDir::new();
    let error = test_dir.description().cpus(0).memory_mib(0).define().unwrap_err();
    assert_eq!(error.violations()[0], ConfigError::InvalidCpus { value: 0 });
    assert_eq!(error.violations().len(), 2);
    let mut description = test_dir.description();
    description.state_dir = None;
    let error = description.define().unwrap_err();
    assert_eq!(error.violations(), [ConfigError::StateDirRequired { field: "define" }]);
    assert!(!test_dir.path("vm").exists());
    // `define` accepts files that do not exist yet.
    test_dir.description().kernel(test_dir.path("later")).disk(test_dir.path("later.img")).define().unwrap();
}

/// So a program in another working directory finds the same files.
#[test]
fn relative_paths_are_made_absolute() {
    in_child_process("defining::relative_paths_are_made_absolute", || {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        std::env::set_current_dir(test_dir.dir()).unwrap();
        std::os::unix::fs::symlink(standin_path(), "hyperkit-link").unwrap();
        let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("./initrd.img");
        description
            .clone()
            .hyperkit("./hyperkit-link")
            .disk("disk.img")
            .network(Network::VpnKit("s".into()))
            .define()
            .unwrap();
        let found = HyperKit::from_state("vm").unwrap();
        assert_eq!(found.state_dir, Some(test_dir.path("vm")));
        assert_eq!(found.kernel, Some(test_dir.path("vmlinuz")));
        assert_eq!(found.initrd, Some(test_dir.path("initrd.img")));
        assert_eq!(found.disks[0].path, Some(test_dir.path("disk.img")));
        assert_eq!(found.hyperkit, Some(test_dir.path("hyperkit-link")));
        assert_eq!(found.network, Network::VpnKit(test_dir.path("s")));
        // A name without a slash stays: `start` searches it on `PATH`.
        description.clone().hyperkit("hyperkit-link").define().unwrap();
        assert_eq!(HyperKit::from_state("vm").unwrap().hyperkit, Some("hyperkit-link".into()));

        description.hyperkit("./hyperkit-link").define().unwrap();
        std::env::set_current_dir("/").unwrap();
        let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().start("guest").unwrap();
        vm.kill().unwrap();
    });
}
