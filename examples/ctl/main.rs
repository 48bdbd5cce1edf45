//! Looks after machines in their state directories: `cargo run --example ctl -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/number.rs"]
mod number;
#[path = "../shared/told.rs"]
mod told;

use std::error::Error;
use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hyperkit::{Console, Engine, HyperKit, Shutdown, Vm};
use number::number;
use serde_json::{Value, json};

const HELP: &str = "\
Looks after the machines that state directories remember.

    cargo run --example ctl -- [--json] COMMAND [DIR ...]

  list [DIR]                   the machines in the directories in DIR (default: .)
  show DIR                     one machine: whether it runs, how to reach it, and its description
  start [--cmdline TEXT] DIR   start it again in the background, as the last time
  console DIR                  this terminal becomes its console; Ctrl-] (byte 29) leaves it, the end of input does not
  log [-f] DIR                 what its console has said; with -f, also what it will say, until it ends
  pause, resume DIR            stop its processors, and let them go on
  shutdown [--grace S] DIR     press its power button, and after S seconds (30) pull the plug
  stop DIR                     pull the plug
  rm [--keep-disk] DIR         forget it, and delete what was made for it

Of several DIRs each is done, whatever became of the one before. With --json each answer is a line of JSON.
";

const COMMANDS: [&str; 10] = ["list", "show", "start", "console", "log", "pause", "resume", "shutdown", "stop", "rm"];

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

#[derive(Default)]
struct Options {
    json: bool,
    follow: bool,
    keep_disk: bool,
    cmdline: Option<String>,
    grace: Option<u64>,
}

fn main() -> ExitCode {
    match parse().map(|command| command.is_none_or(|(options, words)| execute(&options, &words))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ctl: {error}; --help shows how");
            ExitCode::from(2)
        }
    }
}

/// The options, and the other words, the first of which is a command with as many others as it takes; none if only help
/// was wanted.
fn parse() -> Result<Option<(Options, Vec<PathBuf>)>> {
    use lexopt::prelude::*;
    let (mut options, mut words) = (Options::default(), Vec::<PathBuf>::new());
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("json") => options.json = true,
            Short('f') | Long("follow") => options.follow = true,
            Long("keep-disk") => options.keep_disk = true,
            Long("cmdline") => options.cmdline = Some(args.value()?.string()?),
            Long("grace") => options.grace = Some(number(&mut args, "--grace")?),
            Value(word) => words.push(word.into()),
            _ => return Err(arg.unexpected().into()),
        }
    }
    let command = words.first().map_or("", |word| word.to_str().unwrap_or_default());
    let is_for = |commands: &[&str]| commands.contains(&command);
    for (option, is_set, commands) in [
        ("-f", options.follow, &["log"][..]),
        ("--keep-disk", options.keep_disk, &["rm"]),
        ("--cmdline", options.cmdline.is_some(), &["start"]),
        ("--grace", options.grace.is_some(), &["shutdown"]),
    ] {
        if is_set && !is_for(commands) {
            return Err(format!("{option} is for {}", commands.join(", ")).into());
        }
    }
    match words.len() {
        0 => Err("which command?".into()),
        _ if !is_for(&COMMANDS) => Err(format!("no command: {command}").into()),
        1 if command == "list" => Ok(Some((options, vec!["list".into(), ".".into()]))),
        1 => Err(format!("{command} which DIR?").into()),
        3.. if is_for(&["list", "console"]) => Err(format!("{command} takes one DIR").into()),
        _ if command == "console" && options.json => Err("a console is no JSON".into()),
        _ => Ok(Some((options, words))),
    }
}

/// Whether all went well.
fn execute(options: &Options, words: &[PathBuf]) -> bool {
    let (command, dirs) = words.split_first().map_or((Path::new(""), words), |(command, dirs)| (command, dirs));
    let mut well = true;
    for dir in dirs {
        let done = match command.to_str().unwrap_or_default() {
            "list" => list(dir, options),
            "show" => show(dir, options),
            "log" => log(dir, options),
            command => act(command, dir, options),
        };
        if let Err(error) = done {
            let error = told::told(&*error);
            match options.json {
                true => {
                    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
                    say(&json!({ "dir": dir, "error": error }).to_string());
                }
                false => eprintln!("ctl: {}: {error}", dir.display()),
            }
            well = false;
        }
    }
    well
}

/// A line, and whether somebody still listens.
fn is_heard(line: &str) -> bool {
    writeln!(stdout(), "{line}").is_ok()
}

fn say(line: &str) {
    is_heard(line);
}

fn running(machine: &HyperKit) -> Result<Vm> {
    Ok(machine.vm()?.ok_or("it does not run")?)
}

/// What `show` and `list` say of a machine.
fn state(machine: &HyperKit) -> Value {
    let engine = machine.hyperkit.as_ref().map(|program| Engine::of(program).to_string());
    let vm = machine.vm().ok().flatten();
    json!({
        "dir": machine.state_dir,
        "running": vm.is_some(),
        "pid": vm.map(|vm| vm.pid()),
        "engine": engine,
        "cpus": machine.cpus,
        "memory": machine.memory,
    })
}

