//! What every node carries, kept up to date while tasks are placed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_model::node::Node;
use skep_model::service::Protocol;
use skep_model::task::{Task, TaskState};
use skep_model::{NodeId, ServiceId, Timestamp};
use skep_store::View;

use super::filter::{Demand, host_ports};

/// So many failures of one service on one node within the window put the node last (swarmkit `maxFailures`).
const MAX_FAILURES: u64 = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// One node and its tasks.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) node: Arc<Node>,
    pub(super) free_nano_cpus: i64,
    pub(super) free_memory_bytes: i64,
    pub(super) host_ports: BTreeSet<(Protocol, u16)>,
    total: u64,
    by_service: BTreeMap<ServiceId, u64>,
    /// The service being placed failed here too often.
    shunned: bool,
}

impl Load {
    pub(super) fn of_service(&self, service: &ServiceId) -> u64 {
        self.by_service.get(service).copied().unwrap_or(0)
    }

    /// Lower is better: not failing here, few of the service, few at all.
    pub(super) fn rank(&self, service: &ServiceId) -> (bool, u64, u64) {
        (self.shunned, self.of_service(service), self.total)
    }

    fn add(&mut self, task: &Task) {
        if task.status.state.is_terminal() {
            return;
        }
        // A task that is stopping still holds what it has, but is not one of those there will be.
        let reserved = task.spec.resources.as_ref().and_then(|r| r.reservations).unwrap_or_default();
        self.free_nano_cpus -= reserved.nano_cpus;
        self.free_memory_bytes -= reserved.memory_bytes;
        self.host_ports.extend(host_ports(&task.ports));
        if task.is_wanted() {
            self.total += 1;
            *self.by_service.entry(task.service_id.clone()).or_default() += 1;
        }
    }
}

pub(super) struct Ledger {
    loads: BTreeMap<NodeId, Load>,
}

impl Ledger {
    pub(super) fn new(view: &View) -> Self {
        let loads = view.nodes().map(|node| {
            let mut load = Load {
                node: node.clone(),
                free_nano_cpus: node.description.nano_cpus,
                free_memory_bytes: node.description.memory_bytes,
                host_ports: BTreeSet::new(),
                total: 0,
                by_service: BTreeMap::new(),
                shunned: false,
            };
            // Those without their addresses or their place yet are placed later, and counted then.
            let settled = view.tasks_of_node(&node.id).filter(|t| t.status.state >= TaskState::Assigned);
            settled.for_each(|task| load.add(task));
            (node.id.clone(), load)
        });
        Self { loads: loads.collect() }
    }

    pub(super) fn node(&self, id: &NodeId) -> Option<&Load> {
        self.loads.get(id)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Load)> {
        self.loads.iter()
    }

    /// Marks the nodes where this template failed too often of late.
    pub(super) fn count_failures(&mut self, view: &View, service: &ServiceId, spec_version: u64, now: Timestamp) {
        let mut failures: BTreeMap<&NodeId, u64> = BTreeMap::new();
        for task in view.tasks_of_service(service) {
            let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
            let recent = now.since(task.status.at) <= FAILURE_WINDOW;
            if let (true, Some(node)) = (failed && recent && task.spec_version == spec_version, &task.node_id) {
                *failures.entry(node).or_default() += 1;
            }
        }
        for (id, load) in &mut self.loads {
            load.shunned = failures.get(id).is_some_and(|count| *count >= MAX_FAILURES);
        }
    }

    pub(super) fn place(&mut self, node: &NodeId, service: &ServiceId, demand: &Demand) {
        if let Some(load) = self.loads.get_mut(node) {
            load.free_nano_cpus -= demand.reserved.nano_cpus;
            load.free_memory_bytes -= demand.reserved.memory_bytes;
            load.host_ports.extend(demand.host_ports.iter().copied());
            load.total += 1;
            *load.by_service.entry(service.clone()).or_default() += 1;
        }
    }
}
