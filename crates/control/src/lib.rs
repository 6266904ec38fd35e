//! The leader's mind: what should change, decided from a View alone.
//!
//! ```text
//!   events --mark--> Dirty --+
//!   View ------------------- tick --> Decision { changes, wake_at } --split--> batches --> the log
//!   Ctx { now, ids } --------+
//! ```
//!
//! Decides which tasks exist, what addresses and ports they have and where they run; what every worker is told
//! ([`dispatch`]); and what a user is told of a service that is not as it was asked for ([`explain()`]). Must not know how changes are agreed on, what a socket is, or what happened before: a new leader that calls
//! [`tick()`] with everything marked goes on exactly where the last one stopped.
//!
//! Read first: [`tick()`], then `orchestrate` (which tasks), `allocate` (addresses), `schedule` (nodes).
#![forbid(unsafe_code)]

mod agenda;
mod ctx;
mod dirty;
mod plan;
mod tick;

mod orchestrate;

mod allocate;
mod schedule;

pub mod dispatch;
pub mod doctor;
mod explain;
pub mod membership;

#[cfg(test)]
mod tests;

pub use agenda::Agenda;
pub use allocate::{AttachmentRequest, Unattachable, attach, reserved_port};
pub use ctx::{Ctx, Decision, IdSource, SeededIds};
pub use dirty::Dirty;
pub use explain::explain;
pub use plan::split;
pub use tick::tick;
