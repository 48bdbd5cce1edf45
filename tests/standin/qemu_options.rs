//! QEMU's options that depend on the host. The programs here only have QEMU's names.

use std::path::Path;

use hyperkit::{Error, HyperKit};

use crate::common::TestDir;

/// Returns the arguments with which a start spawns a program. The program need not be executable.
fn arguments(test_dir: &TestDir, program: &Path, change: impl FnOnce(HyperKit) -> HyperKit) -> Vec<String> {
    let mut arguments = Vec::new();
    let description = change(test_dir.description().hyperkit(program));
    let spawned = description.spawn_with("", |command| {
        arguments = command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect();
    });
    assert!(matches!(spawned, Ok(_) | Err(Error::Io { action: "start", .. })), "{spawned:?}");
    arguments
}

fn count(arguments: &[String], option: &str) -> usize {
    arguments.iter().filter(|argument| *argument == option).count()
}

/// An ELF file for Linux that is linked with these libraries. It cannot be executed.
pub fn elf(libraries: &str) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01".to_vec();
    file.resize(1024, 0);
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(32, 64); // program headers: their place, below their size and number
    put(54, 56 | (2 << 16));
    // All of the file is loaded to 0x1000. Its table of libraries is at 256.
    [(64, 1), (80, 0x1000), (96, 1024), (120, 2), (128, 256), (152, 256)]
        .into_iter()
        .for_each(|(at, value)| put(at, value));
    let mut entry = 256;
    for (at, _) in libraries.match_indices("lib") {
        put(entry, 1);
        put(entry + 8, at as u64);
        entry += 16;
    }
    put(entry, 5);
    put(entry + 8, 0x1000 + 512);
    file[512..512 + libraries.len()].copy_from_slice(libraries.as_bytes());
    file
}

/// A QEMU without seccomp refuses the option. A script or another program that executes QEMU counts as having
/// the sandbox.
#[test]
fn sandbox_is_used_unless_qemu_is_linked_without_seccomp() {
    let is_linux = usize::from(cfg!(target_os = "linux"));
    for (program, has_sandbox) in [
        (&b"#!/bin/sh\nexit 9\n"[..], is_linux),
        (&elf("libglib-2.0.so.0\0libseccomp.so.2"), is_linux),
        (&elf("libc.so.6"), is_linux),
        (&elf("libglib-2.0.so.0\0libc.so.6"), 0),
    ] {
        let test_dir = TestDir::new();
        let program = test_dir.write_executable("qemu-system-x86_64", program);
        assert_eq!(count(&arguments(&test_dir, &program, |d| d), "-sandbox"), has_sandbox, "{program:?}");
        assert_eq!(count(&arguments(&test_dir, &program, |d| d.sandbox(false)), "-sandbox"), 0);
    }
}

#[test]
fn cpu_model_is_given_once() {
    let test_dir = TestDir::new();
    let script = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let default = arguments(&test_dir, &script, |d| d);
    let model = |arguments: &[String]| {
        assert_eq!(count(arguments, "-cpu"), 1, "{arguments:?}");
        arguments.iter().skip_while(|argument| *argument != "-cpu").nth(1).unwrap().clone()
    };
    let is_emulated = default.windows(2).any(|pair| pair == ["-accel", "tcg"]);
    assert_eq!(model(&default), if is_emulated { "Nehalem,+rdrand" } else { "host" });
    assert_eq!(model(&arguments(&test_dir, &script, |d| d.cpu("max,-avx"))), "max,-avx");
}

/// Such a script adds `-enable-kvm`. After that option, QEMU refuses `-accel`.
#[test]
fn accelerator_of_a_kvm_script_is_a_property_of_the_machine() {
    let test_dir = TestDir::new();
    for name in ["kvm", "qemu-kvm"] {
        let script = test_dir.write_executable(name, b"#!/bin/sh\nexit 9\n");
        let arguments = arguments(&test_dir, &script, |d| d);
        assert_eq!(count(&arguments, "-accel"), 0, "{name}");
        assert!(
            arguments.windows(2).any(|pair| pair[0] == "-machine" && pair[1].starts_with("accel=")),
            "{arguments:?}"
        );
    }
}

/// If an accelerator or a sandbox is given twice, QEMU takes the first one or fails.
#[test]
fn accelerator_and_sandbox_of_the_extra_arguments_are_the_only_ones() {
    let test_dir = TestDir::new();
    let script = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    for (extra, model) in [
        (&["-accel", "tcg,thread=single"][..], "Nehalem,+rdrand"),
        (&["--accel", "kvm"], "host"),
        (&["-enable-kvm"], "host"),
        (&["-machine", "usb=off,accel=tcg:kvm"], "Nehalem,+rdrand"),
        (&["-M", "accel=kvm"], "host"),
    ] {
        let arguments = arguments(&test_dir, &script, |d| extra.iter().fold(d, |d, word| d.extra_argument(*word)));
        let is_accelerator = |word: &&String| word.contains("accel") || word.contains("enable-kvm");
        let of_extra = extra.iter().filter(|word| word.contains("accel") || word.contains("enable-kvm")).count();
        assert_eq!(arguments.iter().filter(is_accelerator).count(), of_extra, "{arguments:?}");
        assert!(arguments.windows(2).any(|pair| pair == ["-cpu", model]), "{arguments:?}");
    }
    let default = arguments(&test_dir, &script, |d| d);
    let other = arguments(&test_dir, &script, |d| d.extra_argument("-machine").extra_argument("usb=off"));
    assert_eq!(count(&other, "-accel"), count(&default, "-accel"));
    let own = arguments(&test_dir, &script, |d| d.extra_argument("-sandbox").extra_argument("off"));
    assert_eq!(count(&own, "-sandbox"), 1);
}
