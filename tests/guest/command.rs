//! Programs in the guest, executed by the agent: `Vm::command`.

use std::fs;
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::{ConfigError, Error, ErrorKind, Exit, GuestCommand, GuestStatus, HyperKit, NotStarted, Vm};

use crate::common::KillProcessOnDrop;
use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE};

/// A running VM with an agent that has answered.
pub struct Agent {
    pub vm: Vm,
    guest: Guest,
}

impl Agent {
    pub fn start() -> Self {
        Self::start_on_cpus(1)
    }

    pub fn start_on_cpus(cpus: u32) -> Self {
        let guest = Guest::new();
        let vm = guest.description.clone().agent(true).cpus(cpus).start(QUIET_CMDLINE).unwrap();
        let agent = Self { vm, guest };
        assert!(agent.command("true").status().unwrap().success());
        agent
    }

    pub fn command(&self, program: &str) -> GuestCommand {
        self.vm.command(program).agent_timeout(BOOT_TIMEOUT)
    }

    pub fn shell(&self, script: &str) -> GuestCommand {
        self.command("sh").args(["-c", script])
    }

    /// Returns what a script prints.
    pub fn answer(&self, script: &str) -> String {
        let output = self.shell(script).output().unwrap();
        assert_eq!((output.status, output.stderr.escape_ascii().to_string().as_str()), (GuestStatus::Exited(0), ""));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Returns the command lines of running processes in the guest that begin with one of these words.
    pub fn running(&self, words: &[&str]) -> Vec<String> {
        let processes =
            self.answer("for dir in /proc/[0-9]*; do { tr '\\0' ' ' <$dir/cmdline; } 2>/dev/null; echo; done; true");
        let is_meant =
            |line: &&str| words.iter().any(|word| line.starts_with(word) || line.starts_with(&format!("/bin/{word}")));
        processes.lines().filter(is_meant).map(|line| line.trim_end().to_owned()).collect()
    }
}

#[test]
fn output_status_and_environment_are_those_of_the_program() {
    let agent = Agent::start();
    let output = agent.shell("echo out; echo err >&2; exit 3").output().unwrap();
    assert_eq!(output.status, GuestStatus::Exited(3));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(agent.shell("kill -9 $$").status().unwrap(), GuestStatus::Killed(9));
    assert_eq!(agent.shell("exit 137").status().unwrap(), GuestStatus::Exited(137));

    let output = agent.command("uname").arg("-a").output().unwrap();
    assert!(output.stdout.starts_with(b"Linux "), "{output:?}");
    let odd = "a b\n\"'$\u{e4}";
    assert_eq!(
        agent.command("printf").args(["%s|", odd, "", "-x"]).output().unwrap().stdout,
        format!("{odd}||-x|").as_bytes()
    );

    let own = agent.command("env").env_clear().env("A", "1=2").env("A", "3").output().unwrap();
    assert_eq!(own.stdout, b"A=3\n");
    assert_eq!(agent.shell("echo $B; pwd").env("B", "b").output().unwrap().stdout, b"b\n/\n");
    assert_eq!(agent.command("pwd").current_dir("/proc/self/../tty").output().unwrap().stdout, b"/proc/tty\n");
    assert_eq!(agent.command("cat").output().unwrap().stdout, b"");
    // `yes` is killed by SIGPIPE, and not told EPIPE.
    assert_eq!(agent.answer("set -o pipefail; yes | head -n 1; echo $?"), "y\n141");
    let ids = agent.command("id").uid(12).gid(34).output().unwrap();
    assert_eq!(ids.stdout, b"uid=12 gid=34\n");
}

#[test]
fn reason_why_a_program_was_not_started_is_told() {
    let agent = Agent::start();
    agent.answer(
        "cd /tmp; mkdir dir; printf 'x' >plain; printf '#!/no/such\\n' >script; printf 'echo' >none; chmod 755 script none",
    );
    for (command, expected) in [
        (agent.command("no-such-program"), NotStarted::ProgramNotFound),
        (agent.command(""), NotStarted::ProgramNotFound),
        (agent.command("/tmp/none/x"), NotStarted::ProgramNotFound),
        (agent.command("/no/such"), NotStarted::ProgramNotFound),
        (agent.command("/tmp/dir"), NotStarted::NotExecutable),
        (agent.command("/tmp/plain"), NotStarted::NotExecutable),
        (agent.command("plain").env("PATH", "/no:/tmp"), NotStarted::NotExecutable),
        (agent.command("/tmp/none"), NotStarted::NotExecutable),
        (agent.command("/tmp/script"), NotStarted::InterpreterNotFound),
        (agent.command("true").current_dir("/no"), NotStarted::CurrentDir),
        (agent.command("true").current_dir("/tmp/plain"), NotStarted::CurrentDir),
    ] {
        let error = command.output().unwrap_err();
        let names_dir = format!("{error:#}").contains("\": /");
        assert!(matches!(error, Error::CommandNotStarted { reason, .. } if reason == expected), "{error:#}");
        assert_eq!(names_dir, expected == NotStarted::CurrentDir, "{error:#}");
    }
    assert_eq!(agent.command("./sh").args(["-c", "echo $0"]).current_dir("/bin").output().unwrap().stdout, b"./sh\n");
}

/// Pseudo-random bytes.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state ^ (state >> 29)).to_le_bytes()
    };
    (0..length / 8).flat_map(next).collect()
}

