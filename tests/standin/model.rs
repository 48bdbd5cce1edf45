//! Property test: random sequences of calls behave like a small model.

use std::fs;
use std::process::Command;

use hyperkit::{Disk, Error, HyperKit};
use proptest::prelude::*;
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, boot_command, example_path, hypervisors_in, to_pid, wait_until};

/// An action on the VM, by this process, by another process, or from outside.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    StartElsewhere,
    Stop,
    StopElsewhere,
    Kill,
    Reload,
    Remove { keep_disk: bool },
    LosePidFile,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Start),
        2 => Just(Step::StartElsewhere),
        2 => Just(Step::Stop),
        1 => Just(Step::StopElsewhere),
        2 => Just(Step::Kill),
        2 => Just(Step::Reload),
        2 => any::<bool>().prop_map(|keep_disk| Step::Remove { keep_disk }),
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
    /// Whether the state file, or the description in memory, records that the disk was created for the VM.
    made_by_state: bool,
    made_by_memory: bool,
}

impl Model {
    fn started(&mut self, knows: bool) {
        self.made_by_state = !self.disk || self.made_by_state || knows;
        (self.running, self.recorded, self.disk) = (true, true, true);
    }
}

fn act(test_dir: &TestDir, description: &mut HyperKit, model: &mut Model, step: Step) {
    match step {
        Step::Start => match description.start("guest") {
            Ok(_) if !model.running => {
                model.started(model.made_by_memory);
                model.made_by_memory = model.made_by_state;
            }
            Err(Error::AlreadyRunning { .. }) if model.running => {}
            other => panic!("{other:?}"),
        },
        Step::StartElsewhere => {
            let started = boot_command(test_dir, "guest").args(["--disk-size", "1"]).output().unwrap().status.success();
            assert_eq!(started, !model.running);
            if started {
                model.started(false);
            }
        }
        Step::StopElsewhere => {
            let mut boot = Command::new(example_path("boot"));
            let stopped =
                boot.arg("--stop").arg("--state-dir").arg(test_dir.path("vm")).output().unwrap().status.success();
            assert_eq!(stopped, model.recorded);
            model.running = false;
        }
        Step::Stop => {
            description.stop().unwrap();
            model.running = false;
        }
        Step::Kill => {
            for pid in hypervisors_in(&test_dir.path("vm")) {
                kill_process(to_pid(pid), Signal::KILL).unwrap();
                wait_until("the hypervisor is gone", || hypervisors_in(&test_dir.path("vm")).is_empty());
            }
            model.running = false;
        }
        Step::Reload => match HyperKit::from_state(test_dir.path("vm")) {
            Ok(loaded) if model.recorded => {
                *description = loaded;
                model.made_by_memory = model.made_by_state;
            }
            Err(Error::StateNotFound { .. }) if !model.recorded => {}
            other => panic!("{other:?}"),
        },
        Step::Remove { keep_disk } => match description.remove(keep_disk) {
            Ok(()) if !model.running => {
                // After it was kept once, a disk belongs to the user, except to a description that records its creation.
                model.disk = model.disk && (keep_disk || !model.made_by_state);
                (model.recorded, model.made_by_state) = (false, false);
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
        let description = test_dir.description().disk(Disk::in_state_dir(1));
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
