//! Compatibility with the Go packages of 2017 and 2020.
//!
//! Each line of `tests/recorded/argv-….jsonl` was recorded from a Go package: the arguments that it made from a
//! configuration, and the state file that it wrote. The lines of 2017 also contain the configuration.

use std::collections::BTreeMap;

use hyperkit::{Disk, HyperKit, QcowOptions, Serial};
use serde_json::{Value, json};

use crate::with_keys;

struct Case {
    name: String,
    config: HyperKit,
    cmdline: String,
    arguments: Vec<String>,
    state: Value,
}

fn cases(recorded: &str) -> Vec<Case> {
    let parse = |line: &str| {
        let mut case: Value = serde_json::from_str(line).unwrap();
        let mut take = |key: &str| case[key].take();
        let state = take("state");
        let config = match take("config") {
            Value::Null => without_record(serde_json::from_value(state.clone()).unwrap()),
            config => serde_json::from_value(config).unwrap(),
        };
        Case {
            name: take("name").as_str().unwrap().to_owned(),
            config,
            cmdline: take("kernel_cmdline").as_str().unwrap().to_owned(),
            arguments: serde_json::from_value(take("arguments")).unwrap(),
            state,
        }
    };
    recorded.lines().map(parse).collect()
}

fn cases_of_2017() -> Vec<Case> {
    let cases = cases(include_str!("../recorded/argv-2017.jsonl"));
    assert_eq!(cases.len(), 18);
    cases
}

fn cases_of_2020() -> Vec<Case> {
    let cases = cases(include_str!("../recorded/argv-2020.jsonl"));
    assert_eq!(cases.len(), 17);
    cases
}

/// Removes what a start adds to a description.
fn without_record(description: HyperKit) -> HyperKit {
    with_keys(&description, json!({ "arguments": null, "cmdline": "" }))
}

/// The intended differences from the Go package: the case, the argument of the Go package, the argument of this crate, and
/// the reason.
const DIFFERENCES: [(&str, &str, &str, &str); 2] = [
    (
        "console-stdio-not-a-terminal",
        "com1,autopty=/var/run/vm/tty,log=/var/run/vm/console-ring",
        "com1,stdio",
        "Go uses `stdio` only if it is a terminal, this crate always",
    ),
    (
        "two-raw-disks",
        "2:0,virtio-blk,/data/b.raw,format=raw",
        "2:0,virtio-blk,/data/b.raw",
        "hyperkit rejects `format=raw`",
    ),
];

/// Returns the arguments of the Go package, with the intended differences.
fn expected(case: &Case) -> Vec<String> {
    let mut arguments = case.arguments.clone();
    for (_, go, ours, reason) in DIFFERENCES.iter().filter(|(name, ..)| *name == case.name) {
        let argument = arguments.iter_mut().find(|argument| argument == go);
        *argument.unwrap_or_else(|| panic!("{} no longer differs: {reason}", case.name)) = (*ours).to_owned();
    }
    arguments
}

