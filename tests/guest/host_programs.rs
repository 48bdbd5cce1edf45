//! The host's programs in a guest: `Root::Host` and `Root::Dir`.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use hyperkit::{Error, Exit, GuestCommand, GuestStatus, HyperKit, NotStarted, Root, Vm};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, compile_program, guest_file, open_shell, run_in_guest};
use crate::common::tools::run_tool;

/// Returns the guest's description with a root directory of the host.
fn with_root(description: &HyperKit, root: Root) -> HyperKit {
    description.clone().initrd(guest_file("host-root.img")).agent(true).root(root).memory_mib(1024)
}

fn command(vm: &Vm, program: &str) -> GuestCommand {
    let path = env::var_os("PATH").unwrap_or_default();
    vm.command(program).env("PATH", path).agent_timeout(BOOT_TIMEOUT).timeout(BOOT_TIMEOUT)
}

/// Returns what a shell script of the guest prints. The script has to succeed.
fn answer(vm: &Vm, script: &str) -> String {
    let output = command(vm, "bash").args(["-ec", script]).output().unwrap();
    assert_eq!((output.status, text(&output.stderr).as_str()), (GuestStatus::Exited(0), ""), "{script}");
    text(&output.stdout).trim_end().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bytes of a TCP connection to the loopback address. A VM runs this test, too.
#[test]
fn loopback_address_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let mut received = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut received).unwrap();
    server.join().unwrap();
    assert_eq!(received, "hello");
}

#[test]
fn programs_of_the_host_give_the_same_output_and_status_as_on_the_host() {
    let guest = Guest::new();
    let vm = with_root(&guest.description, Root::Host).start(QUIET_CMDLINE).unwrap();
    let files = guest.state_dir.parent().unwrap();
    fs::write(
        files.join("script.py"),
        "#!/usr/bin/env python3\nimport json, ssl, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(5)\n",
    )
    .unwrap();
    let dir = files.join("a b%20,\u{e4}'\"");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("odd , %\u{e4}"), "content").unwrap();
    for (program, args) in [
        ("cat", &["/etc/passwd"][..]),
        ("bash", &["-c", "diff <(seq 3) <(seq 4 | tac | tac); echo $?; ls /no/such; exit 3"]),
        ("python3", &["../script.py", "a b", "\u{e4}"]),
        ("sh", &["-c", "ls -l /etc | sort | sha256sum; pwd; cat *; ls -l ..|grep script.py; id -u"]),
        (
            "sh",
            &[
                "-c",
                "hostname >/dev/null && test -w /tmp && test -d /dev/shm/. && test -c /dev/null && echo x >/dev/stdout",
            ],
        ),
        ("sh", &["-c", "kill -9 $$"]),
    ] {
        let Output { status, stdout, stderr } = Command::new(program).args(args).current_dir(&dir).output().unwrap();
        let inside = command(&vm, program).args(args).current_dir(&dir).output().unwrap();
        let expected = status.code().map_or(GuestStatus::Killed(9), GuestStatus::Exited);
        assert_eq!(
            (inside.status, text(&inside.stdout), text(&inside.stderr)),
            (expected, text(&stdout), text(&stderr))
        );
    }
    let name = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = name.lines().next().unwrap_or("localhost");
    assert_eq!(answer(&vm, "cat /proc/sys/kernel/hostname"), name);
    assert_eq!(text(&command(&vm, "id").arg("-u").uid(1234).gid(1234).output().unwrap().stdout), "1234\n");
    // The unit tests of a program, which is linked dynamically.
    let this = env::current_exe().unwrap();
    let tests = command(&vm, this.to_str().unwrap()).arg("loopback_address_connects").output().unwrap();
    assert_eq!(tests.status, GuestStatus::Exited(0), "{tests:?}");
    assert!(text(&tests.stdout).contains("test result: ok. 1 passed"), "{tests:?}");
    // Terminals, user namespaces, and processes that outlive their parents.
    assert_eq!(
        answer(&vm, "python3 -c 'import os; os.openpty(); print(1)'; unshare --user --map-root-user id -u"),
        "1\n0"
    );
    assert_eq!(
        answer(
            &vm,
            "(setsid true &); for i in $(seq 200); do grep -qs '^State:.Z' /proc/[0-9]*/status || exit 0; done; exit 1"
        ),
        ""
    );
}

