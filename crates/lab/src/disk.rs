//! A host's disk of its own: a file system in memory of a given size, so that it can be filled without harm to this machine. It
//! outlives the host, as a disk does, and goes with the lab.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{LabError, Result, file};

/// Puts an empty disk at `folder`.
pub(crate) fn make(folder: &Path, size_bytes: u64) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(file("cannot make", folder))?;
    let options = format!("size={size_bytes},mode=0755");
    mount(Some("skep-lab"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|e| LabError::File { what: "cannot mount a disk at", path: folder.to_owned(), source: e.into() })
}

/// Takes it away; nothing there is fine.
pub(crate) fn remove(folder: &Path) {
    let _ = umount2(folder, MntFlags::MNT_DETACH);
}
