//! Boots a kernel with an initrd that contains one statically linked program:
//! `kernel KERNEL PROGRAM`.

use std::error::Error;
use std::fs;

use hyperkit::{Disks, HyperKit};

/// Appends a file to an archive in cpio's format "newc", which Linux unpacks into its first file
/// system.
fn append(archive: &mut Vec<u8>, name: &str, mode: usize, device: [usize; 2], content: &[u8]) {
    let [major, minor] = device;
    archive.extend(b"070701");
    // Inode, mode, owner, group, links, time, size, device of the archive, device of the file,
    // length of the name, checksum.
    for field in [0, mode, 0, 0, 1, 0, content.len(), 0, 0, major, minor, name.len() + 1, 0] {
        archive.extend(format!("{field:08x}").as_bytes());
    }
    for part in [format!("{name}\0").as_bytes(), content] {
        archive.extend(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(kernel), Some(program)) = (args.next(), args.next()) else { return Err("kernel KERNEL PROGRAM".into()) };

    let mut initrd = Vec::new();
    append(&mut initrd, "dev", 0o040_755, [0, 0], b"");
    // Standard input and output of /init.
    append(&mut initrd, "dev/console", 0o020_600, [5, 1], b"");
    append(&mut initrd, "init", 0o100_755, [0, 0], &fs::read(program)?);
    append(&mut initrd, "TRAILER!!!", 0, [0, 0], b"");
    fs::write("own-initrd.img", initrd)?;

    let description = HyperKit::new().state_dir("vm").kernel(kernel).initrd("own-initrd.img").memory_mib(256);
    let console = description.engine()?.kernel_console();
    let vm = description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))?;
    for line in vm.console_lines()? {
        println!("{}", line?);
    }
    println!("the VM {}", vm.wait());
    vm.remove(Disks::Delete)?;
    Ok(())
}
