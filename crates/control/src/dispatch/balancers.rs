//! Which hosts may still give new connections to which tasks: a task has its stop signal only when none may.
//!
//! A host is told, in a numbered message, that a task takes no new connections, and says the number back once its balancers
//! are so. Until then, and as long as a host has said nothing in this session, it is taken to balance over everything it
//! was ever told of. A host that is called down is not waited for. Nothing here need outlive a leader: the next one hears
//! from every host what it has.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::assignment::AssignmentSet;
use skep_model::node::NodeState;
use skep_model::task::{Task, TaskState};
use skep_model::{NodeId, TaskId};
use skep_store::View;

/// What the hosts with a session were told and what they said of it.
#[derive(Clone, Debug, Default)]
pub struct Balancers {
    hosts: BTreeMap<NodeId, Host>,
}

#[derive(Clone, Debug, Default)]
struct Host {
    /// The last message that is in force there; 0 is none of this session.
    applied: u64,
    /// What it may balance over by the last message.
    serving: BTreeSet<TaskId>,
    /// What it may no longer, and which message said so first; those in force are forgotten.
    dropped: BTreeMap<TaskId, u64>,
    /// Its own tasks that wait for other hosts.
    waiting: BTreeSet<TaskId>,
}

impl Balancers {
    /// A session began: what the host does is not known until it says so.
    pub fn opened(&mut self, node: NodeId) {
        self.hosts.insert(node, Host::default());
    }

    /// Sessions end in many ways: keeps those that have not.
    pub fn retain(&mut self, has_session: impl Fn(&NodeId) -> bool) {
        self.hosts.retain(|id, _| has_session(id));
    }

    /// Message `sequence` went out, after which the host has `set`.
    pub fn told(&mut self, node: &NodeId, sequence: u64, set: &AssignmentSet) {
        let Some(host) = self.hosts.get_mut(node) else { return };
        let serving: BTreeSet<TaskId> =
            set.endpoints.iter().filter(|(_, e)| e.serving).map(|((_, task), _)| task.clone()).collect();
        for task in host.serving.difference(&serving) {
            host.dropped.insert(task.clone(), sequence);
        }
        host.serving = serving;
        host.waiting = stopping(set).filter(|t| !set.left.contains(&t.id)).map(|t| t.id.clone()).collect();
    }

    /// The host's balancers are as message `sequence` said, or a later one.
    pub fn applied(&mut self, node: &NodeId, sequence: u64) {
        if let Some(host) = self.hosts.get_mut(node) {
            host.applied = host.applied.max(sequence);
            host.dropped.retain(|_, since| *since > sequence);
        }
    }

    /// Of the tasks in `set` that are to stop, those that no host gives new connections to. A service that is removed has
    /// no clients to care for.
    pub fn left(&self, view: &View, set: &AssignmentSet) -> BTreeSet<TaskId> {
        let left = |t: &&Task| view.service(&t.service_id).is_none() || self.has_left(view, &t.id);
        stopping(set).filter(left).map(|t| t.id.clone()).collect()
    }

    /// Hosts with a task that waited and need not any more.
    pub fn due(&self, view: &View) -> BTreeSet<NodeId> {
        let due = |host: &Host| host.waiting.iter().any(|task| self.has_left(view, task));
        self.hosts.iter().filter(|(_, host)| due(host)).map(|(id, _)| id.clone()).collect()
    }

    fn has_left(&self, view: &View, task: &TaskId) -> bool {
        let without =
            |host: &Host| host.applied > 0 && !host.serving.contains(task) && !host.dropped.contains_key(task);
        view.nodes()
            .filter(|node| node.status.state != NodeState::Down)
            .all(|node| self.hosts.get(&node.id).is_some_and(without))
    }
}

/// One that ran and is rejected was so by a manager, and still runs.
fn stopping(set: &AssignmentSet) -> impl Iterator<Item = &Task> {
    let runs = |t: &Task| match t.status.state {
        TaskState::Rejected => t.status.container.is_some(),
        state => !state.is_terminal(),
    };
    set.tasks.values().filter(move |t| t.desired_state > TaskState::Running && runs(t))
}
