//! The host's programs in a guest: `Root::Host`.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use hyperkit::{GuestStatus, Root, Vm};

use crate::common::guest::{Guest, QUIET_CMDLINE, compile_program};
use crate::root_dir::{command, text, with_root};

/// Returns what a shell script of the guest prints. The script has to succeed.
fn answer(vm: &Vm, script: &str) -> String {
    let output = command(vm, "bash").args(["-ec", script]).output().unwrap();
    assert_eq!((output.status, text(&output.stderr).as_str()), (GuestStatus::Exited(0), ""), "{script}");
    text(&output.stdout).trim_end().to_owned()
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
