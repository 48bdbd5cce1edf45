// Sets up what the examples in the documentation need, before each of them runs: a temporary working directory with the
// guest of `examples/setup.sh` (`vmlinuz`, `vmlinux`, `initrd.img`, `host-root.img`) and with the state directory `vm`. `vm` is a symlink to
// `machines/vm`, for the examples of `list`. When the example ends, its VMs are killed.

use std::env::set_current_dir;
use std::fs::create_dir_all;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{Thread, current, park};

use hyperkit::{HyperKit, Network};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The examples are written for x86-64 guests.
const GUEST: &str = if cfg!(target_arch = "aarch64") { "target/guest-amd64" } else { "target/guest" };
/// A kernel command line with which the guest powers off by itself.
pub const POWERS_OFF: &str = "console=ttyS0 panic=1 quiet no_timer_check hyperkit.report";

/// The working directory of an example. On drop, its VMs are killed and the directory is deleted.
pub struct Here(tempfile::TempDir);

impl Drop for Here {
    fn drop(&mut self) {
        for found in HyperKit::list("machines").unwrap() {
            if let Some(vm) = found.vm.unwrap() {
                vm.kill().unwrap();
            }
        }
        set_current_dir("/").unwrap();
    }
}

/// Sets up the directory without a running VM.
pub fn alone() -> Here {
    let dir = tempfile::tempdir().unwrap();
    set_current_dir(&dir).unwrap();
    create_dir_all("machines/vm").unwrap();
    symlink("machines/vm", "vm").unwrap();
    for name in ["vmlinuz", "vmlinux", "initrd.img", "host-root.img"] {
        let file = Path::new(ROOT).join(GUEST).join(name);
        assert!(file.exists(), "{} is missing: run examples/setup.sh --tests first", file.display());
        symlink(file, name).unwrap();
    }
    Here(dir)
}

/// Sets up the directory, and starts a VM in `vm`.
pub fn running() -> Here {
    start(|description| description)
}

/// Sets up the directory, and starts a VM with vsock in `vm`.
pub fn with_vsock() -> Here {
    let daemon = Path::new(ROOT).join("target/tools/bin/vhost-device-vsock");
    start(|description| description.vsock(true).vhost_device_vsock(daemon))
}

fn start(change: impl FnOnce(HyperKit) -> HyperKit) -> Here {
    let here = alone();
    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").network(Network::Nat);
    change(description.memory_mib(256)).start("console=ttyS0 panic=1 no_timer_check").unwrap();
    here
}

/// Polls a future on this thread until it is complete.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (mut future, waker) = (pin!(future), Arc::new(Unpark(current())).into());
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => park(),
        }
    }
}
