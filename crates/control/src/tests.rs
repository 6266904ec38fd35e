//! A small world: nodes that run the agent's machines over containers that do at once what they are told, a store, and the
//! leader's `tick` between them. No clock but the one the test moves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skep_agent::task::{ContainerFacts, Effect, Exit, Observation, Started, TaskEvent};
use skep_agent::worker::{Effects, Worker};
use skep_model::assignment::TaskReport;
use skep_model::cluster::Cluster;
use skep_model::network::{Network, NetworkSpec};
use skep_model::node::{Availability, NodeDescription, Role};
use skep_model::service::{Mode, NetworkAttachmentConfig, Service, ServiceSpec};
use skep_model::task::{Task, TaskState};
use skep_model::{ClusterId, NodeId, ServiceId, TaskId, Timestamp};
use skep_store::{AddressOwner, Batch, Change, ObjectKey, Store, View};

use crate::dispatch::Assigner;
use crate::{Ctx, Dirty, SeededIds, membership, split, tick};

mod fence;
mod jobs;
mod life;
mod properties;
mod speed;
mod updates;

#[derive(Default)]
pub(crate) struct Host {
    worker: Worker,
    /// Running containers.
    running: BTreeSet<TaskId>,
    up: bool,
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) now: Timestamp,
    /// When the present leader began.
    pub(crate) steady_since: Timestamp,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    ids: SeededIds,
    index: u64,
    dirty: Dirty,
    /// Log entries made so far.
    pub(crate) entries: u64,
    pub(crate) wake_at: Option<Timestamp>,
    /// A new leader before every step: everything marked, nothing remembered.
    pub(crate) forgetful: bool,
    /// Images that cannot be pulled, and those whose containers exit at once with this code.
    pub(crate) missing: BTreeSet<String>,
    pub(crate) exits: BTreeMap<String, i64>,
}

pub(crate) fn node_id(name: &str) -> NodeId {
    name.parse().unwrap()
}

impl World {
    pub(crate) fn new(nodes: usize) -> Self {
        let mut ids = SeededIds(7);
        let begin = membership::found(Cluster::new(ClusterId::from_bits(1)), &mut ids);
        let mut world = Self {
            store: Store::new(),
            now: Timestamp::from_secs(1000),
            steady_since: Timestamp::ZERO,
            hosts: BTreeMap::new(),
            ids,
            index: 0,
            dirty: Dirty::all(),
            entries: 0,
            wake_at: None,
            forgetful: false,
            missing: BTreeSet::new(),
            exits: BTreeMap::new(),
        };
        world.apply(begin);
        for number in 1..=nodes {
            world.join(&format!("n{number}"));
        }
        world
    }

    pub(crate) fn join(&mut self, name: &str) {
        let id = node_id(name);
        let admitted = membership::admit(self.view(), &id, Role::Worker, Availability::Active, name, self.now).unwrap();
        self.apply(vec![admitted]);
        self.hosts.insert(id.clone(), Host { up: true, ..Host::default() });
        self.come_up(name);
    }

    pub(crate) fn come_up(&mut self, name: &str) {
        let id = node_id(name);
        let number: u8 = name.trim_start_matches('n').parse().unwrap();
        let description = NodeDescription {
            hostname: name.into(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            ..NodeDescription::default()
        };
        let address = Some([192, 168, 0, number].into());
        let changes = membership::ready(self.view(), &id, &description, address, self.now);
        self.apply(changes);
        let host = self.hosts.get_mut(&id).unwrap();
        host.up = true;
        let reports = host.worker.reports();
        self.apply(vec![Change::SetTaskStatus(reports)]);
    }

    /// Power off: containers and machines are gone, and the leader notices.
    pub(crate) fn kill(&mut self, name: &str) {
        let id = node_id(name);
        self.hosts.insert(id.clone(), Host::default());
        let down = membership::down(self.view(), &id, "heartbeat failure", self.now);
        self.apply(down.into_iter().collect());
    }

    pub(crate) fn view(&self) -> &View {
        self.store.read()
    }

    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        self.try_apply(Batch::new(self.now, changes)).unwrap();
    }

