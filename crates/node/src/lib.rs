//! The shell around the pure rooms: who is in the swarm, who leads, and how managers and workers speak.
//!
//! Holds certificates, cluster RPC, the leader's loop (over `control`) and the agent's loop (over `agent`). It performs what
//! those decide and must not decide itself: where a task goes, when it is replaced, what the kernel should look like are
//! answered elsewhere.
//!
//! ```text
//! server -> facade -> lifecycle -> member --+-- manager: consensus, cluster RPC, leader, dispatcher   (managers only)
//!                                           +-- agent_loop: session to the leader -> tasks -> engine, net
//! ```
//!
//! Read first: [`facade`] (what it can do), then `lifecycle` (in which state it is), `manager`, `agent_loop`.

mod clock;
mod config;
mod error;

pub mod facade;
mod gossip;
mod lifecycle;
mod member;

mod agent_loop;
mod attachments;
mod manager;

mod address;
pub mod audit;
mod backup;
mod ca;
mod state;
mod transport;

mod host;

#[cfg(test)]
mod tests;

pub use backup::BackupKey;
pub use ca::RootRequest;
pub use config::{
    DEFAULT_DATA_PATH_PORT, DEFAULT_LISTEN_PORT, InitRequest, JoinRequest, NodeConfig, RestoreRequest, Timing,
};
pub use error::{Kind, NodeError};
pub use facade::{
    EventAction, EventCursor, EventFeed, EventKind, EventsFrom, LocalState, LogRequest, LogStream, Managers, Node,
    RegistryAuthFrom, RemoteContainer, RemoteManager, RotateTokens, ServiceUpdate, SwarmEvent, SwarmInfo, TaskLog,
};
pub use host::NetSandboxes;

/// What containers' resolvers answer; the daemon hands it to `net` when it opens it.
pub use skep_agent::dns::answer;
/// Named by callers of [`Node::net`]; they need not know which crate it is.
pub use skep_net as net;
