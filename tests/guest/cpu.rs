//! The model of the guest's CPU.

use std::fs;

use hyperkit::ConfigError;

use crate::common::guest::{Guest, QUIET_CMDLINE, open_shell, run_in_guest};

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

/// Programs of RHEL 9, for instance, require these instructions.
#[test]
fn default_cpu_has_x86_64_v2_and_a_random_number_generator() {
    let flags = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 rdrand";
    assert_eq!(flags_of(&Guest::new(), flags), flags);
}

#[test]
fn cpu_is_the_chosen_model_with_its_features() {
    let mut guest = Guest::new();
    guest.description = guest.description.clone().cpu("core2duo,+popcnt,-sse3");
    assert_eq!(flags_of(&guest, "T7700 ssse3 popcnt pni rdrand sse4_2"), "T7700 ssse3 popcnt");
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
