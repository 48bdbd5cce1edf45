//! A process that is exiting: it has no command line any more, but still holds its files.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use hyperkit::{Disk, Disks, Error, HyperKit};

use crate::common::{KillOnDrop, TEST_TIMEOUT, TestDir, make_fifo, wait_until};

/// A hypervisor whose main thread exits when `enter` is opened, and whose other thread exits when `leave` is opened. In between,
/// the process is as the kernel has it while it frees a large memory.
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *wait_to_leave(void *unused) {
    open(getenv("LEAVE"), O_RDONLY);
    _exit(0);
}

int main(int count, char **words) {
    pthread_t thread;
    flock(open(getenv("DISK"), O_RDWR), LOCK_EX | LOCK_NB);
    pthread_create(&thread, NULL, wait_to_leave, NULL);
    for (int word = 1; word + 1 < count; word++)
        if (!strcmp(words[word], "-F")) {
            FILE *file = fopen(words[word + 1], "w");
            fprintf(file, "%d", getpid());
            fclose(file);
        }
    open(getenv("ENTER"), O_RDONLY);
    syscall(SYS_exit, 0);
}
"#;

fn compile(test_dir: &TestDir) {
    let (source, program) = (test_dir.write("hyperkit.c", PROGRAM.as_bytes()), test_dir.path("hyperkit"));
    let status = Command::new("cc").arg("-pthread").arg("-o").args([&program, &source]).stdin(Stdio::null()).status();
    assert!(status.unwrap().success());
}

/// Opens a FIFO for which the hypervisor waits.
fn open_fifo(test_dir: &TestDir, name: &str) {
    drop(fs::OpenOptions::new().write(true).open(test_dir.path(name)).unwrap());
}

/// A call, and whether its result is right for a VM that has exited.
type Call = (&'static str, fn(&HyperKit) -> bool);

#[test]
fn exiting_hypervisor_is_waited_for() {
    let calls: [Call; 6] = [
        ("is_running", |description| !description.is_running().unwrap()),
        ("vm", |description| description.vm().unwrap().is_none()),
        ("stop", |description| description.stop().is_ok()),
        ("remove", |description| description.remove(Disks::Delete).is_ok()),
        ("define", |description| description.define().is_ok()),
        ("start", |description| {
            // The program that it starts exits at once, as it gets no names of FIFOs.
            matches!(description.start(""), Err(Error::HypervisorFailed { .. }) | Ok(_))
        }),
    ];
    let program = TestDir::new();
    compile(&program);
    for lost in ["nothing", "pid file"] {
        for (name, call) in calls {
            let test_dir = TestDir::new();
            ["enter", "leave"].iter().for_each(|name| make_fifo(&test_dir.path(name)));
            let description = test_dir.description().hyperkit(program.path("hyperkit")).no_serials();
            let description = description.disk(Disk::in_state_dir(1));
            let starting = description.spawn_with("guest", |command| {
                command.env("ENTER", test_dir.path("enter")).env("LEAVE", test_dir.path("leave"));
                command.env("DISK", test_dir.path("vm/disk.img"));
            });
            let vm = starting.unwrap().wait_ready(TEST_TIMEOUT).unwrap();
            let _kill = KillOnDrop(&vm);
            open_fifo(&test_dir, "enter");
            let command_line = || fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap();
            wait_until("the main thread has exited", || command_line().is_empty());
            if lost == "pid file" {
                fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
            }
            assert_eq!(vm.try_wait(), None, "{name}");
            let (send, result) = channel();
            thread::spawn(move || send.send(call(&description)));
            let early = result.recv_timeout(Duration::from_millis(100));
            assert_eq!(early, Err(RecvTimeoutError::Timeout), "{name} without {lost}");
            open_fifo(&test_dir, "leave");
            assert_eq!(result.recv_timeout(TEST_TIMEOUT), Ok(true), "{name} without {lost}");
            assert!(vm.try_wait().is_some() || vm.wait_timeout(TEST_TIMEOUT).is_some());
        }
    }
}
