//! What the image store takes and gives, as plain values. Field names are ours; the api crate writes Docker's JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::{fmt, io};

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use skep_model::{Labels, Timestamp};

use super::auth::RegistryAuth;
use super::config::ImageFile;
use super::event::EventSink;
use super::id::{Digest, ImageId};

/// A request or answer body: a tar on its way in or out.
pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// dockerd's default for `max-concurrent-downloads`.
pub const MAX_CONCURRENT_DOWNLOADS: usize = 3;
/// dockerd's default for `max-concurrent-uploads`.
pub const MAX_CONCURRENT_UPLOADS: usize = 5;

#[derive(Clone)]
pub struct ImageStoreConfig {
    /// `images/` and `layers/` are made in here.
    pub data_root: PathBuf,
    /// `host`, `host:port` or CIDR: plain HTTP is tried when HTTPS fails. Loopback is always among them.
    pub insecure_registries: Vec<String>,
    /// Tried in order before Docker Hub.
    pub registry_mirrors: Vec<String>,
    pub max_concurrent_downloads: usize,
    pub max_concurrent_uploads: usize,
    pub events: EventSink,
}

impl ImageStoreConfig {
    pub fn new(data_root: impl Into<PathBuf>, events: EventSink) -> Self {
        Self {
            data_root: data_root.into(),
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            max_concurrent_downloads: MAX_CONCURRENT_DOWNLOADS,
            max_concurrent_uploads: MAX_CONCURRENT_UPLOADS,
            events,
        }
    }
}

/// `linux/amd64`, `linux/arm/v7`: the API's `platform`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// `docker images`, one row. Containers are the engine's to count.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSummary {
    pub id: ImageId,
    pub parent: Option<ImageId>,
    /// `nginx:latest`; empty for a dangling image.
    pub repo_tags: Vec<String>,
    /// `nginx@sha256:…`.
    pub repo_digests: Vec<String>,
    pub created: Timestamp,
    pub size_bytes: u64,
    pub labels: Labels,
}

/// `docker image inspect`.
#[derive(Clone, Debug)]
pub struct ImageDetails {
    pub summary: ImageSummary,
    pub file: Arc<ImageFile>,
    /// The `config` object exactly as the image has it.
    pub raw_config: serde_json::Value,
    /// Topmost first.
    pub layer_dirs: Vec<PathBuf>,
    pub last_tagged: Option<Timestamp>,
}

/// One row of `docker history`, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryItem {
    /// `None` is `<missing>`.
    pub id: Option<ImageId>,
    pub created: Timestamp,
    pub created_by: String,
    pub tags: Vec<String>,
    pub size_bytes: u64,
    pub comment: String,
}

/// The API's filters of `GET /images/json`: key -> accepted values (`docker images --filter`).
pub type Filters = BTreeMap<String, Vec<String>>;

/// A container made from an image, for the conflict rules of removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUse {
    pub container_id: String,
    pub running: bool,
}

/// Docker's answer to a removal, item by item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum RemovedItem {
    Untagged(String),
    Deleted(ImageId),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    pub force: bool,
    pub no_prune: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagePruneReport {
    pub items: Vec<RemovedItem>,
    pub reclaimed_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    pub auth: Option<RegistryAuth>,
    /// `os/arch[/variant]`; `None` is this host's.
    pub platform: Option<String>,
}

/// `docker import`.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// `repo[:tag]`; `None` leaves the image dangling.
    pub reference: Option<String>,
    pub message: String,
    /// Dockerfile instructions: `CMD …`, `ENV …`.
    pub changes: Vec<String>,
    pub platform: Option<String>,
}

/// `docker commit`: the image a container's changes become.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    pub reference: Option<String>,
    /// The image the container was made from.
    pub parent: Option<ImageId>,
    /// The container's overlay upper directory.
    pub upper_dir: PathBuf,
    pub container_id: String,
    /// The container's own configuration, which the image takes over.
    pub config: skep_model::container::ContainerConfig,
    pub changes: Vec<String>,
    pub author: String,
    pub comment: String,
}

/// What a reference names in a registry (`GET /distribution/{name}/json`).
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    pub media_type: String,
    /// `None` for the image that is part of this binary: no registry has it, and a spec must not pin it.
    pub digest: Option<Digest>,
    pub size: u64,
    pub platforms: Vec<Platform>,
}

/// What the images take on disk (`docker system df`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUsage {
    /// All layers once.
    pub layers_bytes: u64,
}

impl fmt::Debug for ImageStoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStoreConfig").field("data_root", &self.data_root).finish_non_exhaustive()
    }
}
