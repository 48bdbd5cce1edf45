//! Kernels for arm64, and what only x86 has.

use std::fs;

use hyperkit::{ConfigError, Engine, Multiboot};

use crate::common::guest::{Guest, QUIET_CMDLINE, guest_file, open_shell, run_in_guest};
use crate::common::tools::run_tool;

/// QEMU unpacks a kernel that is packed with gzip.
#[test]
fn packed_and_unpacked_kernel_boot_the_same_guest() {
    let guest = Guest::new();
    let dir = guest.state_dir.parent().unwrap();
    let packed = dir.join("Image.gz");
    fs::write(&packed, run_tool("gzip", &["-1c".as_ref(), guest_file("vmlinuz").as_os_str()], dir)).unwrap();
    let [unpacked, packed] = [guest_file("vmlinuz"), packed].map(|kernel| {
        let vm = guest.description.clone().kernel(&kernel).start(QUIET_CMDLINE).unwrap();
        assert_eq!(vm.description().kernel, Some(kernel));
        let console = open_shell(&vm);
        let script = "cat /proc/version /proc/cmdline; dmesg | grep 'Kernel panic\\|BUG:\\|Call trace'";
        let lines = run_in_guest(&console, script);
        vm.kill().unwrap();
        lines
    });
    assert_eq!(packed, unpacked);
    assert!(packed.starts_with("Linux version") && packed.ends_with(&format!("\n{QUIET_CMDLINE}\n")), "{packed}");
}

/// The UUID reaches the guest with firmware, which `firmware` tests.
#[test]
fn features_of_x86_are_refused_by_name() {
    let guest = Guest::new();
    let mut multiboot = guest.description.clone().multiboot(Multiboot::new(guest_file("vmlinuz")));
    (multiboot.kernel, multiboot.initrd) = (None, None);
    for (description, field) in [
        (guest.description.clone().uuid("1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55"), "`uuid`"),
        (guest.description.clone().x2apic(true), "`x2apic`"),
        (multiboot, "`multiboot`"),
    ] {
        let error = description.start(QUIET_CMDLINE).unwrap_err();
        let is_expected = |violation: &ConfigError| match violation {
            ConfigError::Unsupported { engine: Engine::QemuArm64, feature } => feature.contains(field),
            _ => false,
        };
        assert!(error.violations().iter().any(is_expected), "{error:?}");
        assert!(!guest.state_dir.exists());
    }
}
