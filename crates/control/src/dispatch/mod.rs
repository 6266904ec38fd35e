//! What each worker is told, and who has not been heard of.

mod assign;
mod balancers;
mod liveness;
#[cfg(test)]
mod tests;

pub use assign::{Affected, Assigner, assignments};
pub use balancers::Balancers;
pub use liveness::{Gossip, Knock, Liveness, Patience};
