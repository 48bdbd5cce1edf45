//! A daemon that keeps a pool of VMs ready and hands them out.
//!
//! `pool DIR TEMPLATE SIZE GRACE CMDLINE TEXT`: `TEMPLATE` is a state directory with the description of the VMs. `SIZE` VMs
//! are kept ready, each in a state directory in `DIR`. A VM is ready when its console has shown `TEXT`. The daemon reads
//! requests from standard input, one in each line:
//!
//! - `list`: prints name and process ID of each VM, and whether it is ready or taken.
//! - `take`: hands out a VM, as soon as one is ready, and prints its name.
//! - `run NAME COMMAND`: runs a shell command in the guest, over its console, and prints the output.
//! - `done NAME`: shuts down a VM that was taken.
//!
//! The line `ready` follows each answer. When its input ends, and on SIGTERM, the daemon shuts down all VMs within `GRACE`
//! seconds, also those that are starting. If the daemon is killed, the VMs keep running, and the next daemon attaches to
//! them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperkit::{Disks, Found, HyperKit, NextLine, Vm};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

/// How long a hypervisor may take until it is ready, and then its guest until it shows the text.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// The pause before the next start after one that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a console's log is read while a text is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1)) // a start or shutdown needs a thread only while it lasts
        .build()?;
    runtime.block_on(serve_until_terminated())
}

async fn serve_until_terminated() -> Result {
    let mut terminate = signal(SignalKind::terminate())?;
    let [dir, template, size, grace, cmdline, text] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "DIR TEMPLATE SIZE GRACE CMDLINE TEXT")?;
    let (template, grace) = (HyperKit::from_state(template)?, Duration::from_secs(grace.parse()?));
    let config = Arc::new(Config { template, cmdline, text, grace });
    let mut pool = Pool::attach(dir.into(), size.parse()?, config).await?;
    // SIGTERM drops the other future at any `await`. Starts are separate tasks, for which `end` waits.
    let served = tokio::select! {
        served = pool.serve(requests()) => served,
        _ = terminate.recv() => Ok(()),
    };
    pool.end().await.and(served)
}

/// Returns the lines of standard input. A thread reads them, because a read cannot be cancelled. Nothing waits for the
/// thread.
fn requests() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lines().map_while(|line| line.ok());
        lines.all(|line| sender.blocking_send(line).is_ok())
    });
    receiver
}

/// What all VMs have in common.
struct Config {
    template: HyperKit,
    cmdline: String,
    text: String,
    grace: Duration,
}

enum Member {
    /// The VM is starting, or the files that it left are being deleted.
    Changing,
    Ready(Vm),
    Taken(Vm),
}

struct Pool {
    dir: PathBuf,
    size: usize,
    config: Arc<Config>,
    members: BTreeMap<String, Member>,
    /// One task for each `Changing` member, with the VM if it is ready then.
    changes: JoinSet<(String, Option<Vm>)>,
    exits: JoinSet<String>,
    /// Set to `true` once, to cancel the starts.
    stop: watch::Sender<bool>,
}

impl Pool {
    /// Attaches to the VMs that an earlier daemon has left running, and deletes the files of those that do not run.
    async fn attach(dir: PathBuf, size: usize, config: Arc<Config>) -> Result<Self> {
        let (members, stop) = (BTreeMap::new(), watch::Sender::new(false));
        let mut pool = Self { dir, size, config, members, changes: JoinSet::new(), stop, exits: JoinSet::new() };
        let dir = pool.dir.clone();
        for Found { dir, vm, .. } in blocking(move || HyperKit::list(dir)).await? {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match vm? {
                Some(vm) if pool.mark(&name).exists() => pool.insert(name, Member::Taken(vm)),
                Some(vm) => pool.start(name, Some(vm)),
                None => pool.remove(name),
            }
        }
        Ok(pool)
    }

