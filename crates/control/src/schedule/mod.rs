//! Where tasks run.
//!
//! Decides a node for every task that waits for one, or says in the task why there is none. Tasks of one template are taken
//! together: what a node is and has is looked at once a template, and each choice costs a logarithm of the nodes.

mod constraint;
mod enforce;
mod explain;
mod filter;
mod ledger;
mod spread;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::node::Node;
use skep_model::task::{Task, TaskSpec, TaskState};
use skep_model::{ServiceId, TaskId};
use skep_store::Change;

use crate::plan::Plan;
pub(crate) use enforce::misfits;
use filter::Demand;
use ledger::{Group, Ledger};
use spread::Candidates;

/// A task, with its place among all that wait.
type Waiting = (usize, Arc<Task>);

/// What a task waits with while it has no node.
const WAITING: &str = "pending task scheduling";

/// Whether a node could run tasks of this template at all, whatever else it runs: for global services.
pub(crate) fn fits_statically(spec: &TaskSpec) -> impl Fn(&Node) -> bool + use<> {
    let demand = Demand::of(spec, &[]);
    move |node| demand.as_ref().is_ok_and(|demand| demand.fits_node(node))
}

pub(crate) fn assign(plan: &mut Plan) {
    let pending: Vec<Arc<Task>> =
        plan.view().waiting_tasks().filter(|t| t.status.state == TaskState::Pending).cloned().collect();
    if pending.is_empty() {
        return;
    }
    let mut templates: BTreeMap<(ServiceId, u64), Vec<Waiting>> = BTreeMap::new();
    let mut placed: Vec<Option<Change>> = vec![None; pending.len()];
    for (place, task) in pending.into_iter().enumerate() {
        templates.entry((task.service_id.clone(), task.spec_version)).or_default().push((place, task));
    }
    let mut ledger = Ledger::new(plan.view());
    for ((service, spec_version), tasks) in templates {
        let mut group = ledger.group(plan.view(), &service, spec_version, plan.now());
        let (fixed, free): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|(_, t)| t.node_id.is_some());
        for (_, task) in fixed {
            place_fixed(plan, &mut ledger, &mut group, &task);
        }
        if let Some((_, first)) = free.first() {
            place_free(plan, &mut ledger, &mut group, first, &free, &mut placed);
        }
    }
    // In the order the store has them: neighbours in a batch share what is copied for it.
    plan.push_all(placed.into_iter().flatten().collect());
}

/// A global service's task has its node already; it only has to fit.
fn place_fixed(plan: &mut Plan, ledger: &mut Ledger, group: &mut Group, task: &Task) {
    let Some(node_id) = task.node_id.clone() else { return };
    let Some(node) = ledger.position(&node_id) else { return };
    let checked = Demand::of(&task.spec, &task.ports).and_then(|demand| {
        let refusal = demand.refusal(&ledger.loads()[node], group.own[node]);
        refusal.map_or(Ok(demand), |reason| Err(explain::one(reason)))
    });
    match checked {
        Ok(demand) => {
            let generic = ledger.place(node, group, &demand);
            plan.push(Change::AssignTask { task_id: task.id.clone(), node_id, generic });
        }
        Err(explanation) => remark(plan, &task.id, &explanation),
    }
}

/// Tasks of one template, `first` among them; what is decided goes into `placed`, each at its place.
fn place_free(
    plan: &mut Plan,
    ledger: &mut Ledger,
    group: &mut Group,
    first: &Task,
    tasks: &[Waiting],
    placed: &mut [Option<Change>],
) {
    let demand = match Demand::of(&first.spec, &first.ports) {
        Ok(demand) => demand,
        Err(explanation) => {
            return tasks.iter().for_each(|(_, task)| remark(plan, &task.id, &explanation));
        }
    };
    let mut candidates = Candidates::new(ledger, group, &demand);
    let mut explanation = None;
    for (place, task) in tasks {
        match candidates.next(ledger, group, &demand) {
            Some((node, generic)) => {
                let node_id = ledger.loads()[node].node.id.clone();
                placed[*place] = Some(Change::AssignTask { task_id: task.id.clone(), node_id, generic });
            }
            None => {
                let text = explanation.get_or_insert_with(|| explain::all(ledger, group, &demand));
                remark(plan, &task.id, text);
            }
        }
    }
}

fn remark(plan: &mut Plan, id: &TaskId, explanation: &str) {
    let error = match explanation {
        "" => "no suitable node".to_owned(),
        text => format!("no suitable node ({text})"),
    };
    plan.push(Change::SetTaskRemark { task_id: id.clone(), message: WAITING.into(), error });
}
