//! Another VM may be started in the state directory after a VM has exited, or after the directory was deleted or moved away.
//! A handle of the first VM must not act on the second one, or pass its output off as that of the first.

use crate::error::{Error, Result};
use crate::vm::Vm;

impl Vm {
    /// Fails if the state directory belongs to another VM by now.
    pub(crate) fn check_not_replaced(&self) -> Result<()> {
        let Some(state) = self.state() else { return Ok(()) };
        let recorded = state.load_record()?.and_then(|record| record.pid);
        match recorded.filter(|recorded| *recorded != self.pid()) {
            // The VM of a program that writes no record, such as minikube, has at least a pid file.
            Some(successor) if state.pid()? != Some(self.pid()) => {
                Err(Error::Replaced { pid: self.pid(), successor, state_dir: state.path().to_owned() })
            }
            _ => Ok(()),
        }
    }
}