    async fn serve(&mut self, mut requests: mpsc::Receiver<String>) -> Result {
        println!("ready");
        loop {
            self.fill();
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => {
                        self.answer(&request).await.unwrap_or_else(|error| println!("error: {error:#}"));
                        println!("ready");
                    }
                    None => return Ok(()),
                },
                () = self.next_change() => {}
            }
        }
    }

    async fn answer(&mut self, request: &str) -> Result {
        let words = request.splitn(3, ' ').collect::<Vec<_>>();
        match words[..] {
            ["list"] => {
                for (name, member) in &self.members {
                    match member {
                        Member::Changing => {}
                        Member::Ready(vm) => println!("{name} {} ready", vm.pid()),
                        Member::Taken(vm) => println!("{name} {} taken", vm.pid()),
                    }
                }
            }
            ["take"] => println!("{}", self.take().await?),
            ["run", name, command] => match self.members.get(name) {
                Some(Member::Taken(vm)) => println!("{}", timeout(COMMAND_TIMEOUT, run(vm, command)).await??),
                _ => return Err("not taken".into()),
            },
            ["done", name] if self.mark(name).exists() => {
                // There is no VM if it has exited while no daemon was running.
                if let Some(Member::Taken(vm)) = self.members.get(name) {
                    let (vm, deadline) = (vm.clone(), Instant::now() + self.config.grace);
                    blocking(move || end(&vm, deadline)).await?;
                    self.members.remove(name);
                }
                fs::remove_file(self.mark(name))?;
            }
            _ => return Err("no such request or VM".into()),
        }
        Ok(())
    }

    async fn take(&mut self) -> Result<String> {
        loop {
            let is_ready = |(_, member): &(&String, &Member)| matches!(member, Member::Ready(_));
            if let Some(name) = self.members.iter().find(is_ready).map(|(name, _)| name.clone()) {
                File::create(self.mark(&name))?;
                if let Some(Member::Ready(vm)) = self.members.remove(&name) {
                    self.members.insert(name.clone(), Member::Taken(vm));
                }
                return Ok(name);
            }
            self.fill();
            self.next_change().await;
        }
    }

    /// Returns the path of a file that exists while a VM is taken. It tells a later daemon, and reserves the name.
    fn mark(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.taken"))
    }

    /// Starts as many VMs as are missing.
    fn fill(&mut self) {
        let is_taken = |member: &&Member| matches!(member, Member::Taken(_));
        for _ in self.members.values().filter(|member| !is_taken(member)).count()..self.size {
            let mut names = (0..).map(|number| format!("vm-{number}"));
            let is_free = |name: &String| !self.members.contains_key(name) && !self.mark(name).exists();
            self.start(names.find(is_free).expect("there are more names than VMs"), None);
        }
    }

    /// Starts a VM, or waits until `vm`, which runs already, is ready.
    fn start(&mut self, name: String, vm: Option<Vm>) {
        self.members.insert(name.clone(), Member::Changing);
        let (config, stop) = (self.config.clone(), self.stop.subscribe());
        let dir = self.dir.join(&name);
        self.changes.spawn(async move { (name, bring_up(dir, vm, &config, stop).await) });
    }

    /// Deletes the files of a VM that does not run.
    fn remove(&mut self, name: String) {
        self.members.insert(name.clone(), Member::Changing);
        let dir = self.dir.join(&name);
        self.changes.spawn(async move {
            remove(dir).await;
            (name, None)
        });
    }

    fn insert(&mut self, name: String, member: Member) {
        if let Member::Ready(vm) | Member::Taken(vm) = &member {
            let (name, exited) = (name.clone(), vm.exited());
            self.exits.spawn(async move {
                exited.await;
                name
            });
        }
        self.members.insert(name, member);
    }

    /// Waits until a start has succeeded or failed, or a VM has exited. Can be cancelled.
    async fn next_change(&mut self) {
        tokio::select! {
            Some(Ok((name, vm))) = self.changes.join_next() => match vm {
                Some(vm) => self.insert(name, Member::Ready(vm)),
                None => drop(self.members.remove(&name)),
            },
            Some(Ok(name)) = self.exits.join_next() => {
                // A VM that was taken stays until the request `done`. Another VM may have the name by now.
                let member = self.members.get(&name);
                if matches!(member, Some(Member::Ready(vm)) if vm.try_wait().is_some()) {
                    self.remove(name);
                }
            }
            else => std::future::pending().await,
        }
    }

    /// Cancels the starts. Then shuts down all VMs at the same time, within one grace period.
    async fn end(mut self) -> Result {
        self.stop.send_replace(true);
        let mut vms = Vec::new();
        while let Some(changed) = self.changes.join_next().await {
            vms.extend(changed?.1);
        }
        for member in self.members.into_values() {
            match member {
                Member::Changing => {}
                Member::Ready(vm) | Member::Taken(vm) => vms.push(vm),
            }
        }
        let deadline = Instant::now() + self.config.grace;
        let mut ends = JoinSet::new();
        for vm in vms {
            // This needs a thread for each VM, but only during the shutdown.
            ends.spawn_blocking(move || end(&vm, deadline));
        }
        let mut result = Ok(());
        while let Some(ended) = ends.join_next().await {
            result = ended?.map_err(Into::into).and(result); // an error does not keep the others from ending
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "taken") {
                fs::remove_file(path)?;
            }
        }
        result
    }
}

