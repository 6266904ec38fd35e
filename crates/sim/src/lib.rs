//! The whole control plane of a swarm in one thread, under a clock, a network and disks that are simulated, so that
//! thousands of bad days are tried on every change, and any of them again by its seed.
//!
//! **Real** is every decision: `skep-store` (what an entry does), `skep-control` (`tick`, `split`, `membership`, the
//! `Assigner` and what it calls affected, `Liveness`), `skep-agent` (`Worker` and its machines).
//!
//! **Simulated** is what performs them: hosts that crash, lose power, freeze and have clocks of their own; wires that are
//! cut (one way or both), slow, lossy, and let messages overtake each other; an engine whose containers start slowly, fail,
//! exit, and outlive the daemon; users who create, update, scale, roll back and remove services, make networks, drain nodes,
//! rotate tokens. The shell between them (the leader's loop, sessions, the agent's loop) is written anew here in thin form,
//! after `skep-node`'s: `leader` after `manager/leader.rs`, `dispatch` after `manager/dispatcher.rs`, `session` and
//! `agent` after `agent_loop/`.
//!
//! **Not simulated**: TLS, certificates and join tokens; gRPC and its framing (a session is an ordered stream that stalls
//! while its wire is cut and ends with its process); the data plane, DNS and logs; real containers; the code of the shells
//! themselves. Those are tested by `skep-node`'s own tests and by `e2e` on lab hosts.
//!
//! Gossip and the knocks on a silent node's door are answered by what the wires allow, at once. A frozen host's own share of
//! consensus keeps time (all share one clock), but sends and hears nothing.
//!
//! The log is the real `skep-consensus` (openraft, redb) over a simulated disk that loses and tears what was not flushed
//! (`log::raft`; ADR 0008 says what of it is simulated), or a model of its promises (`log::model`), which tries many more
//! seeds in the same time. Managers do not come and go. Read first: `world`, then `leader`, `faults`, and one file of
//! `invariants`.
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
