//! The file names of QEMU's programs.

/// A program of QEMU, by its file name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Program {
    /// Runs x86-64 guests.
    X86,
    /// Runs guests of another architecture, or is one of QEMU's tools.
    Other,
}

/// Debian has `qemu-system-x86_64` with the links `kvm` and `qemu-system-amd64`, Fedora also `qemu-kvm`, RHEL only `qemu-kvm`.
const X86: [&[u8]; 4] = [b"qemu-system-x86_64", b"qemu-system-amd64", b"qemu-kvm", b"kvm"];
const QEMU: &[u8] = b"qemu";

/// The program with this file name; `None` if the name is not one of QEMU's. A version or suffix can follow the name:
/// `qemu-system-x86_64-7.2`, `kvm-spice`, `qemu.sh`.
pub(super) fn program(name: &[u8]) -> Option<Program> {
    let ends = |rest: &[u8]| matches!(rest, [] | [b'-' | b'.', ..]);
    let is_x86 = X86.iter().any(|known| name.strip_prefix(*known).is_some_and(ends));
    match name.strip_prefix(QEMU) {
        _ if is_x86 => Some(Program::X86),
        // `qemu-img` and the like are other programs.
        Some([] | [b'.', ..] | [b'-', b'0'..=b'9', ..]) => Some(Program::X86),
        Some(_) => Some(Program::Other),
        None => None,
    }
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
            "qemu-kvm",
            "qemu-kvm.sh",
            "kvm",
            "kvm-spice",
            "qemu",
            "qemu-7.2.0",
            "qemu.sh",
        ] {
            assert_eq!(program(name.as_bytes()), Some(Program::X86), "{name}");
        }
        for name in [
            "qemu-system-aarch64",
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
