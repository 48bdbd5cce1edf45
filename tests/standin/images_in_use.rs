//! Disk images that several VMs or disks name: two of them can use an image at once only if all of them are read-only. An
//! image in use is never deleted.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use hyperkit::{ConfigError, Console, Disk, Disks, Error, HyperKit, QcowOptions};

use crate::common::rejection::only_violation;
use crate::common::{StopOnDrop, TEST_TIMEOUT, TestDir, console_output, make_fifo, standin_path};

#[test]
fn one_image_under_two_names_is_a_duplicate() {
    let test_dir = TestDir::new();
    let image = test_dir.write("d.img", &[0; 4096]);
    let (link, hard_link) = (test_dir.path("link.img"), test_dir.path("hard-link.img"));
    symlink(&image, &link).unwrap();
    fs::hard_link(&image, &hard_link).unwrap();
    for other in [&image, &link, &hard_link] {
        for (first, second) in
            [(Disk::raw(&image), Disk::raw(other)), (Disk::raw(&image).read_only(), Disk::new(other))]
        {
            let violation = only_violation(test_dir.description().disk(first).disk(second).check());
            assert_eq!(violation, ConfigError::DuplicateDisk { path: other.clone() });
        }
        let twice = test_dir.description().disk(Disk::raw(other)).iso(&image);
        assert_eq!(only_violation(twice.check()), ConfigError::DuplicateDisk { path: other.clone() });
        test_dir
            .description()
            .disk(Disk::raw(&image).read_only())
            .disk(Disk::raw(other).read_only())
            .iso(other)
            .check()
            .unwrap();
    }
}

/// The image does not exist yet, and both paths lead to it.
#[test]
fn one_new_image_under_two_names_is_a_duplicate() {
    let test_dir = TestDir::new();
    symlink(test_dir.dir(), test_dir.path("here")).unwrap();
    let disks = test_dir.description().disk(Disk::raw(test_dir.path("d.img")).size_mib(1));
    let twice = disks.disk(Disk::raw(test_dir.path("here/d.img")).size_mib(1));
    let path = test_dir.path("here/d.img");
    assert_eq!(only_violation(twice.check()), ConfigError::DuplicateDisk { path });
}

#[test]
fn image_in_use_by_another_vm_is_rejected_before_start() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let image = test_dir.path("shared.img");
    let link = test_dir.path("link.img");
    let shared = |disk: Disk| test_dir.description().state_dir(test_dir.path("vm2")).disk(disk);
    let qcow2 = Disk::qcow2(test_dir.path("shared #1.qcow2"), QcowOptions::default()).size_mib(1);
    let first = test_dir.description().disk(Disk::raw(&image).size_mib(1)).disk(qcow2.clone());
    first.start("guest").unwrap();
    std::os::unix::fs::symlink(&image, &link).unwrap();
    let raw = Disk::raw(&image);
    for disk in [raw.clone(), Disk::new(&link), raw.clone().read_only(), raw.size_mib(2), qcow2.clone().size_mib(2)] {
        if disk.size_mib.is_some() {
            assert!(matches!(disk.grow(), Err(Error::DiskInUse { .. })));
        }
        match shared(disk.clone()).start("guest") {
            Err(Error::DiskInUse { path }) => assert_eq!(Some(path), disk.path),
            other => panic!("{other:?}"),
        }
        assert!(!test_dir.path("vm2").exists(), "a rejected start has left files");
    }
    match test_dir.description().state_dir(test_dir.path("vm2")).iso(&link).start("guest") {
        Err(Error::DiskInUse { path }) => assert_eq!(path, link),
        other => panic!("{other:?}"),
    }
    Disk::raw(&image).size_mib(1).grow().unwrap(); // the image has this size already, so `grow` does not write
    assert_eq!(image.metadata().unwrap().len(), 1024 * 1024);
    assert!(
        matches!(first.start("guest"), Err(Error::AlreadyRunning { .. })),
        "the error is not that the VM itself is running"
    );
    first.stop().unwrap();
    // Read-only disks can share an image.
    let _stops = [test_dir.path("vm"), test_dir.path("vm2")].map(StopOnDrop);
    for disk in [Disk::raw(&image).read_only(), qcow2.read_only()] {
        let first = test_dir.description().disk(disk.clone()).iso(&image).start("guest").unwrap();
        shared(disk).iso(&image).start("guest").unwrap().kill().unwrap();
        first.kill().unwrap();
    }
}

