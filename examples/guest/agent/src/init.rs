//! The agent as the first process of a guest whose root is a directory of the host. The library puts parameters on the kernel
//! command line (`src/plan/root.rs`): `hyperkit.root=TAG`, the 9p share of the root, and `hyperkit.mount=TAG,PATH` for each share that is
//! mounted inside of it.
//!
//! The root is an overlay: the share below, which nothing changes, and a layer in memory above it, which takes all writes.

use std::ffi::{CStr, CString, OsString};
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountFlags, fsconfig_reconfigure, fspick, mount_move};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, chroot, getpid, setrlimit, setsid, wait};
use rustix::system::{RebootCommand, finit_module, reboot, sethostname};

use crate::supervisor::{DEFAULT_PATH, SELF};

/// The option with which the first process starts the agent.
pub const SERVE: &str = "--serve";
/// The modules in the initrd, each with a number before its name, in the order in which they are loaded.
const MODULES: &str = "/modules";
/// Where the parts of the root are mounted in the initrd.
const LOWER: &str = "/lower";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";
/// The largest messages that Linux's virtio transport for 9p can send. With `cache=mmap`, what the host changes is seen at once. From
/// Linux 6.4 on, that needs `directio`, too; earlier versions ignore this option. With `cache=none`, Linux reads a program in single
/// pages, and maps no file into memory for writing. With `cache=loose`, it would not see the host's changes.
const OPTIONS_9P: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=mmap,directio";
/// What systemd sets for the processes of a host. Linux's own limit is 4096.
const MAX_OPEN_FILES: u64 = 524_288;
/// Limits what an agent that fails at once prints on the console.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Refuses to serve a guest whose root should be another one.
pub fn check_root() -> io::Result<()> {
    match fs::read("/proc/cmdline").is_ok_and(|cmdline| parse(&cmdline).is_ok()) {
        true => Err(io::Error::other("`root` is set, but this initrd does not mount it; use host-root.img")),
        false => Ok(()),
    }
}

/// Lets the guest look up again the files that it does not use now. Otherwise it would execute a program's old pages after the host has
/// built the program anew: the overlay keeps the share's inodes, and an inode keeps what was mapped into memory. When a file system is
/// reconfigured, Linux drops its unused entries (`reconfigure_super` in `fs/super.c`).
pub fn forget_files() {
    let _ = fspick(CWD, "/", FsPickFlags::FSPICK_CLOEXEC).and_then(|root| fsconfig_reconfigure(root.as_fd()));
}

/// Whether this process is the first one.
pub fn is_init() -> bool {
    getpid().is_init()
}

/// Mounts the root, and lets a child serve the port. Returns only after an error, which it prints on the console before it powers the
/// VM off.
pub fn run() -> io::Error {
    let error = match enter_root() {
        Ok(()) => serve_forever(),
        Err(error) => error,
    };
    eprintln!("hyperkit-agent: {error}");
    // What the serial port has not sent would be lost.
    let _ = rustix::termios::tcdrain(io::stderr());
    let _ = reboot(RebootCommand::PowerOff);
    error
}

fn serve_forever() -> io::Error {
    let mut agent = None;
    loop {
        if agent.is_none() {
            match start_agent() {
                Ok(pid) => agent = pid,
                Err(error) => return failed("start the agent", error),
            }
        }
        // Orphans, too, are children of this process.
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if agent == Some(pid) => {
                match status.terminating_signal() {
                    Some(signal) => eprintln!("hyperkit-agent: killed by signal {signal}, and started again"),
                    None => eprintln!("hyperkit-agent: ended, and started again"),
                }
                thread::sleep(RESTART_DELAY);
                agent = None;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return failed("wait for processes", error),
        }
    }
}

/// Starts this program once more. The first process itself cannot serve: it has to reap processes that it does not know.
fn start_agent() -> io::Result<Option<Pid>> {
    let mut agent = Command::new(SELF);
    agent.arg0("hyperkit-agent").arg(SERVE);
    // Linux passes parameters of the kernel command line to its first process as variables.
    agent.env_clear().envs([("PATH", DEFAULT_PATH), ("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")]);
    let child = agent.stdin(Stdio::null()).spawn()?;
    Ok(i32::try_from(child.id()).ok().and_then(Pid::from_raw))
}

/// A share that the guest mounts inside of the root.
#[derive(Debug, PartialEq)]
struct Share {
    tag: OsString,
    path: PathBuf,
}