#[test]
fn guest_writes_to_shared_directories_and_nowhere_else() {
    let guest = Guest::new();
    let files = guest.state_dir.parent().unwrap().to_owned();
    let project = files.join("pro ject,%41\u{e4}");
    let (target, inner) = (project.join("target, 1"), project.join("target, 1/inner"));
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(project.join("src")).unwrap();
    fs::write(project.join("src/main.rs"), "original").unwrap();
    let outside = tempfile::tempdir_in(&files).unwrap();
    // The inner one first: it must not be hidden by the mount of the outer one.
    let description =
        with_root(&guest.description, Root::Host).share_dir(&inner, "inner %").share_dir(&target, "target");
    let vm = description.start(QUIET_CMDLINE).unwrap();
    let script = "echo made >'target, 1/new'; echo made >'target, 1/inner/new'; python3 -c '
import mmap
with open(\"target, 1/mapped\", \"w+b\") as file:
    file.truncate(4096)
    with mmap.mmap(file.fileno(), 4096) as memory:
        memory[0:5] = b\"hello\"
        memory.flush()
'
        echo changed >src/main.rs; mv src moved; echo x >new; mkdir -p /etc/hyperkit-new; rm -r moved; rm /etc/passwd
        ls; test ! -e /etc/passwd";
    let output = command(&vm, "bash").args(["-ec", script]).current_dir(&project).output().unwrap();
    assert_eq!(output.status, GuestStatus::Exited(0), "{output:?}");
    assert_eq!(text(&output.stdout), "new\ntarget, 1\n");
    assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "made\n");
    assert_eq!(fs::read_to_string(inner.join("new")).unwrap(), "made\n");
    assert_eq!(fs::read(target.join("mapped")).unwrap()[..5], *b"hello");
    assert_eq!(fs::read_to_string(project.join("src/main.rs")).unwrap(), "original");
    let mut names: Vec<_> = fs::read_dir(&project).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["src", "target, 1"]);
    assert!(Path::new("/etc/passwd").exists() && !Path::new("/etc/hyperkit-new").exists());

    // What the host changes while the VM runs is seen.
    fs::write(outside.path().join("later"), "first").unwrap();
    let later = format!("cat '{}'", outside.path().join("later").display());
    assert_eq!(answer(&vm, &later), "first");
    fs::write(outside.path().join("later"), "second, and longer").unwrap();
    assert_eq!(answer(&vm, &later), "second, and longer");
}

#[test]
fn program_that_the_host_builds_again_is_executed_as_it_is_now() {
    let guest = Guest::new();
    let files = guest.state_dir.parent().unwrap();
    let program = compile_program(files);
    let first = fs::read(&program).unwrap();
    let at = first.windows(5).position(|bytes| bytes == b"[%s]\n").unwrap();
    // Another text, and longer, as if it had been linked to more.
    let second = [&first[..at], b"<%s>\n", &first[at + 5..], &[0; 100_000]].concat();
    let vm = with_root(&guest.description, Root::Host).start(QUIET_CMDLINE).unwrap();
    let printed = || answer(&vm, &format!("'{}' argument 2>/dev/null | tail -n 1", program.display()));
    assert_eq!(printed(), "[argument]");
    fs::write(&program, &second).unwrap();
    assert_eq!(printed(), "<argument>");
    // A new file with the same name.
    fs::write(files.join("new"), &first).unwrap();
    fs::set_permissions(files.join("new"), program.metadata().unwrap().permissions()).unwrap();
    fs::rename(files.join("new"), &program).unwrap();
    assert_eq!(printed(), "[argument]");
}

/// Creates a root directory with one program, which is statically linked, and nothing else.
fn create_root(dir: &Path) -> PathBuf {
    let root = dir.join("my root,%41");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(compile_program(dir), root.join("bin/program")).unwrap();
    root
}

#[test]
fn root_directory_needs_one_program_and_its_vm_is_found_again() {
    let guest = Guest::new();
    let root = create_root(guest.state_dir.parent().unwrap());
    fs::create_dir_all(root.join("out")).unwrap();
    let description = with_root(&guest.description, Root::Dir(root.clone())).share_dir(root.join("out"), "out");
    drop(description.start(QUIET_CMDLINE).unwrap());

    let found = HyperKit::from_state(&guest.state_dir).unwrap();
    assert_eq!(
        (&found.root, found.recorded_kernel_cmdline().as_deref()),
        (&Root::Dir(root.clone()), Some(QUIET_CMDLINE))
    );
    let vm = found.vm().unwrap().unwrap();
    let output = command(&vm, "program").args(["a", "b"]).env("PATH", "/bin").current_dir("/out").output().unwrap();
    assert_eq!(output.status, GuestStatus::Exited(0));
    assert!(text(&output.stdout).ends_with("[program]\n[a]\n[b]\n"), "{output:?}");
    let missing = command(&vm, "sh").output().unwrap_err();
    assert!(matches!(missing, Error::CommandNotStarted { reason: NotStarted::ProgramNotFound, .. }), "{missing:?}");
    fs::write(guest.state_dir.with_file_name("note"), "from the host").unwrap();
    vm.copy_in(guest.state_dir.with_file_name("note"), "/out/note").unwrap();
    vm.copy_in(guest.state_dir.with_file_name("note"), "/note").unwrap();
    assert_eq!(fs::read_to_string(root.join("out/note")).unwrap(), "from the host");
    assert!(!root.join("note").exists() && !root.join("proc").exists());
}

