//! `Error` and `ConfigError`: their kinds, their fields, and their one-line messages.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyperkit::{
    Architecture, ConfigError, Engine, Error, ErrorKind, Exit, HyperKit, KernelFormat, LogTail, NotStarted, SectorSize,
};

fn denied() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the cause")
}

/// Returns an example of each variant of `Error`, with its `ErrorKind`.
fn errors() -> Vec<(ErrorKind, Error)> {
    let path = || PathBuf::from("/x");
    let state_dir = || Some(PathBuf::from("/vm"));
    let tail = LogTail::default;
    let timeout = Duration::from_millis(1500);
    let text_not_found = |exit| {
        let (text, log_tail) = ("login".to_owned(), tail());
        Error::ConsoleTextNotFound { text, exit, timeout, state_dir: state_dir(), log_tail }
    };
    let tool = || ConfigError::ToolNotFound { field: "disks", searched: vec![path()] };
    let vpnkit = || ConfigError::VpnKitNotFound { searched: vec![path()] };
    let cpus = || ConfigError::InvalidCpus { value: 0 };
    vec![
        (ErrorKind::Config, Error::InvalidConfig(vec![cpus()])),
        (ErrorKind::Config, Error::InvalidConfig(vec![tool(), cpus()])),
        (ErrorKind::NotInstalled, Error::InvalidConfig(vec![tool(), vpnkit()])),
        (ErrorKind::Config, Error::InvalidArguments { argument: "-z".to_owned(), reason: "unknown".to_owned() }),
        (ErrorKind::NotInstalled, Error::HypervisorNotFound { searched: vec![path()] }),
        (ErrorKind::InUse, Error::DiskInUse { path: path() }),
        (ErrorKind::InUse, Error::PortInUse { field: "gdb_port", port: 1, source: denied() }),
        (ErrorKind::InUse, Error::SocketInUse { path: path() }),
        (ErrorKind::InUse, Error::NetworkNumberInUse { dir: path(), number: 1 }),
        (ErrorKind::InUse, Error::DiskExists { path: path() }),
        (ErrorKind::Hypervisor, Error::ImageToolFailed { tool: path(), path: path(), stderr: "a\nb".to_owned() }),
        (ErrorKind::InUse, Error::AlreadyRunning { pid: 1, state_dir: path() }),
        (ErrorKind::InUse, Error::StillRunning { pid: 1, state_dir: path() }),
        (ErrorKind::NotRunning, Error::NotRunning { state_dir: None }),
        (ErrorKind::State, Error::Replaced { pid: 1, successor: 2, state_dir: path() }),
        (ErrorKind::CannotTell, Error::CannotTell { path: None, source: denied() }),
        (ErrorKind::Timeout, Error::StartTimedOut { timeout, state_dir: state_dir(), suspect: None, log_tail: tail() }),
        (
            ErrorKind::Hypervisor,
            Error::HypervisorFailed { exit: Exit::Failed(1), state_dir: state_dir(), log_tail: tail() },
        ),
        (ErrorKind::Hypervisor, Error::VsockDaemonFailed { program: path(), log_tail: tail() }),
        (ErrorKind::Hypervisor, Error::VirtiofsdFailed { program: path(), log_tail: tail() }),
        (ErrorKind::Hypervisor, Error::Qmp { socket: path(), reason: "\u{1b}[2J".to_owned() }),
        (ErrorKind::Guest, Error::VsockConnectionRefused { port: 1 }),
        (
            ErrorKind::Guest,
            Error::VmExited {
                program: "a\n".to_owned(),
                exit: Exit::PowerOff,
                state_dir: state_dir(),
                log_tail: tail(),
            },
        ),
        (
            ErrorKind::Guest,
            Error::CommandNotStarted { program: "x".to_owned(), reason: NotStarted::CurrentDir, source: denied() },
        ),
        (ErrorKind::Guest, Error::CommandOutputTooLong { program: "x".to_owned(), limit: 1 }),
        (ErrorKind::Guest, Error::CopyFailed { from: path(), to: path(), source: denied() }),
        (ErrorKind::Guest, Error::AgentFailed { reason: "\u{1b}[2J".to_owned(), state_dir: None }),
        (
            ErrorKind::Timeout,
            Error::AgentNotResponding { timeout, is_paused: true, state_dir: state_dir(), log_tail: tail() },
        ),
        (
            ErrorKind::Timeout,
            Error::AgentNotResponding { timeout, is_paused: false, state_dir: None, log_tail: tail() },
        ),
        (
            ErrorKind::Timeout,
            Error::CommandTimedOut { program: "x".to_owned(), timeout, stdout: Vec::new(), stderr: Vec::new() },
        ),
        (ErrorKind::Config, Error::NoConsole { state_dir: state_dir() }),
        (ErrorKind::Config, Error::NoConsoleLog { state_dir: None }),
        (ErrorKind::NotRunning, Error::PtyNotFound { path: path() }),
        (ErrorKind::Guest, text_not_found(Some(Exit::PowerOff))),
        (ErrorKind::Timeout, text_not_found(None)),
        (ErrorKind::State, Error::StateNotFound { path: path() }),
        (ErrorKind::State, Error::DamagedState { path: path(), source: denied() }),
        (ErrorKind::Io, Error::Io { action: "read", path: "/a\nb".into(), source: denied() }),
    ]
}

