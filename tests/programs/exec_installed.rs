//! `exec`, installed with `cargo install`, after the checkout that it was built from is gone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::file_names;
use crate::common::guest::guest_file;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Installs `exec` from a checkout, which is then deleted. What Cargo has built stays, so that the next run of the tests has less to
/// build.
fn install(root: &Path) -> PathBuf {
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("exec-installed");
    let checkout = target.join("checkout");
    let _ = fs::remove_dir_all(&checkout);
    fs::create_dir_all(&checkout).unwrap();
    for name in ["Cargo.toml", "Cargo.lock", "README.md", "src", "examples", "tests", "benches"] {
        symlink(Path::new(ROOT).canonicalize().unwrap().join(name), checkout.join(name)).unwrap();
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["install", "--offline", "--locked", "--quiet", "--debug", "--example", "exec", "--path"]);
    cargo.arg(&checkout).arg("--root").arg(root).arg("--target-dir").arg(&target).env_remove("CARGO_MANIFEST_DIR");
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_dir_all(&checkout).unwrap();
    root.join("bin/exec")
}

#[test]
fn installed_exec_needs_no_checkout() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let exec = install(&home.join("root"));
    let run = |variable: &str, value: &Path| -> Output {
        let mut exec = Command::new(&exec);
        exec.args(["--host-root", "--hyperkit", "qemu-system-x86_64", "--", "echo", "it runs"]).env("HOME", &home);
        for name in ["HYPERKIT_GUEST", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
            exec.env_remove(name);
        }
        exec.env(variable, value).current_dir("/").output().unwrap()
    };
    let missing = run("HOME", &home);
    let default = home.join(".local/share/hyperkit/guest").display().to_string();
    let expected = format!(
        "exec: no guest for x86-64: vmlinux or vmlinuz, and host-root.img not found in {default}; create the guest with \
         examples/setup.sh --guest {default}, in a checkout of hyperkit's repository\n"
    );
    assert_eq!((missing.status.code(), String::from_utf8(missing.stderr).unwrap()), (Some(125), expected));
    assert!(!home.join(".local").exists());

    let guest = guest_file("host-root.img").parent().unwrap().canonicalize().unwrap();
    fs::create_dir_all(home.join("data/hyperkit")).unwrap();
    symlink(&guest, home.join("data/hyperkit/guest")).unwrap();
    for (variable, value) in [("XDG_DATA_HOME", home.join("data")), ("HYPERKIT_GUEST", guest)] {
        let output = run(variable, &value);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout, b"it runs\n");
    }
    assert_eq!(file_names(&home.join(".local/state")), [] as [&str; 0], "it leaves no files");
}
