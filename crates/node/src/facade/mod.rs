//! The node as `server` sees it: swarm, node, service, task, network, secret and config operations, logs and events.
//!
//! One file per kind of object. Every write is validated here, proposed to the leader (forwarded if that is not us) and
//! answered when it is committed and applied on this manager, so that the next read of [`Node::view`] sees it.

mod doctor;
mod events;
mod info;
mod join_tokens;
mod logs;
mod networks;
mod nodes;
mod reach;
mod secrets;
mod services;
mod swarm;
mod tasks;

use std::sync::Arc;

use skep_engine::Engine;
use skep_net::Net;
use skep_store::View;

pub(crate) use events::EventLog;
pub use events::{EventAction, EventCursor, EventFeed, EventKind, EventsFrom, SwarmEvent};
pub use info::{LocalState, Managers, RemoteManager, SwarmInfo};
pub use logs::{LogRequest, LogStream, TaskLog};
pub(crate) use networks::new_network_key;
pub use reach::RemoteContainer;
pub use services::{RegistryAuthFrom, ServiceUpdate};
pub use swarm::RotateTokens;
pub(crate) use swarm::check_spec;

use crate::config::NodeConfig;
use crate::error::Result;
use crate::host::NetSandboxes;
use crate::lifecycle::Inner;

/// A host's place in a swarm, or outside one. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

impl Node {
    /// Starts where the last run left off: a member of a swarm comes back as the same member and adopts its containers.
    pub async fn start(config: NodeConfig, engine: Engine, sandboxes: NetSandboxes) -> Result<Self> {
        Ok(Self { inner: Inner::start(config, engine, sandboxes).await? })
    }

    /// Stops RPC, sessions and loops in order; containers go on.
    pub async fn shutdown(&self) {
        self.inner.shutdown().await;
    }

    pub fn engine(&self) -> &Engine {
        self.inner.engine()
    }

    pub fn net(&self) -> &Net {
        self.inner.net()
    }

    /// Connections of managers to the API of this host's containers, for who serves it. Once.
    pub fn connections(&self) -> Option<tokio::sync::mpsc::Receiver<tokio::io::DuplexStream>> {
        self.inner.connections.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Everything replicated, as this manager knows it now. [`crate::NodeError::NoSwarm`] or
    /// [`crate::NodeError::NotManager`] elsewhere.
    pub fn view(&self) -> Result<View> {
        Ok(self.inner.manager()?.view())
    }
}
