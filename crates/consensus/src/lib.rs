//! Agreement between managers: one log of batches, applied to one store on every manager, behind a small interface.
//!
//! Decides when a batch is committed, who leads, and how both survive a crash. Must not know what a batch means (that is
//! `store`), how bytes reach a peer (the caller brings a [`Transport`]) or where the storage key comes from.
//!
//! ```text
//!  propose(batch) ──> leader ──> log (raft.db, sealed) ──> quorum ──> Store::apply on every manager ──> view(), events()
//!                                      peers <── Transport::call / handle_rpc ──> peers
//! ```
//!
//! The Raft implementation underneath (openraft) is private to this crate: nothing of it appears in a signature.
//! Read first: [`Consensus`] in `handle.rs`, then `log/` (what is on disk) and `machine.rs` (how entries are applied).
#![forbid(unsafe_code)]

pub mod config;
mod disk;
mod error;
mod feed;
mod handle;
mod member;
mod membership;

mod leadership;
mod machine;
mod network;
mod patience;
mod runtime;
mod types;
mod wire;
mod work;

mod log;
mod recovery;
mod seal;
mod sim_disk;
mod snapshot;

pub use config::{Config, Timing};
pub use disk::{Disk, DiskFile, HostDisk, Open};
pub use error::{Error, ErrorKind, ProposeError};
pub use feed::{EventStream, Notice};
pub use handle::{Applied, Consensus};
pub use member::{Leadership, Member, MemberRole, Peer};
pub use network::{MAX_MESSAGE_BYTES, Transport, TransportError};
pub use recovery::{force_new_cluster, restore};
pub use sim_disk::{Crash, Fault, SimDisk};
