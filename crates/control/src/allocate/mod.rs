//! Addresses, ports and numbers: what must be unique in the swarm is given here, and `store.apply` refuses what is not.
//!
//! Everything is derived from the View: which addresses are held, and after which one to look for the next (a freed address
//! is not the next one given, so that stale caches elsewhere do not reach a stranger).

mod address;
mod container;
mod network;
mod port;
mod service;
mod task;

pub use container::{AttachmentRequest, Unattachable, attach};
pub(crate) use network::networks_and_nodes;
pub use port::reserved_port;
pub(crate) use service::services;
pub(crate) use task::tasks;

#[cfg(test)]
mod tests;