    pub(crate) fn try_apply(&mut self, batch: Batch) -> Result<(), skep_store::Refused> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        self.index += 1;
        // Through the codec, as in the log.
        let batch = Batch::decode(&batch.encode().unwrap()).unwrap();
        let events = self.store.apply(self.index, 1, &batch)?;
        events.iter().for_each(|event| self.dirty.mark(event));
        self.entries += 1;
        Ok(())
    }

    /// One turn of the leader. Whether it changed anything.
    pub(crate) fn lead(&mut self) -> bool {
        let dirty = if self.forgetful { Dirty::all() } else { self.dirty.take() };
        let before = self.store.view();
        let decision =
            tick(&before, &dirty, &mut Ctx { now: self.now, steady_since: self.steady_since, ids: &mut self.ids });
        if dirty == Dirty::all() {
            self.wake_at = decision.wake_at;
        } else {
            self.wake_at = [self.wake_at, decision.wake_at].into_iter().flatten().min();
        }
        let changed = !decision.changes.is_empty();
        for batch in split(decision.changes, self.now, 1) {
            self.try_apply(batch).unwrap();
        }
        self.check_safety();
        changed
    }

    /// One turn of every host that is up. Whether any did anything.
    pub(crate) fn work(&mut self) -> bool {
        let view = self.store.view();
        let mut assigner = Assigner::new(&view);
        let mut reports: BTreeMap<TaskId, TaskReport> = BTreeMap::new();
        let mut acted = false;
        for (id, host) in self.hosts.iter_mut().filter(|(_, host)| host.up) {
            let mut set = assigner.assignments(id);
            // Here every host's balancers are at once as they should be.
            set.left = set.tasks.keys().cloned().collect();
            let mut effects = Effects::new();
            host.worker.assign(&set, self.now, &mut effects);
            host.worker.due(self.now, &mut effects);
            while !effects.is_empty() {
                for (task, effect) in std::mem::take(&mut effects) {
                    acted = true;
                    if let Effect::Report(status) = &effect {
                        reports.insert(task.clone(), TaskReport { task_id: task.clone(), status: status.clone() });
                    }
                    let image = host.worker.task(&task).map(|t| t.spec.container.image.clone()).unwrap_or_default();
                    for event in perform(&mut host.running, &task, &effect, &image, &self.missing, &self.exits) {
                        host.worker.handle(&task, event, self.now, &mut effects);
                    }
                }
            }
        }
        if !reports.is_empty() {
            self.apply(vec![Change::SetTaskStatus(reports.into_values().collect())]);
        }
        acted
    }

    /// Until nobody has anything to do at this instant.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            let led = self.lead();
            if !self.work() && !led {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    /// Lets time pass, waking the leader when it asked for it.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now.plus(time);
        self.settle();
        while let Some(at) = self.next_wake().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.dirty.mark_all();
            self.wake_at = None;
            self.settle();
        }
        self.now = end;
        self.dirty.mark_all();
        self.settle();
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let hosts = self.hosts.values().filter(|h| h.up).filter_map(|h| h.worker.wake_at());
        hosts.chain(self.wake_at).min()
    }

    /// What must never happen, whatever the test does.
    fn check_safety(&self) {
        let view = self.view();
        let mut held = BTreeSet::new();
        for task in view.tasks().filter(|t| !t.status.state.is_terminal()) {
            for attachment in &task.networks {
                let key = (attachment.network_id.clone(), attachment.address.addr());
                assert!(held.insert(key), "{} has an address of another", task.name());
                let owner = view.addresses(&attachment.network_id).and_then(|a| a.owner(attachment.address.addr()));
                assert_eq!(owner, Some(&AddressOwner::Task(task.id.clone())));
            }
        }
        for service in view.services() {
            for vip in service.endpoint.iter().flat_map(|e| &e.virtual_ips) {
                assert!(held.insert((vip.network_id.clone(), vip.ip())), "{} shares its VIP", service.spec.name);
            }
        }
        for node in view.nodes() {
            let reserved: i64 = view
                .tasks_of_node(&node.id)
                .filter(|t| !t.status.state.is_terminal())
                .filter_map(|t| t.spec.resources.as_ref()?.reservations)
                .map(|r| r.nano_cpus)
                .sum();
            assert!(reserved <= node.description.nano_cpus || reserved == 0, "{} is overrun", node.id);
        }
    }

    pub(crate) fn create(&mut self, name: &str, edit: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
        let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
        spec.task.container.image = "ok".into();
        edit(&mut spec);
        let id = ServiceId::from_bits(crate::IdSource::next_id(&mut self.ids));
        let service = Service::new(id.clone(), spec);
        self.apply(vec![Change::CreateService(Box::new(service))]);
        id
    }

    pub(crate) fn update(&mut self, id: &ServiceId, edit: impl FnOnce(&mut ServiceSpec)) {
        let service = self.view().service(id).unwrap();
        let (mut spec, version) = (service.spec.clone(), service.meta.version);
        edit(&mut spec);
        let change = Change::SetServiceSpec { service_id: id.clone(), spec: Box::new(spec) };
        let batch = Batch::new(self.now, vec![change]).if_version(ObjectKey::Service(id.clone()), version);
        self.try_apply(batch).unwrap();
    }

    pub(crate) fn availability(&mut self, name: &str, availability: Availability) {
        let id = node_id(name);
        let mut spec = self.view().node(&id).unwrap().spec.clone();
        spec.availability = availability;
        self.apply(vec![Change::SetNodeSpec { node_id: id, spec }]);
    }

    /// A container ends by itself.
    pub(crate) fn exit(&mut self, task: &TaskId, code: i64) {
        let node = self.view().task(task).unwrap().node_id.clone().unwrap();
        let host = self.hosts.get_mut(&node).unwrap();
        assert!(host.running.remove(task), "it does not run");
        let mut effects = Effects::new();
        host.worker.handle(task, TaskEvent::Exited(Exit { code, cause: String::new() }), self.now, &mut effects);
        let reports = effects.into_iter().filter_map(|(task_id, effect)| match effect {
            Effect::Report(status) => Some(TaskReport { task_id, status }),
            _ => None,
        });
        let reports = reports.collect();
        self.apply(vec![Change::SetTaskStatus(reports)]);
    }

    pub(crate) fn tasks(&self, service: &ServiceId) -> Vec<Task> {
        self.view().tasks_of_service(service).map(|t| (**t).clone()).collect()
    }

    pub(crate) fn running(&self, service: &ServiceId) -> Vec<Task> {
        let runs = |t: &Task| t.status.state == TaskState::Running && t.desired_state == TaskState::Running;
        let mut tasks: Vec<_> = self.tasks(service).into_iter().filter(runs).collect();
        tasks.sort_by_key(|t| (t.slot, t.node_id.clone()));
        tasks
    }

    /// Running tasks by node, `n1:2 n2:1`.
    pub(crate) fn spread(&self, service: &ServiceId) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for task in self.running(service) {
            *counts.entry(task.node_id.unwrap().to_string()).or_default() += 1;
        }
        counts.iter().map(|(node, count)| format!("{node}:{count}")).collect::<Vec<_>>().join(" ")
    }

    /// Containers that really run, on hosts that are up.
    pub(crate) fn containers(&self) -> usize {
        self.hosts.values().map(|host| host.running.len()).sum()
    }
}

