//! An agent behind the vsock sockets of the stand-in: a real one, on the host or in a guest.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// The port of the agent in the guest, and the port of the host at which it notifies host programs.
pub const AGENT_PORT: u32 = 1019;

/// Connects the stream of a host program to an agent.
pub type Connect = Box<dyn FnMut(UnixStream) + Send>;

/// Listens on the agent's port for the guest of a stand-in with `guest.listens=DIR`.
pub struct VsockAgent {
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
    sessions: Arc<Mutex<Vec<u32>>>,
}

impl VsockAgent {
    /// Listens, and lets a process of the agent serve each connection, as in the guest.
    pub fn start(dir: &Path, program: PathBuf) -> Self {
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let list = sessions.clone();
        let serve = move |stream: UnixStream| {
            let mut session = Command::new(&program);
            session.arg("--session").stdin(OwnedFd::from(stream)).stdout(Stdio::null());
            let mut session = session.spawn().unwrap();
            list.lock().unwrap().push(session.id());
            std::thread::spawn(move || session.wait());
        };
        let mut agent = Self::listen(dir, Box::new(serve));
        agent.sessions = sessions;
        agent
    }

    /// Listens, and passes each connection on.
    pub fn listen(dir: &Path, mut connect: Connect) -> Self {
        let socket = dir.join(AGENT_PORT.to_string());
        let listener = UnixListener::bind(&socket).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(SeqCst) {
                    return;
                }
                connect(stream.unwrap());
            }
        });
        Self { socket, is_over, sessions: Arc::default() }
    }

    /// The processes that serve or have served a connection.
    pub fn sessions(&self) -> Vec<u32> {
        self.sessions.lock().unwrap().clone()
    }
}

impl Drop for VsockAgent {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
    }
}

/// Connects to the ready socket of the host, as hyperkit does when the agent in its guest has begun to listen. Returns whether a program
/// listens there.
pub fn notify_host(vsock_dir: &Path) -> bool {
    match UnixStream::connect(vsock_dir.join(format!("00000002.{AGENT_PORT:08x}"))) {
        Ok(mut socket) => socket.write_all(&[1]).is_ok(),
        Err(_) => false,
    }
}

/// Copies between two streams until both have ended.
pub fn relay(one: UnixStream, other: UnixStream) {
    let copies = (one.try_clone().unwrap(), other.try_clone().unwrap());
    std::thread::spawn(move || copy(one, other));
    std::thread::spawn(move || copy(copies.1, copies.0));
}

/// vhost-device-vsock has no half-closed streams.
fn copy(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
