//! Which tasks there should be, and what they should be doing.
//!
//! One service at a time, from the View alone: its tasks by slot ([`slot`]), tasks that ended ([`restart`]), how many slots
//! there are ([`replicated`], [`global`], [`job`]), the template they are made from ([`update`]), what may be forgotten
//! ([`reap`]), and what must not run twice ([`fence`]).

mod fence;
mod global;
mod job;
mod reap;
mod replicated;
mod restart;
mod slot;
mod update;

use std::collections::BTreeSet;

use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::{Mode, Service};
use skep_model::task::{Task, TaskState};
use skep_model::{NodeId, ServiceId, TaskId, Timestamp};
use skep_store::{Change, NewTask, SlotKey, View};

use crate::ctx::IdSource;
use crate::dirty::Dirty;
use crate::plan::Plan;

pub(crate) fn reconcile(plan: &mut Plan, dirty: &Dirty, ids: &mut dyn IdSource) {
    let keys: BTreeSet<ServiceId> = if dirty.everything {
        let view = plan.view();
        view.services().map(|s| s.id.clone()).chain(view.services_with_tasks().cloned()).collect()
    } else {
        dirty.services.clone()
    };
    for id in keys {
        let mut desk = Desk { plan, ids, fenced: false };
        match desk.plan.view().service(&id).cloned() {
            None => reap::removed_service(desk.plan, &id),
            Some(service) => desk.service(&service),
        }
    }
}

/// What an orchestrator works with.
struct Desk<'a> {
    plan: &'a mut Plan,
    ids: &'a mut dyn IdSource,
    /// Whether a task of the service is one that must not run twice.
    fenced: bool,
}

impl Desk<'_> {
    fn service(&mut self, service: &Service) {
        // First, because a rollback changes the template all else goes by.
        self.check_update(service);
        let Some(service) = self.plan.view().service(&service.id).cloned() else { return };
        let service = &*service;
        self.fenced = self.plan.view().tasks_of_service(&service.id).any(|t| t.stop_after().is_some());
        match service.spec.mode {
            Mode::Replicated { replicas } => {
                self.restart(service);
                self.replicas(service, replicas);
            }
            Mode::Global => {
                self.restart(service);
                self.everywhere(service);
            }
            Mode::ReplicatedJob { max_concurrent, total_completions } => {
                self.begin_run(service);
                self.restart(service);
                self.completions(service, max_concurrent, total_completions);
            }
            Mode::GlobalJob => {
                self.begin_run(service);
                self.restart(service);
                self.once_everywhere(service);
            }
        }
        if !service.spec.mode.is_job() {
            self.update(service);
        }
        self.start_due(service);
        reap::history(self.plan, service);
    }

    fn desire(&mut self, task: &TaskId, desired_state: TaskState) {
        self.plan.push(Change::SetTaskDesired { task_id: task.clone(), desired_state });
    }

    /// Makes a task of the service's present template.
    fn create(&mut self, service: &Service, key: &SlotKey, mut how: How) -> TaskId {
        if self.fenced
            && let Some((_, old)) = fence::lingering(self.plan, &service.id, key)
        {
            how = How { start_after: how.start_after, restart: how.restart, ..How::after(&old) };
        }
        let id = TaskId::from_bits(self.ids.next_id());
        let (slot, node_id) = match key {
            SlotKey::Slot(slot) => (Some(*slot), None),
            SlotKey::Node(node) => (None, Some(node.clone())),
        };
        self.plan.push(Change::CreateTask(Box::new(NewTask {
            id: id.clone(),
            service_id: service.id.clone(),
            spec_version: service.spec_version,
            slot,
            node_id,
            desired_state: if how.desired_state < TaskState::Running { how.desired_state } else { goal(service) },
            state: TaskState::New,
            message: "created".into(),
            networks: Vec::new(),
            start_after: how.start_after,
            replaces: how.replaces,
            restart: how.restart,
            generic: Vec::new(),
        })));
        id
    }
}

/// What a task that may start is to become.
fn goal(service: &Service) -> TaskState {
    if service.spec.mode.is_job() { TaskState::Complete } else { TaskState::Running }
}

/// How a new task begins.
struct How {
    desired_state: TaskState,
    start_after: Option<Timestamp>,
    /// Started only once this one has stopped.
    replaces: Option<TaskId>,
    restart: bool,
}

impl How {
    fn at_once() -> Self {
        Self { desired_state: TaskState::Running, start_after: None, replaces: None, restart: false }
    }

    /// Made ready meanwhile, started when `old` is out of the way.
    fn after(old: &TaskId) -> Self {
        Self { desired_state: TaskState::Ready, replaces: Some(old.clone()), ..Self::at_once() }
    }
}

/// Gone for all we know: what ran there must be assumed not to run.
fn is_lost(node: Option<&std::sync::Arc<Node>>) -> bool {
    node.is_none_or(|n| n.status.state == NodeState::Down)
}

/// May keep tasks (swarmkit `InvalidNode`, negated).
fn may_keep(node: Option<&std::sync::Arc<Node>>) -> bool {
    !is_lost(node) && node.is_some_and(|n| n.spec.availability != Availability::Drain)
}

/// Whether a task's node is lost; one without a node is not on a lost one.
fn on_lost_node(view: &View, task: &Task) -> bool {
    task.node_id.as_ref().is_some_and(|id: &NodeId| is_lost(view.node(id)))
}

/// It no longer runs, or nobody will ever hear of it again.
fn is_over(view: &View, task: &Task) -> bool {
    task.status.state.is_terminal() || on_lost_node(view, task) || task.node_id.is_none()
}
