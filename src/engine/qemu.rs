//! The same machine as arguments of `qemu-system-x86_64`, each device in the slot that hyperkit gives it.
//!
//! Tried with QEMU 7.2. Commas would have to be doubled in most values; `check` lets none pass, since hyperkit takes none.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::{Control, Engine, kernel_command_line, qmp::Qmp};
use crate::check::{MAX_SOCKET, at_most, utf8};
use crate::config::{Console, HyperKit, VpnKit};
use crate::error::{Error, Result};
use crate::slots::{Device, layout};
use crate::state::{CONSOLE_RING, EVENTS_SOCKET, PID_FILE, QMP_SOCKET, StateDir, TTY};
use crate::vm::Exit;

const VHOST_VSOCK: &str = "/dev/vhost-vsock";
/// How long a QEMU that is up may take to let us listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// QEMU's limit on a mount tag, in bytes.
const MAX_TAG: usize = 31;

/// q35 has its LPC bridge in slot 31, as hyperkit; without SATA and SMBus, which share that slot, all others are free.
const MACHINE: [&str; 7] =
    ["-machine", "q35,sata=off,smbus=off", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"];

/// The arguments, but for those that depend on the host.
pub(crate) fn arguments(machine: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args: Vec<String> = MACHINE.map(str::to_owned).into();
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    let state_dir = machine.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?;

    if let Some(dir) = state_dir {
        add("-pidfile", format!("{dir}/{PID_FILE}"));
        // A socket serves one client at a time: one is for whoever has something to say, the other for who listens.
        for (id, socket) in [("qmp", QMP_SOCKET), ("events", EVENTS_SOCKET)] {
            add("-chardev", format!("socket,id={id},path={dir}/{socket},server=on,wait=off"));
            add("-mon", format!("chardev={id},mode=control"));
        }
    }
    add("-smp", machine.cpus.to_string());
    add("-m", format!("{}M", machine.memory));
    add("-rtc", "base=utc".to_owned());
    if let Some(uuid) = &machine.uuid {
        add("-uuid", uuid.clone());
    }
    for (slot, device) in layout(machine)? {
        let at = format!("bus=pcie.0,addr={slot:x}.0"); // hexadecimal: slot 10 is a.0
        match device {
            Device::Network(_) => {
                add("-netdev", "user,id=net0".to_owned());
                add("-device", format!("virtio-net-pci,netdev=net0,{at},romfile="));
            }
            Device::Disk { image, index } => {
                let path = image.place(index, machine.state_dir.as_deref())?;
                add("-drive", format!("if=none,id=disk{slot},format=raw,file={}", utf8("disks", &path)?));
                add("-device", format!("virtio-blk-pci,drive=disk{slot},{at}"));
            }
            Device::Vsock { cid, .. } => add("-device", format!("vhost-vsock-pci,guest-cid={cid},{at}")),
            Device::Iso(image) => {
                let image = utf8("isos", image)?;
                add("-device", format!("ich9-ahci,id=ahci{slot},{at}"));
                add("-drive", format!("if=none,id=cd{slot},format=raw,readonly=on,media=cdrom,file={image}"));
                add("-device", format!("ide-cd,drive=cd{slot},bus=ahci{slot}.0"));
            }
            Device::Random => {
                add("-object", "rng-random,id=rng0,filename=/dev/urandom".to_owned());
                add("-device", format!("virtio-rng-pci,rng=rng0,{at}"));
            }
            Device::Share(share) => {
                let path = utf8("sockets_9p", &share.path)?;
                add("-fsdev", format!("local,id=share{slot},path={path},security_model=none"));
                add("-device", format!("virtio-9p-pci,fsdev=share{slot},mount_tag={},{at}", share.tag));
            }
        }
    }
    let console = match (machine.console, state_dir) {
        (Console::Stdio, _) => "stdio,id=com1,signal=off".to_owned(), // so ^C reaches the guest
        (_, Some(dir)) => format!("pty,id=com1,logfile={dir}/{CONSOLE_RING},logappend=off"),
        (_, None) => return Err(Error::StateDirRequired { field: "console" }),
    };
    add("-chardev", console);
    add("-serial", "chardev:com1".to_owned());

    let kernel = machine.kernel.as_deref().ok_or(Error::Missing { field: "kernel" })?;
    add("-kernel", utf8("kernel", kernel)?.to_owned());
    if let Some(initrd) = machine.initrd.as_deref() {
        add("-initrd", utf8("initrd", initrd)?.to_owned());
    }
    add("-append", kernel_command_line(cmdline));
    Ok(args)
}

/// Refuses what hyperkit can do and QEMU cannot, or not on this host.
pub(crate) fn check(machine: &HyperKit) -> Result<()> {
    let no = |feature| Err(Error::Unsupported { engine: Engine::Qemu, feature });
    if let Some(dir) = &machine.state_dir {
        at_most(MAX_SOCKET - "/".len() - EVENTS_SOCKET.len(), "state_dir", utf8("state_dir", dir)?)?;
    }
    if matches!(machine.vpnkit, VpnKit::Socket(_)) {
        return no("a network on a VPNKit socket (`vpnkit`; `Auto` takes QEMU's own network)");
    }
    if machine.console == Console::Log {
        return no("a console in the Apple System Log (`console`; `File` keeps the output in a file)");
    }
    if machine.vsock && OpenOptions::new().read(true).write(true).open(VHOST_VSOCK).is_err() {
        return no("vsock without access to /dev/vhost-vsock (`vsock`)");
    }
    if !machine.vsock_ports.is_empty() {
        return no(
            "vsock ports as sockets on the host (`vsock_ports`; the host reaches any port of the guest by vsock)",
        );
    }
    machine.sockets_9p.iter().try_for_each(|share| at_most(MAX_TAG, "sockets_9p", &share.tag))?;
    if let Some(share) = machine.sockets_9p.iter().find(|share| !share.path.exists()) {
        return Err(Error::NotFound { field: "sockets_9p", path: share.path.clone() });
    }
    if machine.sockets_9p.iter().any(|share| !share.path.is_dir()) {
        return no("9p from anything but a directory (`sockets_9p`)");
    }
    Ok(())
}

/// QEMU answers on its QMP socket when all devices are there. It names the console's pty only there, so the `tty`
/// file that hyperkit makes is made here.
pub(crate) fn is_set_up(machine: &HyperKit, state: &StateDir, patience: Duration) -> Result<bool> {
    let console = Qmp::connect(&state.file(QMP_SOCKET), patience).and_then(|mut qmp| qmp.execute("query-chardev"));
    let chardevs = match console {
        Ok(chardevs) => chardevs,
        Err(error) => {
            log::trace!(target: "hyperkit", "not yet: {error}");
            return Ok(false);
        }
    };
    if machine.console == Console::File {
        let com1 = chardevs.as_array().into_iter().flatten().find(|chardev| chardev["label"] == "com1");
        let pty = com1.and_then(|com1| com1["filename"].as_str()?.strip_prefix("pty:"));
        let pty = pty.ok_or_else(|| Error::Qmp { reason: format!("no pty for com1 in {chardevs}") })?;
        state.write(TTY, pty.as_bytes())?;
    }
    Ok(true)
}

/// The exit code is 0 for a power-off and for a reset; the event before it says which.
pub(crate) fn listen(state: &StateDir) -> Option<impl FnOnce() -> Option<Exit> + Send + 'static> {
    let mut events = match Qmp::connect(&state.file(EVENTS_SOCKET), PATIENCE) {
        Ok(events) => events,
        Err(error) => {
            log::warn!(target: "hyperkit", "a reset of the guest will pass for a power-off: {error}");
            return None;
        }
    };
    Some(move || {
        let mut told = None;
        while let Some(event) = events.next_event() {
            if event["event"] == "SHUTDOWN" {
                told = match event["data"]["reason"].as_str() {
                    Some("guest-shutdown") => Some(Exit::PowerOff),
                    Some("guest-reset") => Some(Exit::Reset),
                    Some("host-signal") => Some(Exit::Killed(Signal::TERM.as_raw())),
                    _ => Some(Exit::Unknown),
                };
            }
        }
        told
    })
}

pub(crate) fn control(what: Control, state: &StateDir, patience: Duration) -> Result<()> {
    let command = match what {
        Control::PressPowerButton => "system_powerdown",
        Control::Pause => "stop",
        Control::Resume => "cont",
    };
    Qmp::connect(&state.file(QMP_SOCKET), patience)?.execute(command).map(drop)
}

/// What runs the guest's instructions. /dev/kvm alone proves nothing: on hosts whose CPU has no virtualization it can
/// open, pass every probe, and then hang the guest.
pub(crate) fn accelerator() -> &'static str {
    if !cfg!(target_arch = "x86_64") {
        return "tcg";
    }
    if cfg!(target_os = "macos") {
        return "hvf";
    }
    let can_virtualize = fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
        cpus.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    });
    let opens = || OpenOptions::new().read(true).write(true).open(Path::new("/dev/kvm")).is_ok();
    if can_virtualize && opens() { "kvm" } else { "tcg" }
}
