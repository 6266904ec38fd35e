//! A task with `skep.stop-after` never runs twice, also when its host is cut off: what takes its place waits until the old
//! one must be dead.
//!
//! Why that is enough. A host stops such a task `stop_after` after it *sent* the last heartbeat that a leader answered; call
//! that instant `s`. The leader received it at `h`, after `s`, and called the node down at `d`, after `h`: a leader answers
//! no heartbeat of a node it called down, and a leader that was voted out answers none once its lease is over, which is
//! before the next one can be elected and call anybody down. So the old task ends before `s + stop_after`, and the new one
//! starts after `d + stop_after + margin`, with `s < h < d`. The two durations are measured by two clocks; they may differ in
//! rate, and a kill takes a moment: that is the margin. What another leader's clock showed at `d` says nothing here, nor does
//! what this one's did before it was set: such a `d` counts as the moment since when this leader's clock can be trusted.

use std::time::Duration;

use skep_model::node::NodeState;
use skep_model::task::{Task, TaskState};
use skep_model::{ServiceId, TaskId, Timestamp};
use skep_store::SlotKey;

use crate::plan::Plan;

/// For the kill to take effect, with a machine under load.
const KILL: Duration = Duration::from_secs(1);
/// Clocks differ in rate by less than one part in so many.
const CLOCKS: u32 = 50;
/// Until its host says otherwise.
const NEVER: Timestamp = Timestamp(i64::MAX);

/// The moment from which a task that is to stop certainly does not run; `None` if it does not run now, or may run twice.
pub(super) fn over_at(plan: &Plan, task: &Task) -> Option<Timestamp> {
    let (view, after) = (plan.view(), task.stop_after()?);
    let surely = |since: Timestamp| plan.at_the_latest(since).plus(after + after / CLOCKS + KILL);
    let node = view.node(task.node_id.as_ref()?);
    match (task.status.state, node) {
        // Its node was removed, or had been down for long, and that was when it was said.
        (TaskState::Orphaned, _) => Some(surely(task.status.at)),
        (state, _) if state.is_terminal() => None,
        (_, Some(node)) if node.status.state == NodeState::Down => Some(surely(node.status.since)),
        (_, None) => Some(view.revoked(task.node_id.as_ref()?).map_or(NEVER, surely)),
        // It will tell.
        (_, Some(_)) => Some(NEVER),
    }
}

/// A task that had this place and may still run, though it should not: the last of them, and until when.
pub(super) fn lingering(plan: &Plan, service: &ServiceId, key: &SlotKey) -> Option<(Timestamp, TaskId)> {
    let stopping = plan.view().tasks_of_slot(service, key).filter(|t| !t.is_wanted());
    let until = stopping.filter_map(|t| Some((over_at(plan, t)?, t.id.clone())));
    until.filter(|(at, _)| *at > plan.now()).max()
}
