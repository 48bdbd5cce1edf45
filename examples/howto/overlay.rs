//! Runs two VMs on one disk image at once. What they write to it is thrown away.

use std::error::Error;
use std::fs;
use std::time::Duration;

use hyperkit::{Disk, Disks, HyperKit, create_disk_image};

const TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    if !fs::exists("base.img")? {
        create_disk_image("base.img", 64)?;
    }
    let template = HyperKit::new().kernel("vmlinuz").initrd("initrd.img").agent(true);
    let template = template.disk(Disk::raw("base.img").overlay());
    let cmdline = format!("console={} quiet panic=1 no_timer_check", template.engine()?.kernel_console());
    let vms = ["vms/one", "vms/two"].map(|state_dir| template.clone().state_dir(state_dir).start_scoped(&cmdline));
    for vm in vms {
        let vm = vm?;
        let name = vm.state_dir().ok_or("no state directory")?.display().to_string();
        let script = "head -c 4 /dev/vda | od -c | head -n 1; echo used | dd of=/dev/vda; head -c 4 /dev/vda";
        let shell = vm.command("sh").args(["-c", script]).agent_timeout(TIMEOUT).output()?;
        print!("{}: {}", name.rsplit('/').next().unwrap_or_default(), String::from_utf8_lossy(&shell.stdout));
        println!();
        vm.kill()?;
        vm.remove(Disks::Delete)?; // keeps base.img
    }
    let is_unchanged = fs::read("base.img")?.iter().all(|&byte| byte == 0);
    println!("the image is {}", if is_unchanged { "unchanged" } else { "changed" });
    Ok(())
}
