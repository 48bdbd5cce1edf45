//! Shares by virtiofs that are refused. Tests with QEMU are in `tests/guest/virtiofs.rs`.

use std::path::{Path, PathBuf};

use hyperkit::{ConfigError, Console, Disks, Engine, Error, ErrorKind, HyperKit, ShareVirtiofs};
use rustix::process::geteuid;

use crate::common::TestDir;
use crate::common::child_process::as_other_user;
use crate::common::rejection::{assert_error, error_of_start, only_violation, rejection, rejection_by_arguments};
use crate::qemu_options::elf;

fn share() -> ShareVirtiofs {
    ShareVirtiofs::new("/", "tag")
}

/// A directory with programs that have the names of QEMU and virtiofsd. They are never started.
fn programs(virtiofsd: &[u8]) -> (TestDir, PathBuf, PathBuf) {
    let test_dir = TestDir::new();
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let virtiofsd = test_dir.write_executable("virtiofsd", virtiofsd);
    (test_dir, qemu, virtiofsd)
}

/// The libraries of the program that is a part of QEMU 7.2.
fn in_c() -> Vec<u8> {
    elf("libglib-2.0.so.0\0libseccomp.so.2")
}

#[test]
fn virtiofs_is_unsupported_by_hyperkit() {
    let error = rejection_by_arguments(|d| d.share_virtiofs(share()));
    assert_error!(error, ConfigError::Unsupported { engine: Engine::HyperKit, feature } if feature.contains("`shares_virtiofs`"));
    // A missing program is no error if it is not needed.
    TestDir::new().description().virtiofsd("/no/such").check().unwrap();
}

#[test]
fn missing_virtiofsd_is_not_installed() {
    let (test_dir, qemu, _) = programs(b"");
    let description = |d: HyperKit| d.hyperkit(&qemu).share_virtiofs(share()).virtiofsd("/no/such/virtiofsd");
    let error = error_of_start(&test_dir, "", description);
    assert_eq!(error.kind(), ErrorKind::NotInstalled);
    let [ConfigError::ToolNotFound { field: "virtiofsd", searched }] = error.violations() else { panic!("{error:?}") };
    assert_eq!(searched, &[Path::new("/no/such/virtiofsd")]);
    test_dir.description().hyperkit(&qemu).virtiofsd("/no/such").check().unwrap();
}

#[test]
fn directory_tag_and_state_directory_are_checked() {
    let (test_dir, qemu, virtiofsd) = programs(b"#!/bin/sh\nexit 9\n");
    let with =
        |share: ShareVirtiofs| test_dir.description().hyperkit(&qemu).virtiofsd(&virtiofsd).share_virtiofs(share);
    let check = |share: ShareVirtiofs| only_violation(with(share).check());
    let (field, missing, file) = ("shares_virtiofs", test_dir.path("missing"), test_dir.path("vmlinuz"));
    assert_eq!(check(ShareVirtiofs::new(&missing, "t")), ConfigError::NotFound { field, path: missing });
    assert_eq!(check(ShareVirtiofs::new(&file, "t")), ConfigError::NotADirectory { field, path: file });
    assert_error!(check(ShareVirtiofs::new("/a,b", "t")), ConfigError::ForbiddenCharacter { character: ',', .. });
    assert_eq!(check(ShareVirtiofs::new("/", "")), ConfigError::Missing { field });
    let long = check(ShareVirtiofs::new("/", "t".repeat(37)));
    assert_error!(long, ConfigError::TooLong { field: "shares_virtiofs", length: 37, limit: 36, .. });
    with(ShareVirtiofs::new("/", "t".repeat(36))).share_virtiofs(share()).check().unwrap();
    for other in [|d: HyperKit| d.share_virtiofs(share()), |d: HyperKit| d.share_dir("/", "tag")] {
        let error = only_violation(other(with(share())).check());
        assert_eq!(error, ConfigError::DuplicateMountTag { tag: "tag".to_owned() });
    }
    let mut without = with(share()).console(Console::Stdio);
    without.state_dir = None;
    assert_eq!(only_violation(without.check()), ConfigError::StateDirRequired { field });
}

#[test]
fn read_only_share_requires_the_program_in_rust() {
    for (program, is_in_c) in [(&b"#!/bin/sh\nexit 9\n"[..], false), (&elf("libc.so.6"), false), (&in_c(), true)] {
        let (test_dir, qemu, virtiofsd) = programs(program);
        let description = test_dir.description().hyperkit(qemu).virtiofsd(virtiofsd);
        let checked = description.share_virtiofs(share().read_only()).check();
        let is_refused = |violation: &ConfigError| matches!(violation, ConfigError::Unsupported { engine: Engine::Qemu, feature } if feature.contains("read-only"));
        match checked {
            Ok(()) => assert!(!is_in_c),
            Err(error) => assert!(is_in_c && error.violations().iter().any(is_refused), "{error}"),
        }
    }
}

#[test]
fn program_in_c_requires_root() {
    as_other_user("virtiofs::program_in_c_requires_root", || {
        assert!(!geteuid().is_root());
        for (program, is_in_c) in [(&elf("libc.so.6"), false), (&in_c(), true)] {
            let (test_dir, qemu, virtiofsd) = programs(program);
            let description = test_dir.description().hyperkit(qemu).virtiofsd(virtiofsd).share_virtiofs(share());
            match (description.check(), is_in_c) {
                (Ok(()), false) => {}
                (checked, true) => {
                    let error = only_violation(checked);
                    assert_error!(error, ConfigError::Unsupported { feature, .. } if feature.contains("requires root"));
                }
                (checked, false) => panic!("{checked:?}"),
            }
        }
    });
}

/// QEMU hangs before it connects, so this shows that a start waits for no daemon, and what it leaves.
#[test]
fn start_creates_a_socket_for_each_share_and_deletes_it() {
    let (test_dir, qemu, virtiofsd) = programs(b"#!/bin/sh\nexec sleep 1000\n");
    let description = test_dir.description().hyperkit(qemu).virtiofsd(virtiofsd).share_virtiofs(share());
    let description = description.share_virtiofs(ShareVirtiofs::new("/", "second"));
    let state_dir = test_dir.path("vm");
    let mut seen = false;
    let spawned = description.spawn_with("", |_| {
        seen = ["fs0.sock", "fs1.sock", "vhost.line"].iter().all(|name| state_dir.join(name).exists());
    });
    assert!(seen);
    // The program with QEMU's name exits with 9.
    match spawned.unwrap().wait_ready(crate::common::TEST_TIMEOUT) {
        Err(Error::HypervisorFailed { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(crate::common::guest::processes_in(&test_dir.dir()), [0_u32; 0]);
    description.remove(Disks::Keep).unwrap();
    assert!(!state_dir.exists(), "{:?}", test_dir.state_files());
}

#[test]
fn relative_share_is_made_absolute() {
    let (test_dir, qemu, _) = programs(b"");
    let description = test_dir.description().hyperkit(qemu).share_virtiofs(ShareVirtiofs::new("here", "t"));
    description.define().unwrap();
    let recorded = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(recorded.shares_virtiofs[0].path, std::env::current_dir().unwrap().join("here"));
    assert_error!(rejection(|d| d.share_virtiofs(share())), ConfigError::Unsupported { .. });
}
