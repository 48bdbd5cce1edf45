//! The agent on vsock, in a real guest. hyperkit is not here: a stand-in passes its connections on to the guest of QEMU, through
//! vhost-device-vsock.

#[path = "../../src/vm/command/protocol.rs"]
#[allow(dead_code, reason = "the test uses a part")]
mod protocol;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Kind, Request, hello, put_frame, put_numbers};

use hyperkit::{Error, Exit, GuestCommand, GuestStatus, HyperKit, Vm};

use crate::command::noise;
use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, open_shell, run_in_guest, setup_file};
use crate::common::vsock_agent::{AGENT_PORT, VsockAgent, notify_host, relay};
use crate::common::{StopOnDrop, TestDir, wait_until};

/// A VM of the stand-in, whose guest is that of a VM on QEMU.
struct Pair {
    hyperkit: Vm,
    _agent: VsockAgent,
    qemu: Vm,
    _stop: StopOnDrop,
    test_dir: TestDir,
    _guest: Guest,
}

impl Pair {
    fn start() -> Self {
        let test_dir = TestDir::new();
        fs::create_dir(test_dir.path("guest")).unwrap();
        let stop = test_dir.stop_on_drop();
        let cmdline = format!("guest.listens={}", test_dir.path("guest").display());
        let hyperkit = test_dir.description().vsock(true).agent(true).start(&cmdline).unwrap();
        let guest = Guest::new();
        let daemon = setup_file("target/tools/bin", "vhost-device-vsock");
        let description = guest.description.clone().vsock(true).vhost_device_vsock(daemon);
        let qemu = description.start(QUIET_CMDLINE).unwrap();
        // What the agent sends to the host's port 1019 goes to the ready socket of the stand-in.
        let notifications = qemu.vsock_listen(AGENT_PORT).unwrap();
        let sockets = test_dir.path("vm");
        thread::spawn(move || {
            for mut stream in notifications.incoming().flatten() {
                if stream.read(&mut [0]).is_ok_and(|length| length > 0) {
                    notify_host(&sockets);
                }
            }
        });
        let vm = qemu.clone();
        let connect = move |stream: UnixStream| {
            // A connection that the guest refuses ends.
            if let Ok(guest) = vm.vsock_connect(AGENT_PORT) {
                relay(stream, guest);
            }
        };
        let agent = VsockAgent::listen(&test_dir.path("guest"), Box::new(connect));
        Self { hyperkit, _agent: agent, qemu, _stop: stop, test_dir, _guest: guest }
    }

    fn command(&self, program: &str) -> GuestCommand {
        self.hyperkit.command(program).agent_timeout(BOOT_TIMEOUT)
    }

    fn shell(&self, script: &str) -> GuestCommand {
        self.command("sh").args(["-c", script])
    }

    /// Returns how many processes of the guest have an argument that begins so.
    fn count(&self, words: &str) -> usize {
        let script = "for dir in /proc/[0-9]*; do tr '\\0' ' ' <$dir/cmdline 2>/dev/null; echo; done; true";
        let output = self.shell(script).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        output.lines().filter(|line| line.trim_start_matches("/bin/").starts_with(words)).count()
    }
}

#[test]
fn agent_serves_several_programs_by_vsock() {
    let pair = Pair::start();
    // The first command waits for the boot.
    let output = pair.shell("echo $((6 * 7)); exit 3").output().unwrap();
    assert_eq!((output.status, &output.stdout[..]), (GuestStatus::Exited(3), &b"42\n"[..]));
    assert!(matches!(pair.command("no-such-program").output(), Err(Error::CommandNotStarted { .. })));

    let held = pair.command("sleep").arg("1001").spawn().unwrap();
    let other = HyperKit::from_state(pair.test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    let bytes = noise(100_000_000);
    let output = other.command("cat").stdin(&bytes[..]).output().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "the bytes have changed");
    let children: Vec<_> =
        (0..64).map(|number| pair.shell(&format!("cat; echo {number}")).stdin_piped().spawn().unwrap()).collect();
    for (number, child) in children.into_iter().enumerate().rev() {
        assert_eq!(child.wait_with_output().unwrap().stdout, format!("{number}\n").into_bytes());
    }
    assert_eq!(pair.count("sleep 1001"), 1);
    drop(held);
    assert_eq!(pair.count("sleep 1001"), 0);
}

