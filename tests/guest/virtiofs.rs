//! Directories of the host that the guest mounts by virtiofs. A daemon for each share runs as long as the VM, whichever process is
//! killed. Debian 12 has a `virtiofsd` that needs root, so the tests run in a user namespace if they are not root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::{Disks, Error, Exit, HyperKit, ShareVirtiofs, ShutdownOutcome};
use rustix::process::{Signal, geteuid, kill_process};

use crate::common::child_process::in_mount_namespace;
use crate::common::guest::{
    BOOT_TIMEOUT, QUIET_CMDLINE, create_share, description_in, guest_file, open_shell, processes_in, run_in_guest,
    setup_file,
};
use crate::common::platform::PLATFORM;
use crate::common::{
    StopOnDrop, example_path, file_names, hypervisors_in, to_pid, vsock_daemons_in, wait_until, write_executable,
};

/// Runs the body of a test as root, or as root of a user namespace.
fn as_root(test: &str, body: impl FnOnce()) {
    match geteuid().is_root() {
        true => body(),
        false => in_mount_namespace(&format!("virtiofs::{test}"), body),
    }
}

/// A directory to share, whose file `hello.txt` contains `hello`, and a state directory.
struct Site {
    _stop: StopOnDrop, // dropped before the directory
    _dir: tempfile::TempDir,
    state_dir: PathBuf,
    share: PathBuf,
}

impl Site {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        let state_dir = dir.join("vm");
        let share = create_share(&dir, r"a share: 100% \t", "hello\n");
        Self { _stop: StopOnDrop(state_dir.clone()), _dir: temporary, state_dir, share }
    }

    fn description(&self) -> HyperKit {
        description_in(&self.state_dir).share_virtiofs(ShareVirtiofs::new(&self.share, "files"))
    }

    /// Returns the daemon and the shells that watch it. On their command lines, the backslash of the share may be escaped.
    fn daemons(&self) -> Vec<u32> {
        processes_in(&self.state_dir.with_file_name("a share"))
    }

    fn write_program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.state_dir.with_file_name(name);
        write_executable(&path, script.as_bytes());
        path
    }

    /// Returns a command that starts the VM in the background. `define` has written the description with the share.
    fn starter(&self) -> Command {
        let mut starter = Command::new(example_path("ctl"));
        starter.arg("start").arg(&self.state_dir).stdin(Stdio::null());
        starter
    }

    /// Asserts that the VM can be started again and removed, and that nothing is left then.
    fn assert_starts_again(&self) {
        let description = self.description();
        description.start(QUIET_CMDLINE).unwrap().kill().unwrap();
        assert_eq!(self.daemons(), [0_u32; 0]);
        description.remove(Disks::Delete).unwrap();
        assert!(!self.state_dir.exists(), "{:?}", file_names(&self.state_dir));
    }
}

#[test]
fn guest_reads_and_writes_files_of_two_shares() {
    as_root("guest_reads_and_writes_files_of_two_shares", || {
        let site = Site::new();
        let second = create_share(site.state_dir.parent().unwrap(), "second", "second\n");
        fs::set_permissions(site.share.join("hello.txt"), fs::Permissions::from_mode(0o640)).unwrap();
        let description = site.description().share_virtiofs(ShareVirtiofs::new(&second, "second"));
        let vm = description.start(QUIET_CMDLINE).unwrap();
        let console = open_shell(&vm);
        let run = |command: &str| run_in_guest(&console, command);
        assert_eq!(
            run(
                "mkdir /a /b; mount -t virtiofs files /a && mount -t virtiofs second /b && cat /a/hello.txt /b/hello.txt"
            ),
            "hello\nsecond\n"
        );
        assert_eq!(run("stat -c %a:%s /a/hello.txt"), "640:6\n");
        let written = run(
            "cd /a; mkdir -m 750 dir; echo from the guest >dir/new; chmod 4751 dir/new; ln -s dir/new link; cat link; \
             mv hello.txt dir/moved; rm /b/hello.txt; ls /b; ln dir/new dir/hard; stat -c %h dir/new; df /a | grep -c /a",
        );
        assert_eq!(written, "from the guest\n2\n1\n");
        let mode = |name: &str| site.share.join(name).symlink_metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("dir"), mode("dir/new")), (0o750, 0o4751));
        assert_eq!(fs::read_link(site.share.join("link")).unwrap(), PathBuf::from("dir/new"));
        assert_eq!(fs::read(site.share.join("dir/moved")).unwrap(), b"hello\n");
        assert_eq!(fs::read(site.share.join("dir/hard")).unwrap(), b"from the guest\n");
        assert_eq!(file_names(&second), [""; 0]);
        // What the host writes, the guest sees.
        fs::write(site.share.join("dir/host"), "from the host\n").unwrap();
        assert_eq!(run("cat dir/host; cd /; umount /a /b && echo un''mounted"), "from the host\nunmounted\n");
        assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
        assert_eq!((site.daemons(), processes_in(&second)), (vec![], vec![]));
        description.remove(Disks::Delete).unwrap();
        assert!(!site.state_dir.exists(), "{:?}", file_names(&site.state_dir));
    });
}

