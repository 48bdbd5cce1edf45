//! The model of the guest's CPU.

use std::fs;

use hyperkit::ConfigError;

use crate::common::guest::{Guest, QUIET_CMDLINE, open_shell, run_in_guest};
use crate::common::platform::PLATFORM;

/// Returns the flags in this list that Linux in the guest finds.
fn flags_of(guest: &Guest, flags: &str) -> String {
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    let find = format!("for flag in {flags}; do grep -qw $flag /proc/cpuinfo && echo $flag; done");
    let found = run_in_guest(&console, &find);
    vm.kill().unwrap();
    let output = fs::read_to_string(guest.state_dir.join("hyperkit.log")).unwrap();
    assert!(!output.contains("warning"), "{output}");
    found.lines().collect::<Vec<_>>().join(" ")
}

#[test]
fn default_cpu_has_the_features_that_distributions_require() {
    assert_eq!(flags_of(&Guest::new(), PLATFORM.default_cpu), PLATFORM.default_cpu);
}

#[test]
fn cpu_is_the_chosen_model_with_its_features() {
    let [model, flags, found] = PLATFORM.other_cpu;
    let mut guest = Guest::new();
    guest.description = guest.description.clone().cpu(model);
    assert_eq!(flags_of(&guest, flags), found);
}

/// Not all hosts have KVM or HVF. QEMU would fail after files were created.
#[test]
fn cpu_of_the_host_boots_or_is_unsupported() {
    let guest = Guest::new();
    let description = guest.description.clone().cpu("host");
    match description.check() {
        Ok(()) => description.start(QUIET_CMDLINE).unwrap().kill().unwrap(),
        Err(error) => {
            assert!(matches!(error.violations(), [ConfigError::Unsupported { .. }]), "{error:?}");
            assert_eq!(error.violations()[0].field(), "cpu");
        }
    }
}
