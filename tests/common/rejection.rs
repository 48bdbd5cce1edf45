//! What the tests of refusals and limits share.

use std::fs::{self, File};
use std::path::PathBuf;

use hyperkit::{Error, HyperKit};

use super::{StopOnDrop, TestDir, file_names, wait_until};

/// Has `change` made to a good machine, and returns why it is refused: by `check` and `start` alike, or by `start` alone
/// where the command line is at fault. Neither leaves anything behind, and `start` leaves the description as it was.
pub fn rejection_with(test_dir: &TestDir, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    let description = change(test_dir.description());
    let before = file_names(&test_dir.dir());
    if cmdline.is_empty() {
        let checked = description.check().expect_err("check passed").to_string();
        assert_eq!(description.clone().start(cmdline).expect_err("it started").to_string(), checked);
    }
    let mut started = description.clone();
    let error = started.start(cmdline).expect_err("it started");
    assert_eq!(started, description);
    assert_eq!(file_names(&test_dir.dir()), before, "something was made");
    error
}

pub fn rejection(change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    rejection_with(&TestDir::new(), "", change)
}

pub fn modify(mut description: HyperKit, change: impl FnOnce(&mut HyperKit)) -> HyperKit {
    change(&mut description);
    description
}

/// As [`refused`], also by `arguments`, which looks at no file.
pub fn rejection_by_arguments(change: impl Fn(HyperKit) -> HyperKit) -> Error {
    let error = rejection(&change);
    let pure = change(TestDir::new().description()).arguments("").expect_err("arguments were made");
    assert_eq!(std::mem::discriminant(&pure), std::mem::discriminant(&error));
    error
}

/// Has a machine started on the stand-in until its guest speaks, which it does when everything was taken, and stopped.
pub fn assert_boots_with(mut description: HyperKit, cmdline: &str) {
    let dir = description.state_dir.clone().unwrap();
    let _stop = StopOnDrop(dir.clone());
    let vm = description.start(cmdline).unwrap();
    wait_until("the guest speaks", || {
        assert_eq!(vm.try_wait().unwrap(), None, "{:?}", vm.last_words());
        fs::read(dir.join("console-ring")).unwrap().starts_with(b"Linux")
    });
    vm.stop().unwrap();
}

pub fn assert_boots(description: HyperKit) {
    assert_boots_with(description, "");
}

/// Takes away what the machine boots from, to set something else.
pub fn without_boot_source(description: HyperKit) -> HyperKit {
    modify(description, |d| (d.kernel, d.initrd) = (None, None))
}

/// A sparse file.
pub fn sparse_file(length: u64, test_dir: &TestDir, name: &str) -> PathBuf {
    File::create(test_dir.path(name)).unwrap().set_len(length).unwrap();
    test_dir.path(name)
}

/// `assert!(matches!(…))` that shows what came instead.
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        match $error {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?}"),
        }
    };
}
pub(crate) use assert_error;
