//! The file names of QEMU's programs.

use crate::config::Architecture;

/// A program of QEMU, by its file name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Program {
    /// Runs x86-64 guests.
    X86,
    /// Runs arm64 guests.
    Arm64,
    /// Runs guests of another architecture, or is one of QEMU's tools.
    Other,
}

/// Debian has `qemu-system-x86_64` with the links `kvm` and `qemu-system-amd64`.
const X86: [&[u8]; 3] = [b"qemu-system-x86_64", b"qemu-system-amd64", b"kvm"];
const ARM64: [&[u8]; 2] = [b"qemu-system-aarch64", b"qemu-system-arm64"];
/// The name of the program for guests with the host's architecture: one of two names in Fedora, the only one in RHEL.
const OF_HOST: &[u8] = b"qemu-kvm";
const QEMU: &[u8] = b"qemu";

/// The program with this file name; `None` if the name is not one of QEMU's. A version or suffix can follow the name:
/// `qemu-system-x86_64-7.2`, `kvm-spice`, `qemu.sh`.
pub(super) fn program(name: &[u8]) -> Option<Program> {
    let ends = |rest: &[u8]| matches!(rest, [] | [b'-' | b'.', ..]);
    let is_one_of = |names: &[&[u8]]| names.iter().any(|known| name.strip_prefix(*known).is_some_and(ends));
    match name.strip_prefix(QEMU) {
        _ if is_one_of(&X86) => Some(Program::X86),
        _ if is_one_of(&ARM64) => Some(Program::Arm64),
        _ if is_one_of(&[OF_HOST]) => Some(of_host(Architecture::host())),
        // `qemu-img` and the like are other programs.
        Some([] | [b'.', ..] | [b'-', b'0'..=b'9', ..]) => Some(Program::X86),
        Some(_) => Some(Program::Other),
        None => None,
    }
}

/// The program for guests with the host's architecture.
fn of_host(host: Option<Architecture>) -> Program {
    if host == Some(Architecture::Arm64) { Program::Arm64 } else { Program::X86 }
}

/// Whether the program may be a script that adds `-enable-kvm` to its arguments. Some distributions have such a `qemu-kvm`.
pub(super) fn may_ask_for_kvm(name: &[u8]) -> bool {
    name.starts_with(b"kvm") || name.starts_with(b"qemu-kvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_of_qemu_is_recognized_by_its_name() {
        for name in [
            "qemu-system-x86_64",
            "qemu-system-x86_64-7.2",
            "qemu-system-x86_64.exe",
            "qemu-system-x86_64-spice",
            "qemu-system-amd64",
            "kvm",
            "kvm-spice",
            "qemu",
            "qemu-7.2.0",
            "qemu.sh",
        ] {
            assert_eq!(program(name.as_bytes()), Some(Program::X86), "{name}");
        }
        for name in ["qemu-system-aarch64", "qemu-system-arm64", "qemu-system-aarch64-9.1"] {
            assert_eq!(program(name.as_bytes()), Some(Program::Arm64), "{name}");
        }
        for name in ["qemu-kvm", "qemu-kvm.sh"] {
            assert_eq!(program(name.as_bytes()), Some(of_host(Architecture::host())), "{name}");
        }
        assert_eq!(of_host(Some(Architecture::Arm64)), Program::Arm64);
        assert_eq!(of_host(Some(Architecture::X86_64)), Program::X86);
        for name in [
            "qemu-system-aarch64_be",
            "qemu-system-arm",
            "qemu-system-riscv64",
            "qemu-system-x86_64le",
            "qemu-system-i386",
            "qemu-img",
            "qemu-x86_64",
            "qemu-",
            "qemux",
        ] {
            assert_eq!(program(name.as_bytes()), Some(Program::Other), "{name}");
        }
        for name in ["", "hyperkit", "com.docker.hyperkit", "kvmtool", "lkvm", "my-qemu-system-x86_64", "qem"] {
            assert_eq!(program(name.as_bytes()), None, "{name}");
        }
    }
}
