//! Devices of a container: those of `--device`, and all of the host's for a privileged one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_model::container::DeviceMapping;

use crate::error::{EngineError, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `rwm`.
    pub(crate) access: String,
}

impl Device {
    pub(super) fn spec(&self) -> Value {
        json!({
            "path": self.path, "type": self.kind.to_string(), "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }

    pub(super) fn rule(&self) -> Value {
        json!({ "allow": true, "type": self.kind.to_string(), "major": self.major, "minor": self.minor, "access": self.access })
    }

    fn read(host_path: &Path, container_path: PathBuf, access: &str) -> std::io::Result<Option<Self>> {
        let metadata = std::fs::metadata(host_path)?;
        let kind = match metadata.file_type() {
            t if t.is_char_device() => 'c',
            t if t.is_block_device() => 'b',
            _ => return Ok(None),
        };
        let number = metadata.rdev();
        Ok(Some(Self {
            path: container_path,
            kind,
            major: rustix::fs::major(number),
            minor: rustix::fs::minor(number),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: access.to_owned(),
        }))
    }
}

/// Every device the mapping names: one, or all in a directory.
pub(crate) fn mapped(mapping: &DeviceMapping) -> Result<Vec<Device>> {
    let access = if mapping.cgroup_permissions.is_empty() { "rwm" } else { &mapping.cgroup_permissions };
    let target = if mapping.path_in_container.is_empty() { &mapping.path_on_host } else { &mapping.path_in_container };
    let host = Path::new(&mapping.path_on_host);
    let missing = |_| {
        EngineError::Invalid(format!(
            "error gathering device information while adding custom device {:?}: no such file or directory",
            mapping.path_on_host
        ))
    };
    if let Some(device) = Device::read(host, target.into(), access).map_err(missing)? {
        return Ok(vec![device]);
    }
    let mut found = Vec::new();
    walk(host, Path::new(target), access, &mut found);
    if found.is_empty() {
        return Err(EngineError::Invalid(format!(
            "error gathering device information while adding custom device {:?}: not a device node",
            mapping.path_on_host
        )));
    }
    Ok(found)
}

/// What `--privileged` shows.
pub(crate) fn of_host() -> Vec<Device> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), Path::new("/dev"), "rwm", &mut found);
    found
}

fn walk(host: &Path, target: &Path, access: &str, found: &mut Vec<Device>) {
    /// Made by the runtime itself, or other file systems.
    const SKIPPED: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"];
    let Ok(entries) = std::fs::read_dir(host) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if SKIPPED.iter().any(|s| name == *s) || kind.is_symlink() {
            continue;
        }
        let inside = target.join(&name);
        if kind.is_dir() {
            walk(&entry.path(), &inside, access, found);
        } else if let Ok(Some(device)) = Device::read(&entry.path(), inside, access) {
            found.push(device);
        }
    }
}
