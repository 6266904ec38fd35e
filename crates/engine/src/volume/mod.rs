//! Named volumes of this host: Docker's `local` driver.
//!
//! Decides names, references by containers and what is on disk under `data_root/volumes/<name>/_data`. Must not know how a
//! volume gets into a container: it hands out a directory.
//!
//! Two counts are kept apart, as in moby: a container *references* its volumes from create to remove (that is what "in use"
//! means), and *mounts* them from start to stop (that is when a volume with driver options is mounted on its directory).

mod error;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::VolumeError;
use skep_model::{Labels, Timestamp};

use crate::image::{EventSink, Filters};

type Result<T, E = VolumeError> = std::result::Result<T, E>;

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

/// A cheap handle on this host's volumes.
#[derive(Clone, Debug)]
pub struct VolumeStore {
    inner: Arc<PathBuf>,
}

#[allow(unused_variables, clippy::unused_async, dead_code, reason = "the interface before its body")]
impl VolumeStore {
    /// Reads what is on disk under `data_root/volumes`; mounts left by a daemon that died are taken over.
    pub async fn open(data_root: &Path, events: EventSink) -> Result<Self> {
        unimplemented!()
    }

    /// Makes a volume, or gives the existing one of that name.
    pub async fn create(&self, spec: VolumeSpec) -> Result<Volume> {
        unimplemented!()
    }

    pub fn inspect(&self, name: &str) -> Result<Volume> {
        unimplemented!()
    }

    /// Filters: dangling, name, label, driver.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Volume>> {
        unimplemented!()
    }

    /// With `force`, a volume that is not there is fine.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        unimplemented!()
    }

    /// Removes what no container references: anonymous volumes, with `all=true` named ones too. Filters: all, label, label!.
    pub async fn prune(&self, filters: &Filters) -> Result<VolumePruneReport> {
        unimplemented!()
    }

    /// The container has this volume from now on (create, and adoption after a restart). In memory; quick.
    pub fn reference(&self, name: &str, container_id: &str) -> Result<()> {
        unimplemented!()
    }

    /// The container is removed: forgets all its references.
    pub fn dereference(&self, container_id: &str) {
        unimplemented!()
    }

    /// Volumes a container references, for `docker rm -v`.
    pub fn referenced_by(&self, container_id: &str) -> Vec<Volume> {
        unimplemented!()
    }

    /// Makes the volume ready for a starting container and gives the directory to bind. If it is empty and `populate` is
    /// given, the image's content there is copied in first (Docker's copy-up; not with `nocopy`).
    pub async fn mount(&self, name: &str, container_id: &str, populate: Option<Populate>) -> Result<PathBuf> {
        unimplemented!()
    }

    /// The container stopped.
    pub async fn unmount(&self, name: &str, container_id: &str) -> Result<()> {
        unimplemented!()
    }

    /// Walks the volume: for `docker system df -v`.
    pub async fn usage(&self, name: &str) -> Result<VolumeUsage> {
        unimplemented!()
    }
}
