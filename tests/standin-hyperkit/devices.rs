//! The PCI devices, except the serial ports.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::abort;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{Held, fail, stdout, vsock};

/// hyperkit truncates longer paths of sockets to this length.
const MAX_SOCKET: usize = 103;

pub fn set_up(driver: &str, config: &str, held: &mut Held) {
    match driver {
        "virtio-blk" | "ahci-hd" => disk(config, false, held),
        "ahci-cd" => disk(config, true, held),
        "virtio-sock" => vsock::set_up(config),
        "virtio-vpnkit" => held.vpnkit = Some(vpnkit(config)),
        "virtio-tap" => tap(config),
        "virtio-9p" => share(config),
        _ => {} // no visible effect
    }
}

pub fn refuse_option(option: &str) -> ! {
    fail(format!("Invalid device option \"{option}\""))
}

/// Splits `key=value` pairs at commas.
pub fn pairs(config: &str) -> impl Iterator<Item = (&str, &str)> {
    config.split(',').map(|option| option.split_once('=').unwrap_or_else(|| refuse_option(option)))
}

fn disk(config: &str, is_cd: bool, held: &mut Held) {
    let mut parts = config.split(',');
    let path = parts.next().unwrap_or_default();
    let (mut read_only, mut is_qcow, mut sectors) = (is_cd, false, None);
    for option in parts {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => read_only = true,
            ("sync" | "direct", "") => {}
            ("sectorsize", sizes) => sectors = Some(sizes),
            ("format", "qcow") => is_qcow = true,
            ("qcow-config", options) => qcow_options(options),
            ("qcow-stats-config", address) => match address.split_once(':') {
                Some(("unix", path)) if !path.is_empty() => {}
                Some(("tcp", port)) if port.parse::<u16>().is_ok() => {}
                _ => fail(format!("Failed to parse qcow-stats-config: {address}")),
            },
            _ => refuse_option(option),
        }
    }
    if is_qcow {
        qcow(path);
    } else {
        held.images.push(raw(path, read_only));
    }
    if let Some(sizes) = sectors {
        let (logical, physical) = sizes.split_once('/').unwrap_or((sizes, sizes));
        match (logical.parse::<i32>(), physical.parse::<i32>()) {
            (Ok(logical @ 512..), Ok(physical))
                if logical.count_ones() == 1 && physical.count_ones() == 1 && logical <= physical => {}
            _ => fail(format!("Invalid sector size {sizes}")),
        }
    }
}

fn qcow_options(options: &str) {
    for option in options.split(';') {
        let is_valid = match option.split_once('=') {
            Some(("discard" | "runtime_asserts", value)) => value.parse::<bool>().is_ok(),
            Some(("compact_after_unmaps" | "keep_erased", value)) => value.parse::<i64>().is_ok(),
            _ => false,
        };
        if !is_valid {
            fail(format!("Failed to parse qcow-config: {option}"));
        }
    }
}

/// Opens and locks a raw image. Like hyperkit, opens a file that is not writable for reading, without a message.
fn raw(path: &str, read_only: bool) -> File {
    let open = |write| OpenOptions::new().read(true).write(write).open(path);
    let (file, lock) = match (read_only, open(!read_only)) {
        (false, Ok(file)) => (Ok(file), FlockOperation::NonBlockingLockExclusive),
        (false, Err(_)) => (open(false), FlockOperation::NonBlockingLockShared),
        (true, file) => (file, FlockOperation::NonBlockingLockShared),
    };
    let file = file.unwrap_or_else(|_| fail(format!("Could not open backing file: {path}")));
    if flock(&file, lock).is_err() {
        fail(format!("Could not lock backing file: {path}"));
    }
    file
}

/// Checks a qcow2 image. Like hyperkit, does not lock it.
fn qcow(url: &str) {
    let mut magic = [0; 4];
    let opened = path_of(url).and_then(|path| File::open(path).ok()?.read_exact(&mut magic).ok());
    if opened.is_none() || magic != *b"QFI\xfb" {
        fail(format!("Could not open mirage-block device: {url}"));
    }
}

