//! Refuses to use as input what a start deletes or replaces in the state directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::HyperKit;
use crate::config::disk::is_overlay_name;
use crate::error::ConfigError;
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS};
use crate::plan::validate::Violations;
use crate::preflight::backing_files::used_files;
use crate::state::{
    AGENT_SOCKET, EVENTS_SOCKET, JSON_FILE, LIFETIME_FIFO, LOG_FILE, PID_FILE, QMP_SOCKET, UNFINISHED, VHOST_SOCKET,
    VSOCK_SOCKET,
};
use crate::sys::path::canonical;

/// QEMU deletes any file at the path of a socket that it creates.
const OWN_FILES: [&str; 10] = [
    JSON_FILE,
    LOG_FILE,
    PID_FILE,
    UNFINISHED,
    LIFETIME_FIFO,
    QMP_SOCKET,
    EVENTS_SOCKET,
    AGENT_SOCKET,
    VHOST_SOCKET,
    VSOCK_SOCKET,
];
/// Linux follows at most as many symlinks (MAXSYMLINKS in include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// Refuses kernels, images and their backing files that a start would delete or replace, by whatever path they are named.
pub(super) fn check_inputs_are_kept(description: &HyperKit, found: &mut Violations) {
    let Some(state_dir) = &description.state_dir else { return };
    let mut inputs: Vec<(&'static str, PathBuf)> = Vec::new();
    for (field, path) in
        [("kernel", &description.kernel), ("initrd", &description.initrd), ("bootrom", &description.bootrom)]
    {
        inputs.extend(path.iter().map(|path| (field, path.clone())));
    }
    if let Some(multiboot) = &description.multiboot {
        let modules = multiboot.modules.iter().map(|module| &module.path);
        inputs.extend([&multiboot.kernel].into_iter().chain(modules).map(|path| ("multiboot", path.clone())));
    }
    inputs.extend(description.isos.iter().map(|iso| ("isos", iso.clone())));
    for (index, disk) in description.disks.iter().enumerate() {
        let Ok(image) = disk.image_path(index, Some(state_dir)) else { continue };
        // Other checks report images that cannot be read.
        let used = used_files(&image).unwrap_or_default();
        inputs.push(("disks", image));
        inputs.extend(used.into_iter().map(|file| ("disks", file.path)));
    }
    for (field, path) in inputs.iter().filter(|(_, path)| is_replaced(state_dir, path)) {
        let reason = "a file of this VM, which a start deletes or replaces; copy it to another name";
        found.add(ConfigError::inaccessible(field, path, &io::Error::other(reason)));
    }
}

/// Whether a path, or a symlink on the way to its file, has the name of such a file.
fn is_replaced(state_dir: &Path, path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let dir = path.parent().map(canonical).unwrap_or_default();
        if dir == state_dir && path.file_name().and_then(|name| name.to_str()).is_some_and(is_own_name) {
            return true;
        }
        match fs::read_link(&path) {
            Ok(target) => path = dir.join(target),
            Err(_) => return false,
        }
    }
    false
}

fn is_own_name(name: &str) -> bool {
    is_overlay_name(name) || OWN_FILES.iter().chain(&ALL_TTYS).chain(&ALL_LOGS).any(|own| *own == name)
}
