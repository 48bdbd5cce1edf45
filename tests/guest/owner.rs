//! Owners: processes that start a VM and can be killed. An owner is this test binary again, which runs the same test.

use std::env;
use std::io::{BufRead, BufReader, Read, stdin};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hyperkit::{HyperKit, Vm};
use tempfile::TempDir;

use crate::common::StopOnDrop;
use crate::common::guest::BOOT_TIMEOUT;

/// The environment variable of an owner. It contains the state directory of the VM.
const STATE_DIR: &str = "HYPERKIT_OWNER_STATE_DIR";
/// The guest prints this when it has booted. The owner prints it, too, since the guest's console may not be the owner's
/// output.
const READY: &str = "is up";

/// The owner of a VM, and the VM's state directory. On drop, the owner and the VM are killed, and the directory is deleted.
pub struct Owner {
    process: Child,
    output: Receiver<String>,
    pub state_dir: PathBuf,
    _stop: StopOnDrop,
    _dir: TempDir,
}

impl Owner {
    /// Spawns the owner, which calls `own` with a state directory, keeps the result, and waits to be killed.
    ///
    /// `test` is the path of the calling test in this binary. The owner runs that test, so this has to be the first call of
    /// the test.
    pub fn spawn<T>(test: &str, own: impl FnOnce(&Path) -> T) -> Self {
        if let Some(state_dir) = env::var_os(STATE_DIR) {
            let owned = own(Path::new(&state_dir));
            println!("the VM {READY}");
            let _ = stdin().read_to_end(&mut Vec::new()); // returns also if the test is killed
            drop(owned);
            exit(0);
        }
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().canonicalize().unwrap().join("vm");
        let mut owner = Command::new(env::current_exe().unwrap());
        owner.args(["--exact", test, "--nocapture"]).env(STATE_DIR, &state_dir);
        let mut process = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).split(b'\n');
        let (send, output) = channel();
        // All output has to be read. Otherwise a guest whose console is the owner's output would block.
        thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                let _ = send.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { process, output, _stop: StopOnDrop(state_dir.clone()), state_dir, _dir: dir }
    }

    /// [`spawn`](Self::spawn)s the owner and waits until `own` has returned, or until the guest has booted with its console
    /// on the owner's standard output.
    pub fn start<T>(test: &str, own: impl FnOnce(&Path) -> T) -> Self {
        let owner = Self::spawn(test, own);
        while !owner.output.recv_timeout(BOOT_TIMEOUT).expect("the owner has no VM").contains(READY) {}
        owner
    }

    /// Finds the VM in its state directory.
    pub fn vm(&self) -> Vm {
        HyperKit::from_state(&self.state_dir).unwrap().vm().unwrap().expect("the VM is running")
    }

    /// Kills the owner with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.kill();
    }
}
