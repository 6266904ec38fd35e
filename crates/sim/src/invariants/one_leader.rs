//! At most one manager leads in a term.

use std::collections::BTreeMap;

use super::{Holds, Invariant};
use crate::HostId;

#[derive(Default)]
pub(crate) struct OneLeader {
    led: BTreeMap<u64, HostId>,
}

impl Invariant for OneLeader {
    fn leads(&mut self, host: HostId, term: u64) -> Holds {
        match self.led.insert(term, host) {
            Some(other) if other != host => Err(format!("{other} and {host} both led term {term}")),
            Some(_) | None => Ok(()),
        }
    }
}
