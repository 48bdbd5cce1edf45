//! The result of a shutdown in words.

use hyperkit::ShutdownOutcome;

/// A predicate, for use after "the VM". How a VM exited that another program had started is not known, so this does not
/// name the exit.
pub fn describe(outcome: ShutdownOutcome) -> &'static str {
    match outcome {
        ShutdownOutcome::AlreadyExited(_) => "was not running",
        ShutdownOutcome::Graceful(_) => "powered off",
        ShutdownOutcome::Forced(_) => "did not power off and was killed",
        _ => "exited",
    }
}
