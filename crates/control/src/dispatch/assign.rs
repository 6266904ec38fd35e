//! What one worker must know, cut out of the View.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use skep_model::assignment::{AssignmentSet, EndpointRecord, NodeRecord, ServiceRecord};
use skep_model::node::NodeState;
use skep_model::service::{NetworkAttachmentConfig, PublishMode, Service};
use skep_model::task::{Task, TaskState};
use skep_model::traffic::{Traffic, weight};
use skep_model::{NetworkId, NodeId, ServiceId, TaskId};
use skep_store::{AddressOwner, Event, Object, View};

/// Which stack a service is of.
const STACK_LABEL: &str = "com.docker.stack.namespace";

/// The assignment set of one node. For many nodes of one view use [`Assigner`].
pub fn assignments(view: &View, node_id: &NodeId) -> AssignmentSet {
    Assigner::new(view).assignments(node_id)
}

/// Cuts the sets of many nodes out of one view, computing what they share once.
pub struct Assigner<'a> {
    view: &'a View,
    nodes: BTreeMap<NodeId, NodeRecord>,
    endpoints: BTreeMap<NetworkId, Vec<(TaskId, EndpointRecord)>>,
    /// Networks that containers of a node are on which are no tasks.
    attached: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    /// Services with a published port, or on a network.
    services: Vec<(ServiceId, ServiceRecord, BTreeSet<NetworkId>)>,
}

impl<'a> Assigner<'a> {
    pub fn new(view: &'a View) -> Self {
        let nodes = view.nodes().filter_map(|node| {
            let ingress = view.ingress_network().and_then(|n| node.attachments.get(&n.id)).copied();
            let record = NodeRecord {
                vtep: node.status.vtep()?,
                ingress_address: ingress,
                mesh_index: node.mesh_index,
                weight: weight(&node.spec.labels).unwrap_or(1),
                link_mtu: node.description.link_mtu,
            };
            Some((node.id.clone(), record))
        });
        let services = view.services().map(|s| service_record(view, s)).collect();
        let mut attached: BTreeMap<NodeId, BTreeSet<NetworkId>> = BTreeMap::new();
        for network in view.networks() {
            for attachment in network.attachments.values() {
                attached.entry(attachment.node_id.clone()).or_default().insert(network.id.clone());
            }
        }
        Self { view, nodes: nodes.collect(), endpoints: BTreeMap::new(), attached, services }
    }

    pub fn assignments(&mut self, node_id: &NodeId) -> AssignmentSet {
        let mut set = AssignmentSet { nodes: self.nodes.clone(), ..AssignmentSet::default() };
        for task in self.view.tasks_of_node(node_id) {
            if task.status.state >= TaskState::Assigned {
                set.tasks.insert(task.id.clone(), (**task).clone());
            }
        }
        self.add_networks(node_id, &mut set);
        self.add_services(&mut set);
        self.add_files(&mut set);
        set
    }

    fn add_networks(&mut self, node_id: &NodeId, set: &mut AssignmentSet) {
        let used = || set.tasks.values().filter(|t| !t.status.state.is_terminal());
        let mut wanted: BTreeSet<NetworkId> = used().flat_map(|t| &t.networks).map(|n| n.network_id.clone()).collect();
        wanted.extend(used().flat_map(|t| node_local(self.view, &t.spec.networks)));
        wanted.extend(self.attached.get(node_id).into_iter().flatten().cloned());
        wanted.extend(self.view.ingress_network().map(|n| n.id.clone()));
        for id in wanted {
            let Some(network) = self.view.network(&id) else { continue };
            set.networks.insert(id.clone(), (**network).clone());
            let view = self.view;
            let records = self.endpoints.entry(id.clone()).or_insert_with(|| endpoints(view, &id));
            set.endpoints.extend(records.iter().map(|(task, record)| ((id.clone(), task.clone()), record.clone())));
        }
    }

    fn add_services(&self, set: &mut AssignmentSet) {
        for (id, record, networks) in &self.services {
            let published = record.ports.iter().any(|p| p.mode == PublishMode::Ingress);
            if published || networks.iter().any(|n| set.networks.contains_key(n)) {
                set.services.insert(id.clone(), record.clone());
            }
        }
    }

    /// Secrets and configs only of tasks that have yet to be made or may be made again.
    fn add_files(&self, set: &mut AssignmentSet) {
        let alive: Vec<_> = set.tasks.values().filter(|t| t.is_live()).cloned().collect();
        for task in &alive {
            for reference in &task.spec.container.secrets {
                if let Some(secret) = self.view.secret(&reference.secret_id) {
                    set.secrets.insert(secret.id.clone(), (**secret).clone());
                }
            }
            for reference in &task.spec.container.configs {
                if let Some(config) = self.view.config(&reference.config_id) {
                    set.configs.insert(config.id.clone(), (**config).clone());
                }
            }
        }
    }
}

fn service_record(view: &View, service: &Service) -> (ServiceId, ServiceRecord, BTreeSet<NetworkId>) {
    let endpoint = service.endpoint.as_ref();
    let record = ServiceRecord {
        name: service.spec.name.clone(),
        virtual_ips: endpoint
            .iter()
            .flat_map(|e| &e.virtual_ips)
            .map(|vip| (vip.network_id.clone(), vip.ip()))
            .collect(),
        ports: endpoint.map(|e| e.ports.clone()).unwrap_or_default(),
        traffic: traffic(service),
    };
    let targets = service.spec.networks().iter().filter_map(|n| view.find_network(&n.target).ok());
    let mut networks: BTreeSet<_> = targets.map(|n| n.id.clone()).collect();
    networks.extend(record.virtual_ips.keys().cloned());
    (service.id.clone(), record, networks)
}

