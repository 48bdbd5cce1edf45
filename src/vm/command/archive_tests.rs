//! Archives of a hostile guest, and directories that others change while they are packed.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use crate::vm::command::archive::{pack, unpack};

/// The parts of an archive.
fn head(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind, 0xff, 0x0f, 0, 0][..], &(name.len() as u32).to_le_bytes(), name].concat()
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes()[..], text].concat()
}

#[test]
fn archive_of_a_hostile_guest_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("in/target");
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("precious"), "precious").unwrap();
    let in_dir = |entries: &[Vec<u8>]| [head(b'D', b""), entries.concat(), b"E".to_vec()].concat();
    let file = |name: &[u8]| [head(b'F', name), text(b"evil"), text(b"")].concat();
    let link = |name: &[u8], to: &[u8]| [head(b'L', name), text(to)].concat();
    let outside = dir.path().to_str().unwrap().as_bytes();
    let cases = [
        in_dir(&[file(b"../../precious")]),
        in_dir(&[file(b"..")]),
        in_dir(&[file(b".")]),
        in_dir(&[file(b"")]),
        in_dir(&[file(b"/tmp/evil")]),
        in_dir(&[file(b"a\0b")]),
        in_dir(&[link(b"out", outside), file(b"out/precious")]),
        // A symlink cannot be replaced or followed by an entry with its name.
        in_dir(&[link(b"out", outside), [head(b'D', b"out"), file(b"precious"), b"E".to_vec()].concat()]),
        in_dir(&[link(b"precious", &[outside, b"/precious"].concat()), file(b"precious")]),
        link(b"", outside),
        vec![head(b'D', b"x"); 1000].concat(),
        [head(b'F', b""), u32::MAX.to_le_bytes().to_vec()].concat(),
        [head(b'F', b""), text(b"not complete")].concat(),
        [&b"F\0\0\0\0"[..], &u32::MAX.to_le_bytes()].concat(),
        b"?\0\0\0\0\0\0\0\0".to_vec(),
        b"E".to_vec(),
        Vec::new(),
    ];
    for archive in cases {
        let result = unpack(&target, &mut &archive[..]);
        assert!(result.is_err(), "{}", archive.escape_ascii());
        let left: Vec<_> = fs::read_dir(dir.path().join("in")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?} {}", archive.escape_ascii());
        assert_eq!(fs::read(dir.path().join("precious")).unwrap(), b"precious");
    }
    unpack(&target, &mut &in_dir(&[file(b"file"), link(b"link", b"/no/such")])[..]).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"evil");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(target.join("file")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o777, "set-user-ID is not copied");
    let mut packed = Vec::new();
    pack(&target, &mut packed).unwrap();
    unpack(&dir.path().join("again"), &mut &packed[..]).unwrap();
    assert_eq!(fs::read_link(dir.path().join("again/link")).unwrap(), Path::new("/no/such"));
}

/// Does something when the head of an entry is written.
struct Meddler<'a> {
    name: &'a [u8],
    archive: Vec<u8>,
    meddle: Option<Box<dyn FnOnce() + 'a>>,
}

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.archive.extend(bytes);
        if self.archive.ends_with(self.name) {
            self.meddle.take().into_iter().for_each(|meddle| meddle());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn symlink_that_replaces_a_directory_while_it_is_packed_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("outside")).unwrap();
    fs::write(path("outside/file"), "secret").unwrap();
    fs::create_dir_all(path("tree/inner/deep")).unwrap();
    for name in ["tree/inner/file", "tree/inner/deep/file"] {
        fs::write(path(name), "public").unwrap();
    }
    // Each of the directories in the tree, and the tree itself.
    for name in ["inner", "deep", ""] {
        let replaced = [("inner", "tree/inner"), ("deep", "tree/inner/deep"), ("", "tree")];
        let replaced = path(replaced.iter().find(|(other, _)| *other == name).unwrap().1);
        let meddle = || {
            fs::rename(&replaced, path("moved")).unwrap();
            std::os::unix::fs::symlink(path("outside"), &replaced).unwrap();
        };
        let head = head(b'D', name.as_bytes());
        let mut out = Meddler { name: &head[5..], archive: Vec::new(), meddle: Some(Box::new(meddle)) };
        pack(&path("tree"), &mut out).unwrap();
        assert!(out.meddle.is_none(), "{name}: nothing was replaced");
        let archive = std::mem::take(&mut out.archive);
        assert!(!archive.windows(6).any(|bytes| bytes == b"secret"), "{name}");
        assert_eq!(archive.windows(6).filter(|bytes| *bytes == b"public").count(), 2, "{name}");
        fs::remove_file(&replaced).unwrap();
        fs::rename(path("moved"), &replaced).unwrap();
    }
}

/// What the guest sends is removed if it is not complete.
#[test]
fn symlink_that_replaces_an_unfinished_directory_is_removed_and_not_followed() {
    struct Input<'a>(&'a [u8], Option<Box<dyn FnOnce() + 'a>>);

    impl Read for Input<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                self.1.take().into_iter().for_each(|meddle| meddle());
            }
            self.0.read(buffer)
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("in")).unwrap();
    fs::create_dir(path("outside")).unwrap();
    fs::set_permissions(path("outside"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(path("outside/file"), "precious").unwrap();
    let archive = [head(b'D', b""), head(b'D', b"inner")].concat();
    let meddle = || {
        let unfinished = fs::read_dir(path("in")).unwrap().next().unwrap().unwrap().path();
        fs::rename(&unfinished, path("moved")).unwrap();
        std::os::unix::fs::symlink(path("outside"), unfinished).unwrap();
    };
    unpack(&path("in/target"), &mut Input(&archive, Some(Box::new(meddle)))).unwrap_err();
    assert_eq!(fs::read_dir(path("in")).unwrap().count(), 0);
    assert_eq!(fs::read(path("outside/file")).unwrap(), b"precious");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path("outside")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o755);
}
