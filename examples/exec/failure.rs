//! Messages about errors before and while the program runs.

use std::error::Error;

use hyperkit::{Error as VmError, Vm};

use crate::messages;

/// An error before the program ran. `modules` says which modules the kernel has.
pub fn before_start(error: &VmError, modules: &str, vm: &Vm) -> String {
    match error {
        VmError::VmExited { exit, .. } => with_log(format!("the guest did not boot: the VM {exit}{modules}"), vm),
        VmError::AgentNotResponding { timeout, .. } => {
            let seconds = timeout.as_secs();
            let text = "the guest did not boot, or its agent did not answer, within";
            with_log(format!("{text} {seconds} s{modules}; see --boot-timeout"), vm)
        }
        error => while_running(error, vm),
    }
}

/// An error while the program ran.
pub fn while_running(error: &(dyn Error + 'static), vm: &Vm) -> String {
    match error.downcast_ref() {
        Some(VmError::VmExited { exit, .. }) => with_log(format!("the VM {exit} while the program ran"), vm),
        Some(VmError::AgentNotResponding { .. }) => {
            with_log("the guest hangs: its agent does not answer any more".to_owned(), vm)
        }
        Some(VmError::AgentFailed { .. }) => with_log(messages::explain(error, true), vm),
        _ => messages::explain(error, true),
    }
}

/// A text with the last lines that the guest and the hypervisor have printed.
fn with_log(text: String, vm: &Vm) -> String {
    let tail = vm.log_tail();
    match tail.is_empty() {
        true => format!("{text}; the console is empty"),
        false => format!("{text}; the last lines of its output:\n{tail:#}"),
    }
}
