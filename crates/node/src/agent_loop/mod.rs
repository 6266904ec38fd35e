//! A member's working side: the session to the leader, the tasks it brings, and this host's data plane.
//!
//! ```text
//! session --orders--> worker: agent::Worker --effects--> executor (engine) --events--+
//!    ^ reports           |        ^--------------------------------------------------+
//!    |                   +--> plane: agent::dataplane --plan--> executor (net)
//!    +---- board <-------+
//! ```

mod board;
mod engine_executor;
mod executor;
mod log_feed;
mod plane;
mod reached;
mod session;
mod sockets;
mod worker;

pub(crate) use board::StatusBoard;
pub(crate) use engine_executor::{ARCHITECTURE, EngineExecutor};
pub(crate) use executor::Executor;
#[cfg(test)]
pub(crate) use executor::{LogLine, LogLines, Surroundings};
pub(crate) use plane::{InForce, run as run_plane};
pub(crate) use session::{LEADER_HEADER, Orders, REMOVED, Session};
pub(crate) use worker::WorkerLoop;