fn enter_root() -> io::Result<()> {
    let _ = setsid();
    mount("proc", "proc", "/proc", "")?;
    let cmdline = fs::read("/proc/cmdline").map_err(|error| failed("read /proc/cmdline", error))?;
    let (root, shares) = parse(&cmdline).map_err(io::Error::other)?;
    load_modules()?;

    mount_9p(&root, Path::new(LOWER), MountFlags::RDONLY)?;
    mount("tmpfs", "tmpfs", LAYER, "mode=755")?;
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    create_dir(&upper, 0o755)?;
    create_dir(&work, 0o755)?;
    // With redirect_dir, a directory of the host can be renamed. Without it, rename fails with EXDEV, and `mv` copies everything.
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work},redirect_dir=on");
    mount("overlay", "overlay", ROOT, &options)?;
    create_dir(&format!("{ROOT}/proc"), 0o555)?;
    mount_move("/proc", format!("{ROOT}/proc")).map_err(|error| failed("move /proc", error))?;
    // As switch_root does. After a mere chroot, Linux would refuse to create user namespaces.
    std::env::set_current_dir(ROOT).map_err(|error| failed("enter the root", error))?;
    mount_move(".", "/").and_then(|()| chroot(".")).map_err(|error| failed("switch to the root", error))?;
    std::env::set_current_dir("/").map_err(|error| failed("enter the root", error))?;

    mount_system()?;
    for share in shares {
        DirBuilder::new()
            .recursive(true)
            .create(&share.path)
            .map_err(|error| failed(format_args!("create {}", share.path.display()), error))?;
        mount_9p(&share.tag, &share.path, MountFlags::empty())?;
    }
    bring_loopback_up().map_err(|error| failed("bring up lo", error))?;
    sethostname(host_name().as_bytes()).map_err(|error| failed("set the host name", error))?;
    let limit = Rlimit { current: Some(1024), maximum: Some(MAX_OPEN_FILES) };
    setrlimit(Resource::Nofile, limit).map_err(|error| failed("set the limit of open files", error))
}

/// Mounts the file systems of the guest's kernel, and an empty `/run`, over the host's.
fn mount_system() -> io::Result<()> {
    for (kind, path, mode, options) in [
        ("sysfs", "/sys", 0o555, ""),
        ("devtmpfs", "/dev", 0o755, "mode=755"),
        ("devpts", "/dev/pts", 0o755, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", 0o1777, "mode=1777"),
    ] {
        create_dir(path, mode)?;
        mount(kind, kind, path, options)?;
    }
    if !Path::new("/sys/bus/virtio/drivers/virtio_console").exists() {
        return Err(failed("serve the port", "the kernel lacks the module virtio_console"));
    }
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{target}"), Path::new("/dev").join(link));
    }
    // Not every kernel has these.
    let _ = mount("cgroup2", "cgroup2", "/sys/fs/cgroup", "");
    let _ = create_dir("/dev/mqueue", 0o1777).and_then(|()| mount("mqueue", "mqueue", "/dev/mqueue", ""));

    // The host's /run belongs to services that do not run in the guest. NixOS has symlinks to its programs there.
    let links = fs::read_dir("/run").into_iter().flatten().flatten();
    let links: Vec<_> = links.filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?))).collect();
    create_dir("/run", 0o755)?;
    mount("tmpfs", "tmpfs", "/run", "mode=755")?;
    for (link, target) in links {
        let _ = symlink(target, link);
    }
    create_dir("/run/lock", 0o1777)?;
    create_dir("/tmp", 0o1777)
}

/// Creates a directory, unless there is one.
fn create_dir(path: &str, mode: u32) -> io::Result<()> {
    let created = DirBuilder::new().mode(mode).create(path).and_then(|()| {
        // The mode of a new directory has no sticky bit.
        fs::set_permissions(path, Permissions::from_mode(mode))
    });
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map_err(|error| failed(format_args!("create {path}"), error)),
    }
}

fn mount(kind: &str, source: &str, path: &str, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    rustix::mount::mount(source, path, kind, MountFlags::empty(), options.as_c_str())
        .map_err(|error| mount_failed(kind, Path::new(path), error))
}

fn mount_9p(tag: &OsString, path: &Path, flags: MountFlags) -> io::Result<()> {
    rustix::mount::mount(tag, path, "9p", flags, OPTIONS_9P).map_err(|error| match error {
        // From v9fs_parse_options in fs/9p/v9fs.c, and p9_virtio_create in net/9p/trans_virtio.c.
        Errno::INVAL => {
            failed(format_args!("mount 9p on {}", path.display()), "the kernel lacks the module 9pnet_virtio")
        }
        Errno::NOENT => failed(
            format_args!("mount 9p on {}", path.display()),
            format_args!("no device with the tag {tag:?}; the kernel may lack the module virtio_pci"),
        ),
        error => mount_failed("9p", path, error),
    })
}

fn mount_failed(kind: &str, path: &Path, error: Errno) -> io::Error {
    let what = format_args!("mount {} on {}", kind, path.display()).to_string();
    match error {
        Errno::NODEV => failed(what, format_args!("the kernel lacks the module {kind}")),
        error => failed(what, error),
    }
}