/// Returns the path in `file://PATH?sync=…&buffered=1`, in which some characters are escaped with `%`.
fn path_of(url: &str) -> Option<PathBuf> {
    let (path, query) = url.strip_prefix("file://")?.split_once('?')?;
    let sync = query.strip_prefix("sync=")?.strip_suffix("&buffered=1")?;
    let mut parts = path.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    let path = String::from_utf8(bytes).ok().filter(|_| ["", "none", "os", "drive"].contains(&sync));
    path.filter(|path| path.starts_with('/')).map(PathBuf::from)
}

/// Connects to VPNKit. Like hyperkit, aborts at an invalid option, and tries forever if nobody listens on the socket.
fn vpnkit(config: &str) -> UnixStream {
    let mut socket = "";
    for option in config.split(',') {
        match option.split_once('=') {
            Some(("path", path)) => socket = path.get(..MAX_SOCKET).unwrap_or(path),
            Some(("uuid", uuid)) if uuid.len() == 36 => {}
            Some(("preferred_ipv4", address)) if address.parse::<Ipv4Addr>().is_ok() => {}
            Some(("macfile", file)) => fs::write(file, "02:50:00:00:00:01").unwrap_or_else(|_| abort()),
            _ => abort(),
        }
    }
    stdout::print(&format!("virtio-net-vpnkit: initialising, opts=\"{config}\"\n"));
    loop {
        if let Some(stream) = UnixStream::connect(socket).ok().and_then(|stream| greet(stream).ok()) {
            stdout::print("virtio-net-vpnkit: Connection established with MAC=02:50:00:00:00:01 and MTU 1500\n");
            return stream;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The handshake with VPNKit: a greeting of 49 bytes from each side, a command of 41 bytes, and a reply of 258 bytes. Like hyperkit,
/// waits for them without a timeout.
fn greet(mut stream: UnixStream) -> io::Result<UnixStream> {
    const MAGIC: &[u8] = b"VMN3T";
    const ACCEPTED: u8 = 1;

    stream.write_all(&[MAGIC, &22_u32.to_le_bytes(), &[b'0'; 40]].concat())?;
    let mut greeting = [0; 49];
    stream.read_exact(&mut greeting)?;
    if !greeting.starts_with(MAGIC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.write_all(&[1; 41])?;
    let mut reply = [0; 258];
    stream.read_exact(&mut reply)?;
    if reply[0] == ACCEPTED { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// Checks the MAC address. Like in hyperkit, a missing interface is no error.
fn tap(config: &str) {
    let Some((_, mac)) = config.split_once(',') else { return };
    let bytes = mac.strip_prefix("mac=").map(|mac| mac.split(':').map(|byte| u8::from_str_radix(byte, 16)));
    match bytes.and_then(|bytes| bytes.collect::<Result<Vec<_>, _>>().ok()) {
        Some(bytes) if bytes.len() == 6 && bytes[0] & 1 == 0 && bytes != [0; 6] => {}
        _ => fail(format!("Invalid MAC {mac}")),
    }
}

/// Checks the options. hyperkit connects to the 9p server only when the guest mounts the share, so this does not connect.
fn share(config: &str) {
    let (mut path, mut port, mut tag) = ("", None, "plan9");
    for (key, value) in pairs(config) {
        match key {
            "path" => path = value,
            "port" => match value.parse::<u16>() {
                Ok(number @ 1..) => port = Some(number),
                _ => fail(format!("bad port: {value}")),
            },
            "tag" => tag = value,
            _ => refuse_option(key),
        }
    }
    if path.is_empty() == port.is_none() {
        fail("Please pass *either* a port *or* a path.");
    }
    if tag.len() > 256 {
        fail("virtio-9p: the tag is too long");
    }
}
