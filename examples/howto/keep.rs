//! Keeps a VM across restarts of this program. `keep` starts the VM or attaches to it, `keep stop`
//! shuts it down.

use std::time::Duration;

use hyperkit::{Disk, Disks, HyperKit, Result, StartOrAttach};

fn main() -> Result<()> {
    // What earlier runs have left.
    for found in HyperKit::list("vms")? {
        match found.vm? {
            Some(vm) => println!("{} runs as process {}", found.dir.display(), vm.pid()),
            None => println!("{} is not running", found.dir.display()),
        }
    }

    let description =
        HyperKit::new().state_dir("vms/web").kernel("vmlinuz").initrd("initrd.img").disk(Disk::in_state_dir(64));
    if std::env::args().nth(1).as_deref() == Some("stop") {
        if let Some(vm) = description.vm()? {
            println!("{}", vm.shutdown(Duration::from_secs(60))?);
        }
        // Without this, the next start has the same disk.
        return description.remove(Disks::Delete);
    }
    let console = description.engine()?.kernel_console();
    let vm = match description.start_or_attach(&format!("console={console} quiet panic=1 no_timer_check"))? {
        StartOrAttach::Started(vm) => {
            println!("started process {}", vm.pid());
            vm
        }
        StartOrAttach::Attached(vm) => {
            println!("attached to process {}", vm.pid());
            vm
        }
    };
    println!("{}", vm.wait_for_console("is up", Duration::from_secs(300))?);
    Ok(()) // the VM runs on
}
