//! What must always hold, one a file. Each is told everything it needs as it happens, and is proved by a test that shows it a
//! world in which it does not hold (`tests.rs`, which also says where the real code was broken once and a seed found it).

mod acknowledged;
mod addresses;
mod jobs;
mod members;
mod once;
mod one_leader;
mod orphans;
mod places;
mod ports;
mod prefixes;
mod quiet;
mod replicas;
mod restarts;
mod status_up;
mod twice;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use skep_model::cluster::JoinTokens;
use skep_model::network::Network;
use skep_model::node::Node;
use skep_model::service::Service;
use skep_model::task::Task;
use skep_model::{NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp};
use skep_store::{Event, Object, View};

use crate::HostId;
use crate::client::TAG;
use crate::engine::Place;
use crate::places::Key;
use crate::world::World;

/// Whether it holds; if not, what is wrong, in a sentence.
pub(crate) type Holds = Result<(), String>;

pub(crate) trait Invariant {
    /// A manager applied an entry.
    fn applied(&mut self, _host: HostId, _index: u64, _events: &Arc<[Event]>) -> Holds {
        Ok(())
    }

    /// Up to `index` a manager took its state in some other way than entry by entry.
    fn resynced(&mut self, _host: HostId, _index: u64) {}

    /// An entry was applied for the first time anywhere: the next prefix of the log.
    fn entry(&mut self, _entry: &Entry<'_>) -> Holds {
        Ok(())
    }

    fn leads(&mut self, _host: HostId, _term: u64) -> Holds {
        Ok(())
    }

    /// A user was told that entry `index` did what was asked.
    fn acknowledged(&mut self, _index: u64, _evidence: &Evidence) {}

    /// The container of a task that is not to run twice was started, or any ended.
    fn started(&mut self, _place: &Place, _task: &TaskId, _host: HostId) -> Holds {
        Ok(())
    }
    fn ended(&mut self, _task: &TaskId) {}

    /// A container that is no task lives with this address, or not any more.
    fn placed(&mut self, _key: &Key, _address: Ipv4Addr, _state: &State) -> Holds {
        Ok(())
    }
    fn left(&mut self, _key: &Key) {}

    /// The faults are over, and the world has had time.
    fn settled(&mut self, _world: &Settled) -> Holds {
        Ok(())
    }
}

/// One prefix of the log: its last entry, and what it leaves.
pub(crate) struct Entry<'a> {
    pub(crate) index: u64,
    pub(crate) events: &'a [Event],
    pub(crate) state: &'a State,
    /// At least as new as the entry.
    pub(crate) view: &'a View,
}

/// The objects as the events tell of them, entry by entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node>>,
    pub(crate) services: BTreeMap<ServiceId, Arc<Service>>,
    pub(crate) tasks: BTreeMap<TaskId, Arc<Task>>,
    pub(crate) networks: BTreeMap<NetworkId, Arc<Network>>,
}

fn put<K: Ord, V>(table: &mut BTreeMap<K, Arc<V>>, key: K, value: Option<Arc<V>>) {
    match value {
        Some(value) => table.insert(key, value),
        None => table.remove(&key),
    };
}

impl State {
    fn of(view: &View) -> Self {
        Self {
            nodes: view.nodes().map(|n| (n.id.clone(), n.clone())).collect(),
            services: view.services().map(|s| (s.id.clone(), s.clone())).collect(),
            tasks: view.tasks().map(|t| (t.id.clone(), t.clone())).collect(),
            networks: view.networks().map(|n| (n.id.clone(), n.clone())).collect(),
        }
    }

    fn take(&mut self, events: &[Event]) {
        for event in events {
            match event.object.clone() {
                Object::Node(old, new) => {
                    if let Some(id) = new.as_ref().or(old.as_ref()).map(|n| n.id.clone()) {
                        put(&mut self.nodes, id, new);
                    }
                }
                Object::Service(old, new) => {
                    if let Some(id) = new.as_ref().or(old.as_ref()).map(|s| s.id.clone()) {
                        put(&mut self.services, id, new);
                    }
                }
                Object::Task(old, new) => {
                    if let Some(id) = new.as_ref().or(old.as_ref()).map(|t| t.id.clone()) {
                        put(&mut self.tasks, id, new);
                    }
                }
                Object::Network(old, new) => {
                    if let Some(id) = new.as_ref().or(old.as_ref()).map(|n| n.id.clone()) {
                        put(&mut self.networks, id, new);
                    }
                }
                Object::Cluster(..) | Object::Secret(..) | Object::Config(..) => {}
            }
        }
    }
}

/// What an entry must have done if a user was told that it did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Evidence {
    Service { id: ServiceId, tag: String },
    ServiceTouched { id: ServiceId },
    ServiceGone { id: ServiceId },
    Node { id: NodeId, tag: String },
    Network { id: NetworkId, there: bool },
    Secret { id: SecretId },
    Tokens { tokens: JoinTokens },
}

impl Evidence {
    pub(crate) fn is_in(&self, events: &[Event]) -> bool {
        events.iter().any(|event| match (self, &event.object) {
            (Self::Service { id, tag }, Object::Service(_, Some(new))) => {
                new.id == *id && new.spec.labels.get(TAG) == Some(tag)
            }
            (Self::ServiceTouched { id }, Object::Service(_, Some(new))) => new.id == *id,
            (Self::ServiceGone { id }, Object::Service(Some(old), None)) => old.id == *id,
            (Self::Node { id, tag }, Object::Node(_, Some(new))) => {
                new.id == *id && new.spec.labels.get(TAG) == Some(tag)
            }
            (Self::Network { id, there: true }, Object::Network(None, Some(new))) => new.id == *id,
            (Self::Network { id, there: false }, Object::Network(Some(old), None)) => old.id == *id,
            (Self::Secret { id }, Object::Secret(None, Some(new))) => new.id == *id,
            (Self::Tokens { tokens }, Object::Cluster(_, Some(new))) => new.join_tokens == *tokens,
            (_, _) => false,
        })
    }
}

