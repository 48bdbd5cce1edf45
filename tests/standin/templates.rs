//! One description starts several VMs, each in its own state directory. The VMs share nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hyperkit::{Console, Disk, DiskFormat, Disks, Error, HyperKit, QcowOptions, Vm};

use crate::common::child_process::in_child_process;
use crate::common::{StopOnDrop, TEST_TIMEOUT, TestDir, file_names, hypervisors_in, qcow2_header};

/// Returns the arguments of the hypervisor that contain the path of a directory.
fn arguments_in(vm: &Vm, dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    vm.description().recorded_arguments().iter().filter(|argument| argument.contains(dir)).cloned().collect()
}

#[test]
fn ten_vms_of_one_template_share_nothing() {
    let test_dir = TestDir::new();
    let mut template = test_dir.description().disk(Disk::in_state_dir(1)).disk(Disk::in_state_dir(2)).vsock(true);
    template.state_dir = None;
    let before = template.clone();
    let dirs: Vec<PathBuf> = (0..10).map(|index| test_dir.path(&format!("vm{index}"))).collect();
    let _stops: Vec<_> = dirs.iter().cloned().map(StopOnDrop).collect();
    let mut vms: Vec<Vm> = Vec::new();
    for dir in &dirs {
        vms.push(template.clone().state_dir(dir).start("guest").unwrap());
    }
    assert_eq!(template, before);
    assert_eq!(vms.iter().map(Vm::pid).collect::<BTreeSet<_>>().len(), 10);
    for (vm, dir) in vms.iter().zip(&dirs) {
        assert_eq!(vm.state_dir(), Some(&**dir));
        assert_eq!(hypervisors_in(dir), [vm.pid()]);
        let disks: Vec<_> = vm.description().disks.iter().map(|disk| disk.path.clone().unwrap()).collect();
        assert_eq!(disks, [dir.join("disk.img"), dir.join("disk1.img")]);
        assert_eq!(disks.lengths(), [1 << 20, 2 << 20]);
        let others = dirs.iter().filter(|other| *other != dir);
        others.for_each(|other| assert_eq!(arguments_in(vm, &other.join("")), [""; 0]));
        let console = vm.console().unwrap();
        console.expect("Command line", TEST_TIMEOUT).unwrap(); // hyperkit discards earlier input
        console.send_line(dir.to_str().unwrap()).unwrap();
        console.expect(dir.to_str().unwrap(), TEST_TIMEOUT).unwrap();
    }
    // Killing and removing one VM does not affect the others.
    for (index, (vm, dir)) in vms.iter().zip(&dirs).enumerate() {
        vm.kill().unwrap();
        vm.remove(Disks::Delete).unwrap();
        assert!(!dir.exists());
        for (other, dir) in vms.iter().zip(&dirs).skip(index + 1) {
            assert_eq!((other.try_wait(), dir.join("disk.img").exists()), (None, true));
        }
    }
    assert_eq!(file_names(&test_dir.dir()), ["initrd.img", "vmlinuz"]);
}

trait Lengths {
    fn lengths(&self) -> Vec<u64>;
}

impl Lengths for Vec<PathBuf> {
    fn lengths(&self) -> Vec<u64> {
        self.iter().map(|path| path.metadata().unwrap().len()).collect()
    }
}

/// Returns a description from which a second VM can be started, given a running VM and the description that started it.
type Copy = fn(&Vm, &HyperKit) -> HyperKit;

