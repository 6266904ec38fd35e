//! Applied logs are prefixes of one another: every manager that applies an entry saw the same come of it, in the same order,
//! and at rest all have the same state.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_store::Event;

use super::{Holds, Invariant, Settled};
use crate::HostId;

#[derive(Default)]
pub(crate) struct Prefixes {
    entries: BTreeMap<u64, Arc<[Event]>>,
    /// Where each manager is, and what it began with at least once.
    last: BTreeMap<HostId, u64>,
}

impl Invariant for Prefixes {
    fn applied(&mut self, host: HostId, index: u64, events: &Arc<[Event]>) -> Holds {
        let known = self.entries.entry(index).or_insert_with(|| events.clone());
        if known[..] != events[..] {
            return Err(format!("{host} applied another entry {index} than the others"));
        }
        let last = self.last.insert(host, index).unwrap_or_default();
        // What came before it and is not its last was skipped.
        match self.entries.range(..index).next_back() {
            Some((before, _)) if last < *before && last != 0 => {
                Err(format!("{host} went from entry {last} to {index} without {before}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn resynced(&mut self, host: HostId, index: u64) {
        self.last.insert(host, index);
    }

    fn settled(&mut self, world: &Settled) -> Holds {
        let Some((first, view)) = world.managers.first() else { return Ok(()) };
        match world.managers.iter().find(|(_, other)| other != view) {
            Some((other, theirs)) => {
                let (a, b) = (view.index(), theirs.index());
                Err(format!("{first} (at entry {a}) and {other} (at {b}) do not have the same state"))
            }
            None => Ok(()),
        }
    }
}
