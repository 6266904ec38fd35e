//! What readers see: every object and the indexes over them, as one immutable value. Cloning costs a few pointers.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_model::cluster::{Cluster, LimitedToken};
use skep_model::network::{INGRESS_NETWORK_NAME, Network};
use skep_model::node::Node;
use skep_model::secret::{Config, Secret};
use skep_model::service::Service;
use skep_model::task::Task;
use skep_model::{ConfigId, JoinTokenId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp};

use crate::address::Addresses;
use crate::requests::Requests;
use crate::restart::{FailureRecord, RestartKey, RestartRecord, SlotKey};

/// The replicated state at one index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub(crate) index: u64,
    /// The highest term of a leader whose guarded batch was applied.
    pub(crate) term: u64,
    /// Of all there ever were.
    pub(crate) highest_raft_id: u64,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: OrdMap<NodeId, Arc<Node>>,
    pub(crate) services: OrdMap<ServiceId, Arc<Service>>,
    pub(crate) tasks: OrdMap<TaskId, Arc<Task>>,
    pub(crate) networks: OrdMap<NetworkId, Arc<Network>>,
    pub(crate) secrets: OrdMap<SecretId, Arc<Secret>>,
    pub(crate) configs: OrdMap<ConfigId, Arc<Config>>,
    pub(crate) restarts: OrdMap<RestartKey, RestartRecord>,
    pub(crate) failures: OrdMap<ServiceId, FailureRecord>,
    pub(crate) revoked: OrdMap<NodeId, Timestamp>,
    pub(crate) join_tokens: OrdMap<JoinTokenId, LimitedToken>,
    pub(crate) requests: Requests,

    // Indexes: derived from the above, rebuilt when a snapshot is read.
    pub(crate) service_names: OrdMap<String, ServiceId>,
    pub(crate) network_names: OrdMap<String, NetworkId>,
    pub(crate) secret_names: OrdMap<String, SecretId>,
    pub(crate) config_names: OrdMap<String, ConfigId>,
    pub(crate) hostnames: OrdSet<(String, NodeId)>,
    pub(crate) by_service: OrdMap<ServiceId, OrdSet<TaskId>>,
    pub(crate) by_node: OrdMap<NodeId, OrdSet<TaskId>>,
    /// With the tasks themselves: they are many just when they are asked for.
    pub(crate) waiting: OrdMap<TaskId, Arc<Task>>,
    /// Holders are derived; the cursors are state of their own and are in the snapshot.
    pub(crate) addresses: OrdMap<NetworkId, Addresses>,
}

/// Why a reference names no single object, in moby's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("{kind} {reference} not found")]
    NotFound { kind: &'static str, reference: String },
    #[error("{kind} {reference} is ambiguous ({matches} matches found)")]
    Ambiguous { kind: &'static str, reference: String, matches: usize },
}

/// Names are compared as swarmkit's memdb does: case does not tell them apart.
pub(crate) fn folded(name: &str) -> String {
    name.to_lowercase()
}

fn by_reference<'a, K, T>(
    kind: &'static str,
    reference: &str,
    table: &'a OrdMap<K, Arc<T>>,
    named: Vec<K>,
    text: fn(&K) -> &str,
) -> Result<&'a Arc<T>, LookupError>
where
    K: Ord + Clone + std::str::FromStr,
{
    let exact = reference.parse().ok().and_then(|id: K| table.get(&id));
    if let Some(found) = exact {
        return Ok(found);
    }
    let not_found = || LookupError::NotFound { kind, reference: reference.to_owned() };
    let mut candidates = named;
    if candidates.is_empty() {
        let from: K = reference.parse().map_err(|_| not_found())?;
        candidates =
            table.range(from..).map(|(id, _)| id.clone()).take_while(|id| text(id).starts_with(reference)).collect();
    }
    match candidates.as_slice() {
        [] => Err(not_found()),
        [id] => table.get(id).ok_or_else(not_found),
        many => Err(LookupError::Ambiguous { kind, reference: reference.to_owned(), matches: many.len() }),
    }
}

impl View {
    /// Log index of the last batch that took effect.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The highest term whose batch was applied.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The highest raft id any manager has or had: ids are never given twice.
    pub fn highest_raft_id(&self) -> u64 {
        self.highest_raft_id
    }

    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    pub fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    pub fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    /// The join tokens that end; not the swarm's two.
    pub fn join_tokens(&self) -> impl Iterator<Item = &LimitedToken> {
        self.join_tokens.values()
    }

