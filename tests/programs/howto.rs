//! The programs of the guide's page `howto`, in `examples/howto`, unchanged.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::common::guest::{guest_file, processes_in};
use crate::common::{KillProcessOnDrop, StopOnDrop, example_path, file_names, to_pid, wait_until, write_executable};

/// Where a program runs: a directory with the guest's files. On drop, VMs that the program has left are killed.
struct Here {
    _stop: [StopOnDrop; 7],
    dir: TempDir,
}

impl Here {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vmlinuz", "initrd.img"] {
            symlink(guest_file(name), dir.path().join(name)).unwrap();
        }
        let _stop = ["vm", "vms/web", "vms/server", "vms/client", "cloud/vm", "vms/one", "vms/two"]
            .map(|state_dir| StopOnDrop(dir.path().join(state_dir)));
        Self { _stop, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(example_path(&format!("howto-{program}")));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Runs a program, which has to succeed. Returns what it printed.
    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts that there are no processes, and no other files than these and the guest's.
    fn assert_left(&self, files: &[&str]) {
        assert_eq!(processes_in(&self.path()), [0_u32; 0]);
        let mut expected = [&["vmlinuz", "initrd.img"], files].concat();
        expected.sort();
        assert_eq!(file_names(&self.path()), expected);
    }
}

#[test]
fn talk_prints_output_and_status_of_commands() {
    let here = Here::new();
    let output = here.run("talk", &[]);
    assert_eq!(
        output,
        "uname -m: exit status 0\nx86_64\n\
         grep -c ^processor /proc/cpuinfo: exit status 0\n1\n\
         ls /no-such-file: exit status 1\nls: /no-such-file: No such file or directory\n"
    );
    here.assert_left(&[]);
}

#[test]
fn command_prints_output_and_status_of_programs() {
    let here = Here::new();
    let output = here.run("command", &[]);
    assert_eq!(
        output,
        "exited with code 0: Linux x86_64\nexited with code 3: no\nsorted: apple\nsorted: pear\nsort exited with code 0\nanswer: 42\n"
    );
    here.assert_left(&["question.txt", "answer.txt"]);
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn host_programs_changes_one_directory_of_the_host() {
    let here = Here::new();
    symlink(guest_file("host-root.img"), here.path().join("host-root.img")).unwrap();
    let output = here.run("host-programs", &[]);
    assert_eq!(
        output,
        "exited with code 0:\napple\npear\nhost-root.img\ninitrd.img\ninput2.txt\nresults\nvm\nvmlinuz\n\
         python3 exited with code 7\n\
         on the host, input.txt is \"pear\\napple\\n\"\n\
         and results/sorted.txt is \"apple\\npear\\n\"\n"
    );
    here.assert_left(&["host-root.img", "input.txt", "results"]);
}

#[test]
fn share_exchanges_files_with_the_guest() {
    let here = Here::new();
    let output = here.run("share", &[]);
    let release = output.strip_prefix("the guest wrote: ").unwrap();
    assert!(release.starts_with(|first: char| first.is_ascii_digit()), "{output}");
    assert_eq!(fs::read_to_string(here.path().join("shared/answer.txt")).unwrap(), release);
    here.assert_left(&["shared"]);
}

#[test]
fn overlay_throws_away_what_two_vms_write() {
    let here = Here::new();
    let zeros = format!("0000000{}", r"  \0".repeat(4));
    let output = here.run("overlay", &[]);
    assert_eq!(output, format!("one: {zeros}\nused\ntwo: {zeros}\nused\nthe image is unchanged\n"));
    here.assert_left(&["base.img", "vms"]);
    assert_eq!(file_names(&here.path().join("vms")), [""; 0]);
}

#[test]
fn port_reaches_the_echo_server() {
    let here = Here::new();
    let output = here.run("port", &[]);
    assert!(output.ends_with("of 127.0.0.1 is port 7 of the guest, which answers: hello\n"), "{output}");
    here.assert_left(&[]);
}

#[test]
fn network_connects_two_guests() {
    let here = Here::new();
    let output = here.run("network", &[]);
    assert_eq!(output, "the client received: hello from the server\nthe server's nc exited with code 0\n");
    assert_eq!(file_names(&here.path().join("vms")), [""; 0]);
    here.assert_left(&["vms"]);
}

/// The image is not a distribution's, but boots with UEFI and reads a NoCloud seed like one.
#[test]
#[cfg(target_os = "linux")] // where the program's firmware is
fn ssh_runs_a_command_in_a_cloud_image() {
    let here = Here::new();
    let image = crate::common::guest::setup_file("target/cloud-image", "disk.qcow2");
    let command = "hostname; id -un; cat /sys/class/block/vda/size; ls -d /sys/firmware/efi";
    let output = here.run("ssh", &[image.to_str().unwrap(), command]);
    // 4 GiB in sectors.
    assert_eq!(output, "guest\nme\n8388608\n/sys/firmware/efi\ngraceful: the VM powered off\n");
    here.assert_left(&[]);
}

#[test]
fn tokio_talks_and_shuts_down_at_ctrl_c() {
    let here = Here::new();
    let mut program = KillProcessOnDrop::spawn(&mut here.command("tokio"));
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("the guest says: 42 is the answer"));
    assert_eq!(lines.next().as_deref(), Some("^C shuts the VM down"));
    kill_process(to_pid(program.0.id()), Signal::INT).unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["graceful: the VM powered off"]);
    assert!(program.0.wait().unwrap().success());
    here.assert_left(&[]);
}

