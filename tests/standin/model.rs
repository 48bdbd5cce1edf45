//! Property test: after each call of a random sequence, the VM is in the state that a small model predicts.

use std::fs;
use std::process::Command;

use hyperkit::{Disk, Disks, Error, HyperKit};
use proptest::prelude::*;
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, boot_command, example_path, hypervisors_in, to_pid};

/// An action on the VM. `Elsewhere` means another process. `Kill` and `LosePidFile` happen without the crate.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// With `adopts`, the caller continues with the description of the started VM. Without `adopts`, it continues with its
    /// own.
    Start {
        adopts: bool,
    },
    StartElsewhere,
    Stop,
    StopElsewhere,
    Kill,
    Reload,
    Remove(Disks),
    LosePidFile,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => any::<bool>().prop_map(|adopts| Step::Start { adopts }),
        2 => Just(Step::StartElsewhere),
        2 => Just(Step::Stop),
        1 => Just(Step::StopElsewhere),
        2 => Just(Step::Kill),
        2 => Just(Step::Reload),
        1 => Just(Step::Remove(Disks::Keep)),
        1 => Just(Step::Remove(Disks::Delete)),
        1 => Just(Step::LosePidFile),
    ];
    proptest::collection::vec(step, 1..25)
}

/// The expected state of the VM.
#[derive(Debug, Default)]
struct Model {
    running: bool,
    recorded: bool,
    disk: bool,
    /// Whether the state file records that the crate created the disk.
    created: bool,
}

impl Model {
    fn started(&mut self) {
        self.created |= !self.disk;
        (self.running, self.recorded, self.disk) = (true, true, true);
    }
}

fn act(test_dir: &TestDir, description: &mut HyperKit, model: &mut Model, step: Step) {
    match step {
        Step::Start { adopts } => match description.start("guest") {
            Ok(vm) if !model.running => {
                model.started();
                if adopts {
                    *description = vm.description().clone();
                }
            }
            Err(Error::AlreadyRunning { .. }) if model.running => {}
            other => panic!("{other:?}"),
        },
        Step::StartElsewhere => {
            let output = boot_command(test_dir, "guest").args(["--disk-size", "1"]).output().unwrap();
            let started = output.status.success();
            assert_eq!(started, !model.running, "{output:?}");
            if started {
                model.started();
            }
        }
        Step::StopElsewhere => {
            let mut ctl = Command::new(example_path("ctl"));
            let stopped = ctl.arg("stop").arg(test_dir.path("vm")).output().unwrap().status.success();
            assert_eq!(stopped, model.recorded);
            model.running = false;
        }
        Step::Stop => {
            description.stop().unwrap();
            model.running = false;
        }
        Step::Kill => {
            let vm = description.vm().unwrap();
            for pid in hypervisors_in(&test_dir.path("vm")) {
                kill_process(to_pid(pid), Signal::KILL).unwrap();
            }
            // When a process exits, its command line disappears first, and the locks of its disks a moment later. So wait
            // for the exit.
            assert_eq!(vm.map(|vm| vm.wait()).is_some(), model.running);
            model.running = false;
        }
        Step::Reload => match HyperKit::from_state(test_dir.path("vm")) {
            Ok(loaded) if model.recorded => *description = loaded,
            Err(Error::StateNotFound { .. }) if !model.recorded => {}
            other => panic!("{other:?}"),
        },
        Step::Remove(disks) => match description.remove(disks) {
            Ok(()) if !model.running => {
                // A disk that `remove` kept once belongs to the user: it is never deleted.
                model.disk &= disks == Disks::Keep || !model.created;
                (model.recorded, model.created) = (false, false);
            }
            Err(Error::StillRunning { .. }) if model.running => {}
            other => panic!("{other:?}"),
        },
        Step::LosePidFile => drop(fs::remove_file(test_dir.path("vm/hyperkit.pid"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_matches_the_model(steps in steps()) {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut description = test_dir.description().disk(Disk::in_state_dir(1));
        let mut model = Model::default();
        for step in steps {
            act(&test_dir, &mut description, &mut model, step);
            let alive = hypervisors_in(&test_dir.path("vm"));
            prop_assert_eq!(alive.len(), usize::from(model.running), "{:?} after {:?}", &alive, step);
            prop_assert_eq!(description.is_running().unwrap(), model.running, "after {:?}", step);
            prop_assert_eq!(test_dir.path("vm/hyperkit.json").exists(), model.recorded, "after {:?}", step);
            prop_assert_eq!(test_dir.path("vm/disk.img").exists(), model.disk, "after {:?}", step);
            prop_assert_eq!(test_dir.path("vm").exists(), model.recorded || model.disk, "after {:?}", step);
        }
    }
}
