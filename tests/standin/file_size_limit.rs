//! A limit on the size of files (`ulimit -f`): a file that grows beyond it ends its program with SIGXFSZ. Calls return an error
//! instead.

use std::process::{Command, Output};

use hyperkit::create_disk_image;

use crate::common::{TestDir, boot_command, file_names};

/// Runs the example `boot` with these options and a limit, in units of the shell: 512 or 1024 bytes.
fn boot_with_limit(test_dir: &TestDir, limit: u32, options: &[&str]) -> Output {
    let boot = boot_command(test_dir, "guest");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("ulimit -f {limit} && exec \"$0\" \"$@\"")])
        .arg(boot.get_program())
        .args(boot.get_args());
    shell.args(options).output().unwrap()
}

fn assert_is_error(output: &Output, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{output:?}"); // not a signal
    assert!(stderr.contains(text), "{output:?}");
}

#[test]
fn disk_beyond_the_limit_is_an_error_before_anything_is_created() {
    let test_dir = TestDir::new();
    let (new, existing) = (test_dir.path("new.img"), test_dir.path("existing.img"));
    create_disk_image(&existing, 1).unwrap();
    let files = file_names(&test_dir.dir());
    for disk in [&new, &existing] {
        let output = boot_with_limit(&test_dir, 4000, &["--disk", disk.to_str().unwrap(), "--disk-size", "64"]);
        assert_is_error(&output, "ulimit -f");
        assert_is_error(&output, disk.to_str().unwrap());
        assert_eq!(file_names(&test_dir.dir()), files);
    }
    assert_eq!(existing.metadata().unwrap().len(), 1 << 20);
    let output = boot_with_limit(&test_dir, 4000, &["--disk", new.to_str().unwrap(), "--disk-size", "1"]);
    let _stop = test_dir.stop_on_drop();
    assert!(output.status.success(), "{output:?}");
}

/// `qemu-img` reports it.
#[test]
fn image_tool_beyond_the_limit_is_an_error() {
    let test_dir = TestDir::new();
    let image = test_dir.path("new.qcow2");
    let output = boot_with_limit(&test_dir, 64, &["--disk", image.to_str().unwrap(), "--disk-size", "64"]);
    assert_is_error(&output, "qemu-img");
    assert!(!image.exists() && !test_dir.path(".new.qcow2.new").exists());
}

#[test]
fn state_file_beyond_the_limit_is_an_error() {
    let test_dir = TestDir::new();
    assert_is_error(&boot_with_limit(&test_dir, 0, &[]), "hyperkit.json");
    assert!(!test_dir.path("vm/hyperkit.json").exists());
}
