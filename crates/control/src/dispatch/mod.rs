//! What each worker is told, who has not been heard of, and when keys that workers are told rotate.

mod assign;
mod balancers;
mod clock;
mod keys;
mod liveness;
#[cfg(test)]
mod tests;

pub use assign::{Affected, Assigner, assignments};
pub use balancers::Balancers;
pub use clock::LiveClock;
pub use keys::{KEY_HURRY, KEY_LIFE, due_keys};
pub use liveness::{Gossip, KNOCK_AFTER, KNOCK_PERIOD, Knock, Liveness, PULSE, Patience, RECONNECT};
