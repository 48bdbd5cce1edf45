//! What the tests of refusals share.

use hyperkit::{Error, HyperKit};

use crate::common::{Files, names};

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

/// `assert!(matches!(…))` that shows what came instead.
macro_rules! assert_refused {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        match $error {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?}"),
        }
    };
}
