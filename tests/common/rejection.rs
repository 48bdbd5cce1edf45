//! Helpers of the tests of validation and limits.

use std::fs::{self, File};
use std::path::PathBuf;

use hyperkit::{ConfigError, Error, HyperKit};

use super::{StopOnDrop, TestDir, file_names, wait_until};

/// Changes a valid description and returns the error of `start`.
///
/// Asserts that `check` returns the same error if the kernel command line is empty (`check` does not know it), that no file is
/// created, and that the description does not change.
pub fn error_with(test_dir: &TestDir, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    let description = change(test_dir.description());
    let (before, files) = (description.clone(), file_names(&test_dir.dir()));
    let error = description.start(cmdline).expect_err("it started");
    if cmdline.is_empty() {
        let checked = description.check().expect_err("check passed");
        assert_eq!((checked.to_string(), checked.violations()), (error.to_string(), error.violations()));
    }
    assert_eq!(description, before);
    assert_eq!(file_names(&test_dir.dir()), files, "a file was created");
    error
}

/// The violations of [`error_with`], of which there is at least one.
pub fn violations_with(
    test_dir: &TestDir,
    cmdline: &str,
    change: impl FnOnce(HyperKit) -> HyperKit,
) -> Vec<ConfigError> {
    let error = error_with(test_dir, cmdline, change);
    assert!(!error.violations().is_empty(), "{error:?}");
    error.violations().to_vec()
}

/// Returns the only violation of a result.
pub fn only_violation<T: std::fmt::Debug>(result: Result<T, Error>) -> ConfigError {
    let error = result.expect_err("it succeeded");
    let [violation] = error.violations() else { panic!("{error:?}") };
    violation.clone()
}

/// The only violation of [`violations_with`].
pub fn rejection_with(test_dir: &TestDir, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> ConfigError {
    let mut violations = violations_with(test_dir, cmdline, change);
    assert_eq!(violations.len(), 1, "{violations:?}");
    violations.remove(0)
}

/// [`rejection_with`] a new directory and an empty kernel command line.
pub fn rejection(change: impl FnOnce(HyperKit) -> HyperKit) -> ConfigError {
    rejection_with(&TestDir::new(), "", change)
}

/// Applies a change for which there is no setter.
pub fn modify(mut description: HyperKit, change: impl FnOnce(&mut HyperKit)) -> HyperKit {
    change(&mut description);
    description
}

/// [`rejection`], after asserting that `arguments`, which reads no files, reports the same kind of violation.
pub fn rejection_by_arguments(change: impl Fn(HyperKit) -> HyperKit) -> ConfigError {
    let violation = rejection(&change);
    let pure = only_violation(change(TestDir::new().description()).arguments(""));
    assert_eq!(std::mem::discriminant(&pure), std::mem::discriminant(&violation));
    violation
}

/// Starts a VM on the stand-in, waits for the first output of its guest, and stops it. The stand-in's guest prints nothing before
/// the stand-in has accepted every option.
pub fn assert_boots_with(description: HyperKit, cmdline: &str) {
    let dir = description.state_dir.clone().unwrap();
    let _stop = StopOnDrop(dir.clone());
    let vm = description.start(cmdline).unwrap();
    wait_until("the guest prints something", || {
        assert_eq!(vm.try_wait(), None, "{:?}", vm.log_tail());
        fs::read(dir.join("console-ring")).unwrap().starts_with(b"Linux")
    });
    vm.kill().unwrap();
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