fn copies() -> [(&'static str, Copy); 4] {
    [
        ("the description that was started", |_, description| description.clone()),
        ("from_state", |vm, _| HyperKit::from_state(vm.state_dir().unwrap()).unwrap()),
        ("Vm::description", |vm, _| vm.description().clone()),
        ("list", |vm, _| {
            let found = HyperKit::list(vm.state_dir().unwrap().parent().unwrap()).unwrap();
            found.into_iter().find(|found| Some(&*found.dir) == vm.state_dir()).unwrap().description.unwrap()
        }),
    ]
}

#[test]
fn second_vm_of_a_description_does_not_touch_the_disk_of_the_first() {
    for (name, copy) in copies() {
        for deleted_first in ["a", "b"] {
            let test_dir = TestDir::new();
            let (a, b) = (test_dir.path("a"), test_dir.path("b"));
            let _stops = [StopOnDrop(a.clone()), StopOnDrop(b.clone())];
            let description = test_dir.description().state_dir(&a).disk(Disk::in_state_dir(1));
            let first = description.start("guest").unwrap();
            fs::write(a.join("disk.img"), vec![b'a'; 1 << 20]).unwrap();

            let second = copy(&first, &description).state_dir(&b);
            // The copy names another state directory, so its calls do not affect the first VM.
            assert!(!second.is_running().unwrap() && second.vm().unwrap().is_none(), "{name}");
            second.stop().unwrap();
            second.remove(Disks::Delete).unwrap();
            assert!(first.try_wait().is_none() && a.join("disk.img").exists(), "{name}");

            let second = second.start("guest").unwrap();
            assert_ne!(first.pid(), second.pid());
            assert_eq!(second.description().disks[0].path, Some(b.join("disk.img")), "{name}");
            assert_eq!(fs::read(b.join("disk.img")).unwrap(), vec![0; 1 << 20], "{name}: the disk is not new");
            assert_eq!(arguments_in(&second, &a), [""; 0], "{name}");

            let (deleted, kept) = if deleted_first == "a" { (&first, &second) } else { (&second, &first) };
            deleted.kill().unwrap();
            HyperKit::from_state(deleted.state_dir().unwrap()).unwrap().remove(Disks::Delete).unwrap();
            assert!(!deleted.state_dir().unwrap().exists());
            assert!(kept.state_dir().unwrap().join("disk.img").exists() && kept.try_wait().is_none(), "{name}");
            kept.kill().unwrap();
            kept.remove(Disks::Delete).unwrap();
            assert!(!kept.state_dir().unwrap().exists());
        }
    }
}

#[test]
fn restart_in_the_same_directory_uses_the_same_disk() {
    for (name, copy) in copies() {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let description = test_dir.description().disk(Disk::in_state_dir(1));
        let vm = description.start("guest").unwrap();
        let copy = copy(&vm, &description);
        vm.kill().unwrap();
        let content = vec![b'x'; 1 << 20];
        fs::write(test_dir.path("vm/disk.img"), &content).unwrap();
        let again = copy.start("guest").unwrap();
        assert_eq!(again.description().disks[0].path, Some(test_dir.path("vm/disk.img")), "{name}");
        assert_eq!(fs::read(test_dir.path("vm/disk.img")).unwrap(), content, "{name}");
        again.kill().unwrap();
        copy.remove(Disks::Delete).unwrap();
        assert!(!test_dir.path("vm").exists(), "{name}: the created disk was kept");
    }
}

/// The format of the disk is not set, and the image `disk.img` in the state directory turns out to be qcow2.
#[test]
fn probed_qcow2_image_with_the_default_name_is_not_shared() {
    let test_dir = TestDir::new();
    let (a, b) = (test_dir.path("a"), test_dir.path("b"));
    let _stops = [StopOnDrop(a.clone()), StopOnDrop(b.clone())];
    fs::create_dir(&a).unwrap();
    fs::write(a.join("disk.img"), qcow2_header()).unwrap();
    let mut disk = Disk::in_state_dir(1);
    disk.format = None;
    let first = test_dir.description().state_dir(&a).disk(disk).start("guest").unwrap();
    assert_eq!(first.description().disks[0].format, Some(DiskFormat::Qcow2(QcowOptions::default())));
    let found = HyperKit::from_state(&a).unwrap();
    assert_eq!(found.disks[0].path, Some(a.join("disk.img")));
    let second = found.clone().state_dir(&b).start("guest").unwrap();
    assert_eq!(second.description().disks[0].path, Some(b.join("disk.img")));
    first.kill().unwrap();
    let again = found.start("guest").unwrap();
    assert_eq!(again.description().disks[0].path, Some(a.join("disk.img")));
    assert_eq!(again.description().disks[0].format, first.description().disks[0].format);
    again.kill().unwrap();
    second.kill().unwrap();
}

/// The description names an image outside of the state directory. Both VMs use it, so only one can run at a time.
#[test]
fn disk_outside_of_the_state_directory_keeps_its_path() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let image = test_dir.path("shared.img");
    let description = test_dir.description().disk(Disk::raw(&image).size_mib(1));
    let vm = description.start("guest").unwrap();
    let second = HyperKit::from_state(test_dir.path("vm")).unwrap().state_dir(test_dir.path("b"));
    assert_eq!(second.disks[0].path.as_ref(), Some(&image));
    assert!(matches!(second.start("guest"), Err(Error::DiskInUse { path }) if path == image));
    assert!(!test_dir.path("b").exists());
    vm.kill().unwrap();
    vm.remove(Disks::Delete).unwrap();
    assert!(image.exists());
}

