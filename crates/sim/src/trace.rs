//! What happened, in words: the story (what a reader of a golden script wants to see) and all the rest. Both go into the hash
//! by which two runs of one seed are compared.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::{Service, UpdateState};
use skep_model::task::{Task, TaskState};
use skep_model::{NodeId, TaskId};
use skep_store::{Event, Object, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    Story,
    Step,
}

#[derive(Debug)]
pub(crate) struct Trace {
    keep: Option<Detail>,
    hash: u64,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn new(keep: Option<Detail>) -> Self {
        Self { keep, hash: 0xcbf2_9ce4_8422_2325, lines: Vec::new() }
    }

    pub(crate) fn write(&mut self, now: Duration, detail: Detail, text: &str) {
        // FNV-1a: nothing secret is compared, and it is the same on every machine.
        for byte in now.as_nanos().to_le_bytes().into_iter().chain(text.bytes()) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let kept = match self.keep {
            None => false,
            Some(Detail::Story) => detail == Detail::Story,
            Some(Detail::Step) => true,
        };
        if kept {
            let mark = if self.keep == Some(Detail::Step) && detail == Detail::Story { "*" } else { " " };
            self.lines.push(format!("{mark}{:>9.3}s  {text}", now.as_secs_f64()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// Names a reader can follow: `web.1#2` is the second task of slot 1 of `web`.
#[derive(Debug, Default)]
pub(crate) struct Names {
    tasks: BTreeMap<TaskId, String>,
    counts: BTreeMap<String, u32>,
    nodes: BTreeMap<NodeId, String>,
}

impl Names {
    pub(crate) fn task(&self, id: &TaskId) -> String {
        self.tasks.get(id).cloned().unwrap_or_else(|| id.short().to_owned())
    }

    fn node(&self, id: Option<&NodeId>) -> &str {
        id.and_then(|id| self.nodes.get(id)).map_or("nowhere", String::as_str)
    }

    fn made(&mut self, task: &Task) -> String {
        let slot = match task.slot {
            Some(slot) => format!("{}.{slot}", task.service_name),
            None => format!("{}.{}", task.service_name, self.node(task.node_id.as_ref())),
        };
        let count = self.counts.entry(slot.clone()).or_default();
        *count += 1;
        let name = format!("{slot}#{count}");
        self.tasks.insert(task.id.clone(), name.clone());
        name
    }

    /// All services and their tasks, as they are.
    pub(crate) fn state(&self, view: &View) -> Vec<String> {
        let mut lines = Vec::new();
        for service in view.services() {
            let (name, version, mode) = (&service.spec.name, service.spec_version, service.spec.mode);
            let update = service.update_status.as_ref().map(|u| (u.state, u.started_at));
            let (restart, config) = (service.spec.task.restart, service.spec.update);
            lines.push(format!("{name}: template {version}, {mode:?}, update {update:?} {config:?} {restart:?}"));
            for task in view.tasks_of_service(&service.id) {
                let (name, node) = (self.task(&task.id), self.node(task.node_id.as_ref()));
                let (desired, status) = (task.desired_state.as_str(), task.status.state.as_str());
                let (version, error) = (task.spec_version, &task.status.error);
                lines.push(format!("  {name} on {node}: {status}, shall be {desired}, template {version} {error}"));
            }
        }
        for node in view.nodes() {
            let (name, state) = (&node.description.hostname, node.status.state);
            lines.push(format!("{name}: {state:?}, {:?}", node.spec.availability));
        }
        lines
    }

    /// What an entry did, told once.
    pub(crate) fn read(&mut self, events: &[Event]) -> Vec<(Detail, String)> {
        let mut lines = Vec::new();
        for event in events {
            match &event.object {
                Object::Task(None, Some(task)) => {
                    let name = self.made(task);
                    let place = match task.status.state {
                        TaskState::Assigned => format!(" for {}", self.node(task.node_id.as_ref())),
                        _ => String::new(),
                    };
                    lines.push((Detail::Story, format!("{name} is made{place}")));
                }
                Object::Task(Some(old), Some(new)) => self.moved(old, new, &mut lines),
                Object::Task(Some(old), None) => {
                    lines.push((Detail::Step, format!("{} is forgotten", self.task(&old.id))));
                }
                Object::Node(old, Some(new)) => self.node_moved(old.as_deref(), new, &mut lines),
                Object::Service(None, Some(new)) => {
                    lines.push((Detail::Story, format!("service {} is created", new.spec.name)));
                }
                Object::Service(Some(old), Some(new)) => service_moved(old, new, &mut lines),
                Object::Service(Some(old), None) => {
                    lines.push((Detail::Story, format!("service {} is removed", old.spec.name)));
                }
                Object::Network(None, Some(new)) => {
                    lines.push((Detail::Step, format!("network {} is created", new.spec.name)));
                }
                Object::Network(Some(old), None) => {
                    lines.push((Detail::Step, format!("network {} is removed", old.spec.name)));
                }
                Object::Task(None, None)
                | Object::Node(..)
                | Object::Service(..)
                | Object::Network(..)
                | Object::Secret(..)
                | Object::Config(..)
                | Object::Cluster(..) => {}
            }
        }
        lines
    }

    fn moved(&self, old: &Task, new: &Task, lines: &mut Vec<(Detail, String)>) {
        let name = self.task(&new.id);
        if old.status.state != new.status.state {
            let state = new.status.state;
            let told = state == TaskState::Assigned || state == TaskState::Running || state.is_terminal();
            let detail = if told { Detail::Story } else { Detail::Step };
            let mut text = format!("{name} is {}", state.as_str());
            if matches!(state, TaskState::Running | TaskState::Assigned) {
                text.push_str(&format!(" on {}", self.node(new.node_id.as_ref())));
            }
            if !new.status.error.is_empty() {
                text.push_str(&format!(": {}", new.status.error));
            }
            lines.push((detail, text));
        }
        if old.desired_state != new.desired_state {
            lines.push((Detail::Step, format!("{name} shall be {}", new.desired_state.as_str())));
        }
    }

    fn node_moved(&mut self, old: Option<&Node>, new: &Node, lines: &mut Vec<(Detail, String)>) {
        let name = new.description.hostname.clone();
        self.nodes.insert(new.id.clone(), name.clone());
        if old.map(|o| o.status.state) != Some(new.status.state) {
            let word = match new.status.state {
                NodeState::Unknown => return,
                NodeState::Down => "down",
                NodeState::Ready => "ready",
                NodeState::Disconnected => "disconnected",
            };
            lines.push((Detail::Story, format!("{name} is {word}")));
        }
        if old.is_some_and(|o| o.spec.availability != new.spec.availability) {
            let word = match new.spec.availability {
                Availability::Active => "active",
                Availability::Pause => "paused",
                Availability::Drain => "drained",
            };
            lines.push((Detail::Story, format!("{name} is {word}")));
        }
    }
}

fn service_moved(old: &Service, new: &Service, lines: &mut Vec<(Detail, String)>) {
    let name = &new.spec.name;
    if old.spec != new.spec {
        lines.push((Detail::Story, format!("service {name} is changed")));
    }
    let state = |s: &Service| s.update_status.as_ref().map(|u| u.state);
    if state(old) != state(new) {
        let word = match state(new) {
            None => return,
            Some(UpdateState::Updating) => "begins",
            Some(UpdateState::Paused) => "is paused",
            Some(UpdateState::Completed) => "is complete",
            Some(UpdateState::RollbackStarted) => "is rolled back",
            Some(UpdateState::RollbackPaused) => "is stuck rolling back",
            Some(UpdateState::RollbackCompleted) => "has been rolled back",
        };
        lines.push((Detail::Story, format!("update of {name} {word}")));
    }
}
