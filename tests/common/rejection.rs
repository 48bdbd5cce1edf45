//! Helpers of the tests of validation and limits.

use std::fs::{self, File};
use std::path::PathBuf;

use hyperkit::{Error, HyperKit};

use super::{StopOnDrop, TestDir, file_names, wait_until};

/// Changes a valid description and returns the error of `start`.
///
/// Asserts that `check` returns the same error if the kernel command line is empty (`check` does not know it), that no file is
/// created, and that `start` does not change the description.
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
    assert_eq!(file_names(&test_dir.dir()), before, "a file was created");
    error
}

/// [`rejection_with`] a new directory and an empty kernel command line.
pub fn rejection(change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    rejection_with(&TestDir::new(), "", change)
}

/// Applies a change for which there is no setter.
pub fn modify(mut description: HyperKit, change: impl FnOnce(&mut HyperKit)) -> HyperKit {
    change(&mut description);
    description
}

/// [`rejection`], after asserting that `arguments`, which reads no files, returns the same kind of error.
pub fn rejection_by_arguments(change: impl Fn(HyperKit) -> HyperKit) -> Error {
    let error = rejection(&change);
    let pure = change(TestDir::new().description()).arguments("").expect_err("`arguments` accepted it");
    assert_eq!(std::mem::discriminant(&pure), std::mem::discriminant(&error));
    error
}

/// Starts a VM on the stand-in, waits for the first output of its guest, and stops it. The stand-in's guest prints nothing before
/// the stand-in has accepted every option.
pub fn assert_boots_with(mut description: HyperKit, cmdline: &str) {
    let dir = description.state_dir.clone().unwrap();
    let _stop = StopOnDrop(dir.clone());
    let vm = description.start(cmdline).unwrap();
    wait_until("the guest prints something", || {
        assert_eq!(vm.try_wait().unwrap(), None, "{:?}", vm.last_words());
        fs::read(dir.join("console-ring")).unwrap().starts_with(b"Linux")
    });
    vm.stop().unwrap();
}

/// [`assert_boots_with`] an empty kernel command line.
pub fn assert_boots(description: HyperKit) {
    assert_boots_with(description, "");
}

/// Removes kernel and initrd, so that another boot source can be set.
pub fn without_boot_source(description: HyperKit) -> HyperKit {
    modify(description, |d| (d.kernel, d.initrd) = (None, None))
}

/// Creates a sparse file.
pub fn sparse_file(length: u64, test_dir: &TestDir, name: &str) -> PathBuf {
    File::create(test_dir.path(name)).unwrap().set_len(length).unwrap();
    test_dir.path(name)
}

/// Asserts that an error matches a pattern, and prints the error if it does not.
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        match $error {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?}"),
        }
    };
}
pub(crate) use assert_error;