/// hyperkit locks raw images, but no qcow2 images.
#[test]
fn one_of_many_concurrent_starts_gets_the_image() {
    let test_dir = TestDir::new();
    let image = Disk::new(test_dir.path("image.qcow2")).size_mib(1);
    image.create().unwrap();
    symlink(test_dir.path("image.qcow2"), test_dir.path("link.qcow2")).unwrap();
    let raw = Disk::raw(test_dir.path("raw.img")).size_mib(1);
    raw.create().unwrap();
    for disks in [[image, Disk::new(test_dir.path("link.qcow2"))], [raw.clone(), raw]] {
        for _ in 0..5 {
            let _stops = ["a", "b", "c", "d"].map(|name| StopOnDrop(test_dir.path(name)));
            let all = Barrier::new(4);
            let started: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = ["a", "b", "c", "d"]
                    .into_iter()
                    .zip(disks.iter().cycle())
                    .map(|(name, disk)| {
                        let description = test_dir.description().state_dir(test_dir.path(name)).disk(disk.clone());
                        let all = &all;
                        scope.spawn(move || (all.wait(), description.start("guest")).1)
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(started.iter().filter(|started| started.is_ok()).count(), 1, "{started:?}");
        }
    }
}

/// A start that checks a raw image locks it for a moment. If it then finds this hypervisor's process, it fails. So this start must not
/// fail, too.
#[test]
fn hypervisor_that_finds_its_image_locked_for_a_moment_is_started_again() {
    let test_dir = TestDir::new();
    let raw = Disk::raw(test_dir.path("raw.img")).size_mib(1);
    raw.create().unwrap();
    let (first, image) = (test_dir.path("first"), test_dir.path("raw.img"));
    let script = format!(
        "#!/bin/sh\nmkdir '{}' 2>/dev/null && exec 9<'{}' && flock 9\nexec '{}' \"$@\"\n",
        first.display(),
        image.display(),
        standin_path().display()
    );
    let hypervisor = test_dir.write_executable("wrapper", script.as_bytes());
    let description = test_dir.description().hyperkit(hypervisor).disk(raw);
    description.start("guest").unwrap().kill().unwrap();
    assert!(first.exists());
    std::fs::remove_dir(&first).unwrap();
    let scoped = description.start_scoped("guest").unwrap();
    drop(scoped);
    assert!(first.exists());
}

/// Until the hypervisor runs, only the starter's lock protects the image. Here the first start creates a second image by a
/// tool that waits for this test, and a second start wants to use the first image meanwhile.
#[test]
fn image_is_locked_until_the_hypervisor_runs() {
    let test_dir = TestDir::new();
    let image = Disk::new(test_dir.path("image.qcow2")).size_mib(1);
    image.create().unwrap();
    let fifo = test_dir.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let tool = test_dir
        .write_executable("qemu-img", format!("#!/bin/sh\nread -r word <'{}'\nexit 1\n", fifo.display()).as_bytes());
    let mut qcow = QcowOptions::default();
    qcow.tool = Some(tool);
    let first =
        test_dir.description().disk(image.clone()).disk(Disk::qcow2(test_dir.path("second.qcow2"), qcow).size_mib(1));
    let first = std::thread::spawn(move || first.start("guest").map(drop));
    let held = fs::File::options().write(true).open(&fifo).unwrap(); // blocks until the tool opens it
    let _stop = StopOnDrop(test_dir.path("vm2"));
    let second = test_dir.description().state_dir(test_dir.path("vm2")).disk(image).start("guest").map(drop);
    drop(held);
    assert!(matches!(first.join().unwrap(), Err(Error::ImageToolFailed { .. })));
    assert!(matches!(second, Err(Error::DiskInUse { .. })), "{second:?}");
}

/// The Go package passes the path of a qcow2 image as a URL, but does not escape `%` in it. Docker Desktop of 2016 passed a URL without
/// options, other programs a path.
#[test]
fn image_in_use_is_found_in_the_arguments_of_other_programs() {
    let test_dir = TestDir::new();
    let image = Disk::new(test_dir.path("100%25.qcow2")).size_mib(1);
    image.create().unwrap();
    let path = test_dir.path("100%25.qcow2").display().to_string();
    for (config, is_used) in [
        (format!("file://{path}?sync=os&buffered=1,format=qcow"), true),
        (format!("file://{path},format=qcow"), true),
        (format!("{path},format=qcow"), true),
        (format!("{path},sync,format=qcow"), true),
        (format!("file://{path}.other,format=qcow"), false),
        (format!("{path}.other,format=qcow"), false),
    ] {
        let _stop = test_dir.stop_on_drop();
        let mut other = Command::new("sh");
        other.args(["-c", "echo runs; read -r word", "hyperkit", "-s"]).arg(format!("2:0,virtio-blk,{config}"));
        let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        other.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
        let started = test_dir.description().disk(image.clone()).start("guest").and_then(|vm| vm.kill());
        drop(other.stdin.take());
        other.wait().unwrap();
        match is_used {
            true => assert!(matches!(started, Err(Error::DiskInUse { .. })), "{config}: {started:?}"),
            false => started.unwrap(),
        }
    }
}

#[test]
fn rejected_start_keeps_the_previous_console_log() {
    let test_dir = TestDir::new();
    let _stops = [test_dir.path("vm"), test_dir.path("vm2")].map(StopOnDrop);
    let image = Disk::raw(test_dir.path("d.img")).size_mib(1);
    let description = test_dir.description().console(Console::Pty).disk(image.clone());
    description.run("guest.say=hello guest.exit=0").unwrap();
    assert!(console_output(&test_dir).contains("hello"));
    let other = test_dir.description().state_dir(test_dir.path("vm2")).disk(image);
    other.start("guest").unwrap();
    assert!(matches!(description.start("guest"), Err(Error::DiskInUse { .. })));
    assert!(console_output(&test_dir).contains("hello"));
}

/// Another VM uses the disk that was created for this one.
#[test]
fn remove_keeps_a_disk_in_use() {
    let test_dir = TestDir::new();
    let _stop = StopOnDrop(test_dir.path("vm2"));
    let description = test_dir.description().disk(Disk::in_state_dir(1));
    description.start("guest").unwrap().kill().unwrap();
    let disk = test_dir.path("vm/disk.img");
    let vm = test_dir.description().state_dir(test_dir.path("vm2")).disk(Disk::raw(&disk)).start("guest").unwrap();
    assert!(matches!(description.remove(Disks::Delete), Err(Error::DiskInUse { path }) if path == disk));
    assert!(disk.exists());
    vm.kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

/// Until its `exec`, a forked child holds the open files of all threads, and with them their locks. That must not fail the
/// other starts.
#[test]
fn concurrent_starts_with_separate_disks_succeed() {
    let test_dir = TestDir::new();
    let names = ["a", "b", "c", "d"];
    let _stops = names.map(|name| StopOnDrop(test_dir.path(name)));
    std::thread::scope(|scope| {
        for name in names {
            let image = |extension: &str| test_dir.path(&format!("{name}.{extension}"));
            let disks = [Disk::raw(image("img")).size_mib(1), Disk::new(image("qcow2")).size_mib(1)];
            let description =
                disks.into_iter().fold(test_dir.description().state_dir(test_dir.path(name)), HyperKit::disk);
            scope.spawn(move || (0..25).for_each(|_| description.start("guest").unwrap().kill().unwrap()));
        }
    });
}

/// Both starts find the image unused. The second one takes it while the first one's hypervisor is not ready.
#[test]
fn start_that_loses_the_race_for_an_image_says_that_it_is_in_use() {
    let test_dir = TestDir::new();
    let fifo = test_dir.path("fifo");
    make_fifo(&fifo);
    let script = format!("#!/bin/sh\nread line <{}\nexec {} \"$@\"\n", fifo.display(), standin_path().display());
    let slow = test_dir.write_executable("slow", script.as_bytes());
    let image = test_dir.write("shared.img", &vec![0; 1 << 20]);
    let first = test_dir.description().disk(Disk::raw(&image)).hyperkit(slow).spawn("guest").unwrap();
    let second = test_dir.description().disk(Disk::raw(&image)).state_dir(test_dir.path("vm2"));
    let _stop = StopOnDrop(test_dir.path("vm2"));
    second.start("guest").unwrap();
    fs::write(&fifo, "\n").unwrap();
    match first.wait_ready(TEST_TIMEOUT) {
        Err(Error::DiskInUse { path }) => assert_eq!(path, image),
        other => panic!("{other:?}"),
    }
}

/// Whoever comes first creates the image.
#[test]
fn losers_of_a_race_for_a_new_image_are_told_that_it_is_in_use() {
    for round in 0..20 {
        let test_dir = TestDir::new();
        let image = test_dir.path("new.img");
        let all = Barrier::new(4);
        let started: Vec<_> = std::thread::scope(|scope| {
            let (test_dir, image, all) = (&test_dir, &image, &all);
            let start = move |index: usize| {
                let disk = Disk::raw(image).size_mib(1);
                let description = test_dir.description().disk(disk).state_dir(test_dir.path(&format!("vm{index}")));
                all.wait();
                description.start("guest")
            };
            let threads: Vec<_> = (0..4).map(|index| scope.spawn(move || start(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        started.iter().flatten().for_each(|vm| vm.kill().unwrap());
        assert!(started.iter().filter(|started| started.is_ok()).count() <= 1);
        for error in started.iter().filter_map(|started| started.as_ref().err()) {
            assert!(matches!(error, Error::DiskInUse { path } if *path == image), "{round}: {error:?}");
        }
    }
}

/// The image is complete, and the hypervisor that will use it does not run yet. hyperkit does not lock qcow2 images.
#[test]
fn new_qcow2_image_is_in_use_before_its_hypervisor_runs() {
    let test_dir = TestDir::new();
    let image = test_dir.path("new.qcow2");
    let description = test_dir.description().disk(Disk::qcow2(&image, QcowOptions::default()).size_mib(1));
    let _stops = [test_dir.path("vm"), test_dir.path("vm2")].map(StopOnDrop);
    let mut second = None;
    let first = description.spawn_with("guest", |_| {
        assert!(image.exists());
        second = Some(description.clone().state_dir(test_dir.path("vm2")).start("guest"));
    });
    match second {
        Some(Err(Error::DiskInUse { path })) => assert_eq!(path, image),
        other => panic!("{other:?}"),
    }
    first.unwrap().wait_ready(TEST_TIMEOUT).unwrap();
}
