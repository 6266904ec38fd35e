//! The replicated state: every object of the swarm, in persistent maps with their indexes.
//!
//! Decides what a change may do to the state ([`Store::apply`]: total, deterministic, all or nothing) and what readers see
//! (a [`View`]: an immutable clone). Must not know how changes are agreed on, nor why anyone proposes them.
//!
//! Read first: [`change`] (what can happen), [`apply`](mod@apply) (when it may), [`view`] (what can be read),
//! [`event`] (what is told afterwards), [`codec`] (what is written to disk).
#![forbid(unsafe_code)]

pub mod change;
pub mod view;

mod address;
pub mod apply;
mod restart;
mod tables;
mod usage;

pub mod codec;
pub mod event;
mod refused;
mod requests;

#[cfg(test)]
mod tests;

pub use address::{AddressOwner, Addresses};
pub use change::{Batch, Change, Guard, NewTask, ObjectKey, Request};
pub use codec::CodecError;
pub use event::{Action, Event, Object, ObjectKind};
pub use refused::{Kind, Refused};
pub use restart::{FailureRecord, RestartRecord, SlotKey};
pub use view::{LookupError, View};

/// The state machine. Cheap to clone; what it holds is read through [`Store::view`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    pub(crate) view: View,
}

impl Store {
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now, for ever: later changes do not show in it.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Reads without cloning.
    pub fn read(&self) -> &View {
        &self.view
    }
}

/// A store that starts as `view`: for trying changes out before proposing them.
impl From<View> for Store {
    fn from(view: View) -> Self {
        Self { view }
    }
}
