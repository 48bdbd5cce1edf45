//! The guest's root directory: the kernel parameters that tell the agent what to mount.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::config::{HyperKit, Root, Share9pSource};
use crate::sys::path::{canonical, clean};

/// The mount tag of the root directory.
pub(crate) const ROOT_TAG: &str = "hyperkit-root";

/// The agent reads these parameters (`examples/guest/agent/src/init.rs`).
const ROOT_PARAMETER: &str = "hyperkit.root=";
const MOUNT_PARAMETER: &str = "hyperkit.mount=";

/// Without its own, the agent does not find its port.
const SYSTEM_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The directory of the host that is the guest's root, unless it is that of the initrd.
pub(crate) fn root_dir(description: &HyperKit) -> Option<&Path> {
    match &description.root {
        Root::Initrd => None,
        Root::Host => Some(Path::new("/")),
        Root::Dir(dir) => Some(dir),
    }
}

/// Puts the agent's parameters before a kernel command line: Linux passes what follows `--` to its first program instead.
pub(crate) fn with_root(description: &HyperKit, cmdline: &str) -> String {
    parameters(description) + cmdline
}

/// Removes the agent's parameters from the beginning of a kernel command line. If the state directory was moved, they contain other
/// paths than the description.
pub(crate) fn without_root<'a>(description: &HyperKit, line: &'a str) -> &'a str {
    let mut rest = line;
    while let Some((parameter, after)) = rest.split_once(' ').filter(|_| description.root != Root::Initrd) {
        if ![ROOT_PARAMETER, MOUNT_PARAMETER].iter().any(|name| parameter.starts_with(name)) {
            break;
        }
        rest = after;
    }
    rest
}

/// `hyperkit.root=TAG`, and `hyperkit.mount=TAG,PATH` for each share inside of the root, each with a space after it.
fn parameters(description: &HyperKit) -> String {
    if description.root == Root::Initrd {
        return String::new();
    }
    let mut mounts: Vec<_> = description
        .shares_9p
        .iter()
        .filter_map(|share| match &share.source {
            Share9pSource::Path(path) => Some((path_in_guest(&description.root, path)?, &share.tag)),
            Share9pSource::Port(_) => None,
        })
        .collect();
    // An outer directory first: mounted later, it would hide the inner ones.
    mounts.sort_by_key(|(path, _)| path.components().count());
    let mut parameters = format!("{ROOT_PARAMETER}{ROOT_TAG} ");
    for (path, tag) in mounts {
        let path = encoded(path.as_os_str().as_encoded_bytes());
        // Writing to a text cannot fail.
        let _ = write!(parameters, "{MOUNT_PARAMETER}{},{path} ", encoded(tag.as_bytes()));
    }
    parameters
}

/// Whether a directory of the host would hide one that the agent mounts and uses in the guest.
pub(crate) fn hides_system_dir(root: &Root, path: &Path) -> bool {
    let is_system_dir = |path: PathBuf| SYSTEM_DIRS.iter().any(|dir| clean(&path) == Path::new(dir));
    [path, &canonical(path)].into_iter().filter_map(|path| path_in_guest(root, path)).any(is_system_dir)
}

/// The path in the guest of a directory of the host. `None` if the directory is outside of the guest's root.
fn path_in_guest(root: &Root, path: &Path) -> Option<PathBuf> {
    let inside = match root {
        Root::Initrd => return None,
        // The guest resolves symlinks and `..` as the host does.
        Root::Host => path.strip_prefix("/").ok()?.to_owned(),
        // A symlink may lead to the root or to the shared directory.
        Root::Dir(dir) => match clean(path).strip_prefix(clean(dir)) {
            Ok(inside) => inside.to_owned(),
            Err(_) => canonical(path).strip_prefix(canonical(dir)).ok()?.to_owned(),
        },
    };
    (!inside.as_os_str().is_empty()).then(|| Path::new("/").join(inside))
}

/// Percent-encodes the bytes that Linux or the agent would not take literally: spaces, quotes, commas, percent signs, and bytes that
/// are not ASCII.
fn encoded(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/._-+@:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02x}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_inside_of_the_root_is_mounted_by_whatever_paths_the_two_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("root/in/side")).unwrap();
        std::os::unix::fs::symlink("root", path("link")).unwrap();
        std::os::unix::fs::symlink("root/in/side", path("share")).unwrap();
        for root in ["root", "link", "root/in/.."] {
            for share in ["root/in/side", "link/in/side", "share", "link/../root/in/side"] {
                let description = HyperKit::new().root(Root::Dir(path(root))).share_dir(path(share), "tag");
                let expected = "hyperkit.root=hyperkit-root hyperkit.mount=tag,/in/side ";
                assert_eq!(parameters(&description), expected, "{root} {share}");
            }
        }
        let outside = HyperKit::new().root(Root::Dir(path("root"))).share_dir(dir.path(), "tag");
        assert_eq!(parameters(&outside), "hyperkit.root=hyperkit-root ");
    }

    /// The parameters contain the paths of the start. A state directory with a share in it may have been moved since.
    #[test]
    fn parameters_with_other_paths_are_removed_from_the_beginning_of_a_command_line() {
        let description = HyperKit::new().root(Root::Host).share_dir("/new/share", "share");
        let line = "hyperkit.root=hyperkit-root hyperkit.mount=share,/old/share quiet hyperkit.root=kept";
        assert_eq!(without_root(&description, line), "quiet hyperkit.root=kept");
        assert_eq!(without_root(&description, &with_root(&description, "quiet")), "quiet");
        assert_eq!(without_root(&description, &with_root(&description, "")), "");
        assert_eq!(without_root(&HyperKit::new(), line), line);
    }
}