/// What its labels ask for. In a stack, services may be called by the names they have in its file.
fn traffic(service: &Service) -> Traffic {
    let mut traffic = Traffic::of(&service.spec.labels);
    if let (Some(names), Some(stack)) = (&mut traffic.allow_from, service.spec.labels.get(STACK_LABEL)) {
        let full: Vec<String> = names.iter().map(|name| format!("{stack}_{name}")).collect();
        names.extend(full);
    }
    traffic
}

/// Networks that the hosts make for themselves, of those a template names.
fn node_local<'a>(view: &'a View, named: &'a [NetworkAttachmentConfig]) -> impl Iterator<Item = NetworkId> + 'a {
    let networks = named.iter().filter_map(|n| view.network(&n.target.parse().ok()?));
    networks.filter(|network| network.spec.is_node_local()).map(|network| network.id.clone())
}

/// Every living endpoint on a network, wherever it runs.
fn endpoints(view: &View, network: &NetworkId) -> Vec<(TaskId, EndpointRecord)> {
    if view.network(network).is_some_and(|n| n.spec.is_node_local()) {
        return reported(view, network);
    }
    let holders = view.addresses(network).into_iter().flat_map(|a| a.iter());
    let records = holders.filter_map(|(address, owner)| {
        let AddressOwner::Task(id) = owner else { return None };
        endpoint(view, view.task(id)?, network, address)
    });
    records.collect()
}

/// Those of a network that the hosts make for themselves, with the addresses that these gave.
fn reported(view: &View, network: &NetworkId) -> Vec<(TaskId, EndpointRecord)> {
    let alive = view.tasks().filter(|task| !task.status.state.is_terminal());
    alive
        .filter_map(|task| {
            let address = task.status.addresses.get(network)?;
            endpoint(view, task, network, *address)
        })
        .collect()
}

fn endpoint(view: &View, task: &Task, network: &NetworkId, address: Ipv4Addr) -> Option<(TaskId, EndpointRecord)> {
    let node_id = task.node_id.clone()?;
    let given = task.networks.iter().find(|n| n.network_id == *network).map(|n| &n.aliases);
    let asked = || task.spec.networks.iter().find(|n| n.target == network.as_str()).map(|n| &n.aliases);
    let record = EndpointRecord {
        service_id: task.service_id.clone(),
        address,
        task_name: task.name(),
        aliases: given.or_else(asked).cloned().unwrap_or_default(),
        serving: is_serving(view, task),
        node_id,
    };
    Some((task.id.clone(), record))
}

/// May be given new connections: runs (which for a task with a health check means healthy), is not asked to stop, and its
/// host is not known to be gone.
fn is_serving(view: &View, task: &Task) -> bool {
    task.status.state == TaskState::Running
        && task.is_wanted()
        && task.node_id.as_ref().and_then(|id| view.node(id)).is_some_and(|n| n.status.state != NodeState::Down)
}

/// Whose assignment sets some events may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affected {
    #[default]
    Nobody,
    Nodes(BTreeSet<NodeId>),
    Everybody,
}

impl Affected {
    fn add(&mut self, node: &NodeId) {
        match self {
            Self::Everybody => {}
            Self::Nodes(nodes) => {
                nodes.insert(node.clone());
            }
            Self::Nobody => *self = Self::Nodes(BTreeSet::from([node.clone()])),
        }
    }

    pub fn contains(&self, node: &NodeId) -> bool {
        match self {
            Self::Nobody => false,
            Self::Nodes(nodes) => nodes.contains(node),
            Self::Everybody => true,
        }
    }

    /// Takes in one more event. A task's news concern its own node, and others only if its endpoint shows them.
    pub fn note(&mut self, event: &Event) {
        match &event.object {
            Object::Task(old, new) => {
                for task in [old, new].into_iter().flatten() {
                    if let Some(node) = &task.node_id {
                        self.add(node);
                    }
                }
                let [before, after] = [old, new].map(|t| t.as_deref().and_then(shown_to_others));
                if before != after {
                    *self = Self::Everybody;
                }
            }
            Object::Node(old, new) => {
                let shown = |n: &Option<std::sync::Arc<skep_model::node::Node>>| {
                    n.as_ref().map(|n| {
                        let weight = weight(&n.spec.labels);
                        (
                            n.status.vtep(),
                            n.attachments.clone(),
                            n.mesh_index,
                            weight,
                            n.status.state == NodeState::Down,
                        )
                    })
                };
                if shown(old) != shown(new) {
                    *self = Self::Everybody;
                }
            }
            Object::Service(old, new) => {
                let shown = |s: &Option<std::sync::Arc<Service>>| {
                    s.as_ref()
                        .map(|s| (s.spec.name.clone(), s.endpoint.clone(), s.spec.networks().to_vec(), traffic(s)))
                };
                if shown(old) != shown(new) {
                    *self = Self::Everybody;
                }
            }
            Object::Network(..) | Object::Secret(..) | Object::Config(..) => *self = Self::Everybody,
            Object::Cluster(..) => {}
        }
    }
}

/// What other nodes see of a task: nothing if it has no address.
fn shown_to_others(task: &Task) -> Option<(bool, &BTreeMap<NetworkId, Ipv4Addr>, Option<NodeId>)> {
    let addresses = &task.status.addresses;
    if task.networks.is_empty() && addresses.is_empty() || task.status.state.is_terminal() {
        return None;
    }
    let serving = task.status.state == TaskState::Running && task.is_wanted();
    Some((serving, addresses, task.node_id.clone()))
}