#[test]
fn transfer_of_100_mb_is_intact_both_ways() {
    let agent = Agent::start();
    let bytes = noise(100_000_000);
    let output = agent.command("cat").stdin(&bytes[..]).output().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "the bytes have changed");
    match agent.command("yes").output_limit(1_000_000).output() {
        Err(Error::CommandOutputTooLong { limit: 1_000_000, .. }) => {}
        other => panic!("{:?}", other.map(|output| output.status)),
    }
    assert_eq!(agent.running(&["yes"]), [""; 0]);
}

#[test]
fn sixty_four_commands_run_at_once() {
    let agent = Agent::start();
    let mut children: Vec<_> = (0..64)
        .map(|_| {
            agent
                .shell("while read line; do echo \"$line\"; done; echo done >&2; exit 7")
                .stdin_piped()
                .spawn()
                .unwrap()
        })
        .collect();
    let ids: std::collections::BTreeSet<_> = children.iter().map(|child| child.id()).collect();
    assert_eq!(ids.len(), 64);
    for (number, child) in children.iter_mut().enumerate() {
        writeln!(child.stdin.as_mut().unwrap(), "{number}").unwrap();
    }
    // In another order than they were started.
    for (number, child) in children.into_iter().enumerate().rev() {
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.stdout, &output.stderr[..]), (format!("{number}\n").into_bytes(), &b"done\n"[..]));
        assert_eq!(output.status, GuestStatus::Exited(7));
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|number| {
                let agent = &agent;
                scope.spawn(move || {
                    (0..4).for_each(|_| assert_eq!(agent.answer(&format!("echo {number}")), number.to_string()))
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn program_that_leaves_processes_running_ends_at_its_exit() {
    let agent = Agent::start();
    // A daemon with a session of its own, which has closed its outputs, and one that holds them open.
    agent.answer("setsid sleep 1001 </dev/null >/dev/null 2>&1 &");
    assert_eq!(agent.answer("sleep 1002 & echo started"), "started");
    assert_eq!(agent.shell("sleep 1003 & exit 5").status().unwrap(), GuestStatus::Exited(5));
    let mut child = agent.shell("sleep 1004 & echo started").spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let mut stdout = child.stdout.take().unwrap();
    drop(child);
    let mut started = String::new();
    stdout.read_to_string(&mut started).unwrap();
    assert_eq!(started, "started\n");
    drop(stdout);
    // They live on, also when the connection is closed.
    let mut running = agent.running(&["sleep"]);
    running.sort();
    assert_eq!(running, ["sleep 1001", "sleep 1002", "sleep 1003", "sleep 1004"]);
    // Output that is written within the grace period is returned. Without a limit of the grace period, all output is.
    let late = "(sleep 1; echo late) & echo early";
    assert_eq!(agent.shell(late).output_grace(Duration::MAX).output().unwrap().stdout, b"early\nlate\n");
    let late = "(sleep 1005; echo late) & echo early";
    assert_eq!(agent.shell(late).output_grace(Duration::ZERO).output().unwrap().stdout, b"early\n");
    // A process that never stops writing.
    let output = agent.shell("yes & exit 3").output().unwrap();
    assert_eq!((output.status, &output.stdout[..2]), (GuestStatus::Exited(3), &b"y\n"[..]));
}

#[test]
fn command_that_is_late_or_killed_ends_with_all_descendants() {
    let agent = Agent::start();
    let script = "echo begun; setsid env -i /bin/sleep 1001 & (setsid sleep 1002 &) & sleep 1003";
    let timeout = Duration::from_secs(10); // for the first output, too
    let error = agent.shell(script).timeout(timeout).output().unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Timeout, "\"sh\" did not end within 10 s and was killed")
    );
    assert!(matches!(&error, Error::CommandTimedOut { stdout, .. } if stdout == b"begun\n"), "{error:?}");
    let left = || agent.running(&["sleep"]);
    assert_eq!(left(), [""; 0]);

    let mut child = agent.shell(script).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap(), GuestStatus::Killed(9));
    drop(child);
    assert_eq!(left(), [""; 0]);

    let mut child = agent.shell(script).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    drop(child);
    assert_eq!(left(), [""; 0]);

    let mut child = agent.command("sleep").arg("1001").timeout(Duration::from_millis(500)).spawn().unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    assert!(matches!(child.wait(), Err(Error::CommandTimedOut { .. })));

    let mut child =
        agent.shell("trap 'echo got it; exit 4' USR1; echo ready; while :; do sleep 0.1; done").spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    for number in [-10, 0, 32] {
        assert_eq!(child.signal(number).unwrap_err().kind(), ErrorKind::Io);
    }
    child.signal(10).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status, &output.stdout[..]), (GuestStatus::Exited(4), &b"got it\n"[..]));
}

