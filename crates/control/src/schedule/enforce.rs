//! Tasks leave a node that does not fit them any more (swarmkit's constraint enforcer): its labels, role or address moved, or
//! it has less than they reserved. They are rejected, and what the restart policy makes of that goes elsewhere.
//!
//! A global service's tasks have no elsewhere: for what a node is, `orchestrate` takes them away itself.

use std::collections::BTreeMap;

use skep_model::node::{Availability, NodeState};
use skep_model::task::{Task, TaskState, TaskStatus};
use skep_model::{ServiceId, TaskId};
use skep_store::Change;

use super::filter::Demand;
use super::ledger::Load;
use crate::plan::Plan;

/// Looks at every node: a drained one loses its tasks anyway, and a paused one keeps what it has.
pub(crate) fn misfits(plan: &mut Plan) {
    let mut demands: BTreeMap<(ServiceId, u64), Option<Demand>> = BTreeMap::new();
    let mut misfits: Vec<TaskId> = Vec::new();
    let view = plan.view();
    let watched = |state| state != NodeState::Down;
    for node in view.nodes().filter(|n| n.spec.availability == Availability::Active && watched(n.status.state)) {
        let mut load = Load::empty(node);
        let mut tasks: Vec<_> =
            view.tasks_of_node(&node.id).filter(|t| t.is_live() && t.status.state >= TaskState::Assigned).collect();
        // Who came first stays.
        tasks.sort_by_key(|t| (t.meta.created_at, &t.id));
        for task in tasks {
            let key = (task.service_id.clone(), task.spec_version);
            let demand = demands.entry(key).or_insert_with(|| Demand::of(&task.spec, &[]).ok());
            let fits = demand.as_ref().is_none_or(|demand| {
                (task.slot.is_none() || demand.constraints_hold(node)) && has_room(&load, task, demand)
            });
            if fits {
                load.add(task);
            } else {
                misfits.push(task.id.clone());
            }
        }
    }
    for task_id in misfits {
        // Rejected is ended, as far as others know. What may not run twice has ended when its host says so.
        if plan.view().task(&task_id).is_some_and(|t| t.stop_after().is_some()) {
            plan.push(Change::SetTaskDesired { task_id, desired_state: TaskState::Shutdown });
            continue;
        }
        let status = TaskStatus {
            state: TaskState::Rejected,
            at: plan.now(),
            message: "task rejected by constraint enforcer".into(),
            error: "assigned node no longer meets constraints".into(),
            ..plan.view().task(&task_id).map(|t| t.status.clone()).unwrap_or_default()
        };
        plan.push(Change::SetTaskState { task_id, status });
    }
}

fn has_room(load: &Load, task: &Task, demand: &Demand) -> bool {
    demand.reserved.nano_cpus <= load.free_nano_cpus
        && demand.reserved.memory_bytes <= load.free_memory_bytes
        && load.generic.clone().take(&task.generic)
}
