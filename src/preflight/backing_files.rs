//! The other files of the host that a qcow2 image uses: its backing file, that one's backing file and so on, and external data
//! files.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::ConfigError;
use crate::preflight::image_header::{Content, Image};
use crate::sys::file::inode;

/// A file that an image uses.
#[derive(Debug, PartialEq)]
pub(crate) struct UsedFile {
    pub path: PathBuf,
    /// Whether the guest's writes go to this file: it is the data file of the image itself. Backing files are only read.
    pub is_written: bool,
}

/// The files that an image uses, if its format is qcow2. Names with a protocol, such as `nbd://host`, refer to no file of this
/// host, and are left to the engine.
pub(crate) fn used_files(image: &Path) -> Result<Vec<UsedFile>, ConfigError> {
    let mut files = Vec::<UsedFile>::new();
    let mut seen = Vec::from_iter(inode(image));
    let mut current = image.to_owned();
    loop {
        let header = match Image::read(&current) {
            Ok(Image { content: Content::Qcow2(header), .. }) => header,
            Ok(Image { content: Content::UnusableQcow2(reason), .. }) if !files.is_empty() => {
                return Err(ConfigError::InvalidQcow2 { path: current, reason });
            }
            Ok(_) => return Ok(files),
            Err(error) if files.is_empty() && error.kind() == io::ErrorKind::NotFound => return Ok(files),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::NotFound { field: "disks", path: current });
            }
            Err(error) => return Err(ConfigError::inaccessible("disks", &current, &error)),
        };
        // QEMU looks for a data file in the working directory.
        if let Some(path) = header.data_file.as_deref().and_then(|name| local_file(name, Path::new(""))) {
            if !path.exists() {
                return Err(ConfigError::NotFound { field: "disks", path });
            }
            files.push(UsedFile { path, is_written: current == image });
        }
        let dir = current.parent().unwrap_or(Path::new(""));
        let Some(next) = header.backing_file.as_deref().and_then(|name| local_file(name, dir)) else {
            return Ok(files);
        };
        let Some(id) = inode(&next) else {
            return Err(ConfigError::NotFound { field: "disks", path: next });
        };
        if seen.contains(&id) {
            return Err(ConfigError::InvalidQcow2 { path: current, reason: "its backing files form a cycle" });
        }
        seen.push(id);
        files.push(UsedFile { path: next.clone(), is_written: false });
        match header.backing_format.as_deref() {
            Some("raw") => return Ok(files),
            Some("qcow2") if next.is_file() && Image::read(&next).is_ok_and(|image| !image.is_qcow2()) => {
                return Err(ConfigError::NotQcow2 { path: next });
            }
            _ => current = next,
        }
    }
}

/// The file to which a name in an image refers, relative to `dir`. A name with a protocol is relative to the working directory
/// (`bdrv_make_absolute_filename` in QEMU's block.c).
fn local_file(name: &str, dir: &Path) -> Option<PathBuf> {
    let some = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
    if let Some(options) = name.strip_prefix("json:") {
        let options: Value = serde_json::from_str(options).ok()?;
        return some(file_name(&options)?);
    }
    if let Some(path) = name.strip_prefix("file:") {
        return some(path);
    }
    let has_protocol = name.find([':', '/']).is_some_and(|at| name[at..].starts_with(':'));
    if has_protocol { None } else { some(name).map(|name| dir.join(name)) }
}

/// The file name in the options of a block device, which may be nested or have keys with dots.
fn file_name(options: &Value) -> Option<&str> {
    let options = options.as_object()?;
    let is_file = |key: &str| options.get(key).is_none_or(|driver| driver == "file");
    match options.get("file") {
        Some(file) => file_name(file),
        None if options.contains_key("file.filename") => {
            options.get("file.filename").filter(|_| is_file("file.driver"))?.as_str()
        }
        None => options.get("filename").filter(|_| is_file("driver"))?.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image_or_with_a_protocol_to_the_working_directory() {
        let of = |name: &str| local_file(name, Path::new("/images"));
        let file = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of("base.img"), file("/images/base.img"));
        assert_eq!(of("sub/a:b"), file("/images/sub/a:b"));
        assert_eq!(of("./a:b"), file("/images/./a:b"));
        assert_eq!(of("/base.img"), file("/base.img"));
        assert_eq!(of("file:base.img"), file("base.img"));
        assert_eq!(of("file:///base.img"), file("/base.img"));
        assert_eq!(of("file://host/base.img"), file("/host/base.img"));
        for nested in [
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"base"}}"#,
            r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"base"}"#,
            r#"json:{"filename":"base"}"#,
        ] {
            assert_eq!(of(nested), file("base"), "{nested}");
        }
        for elsewhere in [
            "nbd://host/x",
            "nbd:localhost:10809",
            "https://host/x",
            r#"json:{"driver":"nbd","filename":"x"}"#,
            r#"json:{"file":{"driver":"nbd","host":"x"}}"#,
            "json:[",
            "",
        ] {
            assert_eq!(of(elsewhere), None, "{elsewhere}");
        }
    }
}
