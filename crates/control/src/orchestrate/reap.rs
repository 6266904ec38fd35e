//! What may be forgotten: tasks of services that are gone, of slots given up, of the distant past.

use std::time::Duration;

use skep_model::service::Service;
use skep_model::task::{Task, TaskState, TaskStatus};
use skep_model::{ServiceId, Timestamp};
use skep_store::{Change, SlotKey, View};

use super::slot::slots;
use super::{fence, is_over, on_lost_node};
use crate::plan::Plan;

/// After this long without its node a task is given up (swarmkit `defaultOrphanTaskTimeout`).
const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Tasks whose service is gone: asked to leave, then forgotten.
pub(super) fn removed_service(plan: &mut Plan, id: &ServiceId) {
    let tasks: Vec<_> = plan.view().tasks_of_service(id).cloned().collect();
    for task in tasks {
        // What was never assigned no node will report about.
        if is_over(plan.view(), &task) || task.status.state < TaskState::Assigned {
            plan.push(Change::RemoveTask { task_id: task.id.clone() });
        } else {
            plan.push(Change::SetTaskDesired { task_id: task.id.clone(), desired_state: TaskState::Remove });
        }
    }
}

/// Tasks of slots given up that have stopped, and the oldest of each slot beyond the history kept.
pub(super) fn history(plan: &mut Plan, service: &Service) {
    let tasks: Vec<_> = plan.view().tasks_of_service(&service.id).cloned().collect();
    for task in tasks {
        let unwanted = !task.is_wanted();
        // Who comes next in its place must know of it until it is surely over.
        let lingers = fence::over_at(plan, &task).filter(|at| *at > plan.now());
        lingers.into_iter().for_each(|at| plan.wake(at));
        let removing = task.desired_state >= TaskState::Remove && is_over(plan.view(), &task) && lingers.is_none();
        if removing || (unwanted && task.node_id.is_none()) || (unwanted && task.status.state < TaskState::Assigned) {
            plan.push(Change::RemoveTask { task_id: task.id.clone() });
        } else if unwanted && !task.status.state.is_terminal() {
            orphan(plan, &task);
        }
    }
    let limit = plan.view().cluster().map_or(5, |c| c.spec.task_history_limit);
    let Ok(limit) = usize::try_from(limit) else { return };
    for slot in slots(plan.view(), &service.id).values() {
        let (last, surplus) = match &slot.key {
            // The place itself is gone, and its history with it.
            SlotKey::Node(id) if plan.view().node(id).is_none() => (None, slot.tasks.len()),
            SlotKey::Node(_) | SlotKey::Slot(_) => {
                (slot.newest().map(|t| t.id.clone()), slot.tasks.len().saturating_sub(limit))
            }
        };
        // The last one is kept in any case: it tells that the slot is finished.
        let old = slot.tasks.iter().filter(|t| is_past(t) && Some(&t.id) != last.as_ref());
        for task in old.take(surplus) {
            plan.push(Change::RemoveTask { task_id: task.id.clone() });
        }
    }
}

fn is_past(task: &Task) -> bool {
    // A job's task that is complete is past, too.
    task.desired_state > TaskState::Running && task.status.state.is_terminal()
}

/// Nobody will report for a task whose node is gone for good, or has been down too long.
fn orphan(plan: &mut Plan, task: &Task) {
    if !on_lost_node(plan.view(), task) {
        return;
    }
    let due = given_up_at(plan.view(), task);
    if due > plan.now() {
        plan.wake(due);
        return;
    }
    let status = TaskStatus {
        state: TaskState::Orphaned,
        at: plan.now(),
        message: "orphaned".into(),
        container: task.status.container.clone(),
        ..TaskStatus::default()
    };
    plan.push(Change::SetTaskState { task_id: task.id.clone(), status });
}

fn given_up_at(view: &View, task: &Task) -> Timestamp {
    let node = task.node_id.as_ref().and_then(|id| view.node(id));
    node.map_or(Timestamp::ZERO, |n| n.status.since.plus(ORPHAN_AFTER))
}