#[test]
fn no_call_changes_the_description() {
    in_child_process("templates::no_call_changes_the_description", || {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        // A start resolves all of this: relative paths, and fields that are not set.
        std::env::set_current_dir(test_dir.dir()).unwrap();
        let mut description =
            test_dir.description().kernel("vmlinuz").disk(Disk::in_state_dir(1)).label("key", "value");
        description.state_dir = Some("vm".into());
        let before = description.clone();
        let check = |call: &str, outcome: Result<(), Error>| {
            outcome.unwrap_or_else(|error| panic!("{call}: {error:#}"));
            assert_eq!(description, before, "after {call}");
            assert_eq!(description.recorded_pid(), None, "after {call}");
        };
        check("define", description.define());
        check("check", description.check());
        check("resolve", description.resolve().map(drop));
        check("engine", description.engine().map(drop));
        check("arguments", description.clone().state_dir("/vm").console(Console::Pty).arguments("guest").map(drop));
        check("is_running", description.is_running().map(drop));
        check("run", description.run("guest.exit=0").map(drop));
        check("run_restarting_on_reset", description.run_restarting_on_reset("guest.exit=0").map(drop));
        check("spawn", description.spawn("guest").map(drop));
        check("spawn_with", description.spawn_with("guest", |_| ()).map(drop));
        check("start_scoped", description.start_scoped("guest").map(drop));
        check("start", description.start("guest").map(drop));
        check("start_or_attach", description.start_or_attach("guest").map(drop));
        check("vm", description.vm().map(drop));
        check("console_log", description.clone().console(Console::Pty).console_log().map(drop));
        check("pty_paths", description.clone().console(Console::Pty).pty_paths().map(drop));
        let vm = description.vm().unwrap().unwrap();
        let (started, pid) = (vm.description().clone(), vm.pid());
        check("stop", description.stop());
        check("remove", description.remove(Disks::Keep));
        assert_eq!(vm.description(), &started, "the description of the VM has changed");
        assert_eq!((started.recorded_pid(), started.kernel), (Some(pid), Some(test_dir.path("vmlinuz"))));
        assert_eq!(started.labels, before.labels);
        check("remove", description.remove(Disks::Delete));
    });
}

/// A description carries the record of an earlier start. The record does not count if the description names another state
/// directory.
#[test]
fn recorded_process_of_another_state_directory_is_ignored() {
    let test_dir = TestDir::new();
    let (a, b) = (test_dir.path("a"), test_dir.path("b"));
    let _stops = [StopOnDrop(a.clone()), StopOnDrop(b.clone())];
    let first = test_dir.description().state_dir(&a).start("guest").unwrap();
    let mut copy = HyperKit::from_state(&a).unwrap();
    assert_eq!(copy.recorded_pid(), Some(first.pid()));
    copy.state_dir = Some(b.clone()); // the field is public, so a caller may set it without the setter
    for exists in [false, true] {
        if exists {
            copy.define().unwrap();
            assert_eq!(
                HyperKit::from_state(&b).unwrap().recorded_pid(),
                None,
                "the process ID of the other VM was recorded"
            );
        }
        assert!(copy.vm().unwrap().is_none());
        copy.stop().unwrap();
        copy.remove(Disks::Delete).unwrap();
        assert_eq!(first.try_wait(), None);
    }
    assert!(!b.exists() && a.exists());
}

/// A loaded disk keeps the name of its image. Its position in the list would lead to the image of the removed disk.
#[test]
fn disks_keep_their_images_if_another_disk_is_removed_from_the_description() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().disk(Disk::in_state_dir(1)).disk(Disk::in_state_dir(2));
    description.start("guest").unwrap().kill().unwrap();
    let mut loaded = HyperKit::from_state(test_dir.path("vm")).unwrap();
    loaded.disks.remove(0);
    let vm = loaded.start("guest").unwrap();
    assert_eq!(vm.description().disks[0].path, Some(test_dir.path("vm/disk1.img")));
    assert_eq!(
        test_dir.path("vm/disk.img").metadata().unwrap().len(),
        1 << 20,
        "the image of the removed disk was grown"
    );
    vm.kill().unwrap();

    let other = loaded.state_dir(test_dir.path("other"));
    let _stop_other = StopOnDrop(test_dir.path("other"));
    assert_eq!(other.start("guest").unwrap().description().disks[0].path, Some(test_dir.path("other/disk1.img")));
}

/// This holds also if the description names the image, and if `state_dir` is set without the setter.
#[test]
fn disk_that_was_created_in_the_state_directory_is_never_shared() {
    let test_dir = TestDir::new();
    let (a, b) = (test_dir.path("a"), test_dir.path("b"));
    let _stops = [StopOnDrop(a.clone()), StopOnDrop(b.clone())];
    let first = test_dir.description().state_dir(&a).disk(Disk::raw(a.join("own.img")).size_mib(1));
    let first = first.start("guest").unwrap();
    for copy in [first.description().clone(), HyperKit::from_state(&a).unwrap()] {
        let mut copy = copy;
        copy.state_dir = Some(b.clone());
        let second = copy.start("guest").unwrap();
        assert_eq!(second.description().disks[0].path, Some(b.join("own.img")));
        second.kill().unwrap();
        second.remove(Disks::Delete).unwrap();
        assert!(a.join("own.img").exists() && !b.exists());
    }
}
