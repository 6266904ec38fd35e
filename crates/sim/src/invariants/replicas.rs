//! Replicas are exact within a bound after the faults end: every service has as many running tasks as it asks for (at most so
//! many where its policy lets them end, and fewer where its network has no address left), the hosts run exactly those containers,
//! and no update is still under way.

use std::collections::BTreeSet;

use skep_model::NetworkId;
use skep_model::network::Network;
use skep_model::node::{Availability, NodeState};
use skep_model::service::{Mode, Service, UpdateState};
use skep_model::task::{RestartCondition, TaskState};
use skep_store::View;

use super::{Holds, Invariant, Settled, addresses};

pub(crate) struct Replicas;

impl Invariant for Replicas {
    fn settled(&mut self, world: &Settled) -> Holds {
        let Some((_, view)) = world.managers.first() else { return Ok(()) };
        for service in view.services() {
            exact(view, service)?;
        }
        let wanted: BTreeSet<_> = view
            .tasks()
            .filter(|t| t.is_wanted() && t.status.state == TaskState::Running)
            .filter_map(|t| Some((t.node_id.clone()?, t.id.clone())))
            .collect();
        let there: BTreeSet<_> =
            world.running.iter().flat_map(|(node, ids)| ids.iter().map(|id| (node.clone(), id.clone()))).collect();
        if let Some((node, id)) = wanted.difference(&there).next() {
            let name = view.task(id).map(|t| t.name()).unwrap_or_default();
            return Err(format!("{name} is said to run on {} and does not", hostname(view, node)));
        }
        if let Some((node, id)) = there.difference(&wanted).next() {
            let name = view.task(id).map_or_else(|| id.to_string(), |t| t.name());
            return Err(format!("{name} runs on {} and should not", hostname(view, node)));
        }
        Ok(())
    }
}

fn hostname(view: &View, node: &skep_model::NodeId) -> String {
    view.node(node).map_or_else(|| node.to_string(), |n| n.description.hostname.clone())
}

/// Its tasks end for good some time.
fn may_end(service: &Service) -> bool {
    let policy = service.spec.task.restart.unwrap_or_default();
    policy.max_attempts > 0 || policy.condition != RestartCondition::Any
}

/// Tasks that wait because every address of a network of theirs is held: counted by who holds them, not by the store's own
/// list, so that one that is never given back is noticed.
pub(super) fn waiting_for_an_address(view: &View, service: &Service) -> usize {
    let (tasks, services) = (view.tasks().map(|t| &**t), view.services().map(|s| &**s));
    let (nodes, networks) = (view.nodes().map(|n| &**n), view.networks().map(|n| &**n));
    let holders = addresses::holders(tasks, services, nodes, networks);
    let held: Vec<NetworkId> = holders.map(|(network, ..)| network).collect();
    let is_full = |network: &Network| {
        // Besides the subnet's own name, its broadcast and the gateway.
        let all = network.allocation.as_ref().map_or(0, |a| a.subnet.hosts().count().saturating_sub(1));
        held.iter().filter(|id| **id == network.id).count() >= all
    };
    let mut networks = service.spec.networks().iter().filter_map(|n| view.find_network(&n.target).ok());
    if !networks.any(|network| is_full(network)) {
        return 0;
    }
    view.tasks_of_service(&service.id).filter(|t| t.is_wanted() && t.status.state == TaskState::New).count()
}

fn exact(view: &View, service: &Service) -> Holds {
    let name = &service.spec.name;
    let runs = |t: &&std::sync::Arc<skep_model::task::Task>| {
        t.status.state == TaskState::Running && t.desired_state == TaskState::Running
    };
    let running: Vec<_> = view.tasks_of_service(&service.id).filter(runs).collect();
    let slots: BTreeSet<_> = running.iter().map(|t| (t.slot, t.slot.is_none().then(|| t.node_id.clone()))).collect();
    if slots.len() != running.len() {
        return Err(format!("{name} has two running tasks in one slot"));
    }
    let takes = |availability| availability == Availability::Active;
    let active = view.nodes().filter(|n| takes(n.spec.availability) && n.status.state == NodeState::Ready).count();
    let wanted = match service.spec.mode {
        Mode::Replicated { replicas } => usize::try_from(replicas).unwrap_or(usize::MAX),
        Mode::Global => active,
        Mode::ReplicatedJob { .. } | Mode::GlobalJob => return Ok(()),
    };
    // A paused node keeps what it has of a global service, and gets no more.
    let most = if service.spec.mode == Mode::Global { view.nodes_len() } else { wanted };
    let waiting = waiting_for_an_address(view, service);
    let least = if may_end(service) || active == 0 { 0 } else { wanted.saturating_sub(waiting) };
    if running.len() < least || running.len() > most {
        return Err(format!("{name} has {} running tasks of {wanted}", running.len()));
    }
    match service.update_status.as_ref().map(|s| s.state) {
        Some(UpdateState::Updating | UpdateState::RollbackStarted)
            if !may_end(service) && active > 0 && waiting == 0 =>
        {
            Err(format!("an update of {name} is still under way"))
        }
        _ => Ok(()),
    }
}
