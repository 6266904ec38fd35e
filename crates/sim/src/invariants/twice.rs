//! A task that is not to run twice (`skep.stop-after`) does not: not while its host is cut off, not across leaders, and
//! whatever the clocks show.

use std::collections::BTreeMap;

use skep_model::TaskId;

use super::{Holds, Invariant};
use crate::HostId;
use crate::engine::Place;

#[derive(Default)]
pub(crate) struct Twice {
    running: BTreeMap<Place, (TaskId, HostId)>,
}

impl Invariant for Twice {
    fn started(&mut self, place: &Place, task: &TaskId, host: HostId) -> Holds {
        match self.running.insert(place.clone(), (task.clone(), host)) {
            Some((other, there)) if other != *task => {
                Err(format!("task {task} was started on {host} while {other} of the same place ran on {there}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn ended(&mut self, task: &TaskId) {
        self.running.retain(|_, (id, _)| id != task);
    }
}
