//! Undoes a start that fails before the hypervisor was spawned.

use std::fs;
use std::path::PathBuf;

use crate::config::HyperKit;
use crate::config::disk::{DiskFormat, QcowOptions};
use crate::error::{Error, Result};
use crate::preflight::image_lock::{ImageLock, lock_image};
use crate::runtime::network_number::NetworkNumber;
use crate::state::{JSON_FILE, LOG_FILE, Lock, StateDir};
use crate::sys::file::remove_file;

/// Deletes on drop what a start has created, unless [`keep`](Self::keep) was called. It does not bring back the logs of the
/// previous VM, and a disk that was grown stays as it is.
pub(super) struct Undo<'a> {
    /// The state directory, its lock, and the content of its `hyperkit.json` before the start.
    state: Option<(&'a StateDir, &'a Lock, Option<Vec<u8>>)>,
    /// Directories that the start has created, innermost first.
    dirs: Vec<PathBuf>,
    /// Disk images that the start has created.
    pub images: Vec<PathBuf>,
    /// Locks that keep other starts from the images.
    pub image_locks: Vec<ImageLock>,
    /// The VM's numbers in networks. Undoing releases them, unless the hypervisor uses them.
    numbers: Vec<NetworkNumber>,
}

impl<'a> Undo<'a> {
    /// Takes the VM's numbers in networks.
    pub fn new(
        description: &HyperKit,
        state: Option<(&'a StateDir, &'a Lock)>,
        dirs: Vec<PathBuf>,
        image_locks: Vec<ImageLock>,
    ) -> Result<Self> {
        let before = state.map_or(Ok(None), |(state, _)| state.read_json())?;
        let state = state.map(|(state, lock)| (state, lock, before));
        let mut undo = Self { state, dirs, images: Vec::new(), image_locks, numbers: Vec::new() };
        undo.numbers = NetworkNumber::take_all(description)?;
        Ok(undo)
    }

    pub fn keep(mut self) {
        (self.state, self.dirs, self.images) = (None, Vec::new(), Vec::new());
    }

    fn undo(&mut self) -> Result<()> {
        self.image_locks.clear();
        for image in &self.images {
            // Another start may use the image by now. It is locked as qcow2, so that all uses are found.
            match lock_image(image, &DiskFormat::Qcow2(QcowOptions::default()), false) {
                Ok(_lock) => remove_file(image)?,
                Err(Error::DiskInUse { .. }) => {}
                // The record stays together with the image, so `remove` can delete both.
                Err(error) => return Err(error),
            }
        }
        let Some((state, lock, json)) = &self.state else { return Ok(()) };
        state.clear_runtime_files(lock)?;
        match json {
            Some(json) => state.write(JSON_FILE, json),
            None => [LOG_FILE, JSON_FILE].iter().try_for_each(|name| remove_file(state.file(name))),
        }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            let dir = self.state.as_ref().map_or(Default::default(), |(state, ..)| state.path().display().to_string());
            log::warn!(target: "hyperkit", "{dir}: cleaning up after a failed start: {error:#}");
        }
        // `remove_dir` keeps a directory that is not empty.
        self.dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}
