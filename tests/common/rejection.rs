//! What the tests of refusals and limits share.

use std::fs::{self, File};
use std::path::PathBuf;

use hyperkit::{Error, HyperKit};

use super::{Ended, Files, eventually, names};

/// Has `change` made to a good machine, and returns why it is refused: by `check` and `start` alike, or by `start` alone
/// where the command line is at fault. Neither leaves anything behind, and `start` leaves the description as it was.
pub fn refused_with(files: &Files, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    let machine = change(files.machine());
    let before = names(&files.dir());
    if cmdline.is_empty() {
        let checked = machine.check().expect_err("check passed").to_string();
        assert_eq!(machine.clone().start(cmdline).expect_err("it started").to_string(), checked);
    }
    let mut started = machine.clone();
    let error = started.start(cmdline).expect_err("it started");
    assert_eq!(started, machine);
    assert_eq!(names(&files.dir()), before, "something was made");
    error
}

pub fn refused(change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    refused_with(&Files::new(), "", change)
}

pub fn changed(mut machine: HyperKit, change: impl FnOnce(&mut HyperKit)) -> HyperKit {
    change(&mut machine);
    machine
}

/// As [`refused`], also by `arguments`, which looks at no file.
pub fn refused_at_sight(change: impl Fn(HyperKit) -> HyperKit) -> Error {
    let error = refused(&change);
    let pure = change(Files::new().machine()).arguments("").expect_err("arguments were made");
    assert_eq!(std::mem::discriminant(&pure), std::mem::discriminant(&error));
    error
}

/// Has a machine started on the stand-in until its guest speaks, which it does when everything was taken, and stopped.
pub fn runs_with(mut machine: HyperKit, cmdline: &str) {
    let dir = machine.state_dir.clone().unwrap();
    let _end = Ended(dir.clone());
    let vm = machine.start(cmdline).unwrap();
    eventually("the guest speaks", || {
        assert_eq!(vm.try_wait().unwrap(), None, "{:?}", vm.last_words());
        fs::read(dir.join("console-ring")).unwrap().starts_with(b"Linux")
    });
    vm.stop().unwrap();
}

pub fn runs(machine: HyperKit) {
    runs_with(machine, "");
}

/// Takes away what the machine boots from, to set something else.
pub fn bare(machine: HyperKit) -> HyperKit {
    changed(machine, |m| (m.kernel, m.initrd) = (None, None))
}

/// A sparse file.
pub fn file_of(length: u64, files: &Files, name: &str) -> PathBuf {
    File::create(files.path(name)).unwrap().set_len(length).unwrap();
    files.path(name)
}

/// `assert!(matches!(…))` that shows what came instead.
macro_rules! assert_refused {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        match $error {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?}"),
        }
    };
}
pub(crate) use assert_refused;
