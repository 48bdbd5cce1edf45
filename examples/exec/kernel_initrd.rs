//! The initrd for a kernel that is not the guest's own: the agent, and the modules of that kernel.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cpio, regular_file};

/// The modules that the agent loads, in this order. A module that is built into the kernel has no file.
const MODULES: &str = include_str!("../guest/root-modules");
/// The directories that the agent uses.
const DIRECTORIES: [&str; 5] = ["proc", "lower", "layer", "root", "modules"];
/// How a compressed file begins, and the program that decompresses it.
const COMPRESSED: [(&[u8], &str); 3] = [(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b", "gzip")];

/// The part of a bzImage with its release, in bytes: at most 64 sectors.
const SETUP_SIZE: u64 = 65 * 512;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// An initrd that lasts as long as this value.
pub struct KernelInitrd {
    pub path: PathBuf,
    /// Where the modules come from, for messages.
    pub modules: String,
    _file: File,
}

/// Creates the initrd for a kernel; `None` if the guest's initrd has this kernel's modules. `agent` is the file of the agent.
pub fn for_kernel(kernel: &Path, guest_kernel: &Path, agent: &Path) -> Result<Option<KernelInitrd>> {
    if kernel == guest_kernel {
        return Ok(None);
    }
    let Some(release) = release(kernel) else { return Ok(None) }; // the start reports what is wrong with it
    let guest_release = self::release(&guest_kernel.with_file_name("vmlinuz"));
    if guest_release.or_else(|| self::release(guest_kernel)).as_ref() == Some(&release) {
        return Ok(None);
    }
    let dirs = module_dirs(kernel, &release);
    let dir = dirs.iter().find(|dir| dir.is_dir());
    let modules = dir.map(|dir| find_modules(dir)).transpose()?.unwrap_or_default();
    let agent = fs::read(agent).map_err(|error| format!("{}: {error}", agent.display()))?;
    let mut files = Vec::new();
    for (index, path) in modules.iter().enumerate() {
        files.push((format!("modules/{index:03}-{}.ko", module_name(path)), read_decompressed(path)?));
    }
    let directories = DIRECTORIES.iter().map(|name| (*name, 0o040_755, &b""[..]));
    let init = ("init", 0o100_755, &agent[..]);
    let files = files.iter().map(|(name, content)| (&name[..], 0o100_644, &content[..]));
    let mut initrd = Vec::new();
    cpio::append(&mut initrd, &directories.chain([init]).chain(files).collect::<Vec<_>>());
    // The file has no name, so SIGKILL leaves none. The hypervisor reads the file when it starts.
    let mut file = tempfile::tempfile()?;
    file.write_all(&initrd)?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    let searched = || dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
    let modules = match dir {
        Some(dir) => format!("modules of Linux {release} from {}", dir.display()),
        None => format!("no modules of Linux {release} found in {}", searched()),
    };
    Ok(Some(KernelInitrd { path, modules, _file: file }))
}

/// The release of a kernel, as `uname -r` prints it; `None` if the file is no Linux kernel. An arm64 kernel may be compressed as a whole.
fn release(kernel: &Path) -> Option<String> {
    let file = regular_file::open(kernel).ok()?;
    let mut image = Vec::new();
    file.take(SETUP_SIZE).read_to_end(&mut image).ok()?;
    let text = match image.get(0x202..0x206) {
        // Of a bzImage: kernel_version in Linux's Documentation/arch/x86/boot.rst.
        Some(b"HdrS") => {
            let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
            image.get(0x200 + usize::from(offset)..)?
        }
        _ => {
            image = read_decompressed(kernel).ok()?;
            let mut rest = &image[..];
            loop {
                if rest.skip_until(b'L').ok()? == 0 {
                    return None;
                }
                if let Some(release) = rest.strip_prefix(b"inux version ") {
                    break release;
                }
            }
        }
    };
    let release = text.split(|&byte| byte == b' ' || byte == 0).next()?;
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(byte);
    (!release.is_empty() && release.iter().all(is_plain)).then(|| String::from_utf8_lossy(release).into_owned())
}

/// Where the modules may be: in the kernel's directory or its parent, as in an unpacked package, or in `/lib/modules`.
fn module_dirs(kernel: &Path, release: &str) -> Vec<PathBuf> {
    let kernel = fs::canonicalize(kernel).unwrap_or_else(|_| kernel.to_owned());
    let beside = kernel.ancestors().skip(1).take(2);
    let roots = beside.flat_map(|dir| [dir.join("lib/modules"), dir.join("usr/lib/modules")]);
    let mut dirs: Vec<_> = roots.chain(["/lib/modules".into()]).map(|root| root.join(release)).collect();
    dirs.dedup();
    dirs
}

/// The name of a module, without its endings. Linux takes `-` and `_` for the same.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// The files of the modules and of those that they need, in the order in which they can be loaded.
fn find_modules(dir: &Path) -> Result<Vec<PathBuf>> {
    // Each line is a module, and after a colon what it needs, which is loaded from right to left. depmod writes it.
    let needs = regular_file::open(&dir.join("modules.dep")).and_then(io::read_to_string).unwrap_or_default();
    let lines = needs.lines().filter_map(|line| line.split_once(':'));
    let mut needs: HashMap<_, Vec<_>> = HashMap::new();
    for (module, needed) in lines {
        let path = dir.join(module);
        needs
            .insert(module_name(&path), needed.split_whitespace().rev().map(|it| dir.join(it)).chain([path]).collect());
    }
    if needs.is_empty() {
        let mut files = Vec::new();
        collect_modules(dir, &mut files)?;
        needs = files.into_iter().map(|path| (module_name(&path), vec![path])).collect();
    }
    let mut found = Vec::new();
    for name in MODULES.split_whitespace() {
        for path in needs.get(&name.replace('-', "_")).into_iter().flatten() {
            if !found.contains(path) {
                found.push(path.clone());
            }
        }
    }
    Ok(found)
}

fn collect_modules(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            collect_modules(&path, files)?;
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".ko")) {
            files.push(path);
        }
    }
    Ok(())
}

fn read_decompressed(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = regular_file::open(path).and_then(|mut file| file.read_to_end(&mut content));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| content.starts_with(magic)) else {
        return Ok(content);
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.map_err(|error| format!("cannot decompress {} with {program}: {error}", path.display()))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => {
            Err(format!("cannot decompress {}: {}", path.display(), String::from_utf8_lossy(&output.stderr)).into())
        }
    }
}
