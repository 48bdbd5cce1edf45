// Where the examples in the documentation run: a directory of their own with the guest of `examples/setup.sh` in it, where
// `vm` remembers a machine, as the only one in `machines`. What they have started ends with them.

use std::env::set_current_dir;
use std::fs::create_dir_all;
use std::os::unix::fs::symlink;
use std::path::Path;

use hyperkit::{Console, HyperKit, VpnKit};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// A kernel command line with which the guest ends by itself.
pub const POWERS_OFF: &str = "console=ttyS0 panic=1 quiet hyperkit.report";

pub struct Here(tempfile::TempDir);

impl Drop for Here {
    fn drop(&mut self) {
        HyperKit::list("machines").unwrap().into_iter().flatten().for_each(|machine| machine.stop().unwrap());
        set_current_dir("/").unwrap();
    }
}

/// No machine was started here.
pub fn alone() -> Here {
    let dir = tempfile::tempdir().unwrap();
    set_current_dir(&dir).unwrap();
    create_dir_all("machines/vm").unwrap();
    symlink("machines/vm", "vm").unwrap();
    for name in ["vmlinuz", "initrd.img"] {
        let file = Path::new(ROOT).join("target/guest").join(name);
        assert!(file.exists(), "{} is missing: run examples/setup.sh --tests first", file.display());
        symlink(file, name).unwrap();
    }
    Here(dir)
}

/// One runs here.
pub fn running() -> Here {
    start(|machine| machine)
}

/// One with vsock runs here.
pub fn with_vsock() -> Here {
    start(|machine| machine.vsock(true).vhost_device_vsock(Path::new(ROOT).join("target/tools/bin/vhost-device-vsock")))
}

fn start(change: impl Fn(HyperKit) -> HyperKit) -> Here {
    let here = alone();
    let machine = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").vpnkit(VpnKit::Auto);
    change(machine.memory(256).console(Console::File)).start("console=ttyS0").unwrap();
    here
}
