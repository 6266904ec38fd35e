//! What the volume store takes and gives, as plain values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skep_model::{Labels, Timestamp};

/// What `docker volume create` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Empty: a name of 64 hex digits is made, and the volume counts as anonymous.
    pub name: String,
    /// Empty or `local`.
    pub driver: String,
    /// `type`, `device`, `o`, `size` of the local driver.
    pub options: BTreeMap<String, String>,
    pub labels: Labels,
}

/// `docker volume inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    pub mountpoint: PathBuf,
    pub created_at: Timestamp,
    pub labels: Labels,
    pub options: BTreeMap<String, String>,
    pub anonymous: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    pub size_bytes: u64,
    /// Containers that reference it.
    pub references: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumePruneReport {
    pub deleted: Vec<String>,
    pub reclaimed_bytes: u64,
}

/// Where the first content of an empty volume comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Populate {
    /// The container's mounted root.
    pub rootfs: PathBuf,
    /// The mount's target inside it.
    pub target: PathBuf,
}

/// `volumes/<name>/volume.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    pub(super) created_at: Timestamp,
    pub(super) labels: Labels,
    pub(super) options: BTreeMap<String, String>,
}