/// Returns the keys and values that are set. `null`, `""`, 0, `false` and a missing key all mean unset.
fn set_values(state: &Value) -> BTreeMap<String, Value> {
    let unset = |value: &Value| [Value::Null, "".into(), 0.into(), false.into()].contains(value);
    let keys = state.as_object().unwrap().iter();
    keys.filter(|(_, value)| !unset(value)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn arguments_equal_those_of_go() {
    for case in cases_of_2017().iter().chain(&cases_of_2020()) {
        let arguments = case.config.arguments(&case.cmdline).unwrap();
        assert_eq!(arguments, expected(case), "case {}", case.name);
    }
}

/// No recording has these cases. The source is buildArgs of the newest Go package.
#[test]
fn paths_are_cleaned_and_asl_is_written_as_in_the_newest_go_package() {
    let description = HyperKit::new().kernel("/k").state_dir("./a//b/../c").disk(Disk::in_state_dir(1));
    let arguments = description.serial(Serial::pty().log().apple_log()).arguments("").unwrap();
    let has = |option: &str, value: &str| arguments.windows(2).any(|pair| pair == [option, value]);
    assert!(has("-F", "a/c/hyperkit.pid"), "{arguments:?}");
    assert!(has("-s", "1:0,virtio-blk,a/c/disk.img"), "{arguments:?}");
    assert!(has("-l", "com1,autopty=./a//b/../c/tty1,asl,log=./a//b/../c/console-ring"), "{arguments:?}");
}

/// With the empty word of the Go package, hyperkit does nothing on a flush. Only descriptions by that package keep it.
#[test]
fn flush_mode_is_os_unless_the_go_package_wrote_another() {
    let flush = |disk: Value| {
        let description = HyperKit::new().kernel("/k").hyperkit("hyperkit");
        let description = with_keys(&description, json!({ "disks": [disk] }));
        let again: HyperKit = serde_json::from_str(&description.to_string()).unwrap();
        assert_eq!(again, description);
        let arguments = description.arguments("").unwrap().join(" ");
        let (_, sync) = arguments.split_once("?sync=").unwrap();
        sync.split_once('&').unwrap().0.to_owned()
    };
    let described = HyperKit::new().disk(Disk::qcow2("/a.qcow2", QcowOptions::default()));
    let described: Value = serde_json::from_str(&described.to_string()).unwrap();
    assert_eq!(flush(described["disks"][0].clone()), "os");
    assert_eq!(flush(json!({ "path": "/a.qcow2" })), "os");
    assert_eq!(flush(json!({ "path": "/a.qcow2", "format": "qcow" })), "os");
    assert_eq!(flush(json!({ "path": "/a.qcow2", "format": "qcow", "OnFlush": null })), "os");
    assert_eq!(flush(json!({ "path": "/a.qcow2", "OnFlush": "" })), "");
    assert_eq!(flush(json!({ "path": "/a.qcow2", "OnFlush": "none" })), "none");
}

#[test]
fn state_has_the_same_values_as_that_of_go() {
    for Case { name, config, cmdline, state, .. } in cases_of_2017() {
        let arguments = config.arguments(&cmdline).unwrap();
        let program = config.hyperkit.clone().unwrap();
        let command = format!("{} {}", program.display(), arguments.join(" "));
        let started = with_keys(&config, json!({ "arguments": arguments, "cmdline": command }));
        let written: Value = serde_json::from_str(&started.to_string()).unwrap();
        assert_eq!(set_values(&written), set_values(&state), "case {name}");
    }
}

#[test]
fn state_of_2017_round_trips() {
    for Case { name, config, state, .. } in cases_of_2017() {
        let loaded: HyperKit = serde_json::from_value(state.clone()).unwrap();
        let arguments = serde_json::from_value::<Vec<String>>(state["arguments"].clone()).unwrap();
        assert_eq!(loaded.recorded_arguments(), arguments, "case {name}");
        assert_eq!(without_record(loaded.clone()), config, "case {name}");
        let again: Value = serde_json::to_value(&loaded).unwrap();
        assert_eq!(again["cmdline"], state["cmdline"], "case {name}");
        assert_eq!(set_values(&again), set_values(&state), "case {name}");
    }
}

#[test]
fn kernel_command_line_is_found_in_recorded_states() {
    for case in cases_of_2017().iter().chain(&cases_of_2020()) {
        let loaded: HyperKit = serde_json::from_value(case.state.clone()).unwrap();
        assert_eq!(loaded.recorded_kernel_cmdline().as_ref(), Some(&case.cmdline), "case {}", case.name);
    }
}

/// The crate writes the format of 2017, so the test compares descriptions instead of JSON.
#[test]
fn state_of_2020_round_trips() {
    for Case { name, arguments, mut state, .. } in cases_of_2020() {
        let later = json!({"a": [1, {"b": null}], "c": 0.1});
        state["later"] = later.clone();
        state["disks"].as_array_mut().into_iter().flatten().for_each(|disk| disk["later"] = later.clone());
        let loaded: HyperKit = serde_json::from_value(state.clone()).unwrap();
        assert_eq!(loaded.recorded_arguments(), arguments, "case {name}");
        let written = loaded.to_string();
        assert_eq!(serde_json::from_str::<HyperKit>(&written).unwrap(), loaded, "case {name}");
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written["later"], later, "case {name}");
        for index in 0..loaded.disks.len() {
            assert_eq!(written["disks"][index]["later"], later, "case {name}");
        }
    }
}