#[test]
fn each_error_has_its_kind() {
    for (kind, error) in errors() {
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

#[test]
fn message_is_one_line_and_the_alternate_form_appends_the_causes() {
    for (_, error) in errors() {
        let (message, with_causes) = (error.to_string(), format!("{error:#}"));
        assert!(!message.is_empty() && !with_causes.chars().any(char::is_control), "{with_causes:?}");
        assert!(!message.starts_with(char::is_uppercase) || message.starts_with("VM") || message.starts_with("QMP"));
        assert!(!message.ends_with('.'), "{message}");
        match std::error::Error::source(&error) {
            Some(cause) => assert_eq!(with_causes, format!("{message}: {cause}")),
            None => assert_eq!(with_causes, message),
        }
        assert!(!message.contains("the cause"), "{message}");
    }
}

/// In a program with many VMs, the state directory tells which VM the error is about.
#[test]
fn message_of_a_vm_names_its_state_directory() {
    let about_a_vm =
        errors().into_iter().filter(|(_, error)| format!("{error:?}").contains(r#"state_dir: Some("/vm")"#));
    let messages: Vec<_> = about_a_vm.map(|(_, error)| error.to_string()).collect();
    assert_eq!(messages.len(), 7);
    for message in messages {
        assert!(message.contains("/vm"), "{message}");
    }
}

#[test]
fn message_contains_all_violations() {
    let error = HyperKit::new().kernel("/k").cpus(0).memory_mib(1).arguments("").unwrap_err();
    assert_eq!(error.violations().len(), 2);
    let [cpus, memory] = error.violations() else { panic!("{error}") };
    assert_eq!(error.to_string(), format!("{cpus}; {memory}"));
    assert_eq!(
        error.to_string(),
        "`cpus` must be 1 to 64: 0; `memory_mib` must be at least 2 MiB and fit into 63 bits of bytes: 1"
    );
    assert_eq!(Error::HypervisorNotFound { searched: Vec::new() }.violations(), []);
    assert_eq!(Error::from(cpus.clone()).violations(), [ConfigError::InvalidCpus { value: 0 }]);
}

#[test]
fn violations_can_be_compared_and_cloned() {
    let missing = |field| ConfigError::NotFound { field, path: "/x".into() };
    assert_eq!(missing("kernel").clone(), missing("kernel"));
    assert_ne!(missing("kernel"), missing("initrd"));
}

/// Returns an example of each variant of `ConfigError`, with its field.
fn violations() -> Vec<(&'static str, ConfigError)> {
    use ConfigError as E;
    let (path, value, field) = (|| PathBuf::from("/x"), || "v".to_owned(), "isos");
    let size = SectorSize { logical: 1, physical: 1 };
    let (kind, reason) = (io::ErrorKind::PermissionDenied, "denied".to_owned());
    let feature = "a tap interface on this operating system (`tap`)";
    let call = "being read by `parse_arguments`";
    vec![
        ("isos", E::StateDirRequired { field }),
        ("isos", E::Missing { field }),
        ("isos", E::ForbiddenCharacter { field, value: value(), character: ',' }),
        ("isos", E::NotUtf8 { field, path: path() }),
        ("isos", E::TooLong { field, value: value(), length: 2, limit: 1 }),
        ("vpnkit_preferred_ipv4", E::InvalidIpv4 { value: value() }),
        ("mac", E::InvalidMac { value: value() }),
        ("isos", E::InvalidUuid { field, value: value() }),
        ("vsock_guest_cid", E::InvalidCid { value: 1, min: 2, max: 3 }),
        ("vsock_ports", E::InvalidVsockPort { value: 2, max: 1 }),
        ("vsock_ports", E::TooManyPorts { field: "vsock_ports", count: 2, max: 1 }),
        ("shares_9p", E::DuplicateMountTag { tag: value() }),
        ("port_forwards", E::DuplicateHostPort { port: 1 }),
        ("isos", E::ZeroPort { field }),
        ("isos", E::MissingPrerequisite { field, requires: "kernel" }),
        ("isos", E::ConflictingBootSources { first: field, second: "kernel" }),
        ("kernel_cmdline", E::CommandLineForRom { value: value() }),
        ("serials", E::TooManyPorts { field: "serials", count: 2, max: 1 }),
        ("serials", E::DuplicateStdio),
        ("disks", E::InvalidSectorSize { path: path(), value: size }),
        ("disks", E::TooManyDevices { count: 2, max: 1 }),
        ("cpus", E::InvalidCpus { value: 0 }),
        ("cpu", E::InvalidCpu { value: value() }),
        ("memory_mib", E::InvalidMemory { value: 0 }),
        ("memory_mib", E::MemoryExceedsHost { value: 2, host: 1 }),
        ("disks", E::InvalidQcowOption { path: path(), option: "stats", value: value() }),
        ("disks", E::InvalidDiskSize { path: path(), value: 0 }),
        ("disks", E::DuplicateDisk { path: path() }),
        ("isos", E::RelativePath { field, path: path() }),
        ("disks", E::UnknownSetting { key: "disks.driver: 1".to_owned() }),
        ("disks", E::MissingDiskPath),
        ("isos", E::UnsupportedUrl { field, url: path(), reason: "truncated" }),
        ("tap", E::Unsupported { engine: Engine::Qemu, feature }),
        ("parse_arguments", E::Unsupported { engine: Engine::Qemu, feature: call }),
        ("isos", E::NotFound { field, path: path() }),
        ("disks", E::DiskSizeMissing { path: path() }),
        ("isos", E::NotAFile { field, path: path() }),
        ("isos", E::NotADirectory { field, path: path() }),
        ("isos", E::Inaccessible { field, path: path(), kind, reason: reason.clone() }),
        ("kernel", E::InvalidKernel { path: path(), format: None, reason: "truncated" }),
        ("kernel", E::InvalidKernel { path: path(), format: Some(KernelFormat::Vmlinux), reason: "truncated" }),
        (
            "kernel",
            E::KernelForOtherArchitecture { path: path(), architecture: Architecture::Arm64, engine: Engine::Qemu },
        ),
        ("isos", E::CompressedKernel { field, path: path(), format: "gzip", unpack: "gzip -dc".to_owned() }),
        ("multiboot", E::NotMultiboot { path: path(), reason: "truncated" }),
        ("bootrom", E::InvalidBootrom { path: path(), architecture: Architecture::Arm64, reason: "no code" }),
        ("isos", E::EmptyFile { field, path: path() }),
        ("isos", E::DoesNotFit { field, path: path(), needed: 2, max: 3 }),
        ("kernel_cmdline", E::CommandLineTooLong { length: 2, limit: 1 }),
        ("network", E::VpnKitNotFound { searched: vec![path()] }),
        ("isos", E::ToolNotFound { field, searched: vec![path()] }),
        ("disks", E::DiskNotWritable { path: path(), reason }),
        ("disks", E::DiskShrinks { path: path(), from: 2, to: 1 }),
        ("disks", E::NotQcow2 { path: path() }),
        ("disks", E::InvalidQcow2 { path: path(), reason: "truncated" }),
        ("disks", E::ForeignImage { path: path(), format: "vmdk" }),
        ("disks", E::DiskHasOverlay { path: path() }),
        ("disks", E::DiskHasBackingFile { path: path() }),
    ]
}

#[test]
fn each_violation_names_its_field_and_its_value() {
    for (field, violation) in violations() {
        assert_eq!(violation.field(), field, "{violation:?}");
        let (message, debug) = (violation.to_string(), format!("{violation:?}"));
        assert!(!message.starts_with(char::is_uppercase) || message.starts_with("QEMU"), "{message}");
        assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
        for (data, text) in [
            ("path: ", "/x"),
            ("searched: ", "/x"),
            ("value: \"v\"", "\"v\""),
            ("reason: \"denied\"", "denied"),
            ("reason: \"truncated\"", "truncated"),
            ("field: \"isos\"", "`isos`"),
        ] {
            assert!(!debug.contains(data) || message.contains(text), "{message} lacks {text}");
        }
    }
}

/// Each field name that a violation reports is a field of `HyperKit`, an argument of a method, or a function.
#[test]
fn fields_of_violations_exist() {
    let declared = concat!(include_str!("../../src/config/mod.rs"), include_str!("../../src/machine/start.rs"));
    for (field, _) in violations() {
        let exists = declared.contains(&format!("pub {field}:")) || declared.contains(&format!("{field}: &str"));
        assert!(exists || field == "parse_arguments", "{field}");
    }
}
