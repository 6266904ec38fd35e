//! What every node carries, kept up to date while tasks are placed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_model::generic::{GenericResource, GenericStock};
use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::Protocol;
use skep_model::task::{Task, TaskState};
use skep_model::{NodeId, ServiceId, Timestamp};
use skep_store::{FailureRecord, View};

use super::filter::{Demand, host_ports};

/// So many failures of one service on one node within the window put the node last (swarmkit `maxFailures`).
const MAX_FAILURES: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// One node and its tasks.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) node: Arc<Node>,
    /// Takes new tasks.
    pub(super) open: bool,
    pub(super) free_nano_cpus: i64,
    pub(super) free_memory_bytes: i64,
    pub(super) generic: GenericStock,
    pub(super) host_ports: BTreeSet<(Protocol, u16)>,
    /// Tasks of any service, but those that are stopping.
    pub(super) total: u32,
}

impl Load {
    /// A node without tasks.
    pub(super) fn empty(node: &Arc<Node>) -> Self {
        let description = &node.description;
        Self {
            open: node.status.state == NodeState::Ready && node.spec.availability == Availability::Active,
            free_nano_cpus: description.nano_cpus,
            free_memory_bytes: description.memory_bytes,
            generic: GenericStock::of(&description.generic),
            node: node.clone(),
            host_ports: BTreeSet::new(),
            total: 0,
        }
    }

    /// A task that is stopping still holds what it has, but is not one of those there will be.
    pub(super) fn add(&mut self, task: &Task) {
        if task.status.state.is_terminal() {
            return;
        }
        let reserved = task.spec.resources.as_ref().and_then(|r| r.reservations).unwrap_or_default();
        self.free_nano_cpus -= reserved.nano_cpus;
        self.free_memory_bytes -= reserved.memory_bytes;
        self.generic.take(&task.generic);
        self.host_ports.extend(host_ports(&task.ports));
        self.total += u32::from(task.is_wanted());
    }
}

pub(super) struct Ledger {
    /// By node id.
    loads: Vec<Load>,
    /// All nodes by their tasks, then by their place in `loads`.
    order: BTreeSet<(u32, usize)>,
    /// Of the services it was made for, the node of each live task.
    own: BTreeMap<ServiceId, Vec<usize>>,
}

/// What concerns one service, node by node in the ledger's order.
pub(super) struct Group {
    /// Its tasks there.
    pub(super) own: Vec<u32>,
    /// The template that is placed failed there too often of late.
    pub(super) shunned: Vec<bool>,
}

impl Ledger {
    /// Of all nodes, to place tasks of `services`.
    pub(super) fn new<'a>(view: &View, services: impl Iterator<Item = &'a ServiceId>) -> Self {
        let mut own: BTreeMap<_, _> = services.map(|id| (id.clone(), Vec::new())).collect();
        let loads = view.nodes().enumerate().map(|(position, node)| {
            let mut load = Load::empty(node);
            // Those without their addresses or their place yet are placed later, and counted then.
            for task in view.tasks_of_node(&node.id).filter(|t| t.status.state >= TaskState::Assigned) {
                load.add(task);
                if let Some(own) = own.get_mut(&task.service_id).filter(|_| task.is_live()) {
                    own.push(position);
                }
            }
            load
        });
        let loads: Vec<Load> = loads.collect();
        Self { order: loads.iter().enumerate().map(|(node, load)| (load.total, node)).collect(), loads, own }
    }

    pub(super) fn position(&self, node: &NodeId) -> Option<usize> {
        self.loads.binary_search_by(|load| load.node.id.cmp(node)).ok()
    }

    pub(super) fn loads(&self) -> &[Load] {
        &self.loads
    }

    pub(super) fn order(&self) -> &BTreeSet<(u32, usize)> {
        &self.order
    }

    pub(super) fn group(&self, service: &ServiceId) -> Group {
        let mut own = vec![0; self.loads.len()];
        self.own.get(service).into_iter().flatten().for_each(|node| own[*node] += 1);
        Group { own, shunned: vec![false; self.loads.len()] }
    }

    /// Enters one more task; what it is given of generic resources.
    pub(super) fn place(&mut self, node: usize, group: &mut Group, demand: &Demand) -> Vec<GenericResource> {
        let load = &mut self.loads[node];
        load.free_nano_cpus -= demand.reserved.nano_cpus;
        load.free_memory_bytes -= demand.reserved.memory_bytes;
        let given = load.generic.choose(&demand.generic).unwrap_or_default();
        load.generic.take(&given);
        load.host_ports.extend(demand.host_ports.iter().copied());
        self.order.remove(&(load.total, node));
        load.total += 1;
        self.order.insert((load.total, node));
        group.own[node] += 1;
        given
    }
}

impl Group {
    /// Turns to another template of the service.
    pub(super) fn shun(&mut self, ledger: &Ledger, failed: Option<&FailureRecord>, spec_version: u64, now: Timestamp) {
        self.shunned.fill(false);
        let mut failures: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for (node, at) in failed.iter().filter(|r| r.spec_version == spec_version).flat_map(|r| &r.recent) {
            if now.since(*at) <= FAILURE_WINDOW {
                *failures.entry(node).or_default() += 1;
            }
        }
        for (node, _) in failures.into_iter().filter(|(_, count)| *count >= MAX_FAILURES) {
            if let Some(node) = ledger.position(node) {
                self.shunned[node] = true;
            }
        }
    }
}
