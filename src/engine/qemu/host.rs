//! The arguments that depend on the host: accelerator, CPU model, sandbox.

use std::fs::{self, OpenOptions};
use std::path::Path;

use crate::config::HyperKit;
use crate::engine::qemu::names::may_ask_for_kvm;
use crate::sys::elf::needed_libraries;

/// An emulated CPU with the instructions of x86-64-v2, which RHEL 9 and others require, and with a source of random numbers. A
/// guest boots on it as fast as on QEMU's default, which has neither. On `max`, the model with all that QEMU emulates, it boots
/// slower.
const EMULATED_CPU: &str = "Nehalem,+rdrand";
/// The model with all that the host's CPU has.
const HOST_CPU: &str = "host";
/// QEMU itself needs none of these system calls once it runs. The manual describes each group.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// What QEMU is linked with if it has the sandbox.
const SANDBOX_LIBRARY: &str = "libseccomp.so";
/// What every QEMU is linked with.
const QEMU_LIBRARY: &str = "libglib-2.0.so";

/// The arguments before all others.
pub(super) fn arguments(description: &HyperKit) -> Vec<String> {
    let program = description.hyperkit.as_deref().unwrap_or(Path::new(""));
    let accelerator = accelerator();
    // QEMU refuses `-accel` behind `-enable-kvm`, and here takes the later value.
    let mut arguments = match may_ask_for_kvm(program.file_name().unwrap_or_default().as_encoded_bytes()) {
        true => vec!["-machine".to_owned(), format!("accel={accelerator}")],
        false => vec!["-accel".to_owned(), accelerator.to_owned()],
    };
    if description.cpu.is_none() {
        let model = if accelerator == TCG { EMULATED_CPU } else { HOST_CPU };
        arguments.extend(["-cpu".to_owned(), model.to_owned()]);
    }
    if description.sandbox && has_sandbox(program) {
        arguments.extend(["-sandbox".to_owned(), SANDBOX.to_owned()]);
    }
    arguments
}

/// Whether QEMU emulates the CPU although the description asks for that of the host.
pub(super) fn lacks_host_cpu(description: &HyperKit) -> bool {
    description.cpu.as_deref().and_then(|cpu| cpu.split(',').next()) == Some(HOST_CPU) && accelerator() == TCG
}

/// Whether QEMU has the sandbox, which is Linux's seccomp. A QEMU without it refuses the option. The program file tells this
/// in microseconds; running QEMU to ask it would take as long as a start. A script or another program that becomes QEMU does not tell,
/// nor does a QEMU without shared libraries. It counts as having the sandbox: otherwise its VMs would lack it, and nobody would
/// notice.
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

/// QEMU's accelerator for this host. That `/dev/kvm` can be opened proves nothing: on some hosts whose CPU has no
/// virtualization it opens and passes every probe, and then the guest hangs.
fn accelerator() -> &'static str {
    if !cfg!(target_arch = "x86_64") {
        return TCG;
    }
    if cfg!(target_os = "macos") {
        return "hvf";
    }
    let can_virtualize = fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
        cpus.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    });
    let opens = || OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if can_virtualize && opens() { "kvm" } else { TCG }
}
