//! vsock for a QEMU guest: the `vhost-device-vsock` program, or `/dev/vhost-vsock`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::state::{VHOST_LINE, VHOST_SOCKET};
use crate::sys::find_program::first_program;

const DEVICE: &str = "/dev/vhost-vsock";

const PROGRAM: &str = "vhost-device-vsock";

/// The program that has to run beside QEMU, if that is needed and there is one.
pub(crate) fn find(machine: &HyperKit) -> Result<Option<PathBuf>> {
    match &machine.vhost_device_vsock {
        _ if !machine.vsock => Ok(None),
        Some(program) => first_program(&[program])
            .map(Some)
            .map_err(|looked| Error::ToolNotFound { field: "vhost_device_vsock", looked }),
        // It serves sockets on the host, which `/dev/vhost-vsock` does not.
        None => Ok(first_program(&[Path::new(PROGRAM)]).ok()),
    }
}

fn device_opens() -> bool {
    OpenOptions::new().read(true).write(true).open(DEVICE).is_ok()
}

pub(crate) fn check(machine: &HyperKit) -> Result<()> {
    match &machine.vhost_device_vsock {
        Some(_) if machine.state_dir.is_none() => Err(Error::StateDirRequired { field: "vsock" }),
        Some(_) if cfg!(target_os = "linux") => Ok(()),
        None if device_opens() => Ok(()),
        _ => Err(Error::Unsupported {
            engine: Engine::Qemu,
            feature: "vsock without access to /dev/vhost-vsock (`vsock`); on Linux install vhost-device-vsock",
        }),
    }
}

/// What QEMU is told besides the device.
pub(crate) fn arguments(machine: &HyperKit, state_dir: &str) -> [(&'static str, String); 3] {
    [
        ("-object", format!("memory-backend-memfd,id=mem0,size={}M,share=on", machine.memory)),
        ("-chardev", format!("socket,id=vsock,path={state_dir}/{VHOST_SOCKET}")),
        ("-chardev", format!("pipe,id=vsock-line,path={state_dir}/{VHOST_LINE}")),
    ]
}
