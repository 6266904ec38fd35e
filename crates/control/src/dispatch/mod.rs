//! What each worker is told, and who has not been heard of.

mod assign;
mod balancers;
mod clock;
mod liveness;
#[cfg(test)]
mod tests;

pub use assign::{Affected, Assigner, assignments};
pub use balancers::Balancers;
pub use clock::LiveClock;
pub use liveness::{Gossip, KNOCK_AFTER, KNOCK_PERIOD, Knock, Liveness, PULSE, Patience, RECONNECT};
