//! Properties that must hold for any untrusted input. Property tests and fuzz targets call these functions with their input.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use hyperkit::{Architecture, Console, Engine, HyperKit, Kernel, KernelFormat, parse_arguments};

/// Checks a state file: if it loads, its description can be written and loaded again, and turned into arguments.
pub fn check_json(bytes: &[u8]) {
    let Ok(description) = serde_json::from_slice::<HyperKit>(bytes) else { return };
    let written = description.to_string();
    let again = serde_json::from_str::<HyperKit>(&written).expect("a written state file does not load");
    assert_eq!(again, description, "{written}");
    let is_hyperkit = description.hyperkit.as_ref().is_none_or(|program| Engine::of(program) == Engine::HyperKit);
    if let (Ok(arguments), true) = (description.arguments(""), is_hyperkit && description.extra_arguments.is_empty()) {
        parse_arguments(&arguments).expect("the arguments of a description do not parse");
    }
}

/// Checks a command line, with NUL or newline between its words: if it parses, the description gives arguments that parse
/// to the same description.
pub fn check_argv(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split(['\0', '\n']).collect();
    let Ok((description, cmdline)) = parse_arguments(&words) else { return };
    let program =
        description.hyperkit.iter().map(|program| program.to_str().expect("the program is not UTF-8").to_owned());
    let words: Vec<_> =
        program.chain(description.arguments(&cmdline).expect("a parsed description gives no arguments")).collect();
    let again = parse_arguments(&words).expect("the arguments of a description do not parse");
    assert_eq!(again, (description, cmdline), "{words:?}");
}

/// Checks a pid file in a state directory that records no process: whatever process it names, that is not the hypervisor.
pub fn check_pid_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a temporary directory");
    fs::write(dir.path().join("hyperkit.json"), HyperKit::new().kernel("/k").to_string())
        .expect("cannot write to the temporary directory");
    fs::write(dir.path().join("hyperkit.pid"), bytes).expect("cannot write to the temporary directory");
    let description = HyperKit::from_state(dir.path()).expect("the state file does not load");
    assert_eq!(description.recorded_pid(), None);
    assert!(!description.is_running().unwrap());
}

/// Checks a tty file, and a symlink in its place with this target: the path that it leads to is below `/dev`, or is ignored.
pub fn check_tty_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a temporary directory");
    let (file, description) = (dir.path().join("tty"), HyperKit::new().state_dir(dir.path()).console(Console::Pty));
    let check = || {
        for tty in description.pty_paths().into_iter().flatten() {
            assert!(is_below_dev(&tty), "{tty:?}");
        }
    };
    fs::write(&file, bytes).expect("cannot write to the temporary directory");
    check();
    fs::remove_file(&file).expect("cannot write to the temporary directory");
    if symlink(OsStr::from_bytes(bytes), &file).is_ok() {
        check();
    }
}

/// Checks a kernel file: it is read, or the error names it. `check` then reports it on the engines that do not boot it.
pub fn check_kernel(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a temporary directory");
    let path = dir.path().join("kernel");
    fs::write(&path, bytes).expect("cannot write to the temporary directory");
    let kernel = Kernel::read(&path);
    match &kernel {
        Ok(kernel) => {
            let is_vmlinux = kernel.format() == KernelFormat::Vmlinux;
            let is_arm64 = kernel.architecture() == Architecture::Arm64;
            assert_eq!(is_arm64, [KernelFormat::Image, KernelFormat::ImageGz].contains(&kernel.format()));
            assert_eq!(kernel.boots_on(Engine::QemuArm64), is_arm64);
            assert_eq!(kernel.boots_on(Engine::Qemu), !is_arm64 && (!is_vmlinux || kernel.pvh_entry().is_some()));
            assert!(!((is_vmlinux || is_arm64) && kernel.boots_on(Engine::HyperKit)));
            assert_eq!(kernel.cmdline_limit().is_none(), is_vmlinux);
        }
        Err(error) => assert!(error.to_string().contains("kernel"), "{error}"),
    }
    for (program, engine) in [
        ("qemu-system-x86_64", Engine::Qemu),
        ("qemu-system-aarch64", Engine::QemuArm64),
        ("hyperkit", Engine::HyperKit),
    ] {
        let boots = kernel.as_ref().is_ok_and(|kernel| kernel.boots_on(engine));
        let description = HyperKit::new().hyperkit(dir.path().join(program)).kernel(&path).initrd(&path);
        // The search for the least memory depends on the size.
        for memory in [2, 2048, 1 << 40] {
            // There is no such program. Both errors are only reported for a kernel that boots and does not fit.
            let error = description.clone().memory_mib(memory).check().expect_err("the program is missing");
            let is_about_kernel = error.violations().iter().any(|violation| violation.field() == "kernel");
            assert!(boots || is_about_kernel, "{error:?}");
        }
    }
}

fn is_below_dev(path: &Path) -> bool {
    let mut rest = path.strip_prefix("/dev").ok().into_iter().flat_map(Path::components).peekable();
    rest.peek().is_some() && rest.all(|component| matches!(component, Component::Normal(_)))
}
