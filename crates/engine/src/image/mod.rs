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
//! Read first: `types` for the values, `state` for the database, `layer` and `unpack` for what is on disk, `store` for how
//! they are kept together.

mod auth;
mod config;
mod error;
mod event;
mod id;
mod platform;
mod progress;
mod types;

mod state;
mod store;

mod compress;
pub(crate) mod disk;
mod layer;
mod pack;
mod unpack;

mod filter;
mod query;
mod remove;

mod archive;
mod builtin;
mod changes;
mod commit;
mod load;
mod save;

mod registry;

#[cfg(test)]
mod tests;

pub use crate::error::ErrorKind;
pub use auth::RegistryAuth;
pub use config::{History, ImageFile, RootFs};
pub use error::ImageError;
pub use event::{EventSink, ObjectEvent, ObjectKind, no_events};
pub(crate) use filter::Filter;
pub use id::{DiffId, Digest, ImageId, InvalidDigest};
pub(crate) use platform::check_platform;
pub use progress::{Progress, ProgressDetail, ProgressSender};
pub use store::ImageStore;
pub(crate) use store::now;
pub use types::{
    ByteStream, CommitOptions, ContainerUse, Distribution, Filters, HistoryItem, ImageDetails, ImagePruneReport,
    ImageStoreConfig, ImageSummary, ImageUsage, ImportOptions, MAX_CONCURRENT_DOWNLOADS, MAX_CONCURRENT_UPLOADS,
    Platform, PullOptions, RemoveOptions, RemovedItem,
};

type Result<T, E = ImageError> = std::result::Result<T, E>;