/// Creates `host-root.img` again, after shell commands have changed its content.
fn changed_initrd(dir: &Path, commands: &str) -> PathBuf {
    let (content, initrd) = (dir.join("content"), dir.join("changed.img"));
    let _ = fs::remove_dir_all(&content);
    fs::create_dir(&content).unwrap();
    let script = "gzip -dc \"$1\" | cpio --quiet -id && eval \"$3\" && find . | cpio --quiet -o -H newc >\"$2\"";
    let original = guest_file("host-root.img");
    run_tool(
        "sh",
        &["-ec".as_ref(), script.as_ref(), "sh".as_ref(), original.as_os_str(), initrd.as_ref(), commands.as_ref()],
        &content,
    );
    initrd
}

#[test]
fn root_that_cannot_be_mounted_ends_the_vm_and_the_error_says_why() {
    // The kernel of Debian 13 has some of these modules built in. This parameter leaves out the one whose function it names.
    let builtin = |function: &str| format!("{QUIET_CMDLINE} initcall_blacklist={function}");
    for (commands, cmdline, reason) in [
        (
            "rm modules/*-9pnet.ko",
            QUIET_CMDLINE,
            "cannot load /modules/18-9pnet_virtio.ko: the initrd lacks the module 9pnet",
        ),
        (
            "rm modules/*-overlay.ko",
            QUIET_CMDLINE,
            "cannot mount overlay on /root: the kernel lacks the module overlay",
        ),
        (
            "rm -f modules/*-virtio_console.ko",
            &builtin("virtio_console_init"),
            "the kernel lacks the module virtio_console",
        ),
        (
            "rm -f modules/*-virtio_pci.ko",
            &builtin("virtio_pci_driver_init"),
            "no device with the tag \"hyperkit-root\"; the kernel may lack the module virtio_pci",
        ),
        (
            "echo x >modules/19-9p.ko",
            QUIET_CMDLINE,
            "cannot load /modules/19-9p.ko: damaged, or a module of another kernel",
        ),
        ("touch '../my root,%41/dev'", QUIET_CMDLINE, "cannot mount devtmpfs on /dev: Not a directory"),
    ] {
        let guest = Guest::new();
        let dir = guest.state_dir.parent().unwrap();
        let root = create_root(dir);
        let description = with_root(&guest.description, Root::Dir(root)).initrd(changed_initrd(dir, commands));
        let error = command(&description.start(cmdline).unwrap(), "program").output().unwrap_err();
        assert!(matches!(error, Error::VmExited { exit: Exit::PowerOff, .. }), "{commands}: {error:?}");
        assert!(error.to_string().contains(reason), "{commands}: {error}");
    }
}

#[test]
fn mismatch_of_initrd_and_root_is_reported() {
    let guest = Guest::new();
    let description = with_root(&guest.description, Root::Host).initrd(guest_file("initrd.img"));
    let vm = description.start(QUIET_CMDLINE).unwrap();
    vm.wait_for_console("this initrd does not mount it; use host-root.img", BOOT_TIMEOUT).unwrap();
    // QEMU refuses to write, whatever the guest does.
    let console = open_shell(&vm);
    let target = guest.state_dir.with_file_name("new");
    let write = "mount -t 9p -o trans=virtio,version=9p2000.L hyperkit-root /mnt && touch";
    let answer = run_in_guest(&console, &format!("{write} /mnt{}", target.display()));
    assert!(answer.contains("Read-only file system") && !target.exists(), "{answer}");
    vm.kill().unwrap();
    let vm = with_root(&guest.description, Root::Initrd).start(QUIET_CMDLINE).unwrap();
    let error = command(&vm, "true").output().unwrap_err();
    assert!(error.to_string().contains("has no hyperkit.root; set `root`"), "{error}");
}
