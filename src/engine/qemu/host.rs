//! The arguments that depend on the host: accelerator, CPU model, sandbox.

use std::fs::{self, OpenOptions};
use std::path::Path;

use crate::config::{Architecture, HyperKit};
use crate::engine::qemu::machine::{Machine, unsupported};
use crate::engine::qemu::names::may_ask_for_kvm;
use crate::error::ConfigError;
use crate::sys::elf::needed_libraries;

/// The model with all features of the host's CPU.
const HOST_CPU: &str = "host";
/// QEMU itself needs none of these system calls once it runs. The manual describes each group.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// The library with which QEMU is linked if it has the sandbox.
const SANDBOX_LIBRARY: &str = "libseccomp.so";
/// A library with which every QEMU is linked.
const QEMU_LIBRARY: &str = "libglib-2.0.so";

/// The arguments before all others. The crate adds no accelerator and no sandbox if an extra argument sets one: if they are given twice,
/// QEMU takes the first one or fails.
pub(super) fn arguments(description: &HyperKit) -> Vec<String> {
    let program = description.hyperkit.as_deref().unwrap_or(Path::new(""));
    let chosen = chosen_accelerator(&description.extra_arguments);
    let machine = Machine::of(description);
    let accelerator = chosen.unwrap_or_else(|| accelerator(machine.architecture));
    let mut arguments = Vec::new();
    if chosen.is_none() {
        // QEMU refuses `-accel` after `-enable-kvm`. Of several values of `-machine accel`, it takes the last.
        let option = match may_ask_for_kvm(program.file_name().unwrap_or_default().as_encoded_bytes()) {
            true => ["-machine".to_owned(), format!("accel={accelerator}")],
            false => ["-accel".to_owned(), accelerator.to_owned()],
        };
        arguments.extend(option);
    }
    if description.cpu.is_none() {
        let model = if accelerator == TCG { machine.emulated_cpu } else { HOST_CPU };
        arguments.extend(["-cpu".to_owned(), model.to_owned()]);
    }
    let chooses_sandbox = description.extra_arguments.iter().any(|argument| option_name(argument) == Some("sandbox"));
    if description.sandbox && !chooses_sandbox && has_sandbox(program) {
        arguments.extend(["-sandbox".to_owned(), SANDBOX.to_owned()]);
    }
    arguments
}

/// Whether QEMU emulates the CPU although the description asks for the host's CPU.
pub(super) fn lacks_host_cpu(description: &HyperKit) -> bool {
    description.cpu.as_deref().and_then(|cpu| cpu.split(',').next()) == Some(HOST_CPU) && emulates_cpu(description)
}

/// The default model of an emulated CPU, `cortex-a57`, has only pages of 4 and 64 KiB (the field TGran16 of its ID_AA64MMFR0_EL1). Which
/// pages other CPUs have is not known here.
pub(super) fn check_pages_of_16_kib(description: &HyperKit) -> Result<(), ConfigError> {
    if description.cpu.is_none() && emulates_cpu(description) {
        return Err(unsupported(
            "a kernel with pages of 16 KiB (`kernel`) on the CPU that it emulates by default; set `cpu` to `cortex-a76`",
        ));
    }
    Ok(())
}

fn emulates_cpu(description: &HyperKit) -> bool {
    let accelerator = chosen_accelerator(&description.extra_arguments);
    accelerator.unwrap_or_else(|| self::accelerator(Machine::of(description).architecture)) == TCG
}

/// The name of an option, which one or two dashes precede.
fn option_name(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name))
}

/// The accelerator that arguments choose. Of several, QEMU tries the first one first; an unknown one counts as emulation.
fn chosen_accelerator(arguments: &[String]) -> Option<&'static str> {
    arguments.iter().enumerate().find_map(|(index, argument)| {
        let value = || arguments.get(index + 1).map_or("", String::as_str);
        let first = |text| str::split(text, [',', ':']).next().unwrap_or_default();
        let chosen = match option_name(argument)? {
            "enable-kvm" => "kvm",
            "accel" => first(value().trim_start_matches("accel=")),
            "machine" | "M" => first(value().split(',').find_map(|option| option.strip_prefix("accel="))?),
            _ => return None,
        };
        Some(["kvm", "hvf"].into_iter().find(|known| *known == chosen).unwrap_or(TCG))
    })
}

/// Whether QEMU has the sandbox, which is Linux's seccomp. A QEMU without it refuses the option. Reading the
/// program file takes microseconds; running QEMU to ask it would take as long as a start. The file does not show whether a script
/// or another program that executes QEMU has the sandbox, or a QEMU without shared libraries. These count as having the sandbox:
/// otherwise their VMs would run without one, and nobody would notice.
fn has_sandbox(program: &Path) -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let libraries = needed_libraries(program).unwrap_or_default();
    let is_linked_with = |name: &str| libraries.iter().any(|library| library.starts_with(name));
    let has = is_linked_with(SANDBOX_LIBRARY) || !is_linked_with(QEMU_LIBRARY);
    if !has {
        let program = program.display();
        log::info!(target: "hyperkit", "{program} is built without seccomp, so the VM runs without QEMU's sandbox");
    }
    has
}

/// QEMU's emulation of the CPU.
const TCG: &str = "tcg";

/// QEMU's accelerator for guests of this architecture on this host. A `/dev/kvm` that can be opened proves nothing on x86-64: on some
/// hosts whose CPU has no virtualization, it passes every probe, and then the guest hangs. On arm64 the list of the CPU's features does
/// not say whether it has virtualization. KVM creates `/dev/kvm` there only if the host booted with it (Linux's
/// Documentation/arch/arm64/booting.rst, EL2).
fn accelerator(guest: Architecture) -> &'static str {
    if Architecture::host() != Some(guest) {
        return TCG;
    }
    if cfg!(target_os = "macos") {
        return "hvf";
    }
    let has_flag = || {
        fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
            cpus.lines()
                .filter(|line| line.starts_with("flags"))
                .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
        })
    };
    let can_virtualize = guest == Architecture::Arm64 || has_flag();
    let opens = || OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if can_virtualize && opens() { "kvm" } else { TCG }
}
