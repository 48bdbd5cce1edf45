//! Making disk images.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Barrier;

use common::names;
use hyperkit::{Error, create_disk_image};

const MIB: u64 = 1024 * 1024;

#[test]
fn is_exactly_as_long_as_asked_and_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    for size in [1, 3, 64 * 1024] {
        let path = dir.path().join(format!("{size}.img"));
        create_disk_image(&path, size).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), size * MIB);
        assert_eq!(metadata.blocks(), 0, "zeros were written");
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
    assert_eq!(names(dir.path()).len(), 3);
}

#[test]
fn makes_the_directories_above() {
    let dir = tempfile::tempdir().unwrap();
    create_disk_image(dir.path().join("a/b/c.img"), 1).unwrap();
    assert_eq!(names(&dir.path().join("a/b")), ["c.img"]);
}

#[test]
fn never_touches_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.img");
    fs::write(&path, "precious").unwrap();
    symlink("nowhere", dir.path().join("link")).unwrap();
    for taken in [path.clone(), dir.path().join("link"), dir.path().to_owned()] {
        assert!(matches!(create_disk_image(&taken, 1), Err(Error::DiskExists { path }) if path == taken));
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(dir.path()), ["d.img", "link"]);
}

#[test]
fn refuses_sizes_that_cannot_be_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1 << 43, u64::MAX] {
        let made = create_disk_image(dir.path().join("sub/d.img"), size);
        assert!(matches!(made, Err(Error::InvalidDiskSize { value, .. }) if value == size));
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_place_where_nothing_can_be_made_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let made = create_disk_image(dir.path().join("file/d.img"), 1);
    assert!(matches!(made, Err(Error::Io { path, .. }) if path.starts_with(dir.path().join("file"))));
}

#[test]
fn of_many_at_once_one_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.img");
    let all = Barrier::new(8);
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads = (0..8).map(|_| scope.spawn(|| (all.wait(), create_disk_image(&path, 2)).1));
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert!(made.iter().all(|made| matches!(made, Ok(()) | Err(Error::DiskExists { .. }))), "{made:?}");
    assert_eq!(path.metadata().unwrap().len(), 2 * MIB);
    assert_eq!(names(dir.path()), ["d.img"]);
}

/// As if the program had been killed while it made the image.
#[test]
fn what_a_killed_maker_left_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".d.img.new"), "half a disk").unwrap();
    create_disk_image(dir.path().join("d.img"), 1).unwrap();
    assert_eq!(fs::read(dir.path().join("d.img")).unwrap(), vec![0; MIB as usize]);
    assert_eq!(names(dir.path()), ["d.img"]);
}
