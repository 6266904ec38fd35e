//! Images: where they come from, how they are kept, what a container's root is made of.
//!
//! ```text
//!   registry ──pull──┐                                ┌──push──> registry
//!   tar ──load/import┼─> layer (verify, unpack) ─┐    ├──save──> tar
//!   container ─commit┘                           v    │
//!                            data_root/layers/<diff id>/{diff,blob,layer.json}
//!                            data_root/images/{state.json,configs,manifests}
//! ```
//!
//! Decides names (references, ids), what is kept and what is removed. Must not know how containers run: it hands out layer
//! directories and is told by the engine which images are in use.
//!
//! Each layer is unpacked once, into a directory named by its diff id (the digest of its tar), since what a tar unpacks to
//! does not depend on the layers below; overlayfs stacks the directories. Beside it stays the blob it came from: a tar made
//! anew from the directory need not have the same bytes, and then neither the diff id nor the digest a registry knows would
//! be true. The price is disk, the gain is that push and save are always exact.
//!
//! Read first: [`types`] for the values, `state` for the database, `layer` and `unpack` for what is on disk.

mod auth;
mod config;
mod error;
mod event;
mod id;
mod progress;
mod types;

pub use auth::RegistryAuth;
pub use config::{History, ImageFile, RootFs};
pub use error::ImageError;
pub use event::{EventSink, ObjectEvent, ObjectKind, no_events};
pub use id::{DiffId, Digest, ImageId, InvalidDigest};
pub use progress::{Progress, ProgressDetail, ProgressSender};
pub use types::{
    ByteStream, CommitOptions, ContainerUse, Distribution, Filters, HistoryItem, ImageDetails, ImagePruneReport,
    ImageStoreConfig, ImageSummary, ImageUsage, ImportOptions, MAX_CONCURRENT_DOWNLOADS, MAX_CONCURRENT_UPLOADS,
    Platform, PullOptions, RemoveOptions, RemovedItem,
};

use std::path::{Path, PathBuf};
use std::sync::Arc;

type Result<T, E = ImageError> = std::result::Result<T, E>;

/// A cheap handle on this host's images.
#[derive(Clone, Debug)]
pub struct ImageStore {
    inner: Arc<ImageStoreConfig>,
}

#[allow(unused_variables, clippy::unused_async, reason = "the interface before its body")]
impl ImageStore {
    /// Reads what is on disk and removes what an interrupted operation left half-made.
    pub async fn open(config: ImageStoreConfig) -> Result<Self> {
        unimplemented!()
    }

    /// What a user's text names: a reference, an id, or the beginning of an id.
    pub fn resolve(&self, name_or_id: &str) -> Result<ImageId> {
        unimplemented!()
    }

    /// The config of an image given by name or id.
    pub fn image_config(&self, name_or_id: &str) -> Result<Arc<ImageFile>> {
        unimplemented!()
    }

    /// The directories overlayfs stacks for this image, topmost first.
    pub fn rootfs_layers(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        unimplemented!()
    }

    /// As [`Self::rootfs_layers`], and keeps them on disk until [`Self::release`], even if the image is removed by force.
    /// Holds are in memory: at start the engine holds again for every container it finds, then calls [`Self::sweep`].
    pub fn hold(&self, container_id: &str, id: &ImageId) -> Result<Vec<PathBuf>> {
        unimplemented!()
    }

    /// The container is gone. Layers only it still needed are removed in the background of the next removal or sweep.
    pub fn release(&self, container_id: &str) {
        unimplemented!()
    }

    /// Removes layers that neither an image nor a holder needs. Called once at start after the holds.
    pub async fn sweep(&self) -> Result<()> {
        unimplemented!()
    }

    /// `GET /images/json`. `all` shows intermediate images too. Filters: reference, dangling, label, before, since, until.
    pub fn list(&self, filters: &Filters, all: bool) -> Result<Vec<ImageSummary>> {
        unimplemented!()
    }

    pub fn inspect(&self, name_or_id: &str) -> Result<ImageDetails> {
        unimplemented!()
    }

    /// Newest first, as `docker history`.
    pub fn history(&self, name_or_id: &str) -> Result<Vec<HistoryItem>> {
        unimplemented!()
    }

    pub fn usage(&self) -> ImageUsage {
        unimplemented!()
    }

    /// Gives `source` another name, `repo[:tag]`.
    pub async fn tag(&self, source: &str, target: &str) -> Result<()> {
        unimplemented!()
    }

    /// `DELETE /images/{name}`: untags, and deletes what nothing names any more. `in_use` tells an image's containers.
    pub async fn remove(
        &self,
        name_or_id: &str,
        options: RemoveOptions,
        in_use: impl Fn(&ImageId) -> Vec<ContainerUse> + Send,
    ) -> Result<Vec<RemovedItem>> {
        unimplemented!()
    }

    /// `POST /images/prune`. Filters: dangling (default true), until, label, label!.
    pub async fn prune(
        &self,
        filters: &Filters,
        in_use: impl Fn(&ImageId) -> Vec<ContainerUse> + Send,
    ) -> Result<ImagePruneReport> {
        unimplemented!()
    }

    /// Fetches an image. An error before the first progress item is the request's status; a later one is the stream's last
    /// line. Two pulls of one reference wait for each other and fetch once. Dropping the future stops it without traces.
    pub async fn pull(&self, reference: &str, options: PullOptions, progress: ProgressSender) -> Result<ImageId> {
        unimplemented!()
    }

    /// Sends an image, or all tags of a repository if `reference` has no tag and `all_tags` is set.
    pub async fn push(&self, reference: &str, auth: Option<RegistryAuth>, progress: ProgressSender) -> Result<()> {
        unimplemented!()
    }

    /// What a registry has under a reference, without fetching it.
    pub async fn distribution_inspect(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<Distribution> {
        unimplemented!()
    }

    /// `POST /auth`: checks credentials with the registry named in them. Gives Docker's status text (`Login Succeeded`).
    pub async fn login(&self, auth: RegistryAuth) -> Result<String> {
        unimplemented!()
    }

    /// Reads a `docker save` tar or an OCI layout, plain or compressed.
    pub async fn load(&self, input: ByteStream, progress: ProgressSender) -> Result<Vec<ImageId>> {
        unimplemented!()
    }

    /// A `docker save` tar of the named images, also readable as an OCI layout. Names are checked before this returns.
    pub async fn save(&self, names: &[String]) -> Result<ByteStream> {
        unimplemented!()
    }

    /// Makes an image of one layer from a tar of a root filesystem.
    pub async fn import(&self, input: ByteStream, options: ImportOptions) -> Result<ImageId> {
        unimplemented!()
    }

    /// Makes an image of a container's changes.
    pub async fn commit(&self, options: CommitOptions) -> Result<ImageId> {
        unimplemented!()
    }

    /// Makes sure that `name` is an image whose only file is the running binary at `exe`; the same binary gives the same
    /// image id on every host.
    pub async fn ensure_builtin(&self, name: &str, exe: &Path) -> Result<ImageId> {
        unimplemented!()
    }
}
