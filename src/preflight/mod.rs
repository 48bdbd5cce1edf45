//! Everything that is refused before a start.

pub(crate) mod files;
pub(crate) mod image;
pub(crate) mod image_format;
pub(crate) mod image_lock;
pub(crate) mod kernel;

use crate::config::{HyperKit, VpnKit};
use crate::engine::Engine;
use crate::engine::{self, qemu::vsock_device};
use crate::error::{Error, Result};
use crate::plan::validate::description;
use crate::sys::path::{canonical, make_absolute};
use files::files;

impl HyperKit {
    /// Looks whether the machine can be started, as far as that can be told beforehand: the description, the files it
    /// names, and the program. Changes nothing, and so does not find out what others use at the time: whether the machine
    /// runs already, whether another has its images or ports, [`start`](Self::start) says.
    ///
    /// ```
    /// use hyperkit::{Error, HyperKit};
    ///
    /// let refused = HyperKit::new().kernel("no-such-file").check();
    /// assert!(matches!(refused, Err(Error::NotFound { field: "kernel", .. } | Error::ProgramNotFound { .. })));
    /// ```
    ///
    /// # Errors
    /// The first thing that is wrong, each its own [`Error`].
    pub fn check(&self) -> Result<()> {
        self.effective()?.check_all()
    }

    /// What has to hold of the description as it would be started.
    pub(crate) fn check_all(&self) -> Result<()> {
        description(self)?;
        Engine::of_machine(self).check(self)?;
        files(self)
    }

    /// This machine as it would be started from here: paths absolute, the program and VPNKit found.
    pub(crate) fn effective(&self) -> Result<Self> {
        let mut machine = self.clone();
        machine.paths_mut().try_for_each(make_absolute)?;
        if let Some(dir) = &mut machine.state_dir {
            make_absolute(dir)?;
            *dir = canonical(dir);
        }
        // What is wrong with the description matters more than that a program is missing.
        description(&machine)?;
        machine.hyperkit = Some(engine::find(self.hyperkit.as_deref())?);
        let engine = Engine::of_machine(&machine);
        for index in 0..machine.disks.len() {
            let disk = &machine.disks[index];
            let path = disk.place(index, machine.state_dir.as_deref())?;
            machine.disks[index].format = Some(image_format::found_format(disk, &path)?);
        }
        if engine == Engine::Qemu {
            machine.vhost_device_vsock = vsock_device::find(&machine)?;
        }
        match &mut machine.vpnkit {
            VpnKit::Socket(path) => make_absolute(path)?,
            auto @ VpnKit::Auto if engine == Engine::HyperKit => {
                let looked = engine::hyperkit::vpnkit_sockets();
                let found = looked.iter().find(|socket| socket.exists()).cloned();
                *auto = VpnKit::Socket(found.ok_or(Error::VpnKitNotFound { looked })?);
            }
            _ => {}
        }
        Ok(machine)
    }
}