fn list(root: &Path, options: &Options) -> Result<()> {
    root.metadata()?; // where there is nothing, the library would list nothing
    if !options.json {
        say(&format!("{:<24} {:>10} {:>8} {:>5} {:>7}  ENGINE", "DIR", "PID", "STATE", "CPUS", "MIB"));
    }
    for machine in HyperKit::list(root)? {
        let state = match machine {
            Ok(machine) => state(&machine),
            Err(hyperkit::Error::DamagedState { path, .. }) => {
                json!({ "dir": path.parent(), "error": "the state file is damaged; rm forgets it" })
            }
            Err(error) => json!({ "dir": root, "error": told::told(&error) }),
        };
        if options.json {
            say(&state.to_string());
            continue;
        }
        let name = state["dir"].as_str().and_then(|dir| Path::new(dir).file_name()).unwrap_or_default();
        if let Some(error) = state["error"].as_str() {
            say(&format!("{:<24} {error}", Path::new(name).display()));
        } else {
            let pid = state["pid"].as_u64().map_or("-".to_owned(), |pid| pid.to_string());
            let runs = if state["running"] == true { "runs" } else { "stopped" };
            let (cpus, memory) = (state["cpus"].to_string(), state["memory"].to_string());
            let engine = state["engine"].as_str().unwrap_or("-");
            say(&format!("{:<24} {pid:>10} {runs:>8} {cpus:>5} {memory:>7}  {engine}", Path::new(name).display()));
        }
    }
    Ok(())
}

fn show(dir: &Path, options: &Options) -> Result<()> {
    let machine = HyperKit::from_state(dir)?;
    let mut state = state(&machine);
    if let Some(vm) = machine.vm()? {
        // What cannot be told, of a console on a terminal for instance, is left out.
        let addresses = vm.addresses().unwrap_or_default().into_iter();
        let forwards = vm.port_forwards().unwrap_or_default();
        state["consoles"] = json!(machine.ttys().unwrap_or_default());
        if options.json {
            state["addresses"] = addresses.map(|(card, ip)| json!({ "card": format!("{card:?}"), "ip": ip })).collect();
            state["forwards"] = json!(forwards);
        } else {
            state["addresses"] = addresses.map(|(card, address)| format!("{card:?} {address}")).collect();
            state["forwards"] = forwards.iter().map(ToString::to_string).collect();
        }
    }
    state["cmdline"] = json!(machine.kernel_cmdline());
    state["description"] = serde_json::to_value(&machine)?;
    if options.json {
        say(&state.to_string());
        return Ok(());
    }
    for (key, value) in state.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => say(&format!("{key}: {text}")),
            Value::Object(_) => say(&format!("{key}: {value:#}")),
            Value::Array(many) => many.iter().filter_map(Value::as_str).for_each(|one| say(&format!("{key}: {one}"))),
            other => say(&format!("{key}: {other}")),
        }
    }
    Ok(())
}

fn log(dir: &Path, options: &Options) -> Result<()> {
    let machine = HyperKit::from_state(dir)?;
    // What a guest says may be commands for a terminal. Some have an answer, which would be typed into the next program.
    let harmless = |character: char| match character {
        '\t' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    let line = |line: &str| match stdout().is_terminal() {
        _ if options.json => is_heard(&json!(line).to_string()),
        true => is_heard(&line.chars().map(harmless).collect::<String>()),
        false => is_heard(line),
    };
    match machine.vm()? {
        Some(vm) if options.follow => {
            for said in vm.console_lines()? {
                if !line(&said?) {
                    break;
                }
            }
        }
        _ => drop(String::from_utf8_lossy(&machine.console_log()?).lines().all(line)),
    }
    Ok(())
}

/// What is done to one machine, and what to say when it is.
fn act(command: &str, dir: &Path, options: &Options) -> Result<()> {
    let mut machine = match HyperKit::from_state(dir) {
        Err(hyperkit::Error::DamagedState { .. }) if command == "rm" => HyperKit::new().state_dir(dir),
        machine => machine?,
    };
    let mut done = json!({ "dir": machine.state_dir, "done": command });
    let said = match command {
        "start" => {
            if machine.serials.is_none() && machine.console == Console::Stdio {
                machine.console = Console::File; // in the background it has no terminal
            }
            let last = machine.kernel_cmdline().unwrap_or_default();
            let vm = machine.start(options.cmdline.as_ref().unwrap_or(&last))?;
            done["pid"] = vm.pid().into();
            format!("runs as process {}", vm.pid())
        }
        "rm" => machine.remove(options.keep_disk).map(|()| "is forgotten".to_owned())?,
        "stop" => machine.stop().map(|()| "is stopped".to_owned())?,
        "console" => attach::attach(&running(&machine)?)?.to_owned(),
        "pause" => running(&machine)?.pause().map(|()| "is paused".to_owned())?,
        "resume" => running(&machine)?.resume().map(|()| "goes on".to_owned())?,
        _ => match machine.vm()?.map(|vm| vm.shutdown(Duration::from_secs(options.grace.unwrap_or(30)))).transpose()? {
            Some(Shutdown::Plug(_)) => "did not power off, and is stopped".to_owned(),
            Some(_) => "has powered off".to_owned(),
            None => "did not run".to_owned(),
        },
    };
    done["said"] = said.as_str().into();
    say(&if options.json { done.to_string() } else { format!("{}: {said}", dir.display()) });
    Ok(())
}
