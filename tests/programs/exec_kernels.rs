//! `exec` with several kernels, with kernels that need modules, and with guests that do not boot.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::guest::{guest_file, initrd_with_files};
use crate::common::{example_path, make_fifo};
use crate::exec_host::{HostExec, text};

#[test]
fn table_says_with_which_kernels_the_program_passed() {
    let host = HostExec::new();
    fs::copy(guest_file("vmlinuz"), host.path("good")).unwrap();
    fs::write(host.path("bad"), "no kernel").unwrap();
    fs::create_dir(host.path("lists")).unwrap();
    fs::write(host.path("lists/kernels"), "# kernels\n\n  ../good # a copy\n../bad\n../missing\n").unwrap();
    let good = guest_file("vmlinuz").canonicalize().unwrap();
    let words = ["--kernel", good.to_str().unwrap(), "--kernels", "lists/kernels", "--", "sh", "-c", "cat; exit 7"];
    let output = host.run_with_input(&words, b"input\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(7), "input\ninput\n"), "{output:?}");
    let stderr = text(&output.stderr);
    let table: Vec<Vec<_>> = stderr
        .lines()
        .skip_while(|line| !line.starts_with("KERNEL"))
        .map(|it| it.split_whitespace().collect())
        .collect();
    let good = good.to_str().unwrap();
    let rows: Vec<_> = table.iter().map(|words| words[..words.len() - 1].join(" ")).collect();
    let expected = [
        "KERNEL RESULT STATUS",
        &format!("{good} failed 7"),
        "lists/../good failed 7",
        "lists/../bad not run 125",
        "lists/../missing not run 125",
        "0 of 4 kernels",
    ];
    assert_eq!(rows, expected, "{stderr}");
    for kernel in ["exec: kernel lists/../bad\n", "exec: kernel lists/../missing\n"] {
        assert!(stderr.contains(kernel), "{stderr}");
    }
}

#[test]
fn guest_that_does_not_boot_is_125_with_the_consoles_last_lines() {
    let host = HostExec::new();
    fs::create_dir(host.path("guest")).unwrap();
    fs::copy(guest_file("vmlinuz"), host.path("guest/vmlinuz")).unwrap();
    let exec = |initrd: &[u8], boot_timeout: &str| {
        fs::write(host.path("guest/host-root.img"), initrd).unwrap();
        let mut exec = host.command(&["--boot-timeout", boot_timeout, "--", "true"]);
        let output = exec.env("HYPERKIT_GUEST", host.path("guest")).output().unwrap();
        host.assert_nothing_left();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        text(&output.stderr)
    };
    let panics = exec(b"no initrd", "300");
    assert!(panics.starts_with("exec: the guest did not boot: the VM requested a reset; the last lines"), "{panics}");
    assert!(panics.contains("\nconsole: ") && panics.contains("Kernel panic - not syncing: "), "{panics}");
    let silent = exec(&initrd_with_files(&[("init", 0o100_755, b"#!/bin/sh\nexec busybox sleep 1000\n")]), "2");
    assert!(silent.starts_with("exec: the guest did not boot, or its agent did not answer, within 2 s; "), "{silent}");
}

#[test]
fn missing_guest_is_125_and_says_how_to_create_it() {
    let host = HostExec::new();
    let output = host.command(&["--", "true"]).env("HYPERKIT_GUEST", host.path("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let none = host.path("none").display().to_string();
    let expected = format!(
        "exec: no guest for x86-64: vmlinux or vmlinuz, and host-root.img not found in {none}; create the guest with \
         examples/setup.sh --guest {none}, in a checkout of hyperkit's repository\n"
    );
    assert_eq!(text(&output.stderr), expected);
    host.assert_nothing_left();
}

/// A copy of the guest's kernel says that it is another release. Its modules are those of the guest's kernel, some compressed.
#[test]
fn modules_of_another_kernel_are_found_beside_it() {
    let host = HostExec::new();
    let mut kernel = fs::read(guest_file("vmlinuz")).unwrap();
    let release = 0x200 + usize::from(u16::from_le_bytes([kernel[0x20e], kernel[0x20f]]));
    kernel[release..release + 7].copy_from_slice(b"0-mine ");
    fs::create_dir(host.path("boot")).unwrap();
    fs::write(host.path("boot/vmlinuz"), kernel).unwrap();
    let words = ["--kernel", "boot/vmlinuz", "--", "cat", "/proc/modules"];
    let without = host.run(&words);
    assert_eq!(without.status.code(), Some(125), "{without:?}");
    let searched = host.path("lib/modules/0-mine").display().to_string();
    let message = text(&without.stderr);
    assert!(message.contains("(no modules of Linux 0-mine found in ") && message.contains(&searched), "{message}");
    assert!(message.contains("console: hyperkit-agent: cannot mount "), "{message}");

    let unpack = "mkdir -p lib/modules/0-mine/kernel && gzip -dc \"$0\" | (cd lib && cpio -id --quiet 'modules/*.ko') && \
                  cd lib/modules && for file in *.ko; do mv $file 0-mine/kernel/${file#*-}; done && \
                  cd 0-mine/kernel && xz overlay.ko && gzip 9p.ko";
    let mut sh = Command::new("sh");
    let status = sh.args(["-c", unpack]).arg(guest_file("host-root.img")).current_dir(host.path("")).status();
    assert!(status.unwrap().success());
    let with = host.run(&words);
    assert_eq!(with.status.code(), Some(0), "{with:?}");
    assert!(text(&with.stdout).contains("overlay ") && text(&with.stdout).contains("9pnet_virtio "), "{with:?}");

    // depmod's file says what each module needs, from right to left, whatever the names are.
    let kernel_dir = host.path("lib/modules/0-mine/kernel");
    fs::rename(kernel_dir.join("netfs.ko"), kernel_dir.join("renamed.ko")).unwrap();
    let names = include_str!("../../examples/guest/root-modules").split_whitespace();
    let file_of = |name: &str| match name {
        "netfs" => "kernel/renamed.ko".to_owned(),
        "overlay" => "kernel/overlay.ko.xz".to_owned(),
        "9p" => "kernel/9p.ko.gz".to_owned(),
        name => format!("kernel/{name}.ko"),
    };
    let (mut needs, mut lines) = (String::new(), String::new());
    for file in names.map(file_of).filter(|file| host.path("lib/modules/0-mine").join(file).exists()) {
        lines += &format!("{file}:{needs}\n");
        needs = format!(" {file}{needs}");
    }
    fs::write(host.path("lib/modules/0-mine/modules.dep"), lines).unwrap();
    let listed = host.run(&words);
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    assert!(text(&listed.stdout).contains("netfs "), "{listed:?}");
}

#[test]
fn program_without_the_hosts_files_runs_with_several_kernels() {
    let host = HostExec::new();
    let script = host.script("script", "#!/bin/sh\necho here\n");
    let mut exec = Command::new(example_path("exec"));
    exec.args(["--hyperkit", "qemu-system-x86_64", "--memory", "256"]);
    for kernel in ["vmlinux", "vmlinuz"] {
        exec.arg("--kernel").arg(guest_file(kernel));
    }
    let output = exec.arg(script).stdin(Stdio::null()).env("TMPDIR", host.path("state")).output().unwrap();
    host.assert_nothing_left();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "here\nhere\n"), "{output:?}");
    assert!(text(&output.stderr).ends_with("2 of 2 kernels passed\n"), "{output:?}");
}

/// Opening a FIFO would block, and signals would not end `exec` then. A device has no end.
#[test]
fn fifo_or_device_is_no_program_and_no_kernel() {
    let host = HostExec::new();
    let fifo = host.path("fifo");
    make_fifo(&fifo);
    for file in [fifo.to_str().unwrap(), "/dev/zero"] {
        let output = host.run(&["--kernel", file, "--", "true"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert_eq!(stderr, format!("exec: `--kernel` must be a file: {file}\n"));
        let alone = Command::new(example_path("exec")).arg(file).output().unwrap();
        let stderr = text(&alone.stderr);
        assert_eq!(alone.status.code(), Some(125), "{stderr}");
        assert_eq!(stderr, format!("exec: {file}: not a file\n"));
    }
}
