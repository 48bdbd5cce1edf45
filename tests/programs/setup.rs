//! `examples/setup.sh`: its help, its usage errors, and what it says before it changes anything.

use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/setup.sh");

#[test]
fn setup_explains_itself_and_refuses_unknown_flags() {
    let setup = |words: &[&str]| Command::new(SCRIPT).args(words).output().unwrap();
    let help = setup(&["--help"]);
    assert!(help.status.success(), "{help:?}");
    let text = String::from_utf8(help.stdout).unwrap();
    for word in [
        "qemu-system-x86",
        "qemu-system-arm",
        "72 MB",
        "target/guest",
        "--arch amd64|arm64|both",
        "--tests",
        "vhost-device-vsock",
        "sudo",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for words in [&["--test"][..], &["--arch"], &["--arch", "mips"], &["--guest"]] {
        let wrong = setup(words);
        assert_eq!(wrong.status.code(), Some(2), "{words:?}");
        assert!(String::from_utf8(wrong.stderr).unwrap().contains("--help"), "{words:?}");
        assert!(wrong.stdout.is_empty(), "{words:?}");
    }
    assert_eq!(setup(&["--help", "--test"]).status.code(), Some(2));
}

#[cfg(target_os = "linux")]
mod plan {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::{Command, Output, Stdio};

    use super::SCRIPT;
    use crate::common::TestDir;

    /// A host with the given programs, which do nothing, and with an `apt-get` that only says that it was called. It has none of the
    /// programs that the setup looks for.
    struct Host(TestDir);

    impl Host {
        fn new(programs: &[&str]) -> Self {
            let test_dir = TestDir::new();
            fs::create_dir(test_dir.path("bin")).unwrap();
            let tools = ["sh", "dirname", "sed", "cat", "cksum", "uname", "id", "grep", "env", "rm", "find", "sort"];
            for tool in tools {
                let path = std::env::var_os("PATH").unwrap();
                let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|path| path.exists());
                symlink(found.unwrap_or_else(|| panic!("no {tool}")), test_dir.path("bin").join(tool)).unwrap();
            }
            test_dir.write_executable("bin/apt-get", b"#!/bin/sh\necho apt-get \"$@\"\nexit 7\n");
            test_dir.write_executable("bin/sudo", b"#!/bin/sh\nexec \"$@\"\n");
            for program in programs {
                // rustc says where the standard library for a target is, whether it is installed or not.
                let text =
                    format!("#!/bin/sh\ncase \"$*\" in *{}*) echo /none ;; *) echo / ;; esac\n", architectures()[2]);
                test_dir.write_executable(&format!("bin/{program}"), text.as_bytes());
            }
            Self(test_dir)
        }

        /// The directory for which the guest is made.
        fn guest(&self) -> PathBuf {
            self.0.dir().canonicalize().unwrap().join("new guest")
        }

        fn setup(&self, words: &[&str]) -> Output {
            let mut setup = Command::new(SCRIPT);
            setup.args(words).arg("--guest").arg(self.guest()).env("PATH", self.0.path("bin")).stdin(Stdio::null());
            setup.output().unwrap()
        }
    }

    /// The names that Debian has for the host's architecture and the other one, Rust's name for the other one, and the packages for it.
    fn architectures() -> [&'static str; 4] {
        let for_arm64 = "qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross";
        let for_amd64 = "qemu-system-x86 gcc-x86-64-linux-gnu libc6-dev-amd64-cross";
        match cfg!(target_arch = "aarch64") {
            true => ["arm64", "amd64", "x86_64-unknown-linux-gnu", for_amd64],
            false => ["amd64", "arm64", "aarch64-unknown-linux-gnu", for_arm64],
        }
    }

    #[test]
    fn setup_says_what_it_will_do_before_it_does_it() {
        let [native, other, rust_target, other_packages] = architectures();
        let native_qemu = if native == "arm64" { "qemu-system-arm" } else { "qemu-system-x86" };
        let host = Host::new(&["cargo", "rustc", "rustup"]);
        let guest = host.guest();
        let plan = |words: &[&str], expected: &[&str]| {
            let output = host.setup(words);
            assert_eq!(output.status.code(), Some(7), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
            for line in expected {
                assert!(
                    place("this takes about a minute") < place(line) && place(line) < place("apt-get -q update"),
                    "{text}"
                );
            }
            assert!(!host.guest().exists());
            text
        };
        let downloads = |arch: &str, suffix: &str| {
            format!(
                "- download a Linux kernel and busybox for {arch}, 61 to 110 MB (more on Ubuntu), and make of them a guest in {}{suffix}/\n",
                guest.display()
            )
        };
        let installs_rust = format!("'rustup target add {rust_target}', 30 MB\n");

        let by_default =
            plan(&[], &[&format!(" MB: {native_qemu} cpio gcc libc6-dev xz-utils\n"), &downloads(native, "")]);
        assert!(!by_default.contains(rust_target) && !by_default.contains(other_packages), "{by_default}");
        let packages = format!(" MB: {other_packages} cpio gcc libc6-dev xz-utils\n");
        plan(&["--arch", other], &[&packages, &installs_rust, &downloads(other, "")]);
        let suffix = format!("-{other}");
        plan(
            &["--arch", "both"],
            &[other_packages, native_qemu, &installs_rust, &downloads(native, ""), &downloads(other, &suffix)],
        );
    }

    #[test]
    fn setup_that_lacks_rustup_or_cargo_says_so_before_it_installs_anything() {
        let [_, other, rust_target, _] = architectures();
        for (programs, message) in [(&["cargo", "rustc"][..], rust_target), (&[], "cargo is missing")] {
            let output = Host::new(programs).setup(&["--arch", other]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(error.contains(message) && error.contains("https://rustup.rs"), "{error}");
            assert!(!String::from_utf8(output.stdout).unwrap().contains("apt-get"));
        }
    }
}
