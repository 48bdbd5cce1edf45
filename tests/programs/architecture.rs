//! `--arch` of `boot` and `exec`: which guest, engine and console it chooses, and programs in guests of both architectures.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::guest::setup_file;
use crate::common::{TestDir, example_path};

const IS_ARM64_HOST: bool = cfg!(target_arch = "aarch64");
/// The other names of the architectures are tested with `exec`.
const NATIVE: &str = if IS_ARM64_HOST { "arm64" } else { "amd64" };
const OTHER: &str = if IS_ARM64_HOST { "amd64" } else { "arm64" };
/// The directory of the guest of `OTHER`.
const OTHER_GUEST: &str = if IS_ARM64_HOST { "target/guest-amd64" } else { "target/guest-arm64" };
const ARM64_GUEST: &str = if IS_ARM64_HOST { "target/guest" } else { OTHER_GUEST };
const AMD64_GUEST: &str = if IS_ARM64_HOST { OTHER_GUEST } else { "target/guest" };

fn run(example: &str, words: &[&str], guest: Option<&Path>) -> Output {
    let mut program = Command::new(example_path(example));
    program.args(words).stdin(Stdio::null()).env_remove("HYPERKIT_GUEST");
    program.envs(guest.map(|guest| ("HYPERKIT_GUEST", guest))).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the words of `boot --arguments`.
fn arguments(words: &[&str], guest: Option<&Path>) -> Vec<String> {
    let output = run("boot", &[&["--arguments"], words].concat(), guest);
    assert!(output.status.success(), "{words:?}: {output:?}");
    text(&output.stdout).split([',', '\n']).map(str::to_owned).collect()
}

/// QEMU boots the unpacked kernel of x86-64 sooner, and hyperkit does not boot it.
#[test]
fn boot_picks_the_guest_that_suits_the_engine() {
    let (amd64, arm64) = (format!("{AMD64_GUEST}/vmlinuz"), format!("{ARM64_GUEST}/vmlinuz"));
    let (elf, native) = (format!("{AMD64_GUEST}/vmlinux"), if IS_ARM64_HOST { &arm64 } else { &amd64 });
    let arm64_kernel = setup_file(ARM64_GUEST, "vmlinuz");
    let arm64_kernel = arm64_kernel.to_str().unwrap();
    for (words, kernel, console) in [
        (&["--hyperkit", "qemu-system-x86_64"][..], &elf, "ttyS0"),
        (&["--hyperkit", "hyperkit"], &amd64, "ttyS0"),
        (&["--hyperkit", "qemu-system-aarch64"], &arm64, "ttyAMA0"),
        (&["--arch", "arm64"], &arm64, "ttyAMA0"),
        (&["--arch", "aarch64", "--hyperkit", "qemu-system-aarch64"], &arm64, "ttyAMA0"),
        (&["--arch", "amd64"], &amd64, "ttyS0"),
        (&["--arch", "x86_64", "--hyperkit", "qemu-system-x86_64"], &elf, "ttyS0"),
        (&["--kernel", arm64_kernel], &arm64, "ttyAMA0"),
        (&[], native, if IS_ARM64_HOST { "ttyAMA0" } else { "ttyS0" }),
    ] {
        let arguments = arguments(words, None);
        assert!(arguments.iter().any(|word| word.ends_with(kernel.as_str())), "{words:?}: {arguments:?}");
        let cmdline = arguments.iter().find(|word| word.contains("console=tty")).unwrap();
        assert!(cmdline.ends_with(&format!("console={console} panic=1 no_timer_check quiet")), "{words:?}: {cmdline}");
    }
}

#[test]
fn arch_that_contradicts_another_flag_is_refused() {
    let [amd64, arm64] = [AMD64_GUEST, ARM64_GUEST].map(|dir| setup_file(dir, "vmlinuz").display().to_string());
    for (words, message) in [
        (
            ["--arch", "arm64", "--hyperkit", "qemu-system-x86_64"],
            "--hyperkit is for x86-64, not for arm64 as --arch says: ",
        ),
        (
            ["--arch", "amd64", "--hyperkit", "qemu-system-aarch64"],
            "--hyperkit is for arm64, not for x86-64 as --arch says: ",
        ),
        (["--arch", "arm64", "--kernel", &amd64], "--kernel is for x86-64, not for arm64 as --arch says: "),
        (["--arch", "amd64", "--kernel", &arm64], "--kernel is for arm64, not for x86-64 as --arch says: "),
    ] {
        for (example, status) in [("boot", 1), ("exec", 125)] {
            let output = run(example, &[&words[..], if example == "exec" { &["program"] } else { &[] }].concat(), None);
            let error = text(&output.stderr);
            assert!(error.starts_with(&format!("{example}: {message}{}", words[3])), "{words:?}: {error}");
            assert_eq!(output.status.code(), Some(status), "{words:?}");
        }
    }
}

#[test]
fn guest_of_another_architecture_is_in_the_directory_or_beside_it() {
    let test_dir = TestDir::new();
    let dir = test_dir.dir().canonicalize().unwrap();
    let link = |from: &str, name: &str| symlink(setup_file(from, "vmlinuz").parent().unwrap(), dir.join(name)).unwrap();
    link(OTHER_GUEST, "other");
    link("target/guest", "both");
    link(OTHER_GUEST, &format!("both-{OTHER}"));
    link("target/guest", "native");
    for (guest, arch, kernel) in [
        ("other", OTHER, "/other/vmlinuz".to_owned()),
        ("both", OTHER, format!("/both-{OTHER}/vmlinuz")),
        ("both/", OTHER, format!("/both-{OTHER}/vmlinuz")),
        ("both", NATIVE, "/both/vmlinuz".to_owned()),
    ] {
        let arguments = arguments(&["--arch", arch], Some(&dir.join(guest)));
        assert!(arguments.iter().any(|word| word.ends_with(&kernel)), "{guest} {arch}: {arguments:?}");
    }
    for (guest, arch, is_for, command) in [
        (
            "native",
            OTHER,
            NATIVE,
            format!("--arch {OTHER} --guest {}-{OTHER}, in a checkout", dir.join("native").display()),
        ),
        ("other", NATIVE, OTHER, format!("--guest {}, in a checkout", dir.join("other").display())),
    ] {
        let guest = dir.join(guest);
        let output = run("boot", &["--arch", arch], Some(&guest));
        let (error, name) = (text(&output.stderr), |arch: &str| arch.replace("amd64", "x86-64"));
        assert!(error.starts_with(&format!("boot: no guest for {}: vmlinu", name(arch))), "{error}");
        let found = format!("; the guest in {} is for {}; create the guest with", guest.display(), name(is_for));
        assert!(error.contains(&found) && error.contains(&command), "{error}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn exec_runs_programs_in_guests_of_both_architectures() {
    let test_dir = TestDir::new();
    let script = b"#!/bin/sh\necho on $(uname -m) as $$ with $1\necho error >&2\nexit 7\n";
    let script = test_dir.write_executable("script", script);
    for (arch, machine, dir) in [("amd64", "x86_64", AMD64_GUEST), ("arm64", "aarch64", ARM64_GUEST)] {
        let output = run("exec", &["--arch", arch, script.to_str().unwrap(), "word"], None);
        let outputs = (text(&output.stdout), text(&output.stderr), output.status.code());
        assert_eq!(outputs, (format!("on {machine} as 1 with word\n"), "error\n".to_owned(), Some(7)), "{arch}");

        // A static program of the guest's architecture. As process 1, the agent would not look at its arguments.
        let agent = setup_file(dir, "hyperkit-agent").display().to_string();
        let output = run("exec", &["--arch", machine, "--child", &agent, "two", "words"], None);
        assert_eq!(text(&output.stderr), "usage: hyperkit-agent [vsock | DEVICE]\n", "{output:?}");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    let output = run("exec", &["--host-root", "--arch", NATIVE, "--", "uname", "-m"], None);
    let machine = if IS_ARM64_HOST { "aarch64\n" } else { "x86_64\n" };
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), (machine, Some(0)), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn exec_refuses_programs_of_another_architecture() {
    for (arch, dir, name, other) in
        [("amd64", ARM64_GUEST, "x86-64", "arm64"), ("arm64", AMD64_GUEST, "arm64", "amd64")]
    {
        let agent = setup_file(dir, "hyperkit-agent").display().to_string();
        let output = run("exec", &["--arch", arch, &agent], None);
        assert_eq!(text(&output.stderr), format!("exec: {agent}: not for {name}; set --arch {other}\n"));
        assert_eq!(output.status.code(), Some(125));
    }
    // An ELF file for 64 bits and the other CPU, with one program header: that of a loader.
    let mut dynamic = vec![0; 120];
    dynamic[..5].copy_from_slice(b"\x7fELF\x02");
    dynamic[18] = if IS_ARM64_HOST { 62 } else { 183 };
    (dynamic[32], dynamic[54], dynamic[56], dynamic[64]) = (64, 56, 1, 3);
    let test_dir = TestDir::new();
    let dynamic = test_dir.write_executable("dynamic", &dynamic);
    let output = run("exec", &["--arch", OTHER, dynamic.to_str().unwrap()], None);
    let error = text(&output.stderr);
    assert!(
        error.contains(": it needs shared libraries: link it statically (") && !error.contains("--host-root"),
        "{error}"
    );
    let output = run("exec", &["--host-root", "--arch", OTHER, "true"], None);
    assert!(text(&output.stderr).starts_with("exec: --host-root runs programs of this host, not of "), "{output:?}");
    assert_eq!(output.status.code(), Some(2));
    let kernel = setup_file(OTHER_GUEST, "vmlinuz");
    let output = run("exec", &["--host-root", "--kernel", kernel.to_str().unwrap(), "true"], None);
    assert!(text(&output.stderr).starts_with("exec: --host-root runs programs of this host, not of "), "{output:?}");
    assert_eq!(output.status.code(), Some(125));
}
