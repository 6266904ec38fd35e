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

use skep_model::Timestamp;
use skep_model::generic::GenericResource;
use skep_model::node::Node;
use skep_model::task::{Task, TaskSpec, TaskState};
use skep_store::{Change, View};

pub(crate) use enforce::misfits;
use filter::Demand;
use ledger::{Group, Ledger};
use spread::Candidates;

/// Tasks of one template, each with its place among all that wait.
#[derive(Default)]
struct Template<'a> {
    /// Global ones, which have their node.
    fixed: Vec<(usize, &'a Task)>,
    free: Vec<(usize, &'a Task)>,
}

/// What a task waits with while it has no node.
const WAITING: &str = "pending task scheduling";

/// Whether a node could run tasks of this template at all, whatever else it runs: for global services.
pub(crate) fn fits_statically(spec: &TaskSpec) -> impl Fn(&Node) -> bool + use<> {
    let demand = Demand::of(spec, &[]);
    move |node| demand.as_ref().is_ok_and(|demand| demand.fits_node(node))
}

/// What becomes of a task that waits.
#[derive(Clone)]
enum Outcome {
    /// It runs on the node of this place in the ledger, with this of the node's generic resources.
    Placed(usize, Vec<GenericResource>),
    /// Why it has no node.
    Waits(String),
}

/// A node for every task that waits for one, or the remark that there is none. Reads only the View, and every change does
/// something to it.
pub(crate) fn assign(view: &View, now: Timestamp) -> Vec<Change> {
    // In the order the store has them, and so are the changes: neighbours in a batch share what is copied for it.
    let waiting: Vec<&Task> =
        view.waiting_tasks().map(Arc::as_ref).filter(|t| t.status.state == TaskState::Pending).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let mut services: BTreeMap<_, BTreeMap<u64, Template>> = BTreeMap::new();
    for (place, task) in waiting.iter().enumerate() {
        let template = services.entry(&task.service_id).or_default().entry(task.spec_version).or_default();
        let tasks = if task.node_id.is_some() { &mut template.fixed } else { &mut template.free };
        tasks.push((place, *task));
    }
    let ledger = Ledger::new(view, services.keys().copied());
    let mut placer = Placer { ledger, outcomes: vec![None; waiting.len()] };
    for (service, templates) in services {
        let mut group = placer.ledger.group(service);
        for (spec_version, Template { fixed, free }) in templates {
            group.shun(&placer.ledger, view.failures(service), spec_version, now);
            for (place, task) in fixed {
                placer.outcomes[place] = placer.fixed(&mut group, task);
            }
            placer.free(&mut group, &free);
        }
    }
    let Placer { ledger, outcomes } = placer;
    waiting.into_iter().zip(outcomes).filter_map(|(task, outcome)| change(&ledger, task, outcome?)).collect()
}

/// `None` if the task says so already.
fn change(ledger: &Ledger, task: &Task, outcome: Outcome) -> Option<Change> {
    let task_id = task.id.clone();
    match outcome {
        Outcome::Placed(node, generic) => {
            Some(Change::AssignTask { task_id, node_id: ledger.loads()[node].node.id.clone(), generic })
        }
        Outcome::Waits(explanation) => {
            let error = match explanation.as_str() {
                "" => "no suitable node".to_owned(),
                text => format!("no suitable node ({text})"),
            };
            let is_news = task.status.message != WAITING || task.status.error != error;
            is_news.then(|| Change::SetTaskRemark { task_id, message: WAITING.into(), error })
        }
    }
}

struct Placer {
    ledger: Ledger,
    /// Of the tasks that wait, each at its place.
    outcomes: Vec<Option<Outcome>>,
}

impl Placer {
    /// A global service's task has its node already; it only has to fit.
    fn fixed(&mut self, group: &mut Group, task: &Task) -> Option<Outcome> {
        let node = self.ledger.position(task.node_id.as_ref()?)?;
        let checked = Demand::of(&task.spec, &task.ports).and_then(|demand| {
            let refusal = demand.refusal(&self.ledger.loads()[node], group.own[node]);
            refusal.map_or(Ok(demand), |reason| Err(explain::one(reason)))
        });
        Some(match checked {
            Ok(demand) => Outcome::Placed(node, self.ledger.place(node, group, &demand)),
            Err(explanation) => Outcome::Waits(explanation),
        })
    }

    /// Tasks of one template that may run anywhere.
    fn free(&mut self, group: &mut Group, tasks: &[(usize, &Task)]) {
        let Some((_, first)) = tasks.first() else { return };
        let demand = match Demand::of(&first.spec, &first.ports) {
            Ok(demand) => demand,
            Err(explanation) => {
                let waits = Outcome::Waits(explanation);
                return tasks.iter().for_each(|(place, _)| self.outcomes[*place] = Some(waits.clone()));
            }
        };
        let mut candidates = Candidates::new(&self.ledger, group, &demand);
        let mut explanation = None;
        for (place, _) in tasks {
            self.outcomes[*place] = Some(match candidates.next(&mut self.ledger, group, &demand) {
                Some((node, generic)) => Outcome::Placed(node, generic),
                None => {
                    let text = explanation.get_or_insert_with(|| explain::all(&self.ledger, group, &demand));
                    Outcome::Waits(text.clone())
                }
            });
        }
    }
}
