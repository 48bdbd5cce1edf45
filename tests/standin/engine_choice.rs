//! Which hypervisor is found if a description names none: the architecture of the kernel or of the firmware decides, and then the order of the search.

use std::path::Path;
use std::process::Command;

use hyperkit::{Architecture, Engine, Error, HyperKit, Multiboot};

use crate::common::TestDir;
use crate::common::arm_image::ArmImage;
use crate::common::elf_kernel::ElfKernel;
use crate::log_lines::log_lines;
use crate::starter::{Starter, arguments_of, report};

const TEST: &str = "engine_choice::kernel_decides_which_hypervisor_is_searched";

/// The description of a VM with this boot source, without a program.
fn describe(source: &str, path: &Path) -> HyperKit {
    match source {
        "kernel" => HyperKit::new().kernel(path),
        "bootrom" => HyperKit::new().bootrom(path),
        _ => HyperKit::new().multiboot(Multiboot::new(path)),
    }
}

/// In a starter: reports the found program and the log, or the places that were searched.
fn report_choice(arguments: &[String]) {
    let description = describe(&arguments[0], Path::new(&arguments[1]));
    let lines = log_lines(log::Level::Info);
    let engine = description.engine();
    let log: Vec<_> = lines.try_iter().collect();
    match (description.resolve(), engine) {
        (Ok(found), Ok(engine)) => {
            let program = found.hyperkit.unwrap();
            assert_eq!(engine, Engine::of(&program));
            report(format!("{} {}", program.display(), log.join("; ")));
        }
        (Err(Error::HypervisorNotFound { searched }), Err(Error::HypervisorNotFound { searched: places })) => {
            assert_eq!(searched, places);
            report(format!("not found: {searched:?}"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn kernel_decides_which_hypervisor_is_searched() {
    if let Some(arguments) = arguments_of(TEST) {
        return report_choice(&arguments);
    }
    let test_dir = TestDir::new();
    let path = |name: &str| test_dir.path(name).to_str().unwrap().to_owned();
    test_dir.write("Image", &ArmImage::new(1 << 20).0);
    test_dir.write("vmlinux", &ElfKernel::new(&[0; 4], 2 << 20).0);
    for (name, length) in [("pc.fd", 4 << 20), ("virt.fd", 64 << 20), ("other.fd", 32 << 20)] {
        std::fs::File::create(test_dir.path(name)).unwrap().set_len(length).unwrap();
    }
    let gzip = Command::new("gzip").args(["--keep", "Image"]).current_dir(test_dir.dir()).status().unwrap();
    assert!(gzip.success());
    let choose = |programs: &[&str], source: &str, file: &str| {
        let bin = tempfile::tempdir().unwrap();
        for program in programs {
            crate::common::write_executable(&bin.path().join(program), b"#!/bin/sh\nexit 9\n");
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        let choice = Starter::spawn_with(command.env("PATH", bin.path()), TEST, &[source, &path(file)]).report();
        choice.replace(bin.path().to_str().unwrap(), "PATH")
    };
    let is_arm64 = Architecture::host() == Some(Architecture::Arm64);
    let (of_host, of_other) = if is_arm64 { ("aarch64", "x86_64") } else { ("x86_64", "aarch64") };
    let (x86, arm64) = ("qemu-system-x86_64", "qemu-system-aarch64");
    let qemus = [x86, arm64];
    for (source, file) in [("kernel", "Image"), ("kernel", "Image.gz"), ("bootrom", "virt.fd")] {
        let reason = "using QEMU for arm64, the first installed engine for arm64 guests: PATH/qemu-system-aarch64";
        for programs in [&["hyperkit", x86, arm64][..], &qemus, &[arm64]] {
            assert_eq!(choose(programs, source, file), format!("PATH/{arm64} {reason}"));
        }
        let nothing = choose(&["hyperkit", x86, "kvm", "qemu"], source, file);
        assert!(nothing.starts_with("not found: [\"PATH/qemu-system-aarch64\""), "{nothing}");
        assert!(!nothing.contains("hyperkit\"") && !nothing.contains("x86") && !nothing.contains("/kvm"), "{nothing}");
    }
    for (source, file) in [("kernel", "vmlinuz"), ("kernel", "vmlinux"), ("multiboot", "vmlinuz"), ("bootrom", "pc.fd")]
    {
        let reason = "using QEMU, the first installed engine for x86-64 guests: PATH/qemu-system-x86_64";
        assert_eq!(choose(&qemus, source, file), format!("PATH/{x86} {reason}"), "{source}");
        if cfg!(not(all(target_os = "macos", target_arch = "aarch64"))) {
            let reason = "using hyperkit, the first installed engine for x86-64 guests: PATH/hyperkit";
            let choice = choose(&["hyperkit", x86, arm64], source, file);
            assert_eq!(choice, format!("PATH/hyperkit {reason}"), "{source}");
        }
        let nothing = choose(&[arm64], source, file);
        assert!(nothing.starts_with("not found: ") && nothing.contains("PATH/qemu-system-x86_64"), "{nothing}");
        assert!(!nothing.contains("aarch64"), "{nothing}");
    }
    // If the architecture is not known, programs for the host's are searched first, and then the others.
    for (source, file) in [("bootrom", "other.fd"), ("kernel", "no-such-file")] {
        for programs in [&[x86, arm64][..], &[&*format!("qemu-system-{of_host}")]] {
            let choice = choose(programs, source, file);
            assert!(choice.starts_with(&format!("PATH/qemu-system-{of_host} using QEMU")), "{choice}");
        }
        let other = choose(&[&format!("qemu-system-{of_other}")], source, file);
        assert!(other.starts_with(&format!("PATH/qemu-system-{of_other} using QEMU")), "{other}");
        let nothing = choose(&[], source, file);
        assert!(nothing.contains(x86) && nothing.contains(arm64), "{nothing}");
        assert_eq!(nothing.matches("PATH/qemu-kvm").count(), 1, "{nothing}");
    }
    // `qemu-kvm` runs guests of the host's architecture.
    let (with_host, with_other) = if is_arm64 { ("Image", "vmlinuz") } else { ("vmlinuz", "Image") };
    let choice = choose(&["qemu-kvm"], "kernel", with_host);
    assert!(choice.starts_with("PATH/qemu-kvm using QEMU"), "{choice}");
    let nothing = choose(&["qemu-kvm"], "kernel", with_other);
    assert!(nothing.starts_with("not found: ") && !nothing.contains("qemu-kvm"), "{nothing}");
}
