//! Named volumes of this host: Docker's `local` driver.
//!
//! Decides names, references by containers and what is on disk under `data_root/volumes/<name>/_data`. Must not know how a
//! volume gets into a container: it hands out a directory.
//!
//! Two counts are kept apart, as in moby: a container *references* its volumes from create to remove (that is what "in use"
//! means), and *mounts* them from start to stop (that is when a volume with driver options is mounted on its directory).
//! Both are in memory: after a restart of the daemon the engine tells them again for the containers it finds.

mod copy;
mod error;
mod local;
mod store;
mod types;

pub use error::VolumeError;
pub(crate) use local::propagation;
pub use store::VolumeStore;
pub use types::{Populate, Volume, VolumePruneReport, VolumeSpec, VolumeUsage};

type Result<T, E = VolumeError> = std::result::Result<T, E>;
