//! The Linux guest that `examples/setup.sh` creates.

use std::path::{Path, PathBuf};

const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest");
const SETUP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/setup.sh");

/// Returns the paths of the guest's kernel and initrd.
pub fn kernel_and_initrd() -> Result<(PathBuf, PathBuf), String> {
    let file = |name| {
        let path = Path::new(GUEST).join(name);
        match path.exists() {
            true => Ok(path),
            false => Err(format!("no guest: {} not found; create the guest with {SETUP}", path.display())),
        }
    };
    Ok((file("vmlinuz")?, file("initrd.img")?))
}
