//! The Docker Engine API as types: what is read from requests and written in answers, and how both relate to `model`.
//!
//! Decides how a value looks in JSON (names, omitted fields, `null` against `[]`, times, durations) exactly as moby does,
//! and what of a request we can carry out: a field whose meaning is not served is refused ([`ConvertError::Unserved`]),
//! never dropped. Must not know sockets, routes, the engine or the store.
//!
//! Read first: [`go_json`] (how Go reads JSON), then [`service`] (the object that must survive a round trip unchanged, or
//! every `docker stack deploy` would restart every task).
#![forbid(unsafe_code)]

pub mod error;
pub mod filters;
pub mod go_json;
pub mod time;
pub mod version;

pub mod auth;
pub mod network;
pub mod node;
pub mod secret;
pub mod service;
pub mod swarm;
pub mod task;

pub mod container;
pub mod event;
pub mod image;
pub mod info;
pub mod join_token;
pub mod volume;

pub use error::{ConvertError, ErrorResponse};
pub use filters::Filters;
pub use time::GoTime;
pub use version::ApiVersion;

/// Docker's `Version` of a swarm object: the index an update must name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ObjectVersion {
    pub index: u64,
}

/// An [`ObjectVersion`] where moby writes no zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct JobIteration {
    #[serde(skip_serializing_if = "is_default")]
    pub index: u64,
}

/// Go's `omitempty` of numbers and booleans.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
