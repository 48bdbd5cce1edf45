//! Keeps a pool of three machines, and hands them out: `pool DIR KERNEL INITRD`, then a word a line on standard input:
//! `list`, `take`, or `done NAME` for one that was taken. It may be killed at any time, and takes the pool up again; at the
//! end of its input it drains the pool.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::stdin;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyperkit::{Console, HyperKit, Vm};

const READY: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

struct Member {
    machine: HyperKit,
    vm: Vm,
    taken: bool,
}

impl Member {
    fn end(self) -> Result<()> {
        self.vm.shutdown(PATIENCE)?;
        Ok(self.machine.remove(false)?)
    }
}

struct Pool {
    root: PathBuf,
    template: HyperKit,
    members: BTreeMap<String, Member>,
}

impl Pool {
    /// The machines that run are taken up, and those that do not are forgotten.
    fn take_up(root: PathBuf, template: HyperKit) -> Result<Self> {
        let mut pool = Self { members: BTreeMap::new(), template, root };
        for machine in HyperKit::list(&pool.root)? {
            let machine = machine?;
            let name = machine.state_dir.as_deref().and_then(Path::file_name).unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            match machine.vm()? {
                Some(vm) => {
                    let taken = pool.mark(&name).exists();
                    pool.members.insert(name, Member { machine, vm, taken });
                }
                None => machine.remove(false)?,
            }
        }
        Ok(pool)
    }

    /// Says that a machine is taken, also to who comes after us, and as long as nobody is done with it: also if it ends.
    fn mark(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.taken"))
    }

    /// Replaces the dead, and those that were taken.
    fn fill(&mut self) -> Result<()> {
        let ended = |member: &Member| !member.taken && member.vm.try_wait().is_ok_and(|end| end.is_some());
        let dead: Vec<_> =
            self.members.iter().filter(|(_, member)| ended(member)).map(|(name, _)| name.clone()).collect();
        for name in dead {
            if let Some(member) = self.members.remove(&name) {
                member.machine.remove(false)?;
            }
        }
        let mut names = (0..).map(|number| format!("machine-{number}"));
        while self.members.values().filter(|member| !member.taken).count() < READY {
            let name = names
                .find(|name| !self.members.contains_key(name) && !self.mark(name).exists())
                .expect("there is always another");
            let mut machine = self.template.clone().state_dir(self.root.join(&name));
            let vm = machine.start("console=ttyS0 panic=1 quiet")?;
            self.members.insert(name, Member { machine, vm, taken: false });
        }
        Ok(())
    }

    /// Hands one out that is up.
    fn take(&mut self) -> Result<String> {
        let free = self.members.iter().find(|(_, member)| !member.taken).map(|(name, _)| name.clone());
        let name = free.ok_or("the pool is empty")?;
        File::create(self.mark(&name))?;
        let member = self.members.get_mut(&name).ok_or("it is gone")?;
        member.taken = true;
        member.vm.wait_for_console("is up", PATIENCE)?;
        Ok(name)
    }

    fn done(&mut self, name: &str) -> Result<()> {
        if !self.mark(name).exists() {
            return Err("no such machine was taken".into());
        }
        // It may have ended, and been forgotten by who took the pool up.
        self.members.remove(name).map_or(Ok(()), Member::end)?;
        Ok(fs::remove_file(self.mark(name))?)
    }

    /// Ends all at once, and waits for all.
    fn drain(self) -> Result<()> {
        std::thread::scope(|scope| {
            let ends: Vec<_> = self.members.into_values().map(|member| scope.spawn(|| member.end())).collect();
            ends.into_iter().try_for_each(|end| end.join().expect("it does not panic"))
        })?;
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "taken") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let [root, kernel, initrd] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("DIR KERNEL INITRD");
    let template = HyperKit::new().kernel(kernel).initrd(initrd).memory(256).console(Console::File);
    let mut pool = Pool::take_up(root.into(), template)?;
    pool.fill()?;
    println!("ready");
    for line in stdin().lines() {
        let line = line?;
        pool.fill()?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("list", _) => {
                for (name, Member { vm, taken, .. }) in &pool.members {
                    println!("{name} {} {taken}", vm.pid());
                }
            }
            ("take", _) => println!("{}", pool.take()?),
            ("done", name) => pool.done(name)?,
            _ => return Err(format!("{line}?").into()),
        }
        println!("ready");
    }
    pool.drain()
}
