//! What an applied batch did: the objects before and after, from which Docker's events and the leader's dirty marks are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::Timestamp;
use skep_model::cluster::Cluster;
use skep_model::network::Network;
use skep_model::node::{Availability, Node, NodeState, Role};
use skep_model::secret::{Config, Secret};
use skep_model::service::{Mode, Service, UpdateState};
use skep_model::task::Task;

use crate::change::ObjectKey;

/// Which object, as (before, after): created without a before, removed without an after.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Cluster(Option<Arc<Cluster>>, Option<Arc<Cluster>>),
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Service(Option<Arc<Service>>, Option<Arc<Service>>),
    Task(Option<Arc<Task>>, Option<Arc<Task>>),
    Network(Option<Arc<Network>>, Option<Arc<Network>>),
    Secret(Option<Arc<Secret>>, Option<Arc<Secret>>),
    Config(Option<Arc<Config>>, Option<Arc<Config>>),
}

/// One object changed by one log entry (several changes of one batch to one object may be several events).
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The log index: equals the version of the object after it.
    pub index: u64,
    pub at: Timestamp,
    pub object: Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Create,
    Update,
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    Cluster,
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
}

fn action<T>(old: &Option<T>, new: &Option<T>) -> Action {
    match (old, new) {
        (None, _) => Action::Create,
        (Some(_), Some(_)) => Action::Update,
        (Some(_), None) => Action::Remove,
    }
}

macro_rules! each {
    ($object:expr, ($old:ident, $new:ident) => $body:expr) => {
        match $object {
            Object::Cluster($old, $new) => $body,
            Object::Node($old, $new) => $body,
            Object::Service($old, $new) => $body,
            Object::Task($old, $new) => $body,
            Object::Network($old, $new) => $body,
            Object::Secret($old, $new) => $body,
            Object::Config($old, $new) => $body,
        }
    };
}

fn either<T>(old: &Option<Arc<T>>, new: &Option<Arc<T>>) -> Option<Arc<T>> {
    new.clone().or_else(|| old.clone())
}

impl Event {
    pub fn action(&self) -> Action {
        each!(&self.object, (old, new) => action(old, new))
    }

    pub fn kind(&self) -> ObjectKind {
        match &self.object {
            Object::Cluster(..) => ObjectKind::Cluster,
            Object::Node(..) => ObjectKind::Node,
            Object::Service(..) => ObjectKind::Service,
            Object::Task(..) => ObjectKind::Task,
            Object::Network(..) => ObjectKind::Network,
            Object::Secret(..) => ObjectKind::Secret,
            Object::Config(..) => ObjectKind::Config,
        }
    }

    pub fn id(&self) -> String {
        each!(&self.object, (old, new) => either(old, new).map(|o| o.id.to_string()).unwrap_or_default())
    }

    pub fn key(&self) -> Option<ObjectKey> {
        Some(match &self.object {
            Object::Cluster(..) => ObjectKey::Cluster,
            Object::Node(old, new) => ObjectKey::Node(either(old, new)?.id.clone()),
            Object::Service(old, new) => ObjectKey::Service(either(old, new)?.id.clone()),
            Object::Task(old, new) => ObjectKey::Task(either(old, new)?.id.clone()),
            Object::Network(old, new) => ObjectKey::Network(either(old, new)?.id.clone()),
            Object::Secret(old, new) => ObjectKey::Secret(either(old, new)?.id.clone()),
            Object::Config(old, new) => ObjectKey::Config(either(old, new)?.id.clone()),
        })
    }

    pub fn name(&self) -> String {
        let name = |text: &str| text.to_owned();
        match &self.object {
            Object::Cluster(old, new) => either(old, new).map(|o| name(&o.spec.name)),
            Object::Node(old, new) => either(old, new).map(|o| name(&o.description.hostname)),
            Object::Service(old, new) => either(old, new).map(|o| name(&o.spec.name)),
            Object::Task(old, new) => either(old, new).map(|o| o.name()),
            Object::Network(old, new) => either(old, new).map(|o| name(&o.spec.name)),
            Object::Secret(old, new) => either(old, new).map(|o| name(&o.name)),
            Object::Config(old, new) => either(old, new).map(|o| name(&o.name)),
        }
        .unwrap_or_default()
    }

    /// `name` and what moved, in the keys of Docker's events (moby `daemon/events.go`): `replicas.old`, `state.new`, …
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::from([("name".to_owned(), self.name())]);
        match &self.object {
            Object::Service(Some(old), Some(new)) => service_attributes(old, new, &mut out),
            Object::Node(Some(old), Some(new)) => node_attributes(old, new, &mut out),
            Object::Cluster(..)
            | Object::Node(..)
            | Object::Service(..)
            | Object::Task(..)
            | Object::Network(..)
            | Object::Secret(..)
            | Object::Config(..) => {}
        }
        out
    }

    /// Whether Docker tells of it at all. It is silent about tasks and the cluster, about a service update that moved
    /// nothing a user sees, and about heartbeats of a node.
    pub fn is_public(&self) -> bool {
        match (&self.object, self.action()) {
            (Object::Task(..) | Object::Cluster(..), _) => false,
            (Object::Node(Some(old), Some(new)), Action::Update) => old.spec != new.spec || self.attributes().len() > 1,
            (Object::Service(Some(old), Some(new)), Action::Update) => {
                old.spec != new.spec || self.attributes().len() > 1
            }
            (Object::Network(..), Action::Update) => false,
            (
                Object::Node(..) | Object::Service(..) | Object::Network(..) | Object::Secret(..) | Object::Config(..),
                _,
            ) => true,
        }
    }
}

fn moved(out: &mut BTreeMap<String, String>, key: &str, old: &str, new: &str) {
    if old != new {
        out.insert(format!("{key}.old"), old.to_owned());
        out.insert(format!("{key}.new"), new.to_owned());
    }
}

fn replicas(service: &Service) -> String {
    match service.spec.mode {
        Mode::Replicated { replicas } => replicas.to_string(),
        Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob => String::new(),
    }
}

fn update_state(service: &Service) -> &'static str {
    match service.update_status.as_ref().map(|s| s.state) {
        None => "",
        Some(UpdateState::Updating) => "updating",
        Some(UpdateState::Paused) => "paused",
        Some(UpdateState::Completed) => "completed",
        Some(UpdateState::RollbackStarted) => "rollback_started",
        Some(UpdateState::RollbackPaused) => "rollback_paused",
        Some(UpdateState::RollbackCompleted) => "rollback_completed",
    }
}

fn service_attributes(old: &Service, new: &Service, out: &mut BTreeMap<String, String>) {
    moved(out, "replicas", &replicas(old), &replicas(new));
    moved(out, "image", &old.spec.task.container.image, &new.spec.task.container.image);
    moved(out, "updatestate", update_state(old), update_state(new));
    // Docker leaves out an empty side.
    out.retain(|_, value| !value.is_empty());
}

fn node_attributes(old: &Node, new: &Node, out: &mut BTreeMap<String, String>) {
    let availability = |n: &Node| match n.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = |n: &Node| match n.spec.role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    };
    let state = |n: &Node| match n.status.state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    };
    moved(out, "availability", availability(old), availability(new));
    moved(out, "role", role(old), role(new));
    moved(out, "state", state(old), state(new));
}
