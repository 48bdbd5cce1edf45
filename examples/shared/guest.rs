//! The Linux guest that `examples/setup.sh` creates.

use std::env::var_os;
use std::path::{Path, PathBuf};

use hyperkit::Engine;

/// The checkout that this program was built from, which may be gone.
const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// The kernels for QEMU. The first one is not compressed: an emulated CPU takes 2 s to unpack the second one.
const FOR_QEMU: [&str; 2] = ["vmlinux", "vmlinuz"];

/// Returns the paths of the guest's kernel and initrd.
pub fn kernel_and_initrd(engine: Engine) -> Result<(PathBuf, PathBuf), String> {
    let kernels = if engine == Engine::Qemu { &FOR_QEMU[..] } else { &FOR_QEMU[1..] };
    find([kernels, &["initrd.img"]]).map(Into::into)
}

/// Returns the paths of the guest's kernel for QEMU, and of the initrd with which the host's root is that of the guest.
#[allow(dead_code, reason = "not every example runs the host's programs")]
pub fn kernel_and_host_root() -> Result<(PathBuf, PathBuf), String> {
    find([&FOR_QEMU, &["host-root.img"]]).map(Into::into)
}

/// Returns the paths of two files of the same guest, since the modules in an initrd are for one kernel. For each file, the names are in
/// the order of preference.
fn find(files: [&[&str]; 2]) -> Result<[PathBuf; 2], String> {
    let dirs = dirs();
    for dir in &dirs {
        let file = |names: &[&str]| names.iter().map(|name| dir.join(name)).find(|path| path.exists());
        if let [Some(first), Some(second)] = files.map(file) {
            return Ok([first, second]);
        }
    }
    let names = files.map(|names| names.join(" or ")).join(", and ");
    let places = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" or ");
    Err(format!("no guest: {names} not found in {places}; create the guest with {}", setup(&dirs)))
}

/// The directories that may contain the guest, in the order of the search.
fn dirs() -> Vec<PathBuf> {
    let absolute = |name| var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(dir) = var_os("HYPERKIT_GUEST").filter(|dir| !dir.is_empty()) {
        return vec![dir.into()]; // a typo must not choose another guest
    }
    let data_home = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let built_from = Path::new(CHECKOUT).is_dir().then(|| Path::new(CHECKOUT).join("target/guest"));
    built_from.into_iter().chain(data_home.map(|dir| dir.join("hyperkit/guest"))).collect()
}

/// The command that creates the guest in the last of the directories, or in the checkout.
fn setup(dirs: &[PathBuf]) -> String {
    let script = Path::new(CHECKOUT).join("examples/setup.sh");
    match dirs {
        [_, ..] if dirs[0].starts_with(CHECKOUT) && script.exists() => script.display().to_string(),
        dirs => {
            let dir = dirs.last().map_or(Path::new("."), PathBuf::as_path).display();
            format!("examples/setup.sh --guest {dir}, in a checkout of hyperkit's repository")
        }
    }
}
