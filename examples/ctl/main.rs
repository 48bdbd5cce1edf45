//! Controls VMs by their state directories: `cargo run --example ctl -- --help`.

#[path = "../shared/attach.rs"]
mod attach;
#[path = "../shared/number.rs"]
mod number;
#[path = "../shared/outcome.rs"]
mod outcome;

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hyperkit::{Console, Disks, Engine, Error, ErrorKind, Found, HyperKit, Vm, VmStatus};
use number::number;
use serde_json::{Value, json};

const HELP: &str = "\
Controls the VMs that state directories record.

    cargo run --example ctl -- [--json] COMMAND [DIR ...]

  list [DIR]                   lists the VMs in the directories in DIR (default: .)
  show DIR                     shows one VM: whether it runs, how to reach it, and its description
  start [--cmdline TEXT] DIR   starts it again in the background, as the last time
  console DIR                  makes this terminal its console; Ctrl-] (byte 29) leaves it, the end of input does not
  log [-f] DIR                 prints its console's output; with -f, also what follows, until the VM exits
  pause, resume DIR            stops its vCPUs, and lets them continue
  shutdown [--grace S] DIR     presses its power button, and kills the hypervisor after S seconds (30)
  stop DIR                     kills the hypervisor
  rm [--keep-disk] DIR         deletes what was created in the directory

Of several DIRs each is handled, also after an error with another one. With --json each answer is a line of JSON.
";

const COMMANDS: [&str; 10] = ["list", "show", "start", "console", "log", "pause", "resume", "shutdown", "stop", "rm"];

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

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

/// Returns the options and the other words: a command and at least one directory. `None` after printing help.
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
            return Err(format!("{option} requires the command {}", commands.join(" or ")).into());
        }
    }
    match words.len() {
        0 => Err("missing command".into()),
        _ if !is_for(&COMMANDS) => Err(format!("unknown command: {command}").into()),
        1 if command == "list" => Ok(Some((options, vec!["list".into(), ".".into()]))),
        1 => Err(format!("{command} requires a DIR").into()),
        3.. if is_for(&["list", "console"]) => Err(format!("{command} takes one DIR").into()),
        _ if command == "console" && options.json => Err("console has no --json".into()),
        _ => Ok(Some((options, words))),
    }
}

/// Returns whether all directories were handled without an error.
fn execute(options: &Options, words: &[PathBuf]) -> bool {
    let (command, dirs) = words.split_first().map_or((Path::new(""), words), |(command, dirs)| (command, dirs));
    let mut success = true;
    for dir in dirs {
        let done = match command.to_str().unwrap_or_default() {
            "list" => list(dir, options),
            "show" => show(dir, options),
            "log" => log(dir, options),
            command => act(command, dir, options),
        };
        if let Err(error) = done {
            match options.json {
                true => {
                    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
                    print(&json!({ "dir": dir, "error": format!("{error:#}") }).to_string());
                }
                false => eprintln!("ctl: {}: {error:#}", dir.display()),
            }
            success = false;
        }
    }
    success
}

/// Prints a line. Returns whether the reader still reads.
fn try_print(line: &str) -> bool {
    writeln!(stdout(), "{line}").is_ok()
}

fn print(line: &str) {
    try_print(line);
}

/// The part that `list` and `show` have in common.
fn summary(description: &HyperKit, vm: Option<&Vm>) -> Value {
    let engine = description.hyperkit.as_ref().map(|program| Engine::of(program).to_string());
    json!({
        "dir": description.state_dir,
        "running": vm.is_some(),
        "pid": vm.map(Vm::pid),
        "engine": engine,
        "cpus": description.cpus,
        "memory": description.memory_mib,
    })
}

/// The state in words: also whether the VM is paused, if the engine reports it.
fn state(vm: Option<&Vm>) -> String {
    match vm.map(Vm::status) {
        None | Some(Ok(VmStatus::Exited(_))) => "stopped".to_owned(),
        Some(Ok(status)) => status.to_string(),
        Some(Err(_)) => "unknown".to_owned(),
    }
}

fn list(root: &Path, options: &Options) -> Result<()> {
    root.metadata()?; // the library takes a missing directory for an empty one
    if !options.json {
        print(&format!("{:<24} {:>10} {:>8} {:>5} {:>7}  ENGINE", "DIR", "PID", "STATE", "CPUS", "MIB"));
    }
    for found in HyperKit::list(root)? {
        let entry = list_entry(&found);
        if options.json {
            print(&entry.to_string());
            continue;
        }
        let name = Path::new(found.dir.file_name().unwrap_or_default()).display();
        if let Some(error) = entry["error"].as_str() {
            print(&format!("{name:<24} {error}"));
        } else {
            let vm = found.vm.ok().flatten();
            let pid = vm.as_ref().map_or("-".to_owned(), |vm| vm.pid().to_string());
            let (state, engine) = (state(vm.as_ref()), entry["engine"].as_str().unwrap_or("-"));
            let (cpus, memory) = (entry["cpus"].to_string(), entry["memory"].to_string());
            print(&format!("{name:<24} {pid:>10} {state:>8} {cpus:>5} {memory:>7}  {engine}"));
        }
    }
    Ok(())
}

