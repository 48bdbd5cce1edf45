//! Shares a directory with the guest, which reads a file in it and writes another.

use std::error::Error;
use std::fs;
use std::time::Duration;

use hyperkit::{Disks, HyperKit};

const TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    fs::create_dir_all("shared")?;
    fs::write("shared/question.txt", "which kernel is this?\n")?;

    let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    let description = description.share_dir("shared", "files"); // a directory and its tag
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))?;
    vm.wait_for_console("# ", TIMEOUT)?;
    let console = vm.console()?;
    let mount = "mount -t 9p -o trans=virtio,version=9p2000.L files /mnt";
    console.send_line(&format!("{mount} && cat /mnt/question.txt"))?;
    console.expect("which kernel is this?", TIMEOUT)?;
    // The console echoes this line. The two quotes keep "unmounted" out of the echo.
    console.send_line("uname -r >/mnt/answer.txt && umount /mnt && echo un''mounted")?;
    console.expect("unmounted", TIMEOUT)?;

    print!("the guest wrote: {}", fs::read_to_string("shared/answer.txt")?);
    vm.kill()?;
    vm.remove(Disks::Delete)?;
    Ok(())
}
