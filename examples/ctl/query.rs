//! The commands that only look: `list`, `show` and `log`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use hyperkit::{Engine, Error, HyperKit, Vm, VmStatus};
use serde_json::{Value, json};

use crate::ctl_command::ctl_command;
use crate::shell::quoted;
use crate::vms::exec_dir;
use crate::{Options, Result, print, try_print};

const MIB: u64 = 1 << 20;

/// A state directory, the description in it, and the VM if it runs.
struct Entry {
    dir: PathBuf,
    description: hyperkit::Result<HyperKit>,
    vm: hyperkit::Result<Option<Vm>>,
}

/// The VM in a directory, if it is a state directory, and those in the directories in it.
fn entries(root: &Path) -> Result<Vec<Entry>> {
    let own = HyperKit::from_state(root);
    let vm = HyperKit::new().state_dir(root).vm();
    let is_state_dir = !matches!((&own, &vm), (Err(Error::StateNotFound { .. }), Ok(None)));
    let own = is_state_dir.then(|| Entry { dir: root.to_owned(), description: own, vm });
    let others = HyperKit::list(root)?.into_iter();
    Ok(own.into_iter().chain(others.map(|it| Entry { dir: it.dir, description: it.description, vm: it.vm })).collect())
}

/// Lists the VMs in a directory. Returns whether there are any.
pub fn list(root: &Path, options: &Options) -> Result<bool> {
    let root = std::fs::canonicalize(root)?; // the library takes a missing directory for an empty one
    let entries = entries(&root)?;
    if options.json {
        entries.iter().for_each(|entry| print(&summary_or_error(entry).to_string()));
        return Ok(!entries.is_empty());
    }
    if entries.is_empty() {
        return Ok(false);
    }
    // Commands take a path. Nobody is in the directory of `exec`.
    let has_path = std::fs::canonicalize(exec_dir()).is_ok_and(|dir| dir == root);
    let name = |entry: &Entry| {
        let name = entry.dir.file_name().filter(|_| !has_path).unwrap_or(entry.dir.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let width = entries.iter().map(|entry| name(entry).chars().count()).max().unwrap_or_default().clamp(24, 80);
    print(&format!("{:<width$} {:>10} {:>8} {:>5} {:>7}  ENGINE", "DIR", "PID", "STATE", "CPUS", "MIB"));
    for entry in &entries {
        let summary = summary_or_error(entry);
        let name = name(entry);
        if let Some(error) = summary["error"].as_str() {
            print(&format!("{name:<width$} {error}"));
        } else {
            let text = |key| summary[key].as_str().unwrap_or("-").to_owned();
            let pid = summary["pid"].as_u64().map_or("-".to_owned(), |pid| pid.to_string());
            let (cpus, memory) = (summary["cpus"].to_string(), summary["memory"].to_string());
            let labels = summary["labels"].as_object().into_iter().flatten();
            let labels: Vec<_> =
                labels.map(|(key, label)| format!("  {key}: {}", label.as_str().unwrap_or("-"))).collect();
            let (state, engine) = (text("state"), text("engine"));
            print(&format!("{name:<width$} {pid:>10} {state:>8} {cpus:>5} {memory:>7}  {engine}{}", labels.concat()));
        }
    }
    Ok(true)
}

/// What `list` prints about a directory: a summary, or at least the directory and an error.
fn summary_or_error(entry: &Entry) -> Value {
    let dir = std::fs::canonicalize(&entry.dir).unwrap_or_else(|_| entry.dir.clone());
    match (&entry.description, &entry.vm) {
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

/// The part that `list` and `show` have in common.
fn summary(description: &HyperKit, vm: Option<&Vm>) -> Value {
    json!({
        "dir": description.state_dir,
        "state": state(vm),
        "running": vm.is_some(),
        "pid": vm.map(Vm::pid),
        "engine": description.hyperkit.as_ref().map(|program| Engine::of(program).to_string()),
        "cpus": description.cpus,
        "memory": description.memory_mib,
        "labels": description.labels,
    })
}

/// The state in a word: also whether the VM is paused, if the engine reports it.
fn state(vm: Option<&Vm>) -> String {
    match vm.map(Vm::status) {
        None | Some(Ok(VmStatus::Exited(_))) => "stopped".to_owned(),
        Some(Ok(status)) => status.to_string(),
        Some(Err(_)) => "unknown".to_owned(),
    }
}

pub fn show(dir: &Path, options: &Options) -> Result<()> {
    let description = HyperKit::from_state(dir)?;
    let vm = description.vm()?;
    let kernel_cmdline = description.recorded_kernel_cmdline();
    let vm = vm.as_ref();
    // Unknown values are left out, such as the pty of a console on a terminal.
    let ptys = vm.map(|vm| vm.description().pty_paths().unwrap_or_default()).unwrap_or_default();
    let addresses = vm.map(|vm| vm.addresses().unwrap_or_default()).unwrap_or_default();
    let forwards = vm.map(|vm| vm.port_forwards().unwrap_or_default()).unwrap_or_default();
    let mut output = summary(&description, vm);
    let mut record = serde_json::to_value(&description)?;
    if options.json {
        if vm.is_some() {
            let addresses = addresses.iter().map(|(card, ip)| json!({ "card": format!("{card:?}"), "ip": ip }));
            output["addresses"] = addresses.collect();
            output["consoles"] = json!(ptys);
            output["forwards"] = json!(forwards);
        }
        output["kernel_cmdline"] = json!(kernel_cmdline);
        output["description"] = record;
        print(&output.to_string());
        return Ok(());
    }
    let line = |key: &str, value: &Value| match value {
        Value::Null => {}
        Value::String(text) => print(&format!("{key}: {text}")),
        other => print(&format!("{key}: {other}")),
    };
    line("state", &output["state"]);
    line("pid", &output["pid"]);
    let dir = description.state_dir.as_deref().unwrap_or(dir);
    match vm {
        Some(_) if !ptys.is_empty() => line("console", &ctl_command("console", dir).into()),
        Some(_) => {}
        None => line("start", &ctl_command("start", dir).into()),
    }
    ptys.iter().for_each(|pty| line("pty", &json!(pty)));
    addresses.iter().for_each(|(card, ip)| line("address", &format!("{ip} ({card})").into()));
    forwards.iter().for_each(|forward| line("port", &forward.to_string().into()));
    line("log", &ctl_command("log", dir).into());
    line("directory", &json!(dir));
    for key in ["engine", "cpus"] {
        line(key, &output[key]);
    }
    line("memory", &format!("{} MiB", description.memory_mib).into());
    created_disks(&description).iter().for_each(|(name, size)| line("disk", &format!("{name} ({size})").into()));
    for disk in description.disks.iter().filter(|disk| disk.overlay) {
        let base = disk.path.as_deref().unwrap_or(Path::new("")).display();
        line("disk", &format!("overlay of {base}, which is deleted with the VM").into());
    }
    line("kernel command line", &json!(kernel_cmdline));
    // This function prints these separately.
    for key in ["arguments", "cmdline", "pid"] {
        record.as_object_mut().map(|record| record.remove(key));
    }
    print(&format!("description: {record:#}"));
    let program = description.hyperkit.as_ref().map(|program| program.as_os_str());
    let arguments = description.recorded_arguments().iter().map(OsStr::new);
    let words = program.into_iter().chain(arguments).map(|word| String::from_utf8_lossy(&quoted(word)).into_owned());
    print(&format!("hypervisor command line: {}", words.collect::<Vec<_>>().join(" ")));
    Ok(())
}

pub fn log(dir: &Path, options: &Options) -> Result<()> {
    let description = HyperKit::from_state(dir)?;
    let line = |line: &str| try_print(&if options.json { json!(line).to_string() } else { line.to_owned() });
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

/// The names and sizes of the disk images that were created in the state directory, and that `rm` deletes.
pub fn created_disks(description: &HyperKit) -> Vec<(String, String)> {
    let record = serde_json::to_value(description).unwrap_or_default();
    let names = record["made_disks"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let size = |name: &str| {
        let metadata = description.state_dir.as_ref()?.join(name).metadata().ok()?;
        Some(format!("{} MiB", metadata.len().div_ceil(MIB)))
    };
    // The library ignores other names, which a damaged record may contain.
    let is_plain = |name: &&str| Path::new(name).file_name() == Some(OsStr::new(name));
    names.filter(is_plain).filter_map(|name| Some((name.to_owned(), size(name)?))).collect()
}
