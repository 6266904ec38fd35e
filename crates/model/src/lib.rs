//! The words everything else is written in: ids, specs, objects, states, limits, validation.
//!
//! Decides what a value *is* and whether it is well formed. Must not know where values are kept, sent or shown: no clock,
//! file, socket, dice or environment; time, ids and randomness come in as arguments.
//!
//! Read first: [`task`] (the state machine everything serves), [`service`], then [`assignment`] (what a manager tells a
//! worker) and [`plan`] (what a worker makes of it in the kernel).
#![forbid(unsafe_code)]

pub mod doctor;
pub mod explain;
pub mod generic;
pub mod id;
pub mod names;
pub mod path;
pub mod reference;
pub mod time;

pub mod cluster;
pub mod constraint;
pub mod network;
pub mod node;
pub mod secret;
pub mod service;
pub mod task;
pub mod traffic;
pub mod validate;

pub mod assignment;
pub mod dns;
pub mod plan;

pub mod container;
pub mod sandbox;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use id::{
    ClusterId, ConfigId, ContainerId, EndpointId, JoinTokenId, NetworkId, NodeId, SecretId, ServiceId, SessionId,
    TaskId,
};
pub use time::Timestamp;

/// Labels of any object, sorted so that every rendering is the same.
pub type Labels = BTreeMap<String, String>;

/// What every replicated object carries: its version (the log index of its last change, Docker's `Version.Index`) and times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Index of the log entry that last changed the object; an update must name it (optimistic concurrency).
    pub version: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The largest number of changes in one proposed batch (swarmkit `MaxChangesPerTransaction`).
pub const MAX_CHANGES_PER_BATCH: usize = 200;
/// The largest encoded size of one proposed batch in bytes (swarmkit `MaxTransactionBytes`, 1.5 MiB).
pub const MAX_BATCH_BYTES: usize = 1_572_864;