/// Symlinks in the share that lead out of it lead to the guest's own files.
#[test]
fn guest_does_not_leave_the_share() {
    as_root("guest_does_not_leave_the_share", || {
        let site = Site::new();
        let secret = site.state_dir.with_file_name("secret");
        fs::write(&secret, "secret").unwrap();
        symlink(&secret, site.share.join("link")).unwrap();
        let vm = site.description().start(QUIET_CMDLINE).unwrap();
        let console = open_shell(&vm);
        let seen = run_in_guest(
            &console,
            "mount -t virtiofs files /mnt; cd /mnt; cat link ../secret 2>&1 | grep -c 'No such file'",
        );
        assert_eq!(seen, "2\n");
        vm.kill().unwrap();
    });
}

#[test]
fn vsock_and_shares_work_together() {
    as_root("vsock_and_shares_work_together", || {
        let site = Site::new();
        let description = site.description().vsock(true);
        let description = description.vhost_device_vsock(setup_file("target/tools/bin", "vhost-device-vsock"));
        let vm = description.start(QUIET_CMDLINE).unwrap();
        let console = open_shell(&vm);
        assert_eq!(run_in_guest(&console, "mount -t virtiofs files /mnt; cat /mnt/hello.txt"), "hello\n");
        assert!(matches!(vm.vsock_connect(1234), Err(Error::VsockConnectionRefused { .. })));
        vm.kill().unwrap();
        assert_eq!((site.daemons(), vsock_daemons_in(&site.state_dir)), (vec![], vec![]));
        description.remove(Disks::Delete).unwrap();
        assert!(!site.state_dir.exists());
    });
}

#[test]
fn daemon_exits_with_the_vm_and_leaves_no_files() {
    as_root("daemon_exits_with_the_vm_and_leaves_no_files", || {
        let site = Site::new();
        let description = site.description();
        for _ in 0..3 {
            let vm = description.start(QUIET_CMDLINE).unwrap();
            assert!(!site.daemons().is_empty());
            let mode = site.state_dir.join("fs0.sock").metadata().unwrap().mode();
            assert_eq!(mode & 0o777, 0o600);
            vm.kill().unwrap();
            assert_eq!(site.daemons(), [0_u32; 0]);
        }
        drop(description.start_scoped(QUIET_CMDLINE).unwrap());
        assert_eq!(site.daemons(), [0_u32; 0]);
        site.assert_starts_again();
        let kept = ["/run/virtiofsd", "/var/run/virtiofsd"].map(|dir| file_names(dir.as_ref()));
        assert!(kept.concat().iter().all(|name| !name.contains(site.state_dir.file_name().unwrap().to_str().unwrap())));
    });
}

#[test]
fn daemon_exits_when_the_vm_is_killed_after_its_starter_exited() {
    as_root("daemon_exits_when_the_vm_is_killed_after_its_starter_exited", || {
        let site = Site::new();
        site.description().define().unwrap();
        let output = site.starter().output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let [pid] = hypervisors_in(&site.state_dir)[..] else { panic!("no VM runs") };
        assert!(!site.daemons().is_empty());
        kill_process(to_pid(pid), Signal::KILL).unwrap();
        wait_until("the daemon has exited", || site.daemons().is_empty());
        site.assert_starts_again();
    });
}

#[test]
fn vm_keeps_running_if_its_daemon_is_killed_and_leaves_no_files() {
    as_root("vm_keeps_running_if_its_daemon_is_killed_and_leaves_no_files", || {
        let site = Site::new();
        let vm = site.description().start(QUIET_CMDLINE).unwrap();
        let console = open_shell(&vm);
        assert_eq!(run_in_guest(&console, "mount -t virtiofs files /mnt; cat /mnt/hello.txt"), "hello\n");
        for pid in site.daemons() {
            let _ = kill_process(to_pid(pid), Signal::KILL);
        }
        wait_until("the daemon is gone", || site.daemons().is_empty());
        assert_eq!(run_in_guest(&console, "echo the guest lives"), "the guest lives\n");
        assert_eq!(vm.try_wait(), None);
        vm.kill().unwrap();
        site.assert_starts_again();
    });
}

