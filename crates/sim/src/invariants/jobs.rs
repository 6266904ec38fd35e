//! What a job has completed is not run again without being asked, whoever leads; and in the end all of it is completed, if there
//! are addresses to run it.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::ServiceId;
use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::Mode;
use skep_model::task::TaskState;
use skep_store::{Object, SlotKey};

use super::replicas::waiting_for_an_address;
use super::{Entry, Holds, Invariant, Settled};

/// A run of a job.
type Run = (ServiceId, u64);

#[derive(Default)]
pub(crate) struct Jobs {
    complete: BTreeMap<Run, BTreeSet<SlotKey>>,
}

impl Invariant for Jobs {
    fn entry(&mut self, entry: &Entry<'_>) -> Holds {
        for event in entry.events {
            let Object::Task(old, Some(task)) = &event.object else { continue };
            let (Some(iteration), Some(place)) = (task.job_iteration, SlotKey::of(task)) else { continue };
            let complete = self.complete.entry((task.service_id.clone(), iteration)).or_default();
            if old.is_none() && complete.contains(&place) {
                let (name, index) = (task.slot_name(), entry.index);
                return Err(format!("{name} was complete in run {iteration} and is made again at entry {index}"));
            }
            if task.status.state == TaskState::Complete {
                complete.insert(place);
            }
        }
        Ok(())
    }

    fn settled(&mut self, world: &Settled) -> Holds {
        let Some((_, view)) = world.managers.first() else { return Ok(()) };
        let works = |n: &Node| n.spec.availability == Availability::Active && n.status.state == NodeState::Ready;
        for service in view.services() {
            let Mode::ReplicatedJob { total_completions, .. } = service.spec.mode else { continue };
            let gives_up = service.spec.task.restart.unwrap_or_default().max_attempts > 0;
            let run = (service.id.clone(), service.job_iteration().unwrap_or_default());
            let complete = self.complete.get(&run).map_or(0, BTreeSet::len) as u64;
            let can_run = view.nodes().any(|n| works(n)) && waiting_for_an_address(view, service) == 0;
            if !gives_up && can_run && complete != total_completions {
                let name = &service.spec.name;
                return Err(format!("{name} has completed {complete} of {total_completions}"));
            }
        }
        Ok(())
    }
}
