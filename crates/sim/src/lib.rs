//! The whole control plane of a swarm in one thread, under a clock, a network and disks that are simulated, so that
//! thousands of bad days are tried on every change, and any of them again by its seed.
//!
//! **Real** is every decision: `skep-store` (what an entry does), `skep-control` (`tick`, `split`, `membership`, the `Agenda`,
//! the `Assigner` and what it calls affected, `Liveness` and its clock), `skep-agent` (`Worker` and its machines, `line`: whom
//! a worker asks and when it gives a leader up, `fence`). Their times are the daemon's: both read the same constants.
//!
//! **Simulated** is what performs them: hosts that crash, lose power, freeze and have clocks of their own; wires that are
//! cut (one way or both), slow, lossy, and let messages overtake each other; an engine whose containers start slowly, fail,
//! exit, outlive the daemon, and are killed when their lease is over; users who create, update, scale, roll back and remove
//! services and jobs, make networks (small ones, whose addresses run out), start and stop containers on them, drain, promote and demote nodes, rotate tokens. The
//! shell between them is written anew here in thin form, after `skep-node`'s: `leader` after `manager/leader.rs`, `dispatch`
//! after `manager/dispatcher.rs`, `roles` after `manager/roles.rs` and `member.rs`, `client` after `Manager::settle`, `session`
//! and `agent` after `agent_loop/`, `places` after `attachments.rs`, `host.rs` and `manager/attach.rs`.
//!
//! **Not simulated**: TLS, certificates (a node has the role it was told after a while) and join tokens; gRPC and its framing
//! (a session is an ordered stream that stalls while its wire is cut and ends with its process); the data plane, DNS and
//! logs; real containers; the code of the shells themselves. Those are tested by `skep-node`'s own tests and by `e2e` on lab
//! hosts.
//!
//! Gossip and the knocks on a silent node's door are answered by what the wires allow, at once. A frozen host's own share of
//! consensus keeps time (all share one clock), but sends and hears nothing.
//!
//! The log is the real `skep-consensus` (openraft, redb) over a simulated disk that loses and tears what was not flushed
//! (`log::raft`; ADR 0008 says what of it is simulated), or a model of its promises (`log::model`), which tries more seeds in
//! the same time. Nodes are promoted and demoted, but none joins or is removed. Read first: `world`, then `leader`, `faults`,
//! and one file of `invariants`.
#![forbid(unsafe_code)]

mod agent;
mod client;
mod dice;
mod dispatch;
mod engine;
mod faults;
mod host;
pub mod invariants;
mod leader;
mod log;
mod net;
mod places;
mod roles;
mod run;
mod script;
mod session;
mod trace;
mod wire;
mod world;

use std::fmt;

pub use run::{Options, Outcome, run};
pub use script::play;
pub use world::LogKind;

/// A host by its place in the world: managers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0 + 1)
    }
}