/// The daemon and the shells that watch it (`src/runtime/daemons.rs`). If one of them is killed, the others exit with the VM at the
/// latest.
#[test]
fn daemon_and_watchers_exit_with_the_vm_if_one_of_them_was_killed() {
    as_root("daemon_and_watchers_exit_with_the_vm_if_one_of_them_was_killed", || {
        let site = Site::new();
        let description = site.description();
        let count = {
            description.start(QUIET_CMDLINE).unwrap();
            site.daemons().len()
        };
        description.stop().unwrap();
        assert!(count > 2, "there are fewer processes than the daemon and two watchers");
        for index in 0..count {
            let vm = description.start(QUIET_CMDLINE).unwrap();
            kill_process(to_pid(site.daemons()[index]), Signal::KILL).unwrap();
            vm.kill().unwrap();
            wait_until("all of them have exited", || site.daemons().is_empty());
        }
    });
}

#[test]
fn daemon_exits_when_qemu_fails_to_start() {
    as_root("daemon_exits_when_qemu_fails_to_start", || {
        let site = Site::new();
        // The second fails after QEMU has connected to the daemon.
        for (argument, value, word) in
            [("-no-such-option", "", "no-such-option"), ("-device", "no-such-device", "no-such-device")]
        {
            let description = site.description().extra_argument(argument);
            let description = if value.is_empty() { description } else { description.extra_argument(value) };
            match description.start(QUIET_CMDLINE) {
                Err(Error::HypervisorFailed { exit: Exit::Failed(1), log_tail, .. }) => {
                    assert!(log_tail.hypervisor.contains(word), "{log_tail}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(site.daemons(), [0_u32; 0]);
        }
        // The command that could not be spawned has the FIFO open, too.
        let qemu = site.write_program(PLATFORM.qemu, "#!/no/such/interpreter\n");
        match site.description().hyperkit(qemu).start(QUIET_CMDLINE) {
            Err(Error::Io { action: "start", .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(site.daemons(), [0_u32; 0]);
        site.assert_starts_again();
    });
}

#[test]
fn daemon_failure_is_an_error_with_its_output() {
    let site = Site::new();
    let record = site.state_dir.with_file_name("arguments");
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >'{}'\necho cannot do it >&2\nexit 3\n", record.display());
    let program = site.write_program("virtiofsd", &script);
    let began = Instant::now();
    let description = description_in(&site.state_dir).virtiofsd(&program);
    let description = description.share_virtiofs(ShareVirtiofs::new(&site.share, "files").read_only());
    match description.start(QUIET_CMDLINE) {
        Err(Error::VirtiofsdFailed { program: named, log_tail }) => {
            assert_eq!(named, program);
            let report = format!("{}: exited with status 3", program.display());
            assert!(
                log_tail.hypervisor.contains("cannot do it") && log_tail.hypervisor.contains(&report),
                "{log_tail}"
            );
        }
        other => panic!("{other:?}"),
    }
    // The timeout after which it gives up waiting for the end of processes that have the FIFO open, itself among them.
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(site.daemons(), [0_u32; 0]);
    // A script counts as the program in Rust.
    let arguments = fs::read_to_string(record).unwrap();
    assert_eq!(arguments, format!("--fd=4\n--shared-dir={}\n--readonly\n", site.share.display()));
    description.remove(Disks::Delete).unwrap();
    assert!(!site.state_dir.exists());
}

/// The daemon exits when nobody has the FIFO `vhost.line` open any more. QEMU has it from the start as its standard input. Here
/// QEMU hangs before it opens the FIFO by its name.
#[test]
fn daemon_lives_as_long_as_qemu_when_the_starter_is_killed_before_qemu_is_ready() {
    as_root("daemon_lives_as_long_as_qemu_when_the_starter_is_killed_before_qemu_is_ready", || {
        let site = Site::new();
        let qemu = site.write_program(PLATFORM.qemu, "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n");
        site.description().hyperkit(&qemu).kernel(guest_file("vmlinuz")).define().unwrap();
        let pid_file = qemu.with_extension("pid");
        let pid = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
        let mut starter = site.starter().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("QEMU is running", || pid().is_some());
        assert!(!site.daemons().is_empty());
        starter.kill().unwrap();
        starter.wait().unwrap();
        let stdin = fs::read_link(format!("/proc/{}/fd/0", pid().unwrap())).unwrap();
        assert_eq!(stdin, site.state_dir.join("vhost.line"));
        assert!(!site.daemons().is_empty());
        kill_process(to_pid(pid().unwrap()), Signal::KILL).unwrap();
        wait_until("the daemon has exited", || site.daemons().is_empty());
    });
}