#[test]
fn vm_that_exits_while_a_command_runs_is_an_error_with_its_exit() {
    let agent = Agent::start();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| agent.command("sleep").arg("1000").output());
        assert!(agent.command("true").status().unwrap().success());
        agent.vm.kill().unwrap();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::VmExited { exit: Exit::Killed(9), .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Guest);
    });
    assert!(matches!(agent.command("true").status(), Err(Error::NotRunning { .. })));

    let agent = Agent::start();
    let error = agent.command("poweroff").arg("-f").output().unwrap_err();
    assert!(matches!(&error, Error::VmExited { exit: Exit::PowerOff, .. }), "{error:?}");
}

#[test]
fn paused_vm_and_busy_agent_do_not_answer_and_the_error_says_so() {
    let agent = Agent::start();
    let short = Duration::from_millis(300);
    agent.vm.pause().unwrap();
    let error = agent.vm.command("true").agent_timeout(short).output().unwrap_err();
    assert!(matches!(error, Error::AgentNotResponding { is_paused: true, .. }), "{error:?}");
    agent.vm.resume().unwrap();

    let other = HyperKit::from_state(&agent.guest.state_dir).unwrap().vm().unwrap().unwrap();
    let child = agent.command("sleep").arg("1000").spawn().unwrap();
    let error = other.command("true").agent_timeout(short).output().unwrap_err();
    assert!(matches!(error, Error::AgentNotResponding { is_paused: false, .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("another program may use the agent"), "{error}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| other.command("echo").arg("found").agent_timeout(BOOT_TIMEOUT).output());
        drop(child);
        assert_eq!(waiting.join().unwrap().unwrap().stdout, b"found\n");
    });
    assert!(agent.command("true").status().unwrap().success());
}

#[test]
fn command_without_an_agent_is_refused() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let error = vm.command("true").output().unwrap_err();
    let expected = ConfigError::MissingPrerequisite { field: "command", requires: "agent" };
    assert_eq!(error.violations(), [expected]);
}

#[test]
fn guest_that_does_not_run_the_agent_is_an_error_and_gets_no_request_later() {
    let guest = Guest::new();
    let vm = guest.description.clone().agent(true).start(&format!("{QUIET_CMDLINE} rdinit=/bin/sh")).unwrap();
    let error = vm.command("true").agent_timeout(Duration::from_millis(300)).output().unwrap_err();
    assert!(matches!(error, Error::AgentNotResponding { .. }), "{error:?}");
}

