//! What a lab remembers on disk: its hosts and their addresses. Whether they run is asked of the kernel, never remembered.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{LabError, Result, file};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Manager,
    Worker,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LabFile {
    pub(crate) name: String,
    /// Third octet of the lab's network, 10.91.x.0/24.
    pub(crate) subnet_index: u8,
    pub(crate) hosts: Vec<HostFile>,
    /// Names on the far side of a partition.
    #[serde(default)]
    pub(crate) cut_off: Vec<String>,
    /// Packets lost on a host's cable; none on those that are not named.
    #[serde(default)]
    pub(crate) loss: BTreeMap<String, Loss>,
    /// The size of every host's disk, if it has one of its own.
    #[serde(default)]
    pub(crate) disk_bytes: Option<u64>,
    /// The daemon's program and first arguments.
    pub(crate) daemon: Vec<String>,
    /// Arguments given to every daemon beyond the lab's own.
    #[serde(default)]
    pub(crate) daemon_args: Vec<String>,
}

/// How many of a hundred packets are lost on a host's cable, each by its own chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub to_host_percent: u8,
    pub from_host_percent: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostFile {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Last octet of its address, counted from 1.
    pub(crate) number: u8,
}

impl LabFile {
    pub(crate) fn address(&self, host: &HostFile) -> Ipv4Addr {
        Ipv4Addr::new(10, 91, self.subnet_index, host.number)
    }

    /// This machine's own address on the switch.
    pub(crate) fn machine_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 91, self.subnet_index, 254)
    }

    pub(crate) fn load(root: &Path, name: &str) -> Result<Self> {
        let path = root.join(name).join("lab.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(LabError::NoLab(name.into())),
            Err(e) => return Err(file("cannot read", &path)(e)),
        };
        serde_json::from_slice(&text).map_err(|e| LabError::State { name: name.into(), path, reason: e.to_string() })
    }

    pub(crate) fn save(&self, root: &Path) -> Result<()> {
        let folder = root.join(&self.name);
        std::fs::create_dir_all(&folder).map_err(file("cannot make", &folder))?;
        let path = folder.join("lab.json");
        let text =
            serde_json::to_vec_pretty(self).map_err(std::io::Error::other).map_err(file("cannot write", &path))?;
        let half = folder.join("lab.json.new");
        std::fs::write(&half, text).map_err(file("cannot write", &half))?;
        std::fs::rename(&half, &path).map_err(file("cannot write", &path))
    }

    /// Every lab under `root`, by name; an unreadable one is skipped (its own commands tell why).
    pub(crate) fn all(root: &Path) -> Vec<Self> {
        let mut labs: Vec<Self> = std::fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Self::load(root, &entry.file_name().to_string_lossy()).ok())
            .collect();
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        labs
    }
}

/// The folders and names of one host.
pub(crate) struct HostPaths {
    pub(crate) folder: PathBuf,
    /// Becomes the host's `/run`.
    pub(crate) run: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    /// The process that is pid 1 on the host, as this machine numbers it.
    pub(crate) pid: PathBuf,
    pub(crate) socket: PathBuf,
}

impl HostPaths {
    pub(crate) fn new(root: &Path, lab: &str, node: &str) -> Self {
        let folder = root.join(lab).join(node);
        let run = folder.join("run");
        Self {
            data: folder.join("data"),
            log: folder.join("daemon.log"),
            pid: folder.join("init.pid"),
            socket: run.join("docker.sock"),
            run,
            folder,
        }
    }
}
