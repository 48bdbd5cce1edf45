//! How the examples are called: help, usage errors, messages in their own words, and the commands that they print.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hyperkit::HyperKit;

use crate::common::{StopOnDrop, TEST_TIMEOUT, TestDir, example_path, standin_path, start_vm};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn run(example: &str, words: &[&str], dir: &Path) -> Output {
    let mut program = Command::new(example_path(example));
    program.args(words).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// Returns the standard error and the exit status.
fn fail(example: &str, words: &[&str], dir: &Path) -> (String, Option<i32>) {
    let output = run(example, words, dir);
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

/// What `boot` prints as the kernel command line.
fn kernel_cmdline(words: &[&str], test_dir: &TestDir) -> String {
    let kernel = ["--arguments", "--hyperkit", "qemu-system-x86_64", "--kernel", "vmlinuz"];
    let output = run("boot", &[&kernel, words].concat(), &test_dir.dir());
    assert!(output.status.success(), "{output:?}");
    let arguments = String::from_utf8(output.stdout).unwrap();
    arguments.lines().skip_while(|line| *line != "-append").nth(1).unwrap().to_owned()
}

#[test]
fn usage_errors_have_status_2_and_name_the_nearest_word() {
    let test_dir = TestDir::new();
    test_dir.write("comment", b"# no kernel\n");
    for (example, words, message) in [
        ("boot", &["--stat-dir", "x"][..], "unknown option --stat-dir (did you mean --state-dir?)"),
        ("boot", &["--mem", "1"], "did you mean --memory?"),
        ("boot", &["--frobnicate"], "unknown option --frobnicate; --help"),
        ("boot", &["vmlinuz"], "unexpected argument \"vmlinuz\""),
        ("boot", &["--kernel"], "missing argument for option '--kernel'"),
        ("boot", &["--cpus", "two"], "--cpus takes a number: \"two\""),
        ("boot", &["--cpus", "4294967296"], "the number for --cpus is too large: \"4294967296\""),
        ("boot", &["--forward", "80"], "--forward takes HOST:GUEST: \"80\""),
        ("boot", &["--arch", "mips"], "--arch takes amd64 or arm64: \"mips\""),
        ("boot", &["--console", "file"], "--console takes pty, stdio or log: \"file\""),
        ("boot", &["--background", "--no-state"], "--background requires a record; leave out --no-state"),
        ("boot", &["--console", "pty", "--no-state"], "--console pty requires a record; leave out --no-state"),
        ("boot", &["--background", "--console", "stdio"], "leave out --console stdio"),
        ("boot", &["--background", "--arguments"], "--background and --arguments exclude each other"),
        ("ctl", &["lst"], "unknown command lst (did you mean list?)"),
        ("ctl", &["log", "--folow", "vm"], "did you mean --follow?"),
        ("ctl", &["frobnicate", "vm"], "unknown command frobnicate; --help"),
        ("ctl", &["stop", ""], "DIR is empty"),
        ("ctl", &["stop", "--yes", "vm"], "--yes requires the command rm"),
        ("exec", &[], "missing PROGRAM"),
        ("exec", &["--chid", "program"], "unknown option --chid (did you mean --child?)"),
        ("exec", &["--host-rot", "program"], "unknown option --host-rot (did you mean --host-root?)"),
        ("exec", &["--timeout", "1", "program"], "--timeout requires --host-root"),
        ("exec", &["--host-root", "--child", "program"], "--child and --host-root exclude each other"),
        ("exec", &["--host-root", "--timeout", "0", "program"], "--timeout must be at least 1: 0"),
        ("exec", &["--host-root", "--env", "=x", "program"], "--env takes NAME or NAME=VALUE: \"=x\""),
        ("exec", &["--kernels", "none", "program"], "--kernels none: No such file"),
        ("exec", &["--kernels", "comment", "program"], "--kernels comment: the file names no kernel"),
    ] {
        let (error, status) = fail(example, words, &test_dir.dir());
        assert!(error.contains(message), "{example} {words:?}: {error}");
        assert!(error.ends_with("; --help shows how\n") && error.lines().count() == 1, "{error}");
        assert_eq!(status, Some(2), "{example} {words:?}");
    }
}

#[test]
fn help_has_a_line_for_each_option() {
    for (example, options) in [("boot", 30), ("ctl", 10), ("exec", 5)] {
        let output = run(example, &["--help"], Path::new("/"));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        // An option or command, spaces, and what it does.
        let described: Vec<_> =
            help.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).collect();
        assert!(described.len() >= options, "{help}");
        for line in described {
            let (_, text) = line.trim_start().split_once("  ").unwrap_or_else(|| panic!("{line:?} says nothing"));
            assert!(!text.trim_start().contains("   "), "two options in a line: {line:?}");
        }
        assert!(help.lines().all(|line| line.len() <= 125), "{help}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_reported() {
    let test_dir = TestDir::new();
    let (_, _vm, _stop) = start_vm(&test_dir, "guest");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (example, words) in
        [("boot", &["--help"][..]), ("ctl", &["-h"]), ("exec", &["-h"]), ("ctl", &["list"]), ("ctl", &["show", "vm"])]
    {
        let mut program = Command::new(example_path(example));
        program.args(words).current_dir(test_dir.dir());
        let output = program.stdout(full()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with(&format!("{example}: cannot write the output: ")), "{words:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{example} {words:?}");

        // A reader that has read enough is no error.
        let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        let writer = reader.stdin.take().unwrap();
        reader.wait().unwrap();
        let output = program.stdout(writer).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{example} {words:?}");
    }
    for (example, words, status) in [("boot", &["--x"][..], 2), ("ctl", &["stop", "nowhere"], 1), ("exec", &["x"], 125)]
    {
        let code = Command::new(example_path(example)).args(words).stderr(full()).status().unwrap().code();
        assert_eq!(code, Some(status), "{example} {words:?}");
    }
}

/// Flags that `boot` once had.
#[test]
fn boot_names_the_command_of_ctl_that_replaces_a_flag() {
    let test_dir = TestDir::new();
    let dir = test_dir.path("vm");
    for (flag, command) in [("--attach", "console"), ("--stop", "stop"), ("--remove", "rm"), ("--pause", "pause")] {
        let (error, status) = fail("boot", &[flag, "--state-dir", "vm"], &test_dir.dir());
        assert!(error.contains(&format!("--example ctl -- {command} {}", dir.display())), "{error}");
        assert_eq!(status, Some(2));
    }
}

#[test]
fn errors_of_the_library_name_flags() {
    let test_dir = TestDir::new();
    let kernel = ["--kernel", "vmlinuz", "--state-dir", "vm", "--hyperkit", "qemu-system-x86_64"];
    for (words, message) in [
        (&["--forward", "0:7"][..], "boot: `--forward` requires `--vpnkit auto`\n"),
        (&["--vpnkit-key", "x"], "`--vpnkit-key` must be a UUID"),
        (&["--vpnkit", "socket"], "; use `--vpnkit auto`"),
        (&["--memory", "0"], "`--memory` must be at least 2 MiB"),
        (&["--cpu", "help"], "`--cpu` must be a CPU model of QEMU"),
        (&["--iso", "/no/such.iso"], "`--iso` not found: /no/such.iso"),
        (&["--console", "log"], "(`--console`); use `pty` for a log in the state directory"),
    ] {
        let (error, status) = fail("boot", &[&kernel, words].concat(), &test_dir.dir());
        assert!(error.contains(message), "{words:?}: {error}");
        assert_eq!(status, Some(1), "{words:?}");
    }
    let (error, _) = fail("boot", &["--kernel", "vmlinuz", "--no-state", "--vsock"], &test_dir.dir());
    assert!(error.contains("`--vsock` requires a state directory; leave out `--no-state`"), "{error}");
    let (error, status) = fail("exec", &["--cpus", "99", &format!("{ROOT}/examples/exec/hello.sh")], &test_dir.dir());
    assert!(error.starts_with("exec: `--cpus` must be 1 to 64: 99"), "{error}");
    assert_eq!(status, Some(125));
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn missing_kernel_is_named_before_the_missing_initrd() {
    let test_dir = TestDir::new();
    let (error, status) = fail("boot", &["--kernel", "k", "--initrd", "i", "--state-dir", "vm"], &test_dir.dir());
    assert!(error.starts_with("boot: `--kernel` not found: ") && error.contains("; `--initrd` not found: "), "{error}");
    assert_eq!(status, Some(1));
}

#[test]
fn start_of_a_running_vm_names_the_directory_and_what_to_do() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let boot = ["--background", "--kernel", "vmlinuz", "--state-dir", "vm", "--hyperkit"];
    let (error, status) = fail("boot", &[&boot[..], &[standin_path().to_str().unwrap()]].concat(), &test_dir.dir());
    let dir = test_dir.path("vm").display().to_string();
    assert!(error.starts_with(&format!("boot: VM already running as process {}: {dir};", vm.pid())), "{error}");
    for command in ["console", "stop"] {
        assert!(error.contains(&format!("--example ctl -- {command} {dir}\n")), "{error}");
    }
    assert_eq!(status, Some(1));
    let (error, _) = fail("ctl", &["start", "vm"], &test_dir.dir());
    assert!(error.contains(&format!("--example ctl -- stop {dir}\n")), "{error}");
}

#[test]
fn kernel_command_line_is_quiet_and_keeps_a_console_and_an_end_after_a_panic() {
    let test_dir = TestDir::new();
    for (words, expected) in [
        (&[][..], "console=ttyS0 panic=1 no_timer_check quiet"),
        (&["--cmdline", "mine"], "console=ttyS0 panic=1 mine"),
        (&["--cmdline", "panic=0 -- single"], "console=ttyS0 panic=0 -- single"),
        (&["--cmdline", "console=hvc0"], "panic=1 console=hvc0"),
        (&["--cmdline", "console=hvc0 panic=-1"], "console=hvc0 panic=-1"),
    ] {
        assert_eq!(kernel_cmdline(words, &test_dir), expected);
    }
}

/// A `cargo` that checks its own arguments runs the `ctl` that was built with this test.
#[test]
fn printed_commands_work_in_any_directory() {
    let test_dir = TestDir::new();
    let name = "it's a $HOME; directory";
    let _stop = StopOnDrop(test_dir.path(name));
    let standin = standin_path();
    let words = ["--background", "--kernel", "vmlinuz", "--hyperkit", standin.to_str().unwrap(), "--state-dir", name];
    let boot = run("boot", &[&words[..], &["--disk-size", "1", "--cmdline", "guest"]].concat(), &test_dir.dir());
    assert!(boot.status.success(), "{boot:?}");
    let manifest = Path::new(ROOT).join("Cargo.toml").canonicalize().unwrap();
    let cargo = format!(
        "#!/bin/sh\n[ \"$1 $2 $3 $4 $5 $6\" = 'run --manifest-path {} --example ctl --' ] || exit 9\n\
         shift 6\nexec '{}' \"$@\"\n",
        manifest.display(),
        example_path("ctl").display()
    );
    std::fs::create_dir(test_dir.path("bin")).unwrap();
    test_dir.write_executable("bin/cargo", cargo.as_bytes());
    let path = format!("{}:{}", test_dir.path("bin").display(), std::env::var("PATH").unwrap());
    let output = String::from_utf8(boot.stdout).unwrap();
    let printed = |label: &str| {
        let line = output.lines().find_map(|line| line.trim().strip_prefix(label));
        let command = line.unwrap_or_else(|| panic!("no {label:?} in {output}"));
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("PATH", &path).current_dir("/").stdin(Stdio::null());
        shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let finished = |label| printed(label).wait_with_output().unwrap();
    let vm = HyperKit::from_state(test_dir.path(name)).unwrap().vm().unwrap().expect("the VM runs");
    vm.wait_for_console("Linux version", TEST_TIMEOUT).unwrap();
    let log = finished("console log:");
    assert!(String::from_utf8_lossy(&log.stdout).contains("Linux version"), "{log:?}");
    let mut console = printed("console:");
    console.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap(); // it is attached
    let kill = finished("kill:");
    assert!(kill.status.success() && vm.wait_timeout(TEST_TIMEOUT).is_some(), "{kill:?}");
    assert!(console.wait_with_output().unwrap().stdout.ends_with(b": exited\n"));
    let delete = finished("then delete:");
    assert!(String::from_utf8_lossy(&delete.stdout).contains("was removed, with disk.img (1 MiB)"), "{delete:?}");
    assert!(!test_dir.path(name).exists());
}
