//! Files copied into the guest and out of it: `Vm::copy_in` and `copy_out`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use hyperkit::Error;

use crate::command::{Agent, noise};
use crate::common::guest::guest_file;

/// Returns the files in a directory with their types, modes and contents.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let mode = entry.metadata().unwrap().permissions().mode();
        let content = match (kind.is_symlink(), kind.is_file()) {
            (true, _) => format!("-> {}", fs::read_link(&path).unwrap().display()),
            (_, true) => format!("{mode:o} {}", fs::read(&path).unwrap().escape_ascii()),
            _ => format!("{mode:o} {:?}", tree(&path)),
        };
        found.push(format!("{:?} {content}", entry.file_name()));
    }
    found.sort();
    found
}

#[test]
fn files_and_directories_are_copied_with_modes_and_symlinks() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = path("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("deep/er/empty"), "").unwrap();
    fs::write(source.join("odd \n\u{e4}"), "text").unwrap();
    fs::write(source.join("secret"), noise(300_000)).unwrap();
    symlink("deep/er", source.join("link")).unwrap();
    symlink("/no/such", source.join("dangling")).unwrap();
    for (name, mode) in [("secret", 0o400), ("odd \n\u{e4}", 0o755), ("deep", 0o500), ("deep/er/empty", 0o600)] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    agent.vm.copy_in(&source, "/tmp/copy").unwrap();
    assert_eq!(agent.answer("cd /tmp/copy && readlink link && stat -c %a deep secret"), "deep/er\n500\n400");
    agent.vm.copy_out("/tmp/copy", path("back")).unwrap();
    assert_eq!(tree(&path("back")), tree(&source));

    // A file replaces a file, and a symlink at the source itself is followed.
    fs::write(path("target"), "old").unwrap();
    agent.vm.copy_out("/tmp/copy/link/empty", path("target")).unwrap();
    assert_eq!(fs::read(path("target")).unwrap(), b"");
    // A file replaces a symlink, and not what it points to.
    fs::remove_file(path("target")).unwrap();
    symlink("source", path("target")).unwrap();
    agent.vm.copy_out("/tmp/copy/link/empty", path("target")).unwrap();
    assert!(path("target").symlink_metadata().unwrap().is_file());
    symlink("source/secret", path("to-secret")).unwrap();
    agent.vm.copy_in(path("to-secret"), "tmp/secret").unwrap();
    assert_eq!(agent.answer("wc -c </tmp/secret; stat -c %a /tmp/secret"), "300000\n400");

    // The agent's own program, while it runs.
    agent.vm.copy_in(guest_file("hyperkit-agent"), "/bin/hyperkit-agent").unwrap();
    agent.vm.copy_out("/bin/hyperkit-agent", path("agent")).unwrap();
    assert!(fs::read(path("agent")).unwrap() == fs::read(guest_file("hyperkit-agent")).unwrap());

    let failed = |result: hyperkit::Result<()>, words: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::CopyFailed { .. }), "{error:?}");
        assert!(format!("{error:#}").contains(words), "{error:#}");
    };
    failed(agent.vm.copy_in(path("none"), "/tmp/none"), "No such file");
    failed(agent.vm.copy_out("/tmp/none", path("none")), "/tmp/none: No such file");
    failed(agent.vm.copy_in(path("agent"), "/no/such"), "/no: No such file");
    failed(agent.vm.copy_in(path("agent"), "/tmp"), "/tmp: ");
    failed(agent.vm.copy_in(&source, "/tmp/copy"), "/tmp/copy: Directory not empty");
    failed(agent.vm.copy_out("/tmp/copy", &source), "source: Directory not empty");
    failed(agent.vm.copy_out("/dev", path("dev")), "not a file, directory or symlink");
    failed(agent.vm.copy_in("/dev/null", "/tmp/null"), "not a file, directory or symlink");
    failed(agent.vm.copy_out("/tmp/copy", path("no/such")), "No such file");
    let _full = agent.answer("mkdir /tmp/small; mount -t tmpfs -o size=64k small /tmp/small");
    failed(agent.vm.copy_in(source.join("secret"), "/tmp/small/x"), "/tmp/small/.x");
    // A copy that failed has left nothing.
    assert_eq!(agent.answer("ls -A /tmp/small; ls -A /tmp | grep -c unfinished; true"), "0");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    fs::set_permissions(source.join("deep"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(path("back/deep"), fs::Permissions::from_mode(0o700)).unwrap();
}