/// What the slow reader does not read waits in the guest.
#[test]
fn slow_reader_and_slow_program_delay_no_other_command() {
    let agent = Agent::start();
    let mut unread: Vec<_> = (0..4).map(|_| agent.command("yes").spawn().unwrap()).collect();
    let sleeping = agent.command("sleep").arg("1000").stdin(noise(10_000_000)).spawn().unwrap();
    let bytes = noise(1_000_000);
    assert!(agent.command("cat").stdin(&bytes[..]).output().unwrap().stdout == bytes);
    let mut some = vec![0; 1_000_000];
    unread[0].stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    assert!(some.chunks(2).all(|line| line == b"y\n"));
    // A program that does not read its input.
    let mut closed = agent.shell("exec <&-; echo closed; sleep 1000").stdin_piped().spawn().unwrap();
    closed.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    let error = closed.stdin.as_mut().unwrap().write_all(&bytes).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::BrokenPipe);
    assert!(agent.command("true").stdin(&bytes[..]).status().unwrap().success());
    drop((unread, sleeping, closed));
    assert_eq!(agent.running(&["yes", "sleep"]), [""; 0]);
}

/// The environment variable with the state directory for the test below, in its child process.
const CHILD: &str = "HYPERKIT_COMMAND_CHILD";

#[test]
fn commands_of_a_killed_program_are_killed_and_the_next_program_is_answered() {
    const TEST: &str = "command::commands_of_a_killed_program_are_killed_and_the_next_program_is_answered";
    if let Some(state_dir) = std::env::var_os(CHILD) {
        let vm = HyperKit::from_state(PathBuf::from(state_dir)).unwrap().vm().unwrap().unwrap();
        let bytes = noise(1_000_000);
        let mut sleeping = vm.command("sh").args(["-c", "setsid sleep 1001 & sleep 1002"]).spawn().unwrap();
        let mut cat = vm.command("cat").stdin_piped().spawn().unwrap();
        let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
        thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).unwrap());
        println!("ready");
        loop {
            stdin.write_all(&bytes).unwrap();
            assert_eq!(sleeping.try_wait().unwrap(), None);
        }
    }
    let agent = Agent::start();
    for _ in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", TEST, "--nocapture"]).env(CHILD, &agent.guest.state_dir).stdout(Stdio::piped());
        let mut child = KillProcessOnDrop::spawn(&mut child);
        let mut output = Vec::new();
        let mut stdout = child.0.stdout.take().unwrap();
        while !output.ends_with(b"ready\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            output.extend(byte);
        }
        drop(child);
        assert_eq!(agent.running(&["cat", "sleep"]), [""; 0]);
    }
    // Half a frame, and bytes that are no frame.
    for bytes in [&[255, 255, 0, 0, 3, 1, 0, 0, 0, 1, 2, 3][..], &noise(1_000_000)] {
        let mut socket = UnixStream::connect(agent.guest.state_dir.join("agent.sock")).unwrap();
        socket.write_all(bytes).unwrap();
        drop(socket);
        assert_eq!(agent.answer("echo $((6 * 7))"), "42");
    }
}

#[test]
fn another_hypervisor_at_the_socket_is_an_error() {
    let agent = Agent::start();
    let socket = agent.guest.state_dir.join("agent.sock");
    fs::remove_file(&socket).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    match agent.vm.command("true").output() {
        Err(Error::Replaced { successor, .. }) => assert_eq!(successor, std::process::id()),
        other => panic!("{other:?}"),
    }
}

/// The figures for the documentation. The test asserts only that the calls succeed.
#[test]
fn round_trip_and_throughput_are_printed() {
    let agent = Agent::start();
    let begun = Instant::now();
    let held = agent.command("sleep").arg("1000").spawn().unwrap();
    (0..20).for_each(|_| assert!(agent.command("true").output().unwrap().status.success()));
    println!("command(\"true\").output() on an open connection: {:?}", begun.elapsed() / 20);
    drop(held);
    let begun = Instant::now();
    (0..20).for_each(|_| assert!(agent.command("true").output().unwrap().status.success()));
    println!("the same with a new connection: {:?}", begun.elapsed() / 20);
    let bytes = noise(100_000_000);
    let begun = Instant::now();
    assert!(agent.shell("cat >/dev/null").stdin(bytes).status().unwrap().success());
    println!("to the guest: {:.0} MB/s", 100.0 / begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let zeros = agent.command("dd").args(["if=/dev/zero", "bs=1000000", "count=100"]).output().unwrap();
    assert_eq!(zeros.stdout.len(), 100_000_000);
    println!("from the guest: {:.0} MB/s", 100.0 / begun.elapsed().as_secs_f64());
}