#[test]
fn tokio_cancels_a_start_at_ctrl_c() {
    let here = Here::new();
    // A hypervisor that is never ready. With `exec sleep` it would not be recognized as the one that was started.
    let hangs = "#!/bin/sh\ncd \"${0%/*}\" && touch started && while :; do sleep 1; done\n";
    write_executable(&here.path().join("qemu-system-x86_64"), hangs.as_bytes());
    let path = format!("{}:/usr/bin:/bin", here.path().display());
    let mut program = KillProcessOnDrop::spawn(here.command("tokio").env("PATH", path));
    wait_until("the hypervisor has started", || here.path().join("started").exists());
    kill_process(to_pid(program.0.id()), Signal::INT).unwrap();
    let mut output = String::new();
    program.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(output, "the start was cancelled\n");
    assert!(program.0.wait().unwrap().success());
    here.assert_left(&["qemu-system-x86_64", "started", "vm"]);
}

#[test]
fn keep_attaches_to_the_vm_of_an_earlier_run() {
    let here = Here::new();
    let first = here.run("keep", &[]);
    let pid = first.strip_prefix("started process ").and_then(|rest| rest.lines().next()).unwrap();
    assert!(first.contains(" is up."), "{first}");
    let second = here.run("keep", &[]);
    assert!(second.starts_with(&format!("vms/web runs as process {pid}\nattached to process {pid}\n")), "{second}");
    let end = here.run("keep", &["stop"]);
    assert!(end.starts_with(&format!("vms/web runs as process {pid}\ngraceful: ")), "{end}");
    assert_eq!(file_names(&here.path().join("vms")), [""; 0]);
    here.assert_left(&["vms"]);
}

#[test]
#[cfg(target_os = "linux")] // needs the host's C compiler to build Linux programs
fn kernel_boots_with_one_program() {
    let here = Here::new();
    let source = format!("{}/../examples/howto/init.c", env!("CARGO_MANIFEST_DIR"));
    let cc = if cfg!(target_arch = "x86_64") { "cc" } else { "x86_64-linux-gnu-gcc" };
    let compiled = Command::new(cc).args(["-static", "-o", "hello", &source]).current_dir(here.path()).status();
    assert!(compiled.unwrap_or_else(|error| panic!("{cc}: {error}")).success());
    let output = here.run("kernel", &["vmlinuz", "hello"]);
    assert!(output.lines().any(|line| line == "hello from process 1"), "{output}");
    assert!(output.ends_with("the VM powered off\n"), "{output}");
    here.assert_left(&["hello", "own-initrd.img"]);
}

#[test]
fn why_explains_three_failures() {
    let here = Here::new();
    let output = here.run("why", &[]);
    let sections: Vec<_> = output.split("\n# ").collect();
    assert_eq!(sections.len(), 4, "{output}");
    for (section, texts) in sections[1..].iter().zip([
        &["kind: Config", "- `cpus` must be 1 to 64: 65\n", "- `kernel` not found: "][..],
        &["kind: Hypervisor", "failed with exit code 1", "cannot set up guest memory", "[INFO hyperkit] /"],
        &["kind: Guest", "requested a reset", "Kernel panic - not syncing"],
    ]) {
        for text in texts {
            assert!(section.contains(text), "no {text:?} in {section}");
        }
    }
    here.assert_left(&[]);
}