/// Makes a call of the library that blocks, in a thread of the runtime.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> hyperkit::Result<T> + Send + 'static) -> Result<T> {
    Ok(spawn_blocking(call).await??)
}

fn end(vm: &Vm, deadline: Instant) -> hyperkit::Result<()> {
    vm.shutdown(deadline.saturating_duration_since(Instant::now()))?;
    vm.remove(Disks::Delete)
}

/// Kills the VM of a state directory, if it runs, and deletes its files.
async fn remove(dir: PathBuf) {
    let description = HyperKit::new().state_dir(&dir);
    if let Err(error) = blocking(move || description.stop().and_then(|()| description.remove(Disks::Delete))).await {
        eprintln!("pool: cannot remove {}: {error:#}", dir.display());
    }
}

/// Starts a VM, unless it runs already, and waits until its guest is up. If this fails, or `stop` cancels it before the
/// hypervisor is ready, deletes the files of the VM and returns `None`.
async fn bring_up(dir: PathBuf, vm: Option<Vm>, config: &Config, mut stop: watch::Receiver<bool>) -> Option<Vm> {
    match try_bring_up(&dir, vm, config, stop.clone()).await {
        Ok(Some(vm)) => return Some(vm),
        Ok(None) => {}
        Err(error) => eprintln!("pool: cannot start {}: {error:#}", dir.display()),
    }
    remove(dir).await;
    let _ = timeout(RETRY_PAUSE, wait_for_stop(&mut stop)).await;
    None
}

async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn try_bring_up(
    dir: &Path,
    vm: Option<Vm>,
    config: &Config,
    mut stop: watch::Receiver<bool>,
) -> Result<Option<Vm>> {
    let vm = match vm {
        Some(vm) => vm,
        None => {
            let (description, cmdline) = (config.template.clone().state_dir(dir), config.cmdline.clone());
            let starting = Arc::new(blocking(move || description.spawn(&cmdline)).await?);
            let waiting = starting.clone();
            tokio::select! {
                vm = blocking(move || waiting.wait_ready(START_TIMEOUT)) => vm?,
                () = wait_for_stop(&mut stop) => {
                    blocking(move || starting.kill()).await?; // this also ends `wait_ready`
                    return Ok(None);
                }
            }
        }
    };
    tokio::select! {
        shown = timeout(BOOT_TIMEOUT, wait_for_console(&vm, &config.text)) => shown??,
        () = wait_for_stop(&mut stop) => {}
    }
    Ok(Some(vm))
}

/// Waits until the console has shown a text. Unlike `Vm::wait_for_console`, this needs no thread and can be cancelled.
async fn wait_for_console(vm: &Vm, text: &str) -> Result {
    let mut lines = vm.console_lines()?;
    loop {
        match lines.next_timeout(Duration::ZERO)? {
            NextLine::Line(line) if line.contains(text) => return Ok(()),
            NextLine::Line(_) => {}
            NextLine::TimedOut => sleep(POLL_INTERVAL).await,
            _ => return Err(format!("the VM has exited: {}", vm.log_tail()).into()),
        }
    }
}

/// Runs a command in the guest's shell, on the console, and returns its output. Needs no thread and can be cancelled.
async fn run(vm: &Vm, command: &str) -> Result<String> {
    // The console is a pty, but tokio's pipes work with it, and need no unsafe code.
    let console = vm.console()?;
    let output = pipe::Receiver::from_file_unchecked(File::from(OwnedFd::from(console.try_clone()?)))?;
    let mut input = pipe::Sender::from_file_unchecked(File::from(OwnedFd::from(console)))?;
    // The terminal shows the command with the quotes. The output of `echo` has none.
    input.write_all(format!("{command}; echo __E''ND__\r").as_bytes()).await?;
    let (mut lines, mut answer) = (BufReader::new(output).lines(), None);
    while let Some(line) = lines.next_line().await? {
        match &mut answer {
            None if line.contains("__E''ND__") => answer = Some(String::new()),
            None => {} // output of an earlier command
            Some(answer) => match line.split_once("__END__") {
                Some((last, _)) => return Ok((answer.to_owned() + last).trim_end().to_owned()),
                None => *answer += &format!("{}\n", line.trim_end()),
            },
        }
    }
    Err("the VM has exited".into())
}