fn failed(what: impl Display, why: impl Display) -> io::Error {
    io::Error::other(format!("cannot {what}: {why}"))
}

/// Loads the modules of the initrd. A module that is built into the kernel has no file.
fn load_modules() -> io::Result<()> {
    let entries = fs::read_dir(MODULES).map_err(|error| failed(format_args!("read {MODULES}"), error))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let what = || format!("load {}", path.display());
        let file = File::open(&path).map_err(|error| failed(what(), error))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Err(failed(what(), missing_modules(&path))),
            Err(Errno::NOEXEC) => return Err(failed(what(), "damaged, or a module of another kernel")),
            Err(error) => return Err(failed(what(), error)),
        }
    }
    Ok(())
}

/// Says which modules are missing that a module needs. Each module has a text `depends=NAME,NAME`.
fn missing_modules(path: &Path) -> String {
    const DEPENDS: &[u8] = b"\0depends=";
    let module = fs::read(path).unwrap_or_default();
    let at =
        module.windows(DEPENDS.len()).position(|bytes| bytes == DEPENDS).map_or(module.len(), |at| at + DEPENDS.len());
    let depends = module[at..].split(|byte| *byte == 0).next().unwrap_or_default();
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let is_loaded = |name: &str| loaded.lines().any(|line| line.split(' ').next() == Some(&name.replace('-', "_")));
    let depends = String::from_utf8_lossy(depends);
    let missing: Vec<_> = depends.split(',').filter(|name| !is_loaded(name)).collect();
    format!("the initrd lacks the module {}", missing.join(", "))
}

/// Reads the library's parameters in a kernel command line.
fn parse(cmdline: &[u8]) -> Result<(OsString, Vec<Share>), String> {
    let (mut root, mut shares) = (None, Vec::new());
    for parameter in cmdline.split(u8::is_ascii_whitespace) {
        if let Some(tag) = parameter.strip_prefix(b"hyperkit.root=") {
            root = Some(decoded(tag)?);
        } else if let Some(share) = parameter.strip_prefix(b"hyperkit.mount=") {
            let comma = share.iter().position(|byte| *byte == b',').ok_or("hyperkit.mount without a path")?;
            shares.push(Share { tag: decoded(&share[..comma])?, path: decoded(&share[comma + 1..])?.into() });
        }
    }
    let root = root.ok_or("the kernel command line has no hyperkit.root; set `root` of the description")?;
    Ok((root, shares))
}

/// Decodes percent-encoding.
fn decoded(text: &[u8]) -> Result<OsString, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(
            byte.ok_or_else(|| format!("invalid parameter on the kernel command line: {}", text.escape_ascii()))?,
        );
        rest = &after[2..];
    }
    Ok(OsString::from_vec(bytes))
}

/// Sets the flag IFF_UP of the network interface `lo`. Linux then gives it 127.0.0.1 and ::1.
fn bring_loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLMSG_ERROR: u16 = 2;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    const LO: u32 = 1;
    // struct nlmsghdr: length, type, flags, sequence, port; struct ifinfomsg: family and type, index, flags, changed flags.
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend([RTM_NEWLINK, REQUEST_AND_ACK].map(u16::to_ne_bytes).concat());
    message.extend([0, 0, 0, LO, IFF_UP, IFF_UP].map(u32::to_ne_bytes).concat());
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 128];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    match (length >= 20, &answer[4..6], &answer[16..20]) {
        (true, kind, errno) if kind == NLMSG_ERROR.to_ne_bytes() => {
            match i32::from_ne_bytes([errno[0], errno[1], errno[2], errno[3]]) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
            }
        }
        _ => Err(io::Error::other("unexpected answer")),
    }
}

/// The name in `/etc/hostname`, of which Linux accepts 64 bytes.
fn host_name() -> String {
    let text = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    name.unwrap_or("localhost").chars().filter(char::is_ascii).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_library_are_found_and_decoded() {
        let cmdline = b"hyperkit.root=a%20b hyperkit.mount=t%2c,/x%20y/%25%c3%a4 console=ttyS0 quiet\n";
        let (root, shares) = parse(cmdline).unwrap();
        assert_eq!(root, "a b");
        assert_eq!(shares, [Share { tag: "t,".into(), path: "/x y/%\u{e4}".into() }]);
    }

    #[test]
    fn invalid_parameters_are_errors() {
        for cmdline in
            ["quiet", "hyperkit.root=%", "hyperkit.root=%4", "hyperkit.root=%zz", "hyperkit.root=a hyperkit.mount=b"]
        {
            assert!(parse(cmdline.as_bytes()).is_err(), "{cmdline}");
        }
    }
}
