//! Helpers of tests that expect a description to be rejected.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hyperkit::{ConfigError, Error, HyperKit};

use super::{StopOnDrop, TestDir, file_names, wait_until};

/// Changes a valid description, and returns the error of its `start`.
///
/// Asserts that no file is created, that the description does not change, and that `check` returns the same error. The last
/// only if the kernel command line is empty, since `check` does not get one.
pub fn error_of_start(test_dir: &TestDir, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> Error {
    let description = change(test_dir.description());
    let (before, files) = (description.clone(), file_names(&test_dir.dir()));
    let error = description.start(cmdline).expect_err("the VM was started");
    if cmdline.is_empty() {
        let checked = description.check().expect_err("`check` accepts the description");
        assert_eq!((checked.to_string(), checked.violations()), (error.to_string(), error.violations()));
    }
    assert_eq!(description, before);
    assert_eq!(file_names(&test_dir.dir()), files, "a file was created");
    error
}

/// Like [`error_of_start`], but returns the violations. Asserts that there is at least one.
pub fn violations_of_start(
    test_dir: &TestDir,
    cmdline: &str,
    change: impl FnOnce(HyperKit) -> HyperKit,
) -> Vec<ConfigError> {
    let error = error_of_start(test_dir, cmdline, change);
    assert!(!error.violations().is_empty(), "{error:?}");
    error.violations().to_vec()
}

/// Returns the only violation of a result.
pub fn only_violation<T: std::fmt::Debug>(result: Result<T, Error>) -> ConfigError {
    let error = result.expect_err("there is no error");
    let [violation] = error.violations() else { panic!("{error:?}") };
    violation.clone()
}

/// Like [`violations_of_start`], but returns the only violation.
pub fn rejection_with(test_dir: &TestDir, cmdline: &str, change: impl FnOnce(HyperKit) -> HyperKit) -> ConfigError {
    let mut violations = violations_of_start(test_dir, cmdline, change);
    assert_eq!(violations.len(), 1, "{violations:?}");
    violations.remove(0)
}

/// Like [`rejection_with`], with a new directory and an empty kernel command line.
pub fn rejection(change: impl FnOnce(HyperKit) -> HyperKit) -> ConfigError {
    rejection_with(&TestDir::new(), "", change)
}

/// Changes fields of a description for which there is no setter.
pub fn modify(mut description: HyperKit, change: impl FnOnce(&mut HyperKit)) -> HyperKit {
    change(&mut description);
    description
}

/// Like [`rejection`]. Also asserts that `arguments`, which looks at no file, reports the same kind of violation.
pub fn rejection_by_arguments(change: impl Fn(HyperKit) -> HyperKit) -> ConfigError {
    let violation = rejection(&change);
    let pure = only_violation(change(TestDir::new().description()).arguments(""));
    assert_eq!(std::mem::discriminant(&pure), std::mem::discriminant(&violation));
    violation
}

/// Asserts that a VM boots: starts it on the stand-in, waits for the first output of the guest, and kills it. The guest
/// prints its first output when the stand-in has accepted all options.
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

/// Like [`assert_boots_with`], with an empty kernel command line.
pub fn assert_boots(description: HyperKit) {
    assert_boots_with(description, "");
}

/// Unsets kernel and initrd, so that another boot source can be set.
pub fn without_boot_source(description: HyperKit) -> HyperKit {
    modify(description, |d| (d.kernel, d.initrd) = (None, None))
}

/// Creates a sparse file of this length.
pub fn sparse_file(length: u64, test_dir: &TestDir, name: &str) -> PathBuf {
    File::create(test_dir.path(name)).unwrap().set_len(length).unwrap();
    test_dir.path(name)
}

/// Creates a sparse boot ROM of this length, with a jump where the processor begins.
pub fn rom(length: u64, test_dir: &TestDir, name: &str) -> PathBuf {
    let path = sparse_file(length, test_dir, name);
    let jump =
        length.checked_sub(16).map(|at| File::options().write(true).open(&path).unwrap().write_all_at(&[0xe9], at));
    jump.unwrap_or(Ok(())).unwrap();
    path
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
