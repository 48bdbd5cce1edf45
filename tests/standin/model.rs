//! Sequences of calls that nobody would think of, against a small model, and state files that nobody would write.

use std::fs;
use std::process::Command;

use hyperkit::{Disk, Error, HyperKit};
use proptest::prelude::*;
use rustix::process::{Signal, kill_process};

use crate::common::{Files, boot, eventually, example, machines_in, raw};

/// What can be done to a machine, by its program, by another, or from outside.
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

/// All that matters about a machine.
#[derive(Debug, Default)]
struct Model {
    running: bool,
    remembered: bool,
    disk: bool,
    /// Whether the state file, or the description at hand, knows that the disk was made for the machine.
    made_by_state: bool,
    made_by_memory: bool,
}

impl Model {
    fn started(&mut self, knows: bool) {
        self.made_by_state = !self.disk || self.made_by_state || knows;
        (self.running, self.remembered, self.disk) = (true, true, true);
    }
}

fn act(files: &Files, machine: &mut HyperKit, model: &mut Model, step: Step) {
    match step {
        Step::Start => match machine.start("guest") {
            Ok(_) if !model.running => {
                model.started(model.made_by_memory);
                model.made_by_memory = model.made_by_state;
            }
            Err(Error::AlreadyRunning { .. }) if model.running => {}
            other => panic!("{other:?}"),
        },
        Step::StartElsewhere => {
            let started = boot(files, "guest").args(["--disk-size", "1"]).output().unwrap().status.success();
            assert_eq!(started, !model.running);
            if started {
                model.started(false);
            }
        }
        Step::StopElsewhere => {
            let mut boot = Command::new(example("boot"));
            let stopped =
                boot.arg("--stop").arg("--state-dir").arg(files.path("vm")).output().unwrap().status.success();
            assert_eq!(stopped, model.remembered);
            model.running = false;
        }
        Step::Stop => {
            machine.stop().unwrap();
            model.running = false;
        }
        Step::Kill => {
            for pid in machines_in(&files.path("vm")) {
                kill_process(raw(pid), Signal::KILL).unwrap();
                eventually("it is gone", || machines_in(&files.path("vm")).is_empty());
            }
            model.running = false;
        }
        Step::Reload => match HyperKit::from_state(files.path("vm")) {
            Ok(loaded) if model.remembered => {
                *machine = loaded;
                model.made_by_memory = model.made_by_state;
            }
            Err(Error::NoState { .. }) if !model.remembered => {}
            other => panic!("{other:?}"),
        },
        Step::Remove { keep_disk } => match machine.remove(keep_disk) {
            Ok(()) if !model.running => {
                // A disk that was kept once is somebody's own, but to who has made it.
                model.disk = model.disk && (keep_disk || !model.made_by_state);
                (model.remembered, model.made_by_state) = (false, false);
            }
            Err(Error::StillRunning { .. }) if model.running => {}
            other => panic!("{other:?}"),
        },
        Step::LosePidFile => drop(fs::remove_file(files.path("vm/hyperkit.pid"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_does_what_the_model_does(steps in steps()) {
        let files = Files::new();
        let _end = files.ended();
        let mut machine = files.machine().disk(Disk::in_state_dir(1));
        let mut model = Model::default();
        for step in steps {
            act(&files, &mut machine, &mut model, step);
            let alive = machines_in(&files.path("vm"));
            prop_assert_eq!(alive.len(), usize::from(model.running), "{:?} after {:?}", &alive, step);
            prop_assert_eq!(machine.is_running(), model.running, "after {:?}", step);
            prop_assert_eq!(files.path("vm/hyperkit.json").exists(), model.remembered, "after {:?}", step);
            prop_assert_eq!(files.path("vm/disk.img").exists(), model.disk, "after {:?}", step);
            prop_assert_eq!(files.path("vm").exists(), model.remembered || model.disk, "after {:?}", step);
        }
    }
}
