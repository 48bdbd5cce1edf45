//! The Linux guests that `examples/setup.sh` creates, and `--arch`, which chooses one.

use std::env::var_os;
use std::path::{Path, PathBuf};

use hyperkit::{Architecture, Engine, HyperKit, Kernel};

/// The checkout that this program was built from, which may be gone.
const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// The kernels of x86-64 for QEMU. The first one is not compressed: an emulated CPU takes 2 s to unpack the second one.
const FOR_QEMU: [&str; 2] = ["vmlinux", "vmlinuz"];

/// Returns the architecture with one of its usual names: the value of `--arch`.
pub fn architecture(name: &str) -> Result<Architecture, String> {
    match name {
        "amd64" | "x86_64" | "x86-64" => Ok(Architecture::X86_64),
        "arm64" | "aarch64" => Ok(Architecture::Arm64),
        other => Err(format!("--arch takes amd64 or arm64: {other:?}")),
    }
}

/// Returns the architecture of the guest in the directory without a suffix: the host's, or x86-64 if no guest can have the host's.
pub fn native() -> Architecture {
    Architecture::host().unwrap_or(Architecture::X86_64)
}

/// Returns the engine for guests of the architecture of `--arch`. Without it, an explicit hypervisor or kernel decides, and otherwise
/// the host's architecture. A start reports an engine that is not installed, or does not boot the kernel.
pub fn engine(wanted: Option<Architecture>, description: &HyperKit) -> Result<Engine, String> {
    let program = description.hyperkit.as_ref().map(|program| Engine::of(program).architecture());
    let kernel = description.kernel.as_ref().and_then(|kernel| Some(Kernel::read(kernel).ok()?.architecture()));
    for (flag, path, found) in
        [("--hyperkit", &description.hyperkit, program), ("--kernel", &description.kernel, kernel)]
    {
        match (wanted, path, found) {
            (Some(wanted), Some(path), Some(found)) if found != wanted => {
                return Err(format!("{flag} is for {found}, not for {wanted} as --arch says: {}", path.display()));
            }
            _ => {}
        }
    }
    let architecture = wanted.or(program).or(kernel).unwrap_or_else(native);
    match (description.engine(), architecture) {
        (Ok(engine), _) if engine.architecture() == architecture => Ok(engine),
        (_, Architecture::Arm64) => Ok(Engine::QemuArm64),
        _ => Ok(Engine::Qemu),
    }
}

/// Returns the paths of the kernel and the initrd of the guest for an engine.
pub fn kernel_and_initrd(engine: Engine) -> Result<(PathBuf, PathBuf), String> {
    find(engine, "initrd.img")
}

/// Returns the paths of the guest's kernel, and of the initrd with which the host's root is that of the guest.
#[allow(dead_code, reason = "not every example runs the host's programs")]
pub fn kernel_and_host_root(engine: Engine) -> Result<(PathBuf, PathBuf), String> {
    find(engine, "host-root.img")
}

/// Returns the paths of a kernel and an initrd of the same guest, since the modules in an initrd are for one kernel.
fn find(engine: Engine, initrd: &str) -> Result<(PathBuf, PathBuf), String> {
    let architecture = engine.architecture();
    let kernels = if engine == Engine::Qemu { &FOR_QEMU[..] } else { &FOR_QEMU[1..] };
    let (dirs, mut others) = (dirs(architecture), String::new());
    for dir in &dirs {
        let initrd = dir.join(initrd);
        let kernel = kernels.iter().map(|name| dir.join(name)).find(|path| path.exists());
        let Some(kernel) = kernel.filter(|_| initrd.exists()) else { continue };
        match Kernel::read(&kernel) {
            Ok(other) if other.architecture() != architecture => {
                others += &format!("; the guest in {} is for {}", dir.display(), other.architecture());
            }
            // A start reports what is wrong with the kernel.
            _ => return Ok((kernel, initrd)),
        }
    }
    let places = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" or ");
    let (kernels, setup) = (kernels.join(" or "), setup(&dirs, architecture));
    Err(format!(
        "no guest for {architecture}: {kernels}, and {initrd} not found in {places}{others}; create the guest with {setup}"
    ))
}

/// The directories that may contain the guest, in the order of the search. `setup.sh` creates the guest of another architecture than the
/// host's in a directory with the architecture as a suffix. `setup.sh --arch A --guest DIR` creates a guest of any architecture in `DIR`.
fn dirs(architecture: Architecture) -> Vec<PathBuf> {
    let dirs = base_dirs();
    if architecture == native() {
        return dirs;
    }
    let with_suffix = |dir: &Path| {
        let mut name = dir.components().as_path().as_os_str().to_owned(); // without a slash at the end
        name.push(format!("-{}", debian_name(architecture)));
        PathBuf::from(name)
    };
    dirs.into_iter().flat_map(|dir| [dir.clone(), with_suffix(&dir)]).collect()
}

/// The name of an architecture for `setup.sh`.
pub fn debian_name(architecture: Architecture) -> &'static str {
    if architecture == Architecture::Arm64 { "arm64" } else { "amd64" }
}

/// The directories that may contain the guest of the host's architecture, in the order of the search.
fn base_dirs() -> Vec<PathBuf> {
    let absolute = |name| var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(dir) = var_os("HYPERKIT_GUEST").filter(|dir| !dir.is_empty()) {
        return vec![dir.into()]; // a typo must not choose another guest
    }
    let data_home = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let built_from = Path::new(CHECKOUT).is_dir().then(|| Path::new(CHECKOUT).join("target/guest"));
    built_from.into_iter().chain(data_home.map(|dir| dir.join("hyperkit/guest"))).collect()
}

/// The command that creates the guest in the last of the directories, or in the checkout.
fn setup(dirs: &[PathBuf], architecture: Architecture) -> String {
    let script = Path::new(CHECKOUT).join("examples/setup.sh");
    let arch = match architecture == native() {
        true => String::new(),
        false => format!(" --arch {}", debian_name(architecture)),
    };
    match dirs {
        [_, ..] if dirs[0].starts_with(CHECKOUT) && script.exists() => format!("{}{arch}", script.display()),
        dirs => {
            let dir = dirs.last().map_or(Path::new("."), PathBuf::as_path).display();
            format!("examples/setup.sh{arch} --guest {dir}, in a checkout of hyperkit's repository")
        }
    }
}