/// What `list` prints about a directory: a summary, or at least the directory and an error.
fn list_entry(found: &Found) -> Value {
    let dir = std::fs::canonicalize(&found.dir).unwrap_or_else(|_| found.dir.clone());
    match (&found.description, &found.vm) {
        (Ok(description), Ok(vm)) => summary(description, vm.as_ref()),
        (Ok(_), Err(error)) => json!({ "dir": dir, "error": format!("{error:#}") }),
        (Err(error), Ok(Some(vm))) => {
            let error = format!("{}; the VM runs as process {}", describe(error), vm.pid());
            json!({ "dir": dir, "running": true, "pid": vm.pid(), "error": error })
        }
        (Err(error @ Error::DamagedState { .. }), Ok(None)) => {
            json!({ "dir": dir, "error": format!("{}; rm removes it", describe(error)) })
        }
        (Err(error), _) => json!({ "dir": dir, "error": describe(error) }),
    }
}

/// An error, without the directory if that says enough.
fn describe(error: &Error) -> String {
    match error {
        Error::DamagedState { .. } => "damaged state file".to_owned(),
        Error::StateNotFound { .. } => "no state file".to_owned(),
        error => format!("{error:#}"),
    }
}

fn show(dir: &Path, options: &Options) -> Result<()> {
    let description = HyperKit::from_state(dir)?;
    let vm = description.vm()?;
    let mut output = summary(&description, vm.as_ref());
    if let Some(vm) = vm {
        // Unknown values are left out, such as the pty of a console on a terminal.
        let addresses = vm.addresses().unwrap_or_default().into_iter();
        let forwards = vm.port_forwards().unwrap_or_default();
        output["consoles"] = json!(vm.description().pty_paths().unwrap_or_default());
        if options.json {
            output["addresses"] =
                addresses.map(|(card, ip)| json!({ "card": format!("{card:?}"), "ip": ip })).collect();
            output["forwards"] = json!(forwards);
        } else {
            output["state"] = state(Some(&vm)).into();
            output["addresses"] = addresses.map(|(card, address)| format!("{card} {address}")).collect();
            output["forwards"] = forwards.iter().map(ToString::to_string).collect();
        }
    }
    output["cmdline"] = json!(description.recorded_kernel_cmdline());
    output["description"] = serde_json::to_value(&description)?;
    if options.json {
        print(&output.to_string());
        return Ok(());
    }
    for (key, value) in output.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => print(&format!("{key}: {text}")),
            Value::Object(_) => print(&format!("{key}: {value:#}")),
            Value::Array(many) => many.iter().filter_map(Value::as_str).for_each(|one| print(&format!("{key}: {one}"))),
            other => print(&format!("{key}: {other}")),
        }
    }
    Ok(())
}

fn log(dir: &Path, options: &Options) -> Result<()> {
    let description = HyperKit::from_state(dir)?;
    // A guest can print control sequences. The terminal answers some of them, and the next program would read the answer.
    let escape = |character: char| match character {
        '\t' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    let line = |line: &str| match stdout().is_terminal() {
        _ if options.json => try_print(&json!(line).to_string()),
        true => try_print(&line.chars().map(escape).collect::<String>()),
        false => try_print(line),
    };
    match description.vm()? {
        Some(vm) if options.follow => {
            for output in vm.console_lines()? {
                if !line(&output?) {
                    break;
                }
            }
        }
        _ => drop(String::from_utf8_lossy(&description.console_log()?).lines().all(line)),
    }
    Ok(())
}

/// Returns the description in a state directory, and the VM if it runs. A running VM is also found if the state file is
/// damaged or missing; its description is then incomplete.
fn find(dir: &Path) -> hyperkit::Result<(HyperKit, Option<Vm>)> {
    match HyperKit::from_state(dir) {
        Err(error) if error.kind() == ErrorKind::State => match HyperKit::new().state_dir(dir).vm()? {
            Some(vm) => Ok((vm.description().clone(), Some(vm))),
            None => Err(error),
        },
        description => {
            let description = description?;
            let vm = description.vm()?;
            Ok((description, vm))
        }
    }
}

/// Does something to one VM, and prints the result.
fn act(command: &str, dir: &Path, options: &Options) -> Result<()> {
    let (mut description, vm) = match find(dir) {
        Err(Error::DamagedState { .. }) if command == "rm" => (HyperKit::new().state_dir(dir), None),
        found => found?,
    };
    let mut done = json!({ "dir": description.state_dir, "done": command });
    let running = || vm.as_ref().ok_or("VM not running");
    let result = match command {
        "start" => {
            if description.serials.is_none() && description.console == Some(Console::Stdio) {
                description.console = None; // in the background there is no terminal
            }
            let last = description.recorded_kernel_cmdline().unwrap_or_default();
            let vm = description.start(options.cmdline.as_ref().unwrap_or(&last))?;
            done["pid"] = vm.pid().into();
            format!("runs as process {}", vm.pid())
        }
        "rm" => {
            description.remove(if options.keep_disk { Disks::Keep } else { Disks::Delete })?;
            "was removed".to_owned()
        }
        "console" => attach::attach(running()?)?.to_owned(),
        "pause" => running()?.pause().map(|()| "is paused".to_owned())?,
        "resume" => running()?.resume().map(|()| "was resumed".to_owned())?,
        _ => match &vm {
            None => "was not running".to_owned(),
            Some(vm) if command == "stop" => vm.kill().map(|()| "was killed".to_owned())?,
            Some(vm) => outcome::describe(vm.shutdown(Duration::from_secs(options.grace.unwrap_or(30)))?).to_owned(),
        },
    };
    done["said"] = result.as_str().into();
    print(&if options.json { done.to_string() } else { format!("{}: {result}", dir.display()) });
    Ok(())
}