    /// When a node was last demoted or removed: certificates it was given as a manager before that are void.
    pub fn revoked(&self, id: &NodeId) -> Option<Timestamp> {
        self.revoked.get(id).copied()
    }

    /// All in order of id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    pub fn tasks_len(&self) -> usize {
        self.tasks.len()
    }

    pub fn nodes_len(&self) -> usize {
        self.nodes.len()
    }

    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_service.get(id).into_iter().flatten().filter_map(|task| self.tasks.get(task))
    }

    /// Also of services that are gone.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &ServiceId> {
        self.by_service.keys()
    }

    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_node.get(id).into_iter().flatten().filter_map(|task| self.tasks.get(task))
    }

    pub fn tasks_of_slot(&self, service: &ServiceId, slot: &SlotKey) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_of_service(service).filter(move |task| SlotKey::of(task).as_ref() == Some(slot))
    }

    /// Tasks that want a node or an address and are not over: the allocator's and the scheduler's work.
    pub fn waiting_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.waiting.values()
    }

    /// Who holds which address on a network, and where to look for the next.
    pub fn addresses(&self, network: &NetworkId) -> Option<&Addresses> {
        self.addresses.get(network)
    }

    /// How often a slot was restarted since its template last changed.
    pub fn restarts(&self, service: &ServiceId, slot: &SlotKey) -> Option<&RestartRecord> {
        self.restarts.get(&(service.clone(), slot.clone()))
    }

    /// Where its tasks failed of late.
    pub fn failures(&self, service: &ServiceId) -> Option<&FailureRecord> {
        self.failures.get(service)
    }

    /// The network the mesh runs over.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        match self.network_names.get(INGRESS_NETWORK_NAME).and_then(|id| self.networks.get(id)) {
            Some(network) if network.spec.ingress => Some(network),
            _ => self.networks.values().find(|network| network.spec.ingress),
        }
    }

    /// By full id, then name, then an unambiguous beginning of the id.
    pub fn find_service(&self, reference: &str) -> Result<&Arc<Service>, LookupError> {
        let named = self.service_names.get(&folded(reference)).cloned().into_iter().collect();
        by_reference("service", reference, &self.services, named, ServiceId::as_str)
    }

    pub fn find_network(&self, reference: &str) -> Result<&Arc<Network>, LookupError> {
        let named = self.network_names.get(&folded(reference)).cloned().into_iter().collect();
        by_reference("network", reference, &self.networks, named, NetworkId::as_str)
    }

    pub fn find_secret(&self, reference: &str) -> Result<&Arc<Secret>, LookupError> {
        let named = self.secret_names.get(&folded(reference)).cloned().into_iter().collect();
        by_reference("secret", reference, &self.secrets, named, SecretId::as_str)
    }

    pub fn find_config(&self, reference: &str) -> Result<&Arc<Config>, LookupError> {
        let named = self.config_names.get(&folded(reference)).cloned().into_iter().collect();
        by_reference("config", reference, &self.configs, named, ConfigId::as_str)
    }

    /// Tasks have no names of their own to be found by, but their full name is accepted (`web.1.<id>`).
    pub fn find_task(&self, reference: &str) -> Result<&Arc<Task>, LookupError> {
        let id = reference.rsplit('.').next().unwrap_or(reference);
        by_reference("task", id, &self.tasks, Vec::new(), TaskId::as_str)
    }

    /// Nodes go by hostname, which several may share.
    pub fn find_node(&self, reference: &str) -> Result<&Arc<Node>, LookupError> {
        by_reference("node", reference, &self.nodes, self.nodes_named(reference), NodeId::as_str)
    }

    fn nodes_named(&self, hostname: &str) -> Vec<NodeId> {
        let name = folded(hostname);
        // Ids begin with '0' at the least, so the range starts at the first node of that name.
        let Ok(lowest) = "0".parse::<NodeId>() else { return Vec::new() };
        self.hostnames
            .range((name.clone(), lowest)..)
            .take_while(|(n, _)| *n == name)
            .map(|(_, id)| id.clone())
            .collect()
    }
}
