//! Starts a machine in the background and exits.

use hyperkit::{Console, Disk, HyperKit};

fn main() -> hyperkit::Result<()> {
    let [dir, kernel, initrd] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("DIR KERNEL INITRD");
    let vm = HyperKit::new()
        .state_dir(dir)
        .kernel(kernel)
        .initrd(initrd)
        .disk(Disk::in_state_dir(16))
        .console(Console::File)
        .start("console=ttyS0 panic=1")?;
    println!("{}", vm.pid());
    Ok(())
}
