//! What the Go package of 2017 was seen to do: `recorded/argv-2017.jsonl` has a configuration, the argv that Go made of
//! it, and the state that it wrote, on each line.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use hyperkit::HyperKit;
use serde_json::Value;

struct Case {
    name: String,
    config: HyperKit,
    cmdline: String,
    arguments: Vec<String>,
    state: Value,
}

fn cases() -> Vec<Case> {
    let parse = |line: &str| {
        let mut case: Value = serde_json::from_str(line).unwrap();
        let mut take = |key: &str| case[key].take();
        Case {
            name: take("name").as_str().unwrap().to_owned(),
            config: serde_json::from_value(take("config")).unwrap(),
            cmdline: take("kernel_cmdline").as_str().unwrap().to_owned(),
            arguments: serde_json::from_value(take("arguments")).unwrap(),
            state: take("state"),
        }
    };
    let cases: Vec<_> = include_str!("recorded/argv-2017.jsonl").lines().map(parse).collect();
    assert_eq!(cases.len(), 18);
    cases
}

/// Go cleans the path behind `-F`, and only that one.
fn cleaned(arguments: &[String]) -> Vec<String> {
    let clean = |path: &str| {
        let mut cleaned = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => drop(cleaned.pop()),
                other => cleaned.push(other),
            }
        }
        cleaned.to_str().unwrap().to_owned()
    };
    let mut arguments = arguments.to_vec();
    if let Some(at) = arguments.iter().position(|argument| argument == "-F") {
        arguments[at + 1] = clean(&arguments[at + 1]);
    }
    arguments
}

/// `null`, `""`, 0 and a missing key all mean unset.
fn meaning(state: &Value) -> BTreeMap<String, Value> {
    let unset = |value: &Value| [Value::Null, "".into(), 0.into(), false.into()].contains(value);
    let keys = state.as_object().unwrap().iter();
    keys.filter(|(_, value)| !unset(value)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn arguments_are_those_that_go_made() {
    for case in cases() {
        let arguments = case.config.arguments(&case.cmdline).unwrap();
        assert_eq!(cleaned(&arguments), cleaned(&case.arguments), "case {}", case.name);
    }
}

#[test]
fn state_means_what_go_wrote() {
    for Case { name, mut config, cmdline, state, .. } in cases() {
        config.arguments = config.arguments(&cmdline).unwrap();
        let program = config.hyperkit.clone().unwrap();
        config.cmdline = format!("{} {}", program.display(), config.arguments.join(" "));
        let written: Value = serde_json::from_str(&config.to_string()).unwrap();
        assert_eq!(meaning(&written), meaning(&state), "case {name}");
    }
}

#[test]
fn recorded_state_loads_and_survives() {
    for Case { name, config, state, .. } in cases() {
        let loaded: HyperKit = serde_json::from_value(state.clone()).unwrap();
        assert_eq!(loaded.arguments, serde_json::from_value::<Vec<String>>(state["arguments"].clone()).unwrap());
        assert_eq!(loaded.cmdline, state["cmdline"].as_str().unwrap(), "case {name}");
        let mut described = loaded.clone();
        described.arguments.clear();
        described.cmdline.clear();
        assert_eq!(described, config, "case {name}");
        let again: Value = serde_json::to_value(&loaded).unwrap();
        assert_eq!(meaning(&again), meaning(&state), "case {name}");
    }
}