/// The world at rest.
pub(crate) struct Settled {
    pub(crate) managers: Vec<(HostId, View)>,
    /// Of consensus, as the first of them knows it: raft ids, and who votes.
    pub(crate) members: Vec<(u64, bool)>,
    /// What really runs, or lies there, on each host.
    pub(crate) running: BTreeMap<NodeId, Vec<TaskId>>,
    pub(crate) containers: BTreeMap<NodeId, Vec<TaskId>>,
    pub(crate) clock: Timestamp,
}

/// All invariants, and what they are told.
pub(crate) struct Watch {
    all: Vec<(&'static str, Box<dyn Invariant>)>,
    entries: u64,
    newest: u64,
    state: State,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            all: vec![
                ("applied logs are prefixes of one another", Box::new(prefixes::Prefixes::default())),
                ("acknowledged writes survive", Box::new(acknowledged::Acknowledged::default())),
                ("at most one leader a term", Box::new(one_leader::OneLeader::default())),
                ("an address has at most one live owner", Box::new(addresses::Addresses)),
                ("no two services share a published port", Box::new(ports::Ports)),
                ("task status only moves up", Box::new(status_up::StatusUp::default())),
                ("restart counts survive failover", Box::new(restarts::Restarts::default())),
                ("replicas are exact", Box::new(replicas::Replicas)),
                ("no task without a service", Box::new(orphans::Orphans)),
                ("what a job has completed is not run again", Box::new(jobs::Jobs::default())),
                ("who should manage does", Box::new(members::Members)),
                ("a request takes effect once", Box::new(once::Once::default())),
                ("a living container's address is its own", Box::new(places::Places::default())),
                ("what may not run twice does not", Box::new(twice::Twice::default())),
                ("every reconcile of a settled world is empty", Box::new(quiet::Quiet)),
            ],
            entries: 0,
            newest: 0,
            state: State::default(),
        }
    }

    fn each(&mut self, mut ask: impl FnMut(&mut dyn Invariant) -> Holds) -> Holds {
        for (name, invariant) in &mut self.all {
            ask(invariant.as_mut()).map_err(|why| format!("\"{name}\": {why}"))?;
        }
        Ok(())
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn has(&self, index: u64) -> bool {
        index <= self.newest
    }

    pub(crate) fn applied(&mut self, host: HostId, index: u64, events: &Arc<[Event]>, view: &View) -> Holds {
        self.each(|invariant| invariant.applied(host, index, events))?;
        if self.has(index) {
            return Ok(());
        }
        (self.newest, self.entries) = (index, self.entries + 1);
        self.state.take(events);
        let state = std::mem::take(&mut self.state);
        let holds = self.each(|invariant| invariant.entry(&Entry { index, events, state: &state, view }));
        self.state = state;
        holds
    }

    /// What nobody was seen to apply (all died in between) is read off the View.
    pub(crate) fn resync(&mut self, host: HostId, index: u64, view: &View) {
        if !self.has(index) {
            self.newest = index;
            self.state = State::of(view);
        }
        self.all.iter_mut().for_each(|(_, invariant)| invariant.resynced(host, index));
    }

    pub(crate) fn leads(&mut self, host: HostId, term: u64) -> Holds {
        self.each(|invariant| invariant.leads(host, term))
    }

    pub(crate) fn acknowledged(&mut self, index: u64, evidence: &Evidence) {
        self.all.iter_mut().for_each(|(_, invariant)| invariant.acknowledged(index, evidence));
    }

    pub(crate) fn started(&mut self, place: &Place, task: &TaskId, host: HostId) -> Holds {
        self.each(|invariant| invariant.started(place, task, host))
    }

    pub(crate) fn ended(&mut self, task: &TaskId) {
        self.all.iter_mut().for_each(|(_, invariant)| invariant.ended(task));
    }

    pub(crate) fn placed(&mut self, key: &Key, address: Ipv4Addr) -> Holds {
        let state = std::mem::take(&mut self.state);
        let holds = self.each(|invariant| invariant.placed(key, address, &state));
        self.state = state;
        holds
    }

    pub(crate) fn left(&mut self, key: &Key) {
        self.all.iter_mut().for_each(|(_, invariant)| invariant.left(key));
    }

    pub(crate) fn settled(&mut self, world: &Settled) -> Holds {
        self.each(|invariant| invariant.settled(world))
    }
}

impl World {
    pub(crate) fn settled(&mut self) -> Holds {
        let managers = self.all_managers();
        let settled = Settled {
            managers: managers.iter().map(|host| (*host, self.log.view(*host))).collect(),
            members: managers.first().map(|host| self.log.members(*host)).unwrap_or_default(),
            running: self.hosts.iter().map(|h| (h.node_id.clone(), h.engine.running().cloned().collect())).collect(),
            containers: self
                .hosts
                .iter()
                .map(|h| (h.node_id.clone(), h.engine.containers.keys().cloned().collect()))
                .collect(),
            clock: self.hosts[0].clock(self.now),
        };
        self.watch.settled(&settled)
    }
}

#[cfg(test)]
mod tests;