/// A relay that is closed is a host that was killed.
#[test]
fn commands_of_a_killed_host_program_are_killed() {
    let pair = Pair::start();
    let idle = pair.command("sleep").arg("1001").spawn().unwrap();
    let mut writing = pair.command("yes").spawn().unwrap();
    writing.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    assert_eq!(pair.count("yes"), 1);
    drop(writing.stdout.take()); // its output is read and discarded
    // vhost-device-vsock does not tell the guest that its host has closed while it sends.
    pair.hyperkit.kill().unwrap();
    assert!(matches!(pair.command("true").output(), Err(Error::NotRunning { .. })));
    drop((idle, writing));
    let console = open_shell(&pair.qemu);
    let begun = Instant::now();
    while !run_in_guest(&console, "busybox pidof yes sleep").trim().is_empty() {
        assert!(begun.elapsed() < BOOT_TIMEOUT, "the commands still run");
        thread::sleep(Duration::from_secs(1));
    }
    println!("killed after {:?}", begun.elapsed());
}

#[test]
fn killed_agent_and_killed_guest_fail_the_commands() {
    let pair = Pair::start();
    let mut child = pair.command("sleep").arg("1001").spawn().unwrap();
    let console = open_shell(&pair.qemu);
    run_in_guest(&console, "kill -9 $(busybox pidof hyperkit-agent)");
    let error = child.wait().unwrap_err();
    assert!(matches!(&error, Error::AgentFailed { .. }), "{error:?}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pair.command("echo").arg("found").output());
        wait_until("the host listens", || pair.test_dir.path("vm/00000002.000003fb").exists());
        (&console).write_all(b"hyperkit-agent vsock </dev/null &\r").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().stdout, b"found\n");
    });
    let mut child = pair.command("sleep").arg("1001").spawn().unwrap();
    pair.qemu.kill().unwrap();
    assert!(matches!(child.wait(), Err(Error::AgentFailed { .. })));
    drop(child);
    let error = pair.hyperkit.command("true").agent_timeout(Duration::from_millis(300)).output().unwrap_err();
    assert!(matches!(error, Error::AgentNotResponding { .. }), "{error:?}");
    pair.hyperkit.kill().unwrap();
    assert_eq!(pair.hyperkit.wait(), Exit::Killed(9));
}

/// vhost-device-vsock does not tell the guest that a host has closed its connection while the guest sends.
#[test]
fn command_is_killed_after_its_host_program_closed_the_connection() {
    let pair = Pair::start();
    assert!(pair.command("true").status().unwrap().success());
    let mut socket = pair.qemu.vsock_connect(AGENT_PORT).unwrap();
    let request = Request { argv: vec![b"yes".to_vec()], ..Request::default() };
    let mut out: VecDeque<u8> = hello(&[7; 16]).into();
    put_frame(&mut out, Kind::Exec, 1, &request.encode());
    socket.write_all(out.make_contiguous()).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..200 {
        let length = socket.read(&mut buffer).unwrap();
        let mut credit = VecDeque::new();
        put_numbers(&mut credit, Kind::Credit, 1, 1, length.try_into().unwrap());
        socket.write_all(credit.make_contiguous()).unwrap();
    }
    drop(socket);
    let begun = Instant::now();
    while pair.count("yes") > 0 {
        assert!(begun.elapsed() < BOOT_TIMEOUT, "the command still runs");
        thread::sleep(Duration::from_secs(1));
    }
    println!("killed after {:?}", begun.elapsed());
}