pub(crate) fn replicas(spec: &mut ServiceSpec, replicas: u64) {
    spec.mode = Mode::Replicated { replicas };
}

/// An engine that does at once what it is told.
fn perform(
    running: &mut BTreeSet<TaskId>,
    task: &TaskId,
    effect: &Effect,
    image: &str,
    missing: &BTreeSet<String>,
    exits: &BTreeMap<String, i64>,
) -> Vec<TaskEvent> {
    let ended = |code| TaskEvent::Exited(Exit { code, cause: String::new() });
    match effect {
        Effect::Observe if running.contains(task) => vec![TaskEvent::Observed(Observation::Known {
            container_id: task.to_string(),
            state: ContainerFacts::Running { pid: 1, health: None, host_ports: Vec::new(), addresses: BTreeMap::new() },
        })],
        Effect::Observe => vec![TaskEvent::Observed(Observation::Absent)],
        Effect::Pull if missing.contains(image) => vec![TaskEvent::Pulled(Err(format!("No such image: {image}")))],
        Effect::Pull => vec![TaskEvent::Pulled(Ok(()))],
        Effect::Create => vec![TaskEvent::Created(Ok(task.to_string()))],
        Effect::Start => {
            let started = TaskEvent::Started(Ok(Started { pid: 1, ..Started::default() }));
            match exits.get(image) {
                Some(code) => vec![started, ended(*code)],
                None => {
                    running.insert(task.clone());
                    vec![started]
                }
            }
        }
        Effect::Stop { .. } | Effect::Kill => {
            running.remove(task);
            vec![ended(143)]
        }
        Effect::Remove => {
            running.remove(task);
            vec![TaskEvent::Removed(Ok(()))]
        }
        Effect::Wait | Effect::Report(_) | Effect::Forget => Vec::new(),
    }
}

pub(crate) fn overlay(id: &str, name: &str, subnet: &str) -> Change {
    let (driver, subnet) = ("overlay".into(), Some(subnet.parse().unwrap()));
    let spec = NetworkSpec { name: name.into(), driver, subnet, attachable: true, ..NetworkSpec::default() };
    Change::CreateNetwork(Box::new(Network::new(id.parse().unwrap(), spec)))
}

pub(crate) fn join(spec: &mut ServiceSpec, network: &str) {
    let (aliases, driver_options) = (vec!["db".into()], BTreeMap::new());
    spec.task.networks.push(NetworkAttachmentConfig { target: network.into(), aliases, driver_options });
}
