//! Putting objects into tables and indexes and taking them out. The only place that touches an index.

use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_model::network::Network;
use skep_model::node::Node;
use skep_model::secret::{Config, Secret};
use skep_model::service::Service;
use skep_model::task::{Task, TaskState};
use skep_model::{ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};

use crate::address::AddressOwner;
use crate::view::{View, folded};

/// A task's addresses are its own until it has ended; then they are free, and no later report brings it back.
fn holds_addresses(task: &Task) -> bool {
    !task.status.state.is_terminal()
}

/// Live, but the allocator or the scheduler has not done with it.
fn is_waiting(task: &Task) -> bool {
    task.is_live() && task.status.state < TaskState::Assigned
}

fn link<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<TaskId>>, key: &K, task: &TaskId) {
    match index.get_mut(key) {
        Some(set) => drop(set.insert(task.clone())),
        None => drop(index.insert(key.clone(), OrdSet::unit(task.clone()))),
    }
}

fn unlink<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<TaskId>>, key: &K, task: &TaskId) {
    if let Some(set) = index.get_mut(key) {
        set.remove(task);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

impl View {
    fn hold(&mut self, network: &NetworkId, address: Ipv4Addr, owner: AddressOwner) {
        self.addresses.entry(network.clone()).or_default().held.insert(address, owner);
    }

    fn release(&mut self, network: &NetworkId, address: Ipv4Addr, owner: &AddressOwner) {
        if let Some(addresses) = self.addresses.get_mut(network) {
            if addresses.held.get(&address) == Some(owner) {
                addresses.held.remove(&address);
            }
            if addresses.held.is_empty() && addresses.cursor.is_none() {
                self.addresses.remove(network);
            }
        }
    }

    /// Touches an index only where the task moved in it: a traversal of a large one is what an assignment costs.
    pub(crate) fn put_task(&mut self, task: Arc<Task>) {
        let id = task.id.clone();
        let old = self.tasks.insert(id.clone(), task.clone());
        let old = old.as_deref();
        let held = holds_addresses(&task);
        let keeps = old.is_some_and(|old| holds_addresses(old) && old.networks == task.networks);
        if let Some(old) = old.filter(|old| holds_addresses(old) && !(held && keeps)) {
            self.release_task(old);
        }
        if held && !keeps {
            for attachment in &task.networks {
                self.hold(&attachment.network_id, attachment.address.addr(), AddressOwner::Task(id.clone()));
            }
        }
        if old.is_none() {
            link(&mut self.by_service, &task.service_id, &id);
        }
        let was_on = old.and_then(|old| old.node_id.as_ref());
        if was_on != task.node_id.as_ref() {
            if let Some(node) = was_on {
                unlink(&mut self.by_node, node, &id);
            }
            if let Some(node) = &task.node_id {
                link(&mut self.by_node, node, &id);
            }
        }
        if is_waiting(&task) {
            self.waiting.insert(id, task);
        } else if old.is_some_and(is_waiting) {
            self.waiting.remove(&id);
        }
    }

    fn release_task(&mut self, task: &Task) {
        let owner = AddressOwner::Task(task.id.clone());
        for attachment in &task.networks {
            self.release(&attachment.network_id, attachment.address.addr(), &owner);
        }
    }

    pub(crate) fn take_task(&mut self, id: &TaskId) -> Option<Arc<Task>> {
        let task = self.tasks.remove(id)?;
        unlink(&mut self.by_service, &task.service_id, id);
        if let Some(node) = &task.node_id {
            unlink(&mut self.by_node, node, id);
        }
        self.waiting.remove(id);
        self.release_task(&task);
        Some(task)
    }

    fn service_addresses(service: &Service) -> impl Iterator<Item = (&NetworkId, Ipv4Addr)> {
        service.endpoint.iter().flat_map(|e| &e.virtual_ips).map(|vip| (&vip.network_id, vip.ip()))
    }

    pub(crate) fn put_service(&mut self, service: Arc<Service>) {
        let owner = AddressOwner::Service(service.id.clone());
        self.service_names.insert(folded(&service.spec.name), service.id.clone());
        if let Some(old) = self.services.insert(service.id.clone(), service.clone())
            && old.endpoint != service.endpoint
        {
            for (network, address) in Self::service_addresses(&old) {
                self.release(network, address, &owner);
            }
        }
        for (network, address) in Self::service_addresses(&service) {
            self.hold(network, address, owner.clone());
        }
    }

    pub(crate) fn take_service(&mut self, id: &ServiceId) -> Option<Arc<Service>> {
        let service = self.services.remove(id)?;
        self.service_names.remove(&folded(&service.spec.name));
        self.failures.remove(id);
        for (network, address) in Self::service_addresses(&service) {
            self.release(network, address, &AddressOwner::Service(id.clone()));
        }
        let gone: Vec<_> = self.restarts.keys().filter(|(service, _)| service == id).cloned().collect();
        gone.iter().for_each(|key| {
            self.restarts.remove(key);
        });
        Some(service)
    }

    pub(crate) fn put_node(&mut self, node: Arc<Node>) {
        let owner = AddressOwner::Node(node.id.clone());
        if let Some(old) = self.nodes.insert(node.id.clone(), node.clone()) {
            self.hostnames.remove(&(folded(&old.description.hostname), old.id.clone()));
            for (network, address) in &old.attachments {
                if node.attachments.get(network) != Some(address) {
                    self.release(network, *address, &owner);
                }
            }
        }
        self.hostnames.insert((folded(&node.description.hostname), node.id.clone()));
        self.highest_raft_id = self.highest_raft_id.max(node.manager.as_ref().map_or(0, |m| m.raft_id));
        for (network, address) in &node.attachments {
            self.hold(network, *address, owner.clone());
        }
    }

    pub(crate) fn take_node(&mut self, id: &NodeId) -> Option<Arc<Node>> {
        let node = self.nodes.remove(id)?;
        self.hostnames.remove(&(folded(&node.description.hostname), id.clone()));
        for (network, address) in &node.attachments {
            self.release(network, *address, &AddressOwner::Node(id.clone()));
        }
        Some(node)
    }

    pub(crate) fn put_network(&mut self, network: Arc<Network>) {
        self.network_names.insert(folded(&network.spec.name), network.id.clone());
        let old = self.networks.insert(network.id.clone(), network.clone());
        for (container, there) in old.iter().flat_map(|old| &old.attachments) {
            let Some(address) = there.address else { continue };
            if network.attachments.get(container).is_none_or(|now| now.address != there.address) {
                self.release(&network.id, address, &AddressOwner::Container(container.clone()));
            }
        }
        // Hosts give the same addresses, each on its own part of a node-local network.
        if network.spec.is_node_local() {
            return;
        }
        for (container, attachment) in &network.attachments {
            if let Some(address) = attachment.address {
                self.hold(&network.id, address, AddressOwner::Container(container.clone()));
            }
        }
    }

    pub(crate) fn take_network(&mut self, id: &NetworkId) -> Option<Arc<Network>> {
        let network = self.networks.remove(id)?;
        self.network_names.remove(&folded(&network.spec.name));
        Some(network)
    }

    pub(crate) fn put_secret(&mut self, secret: Arc<Secret>) {
        self.secret_names.insert(folded(&secret.name), secret.id.clone());
        self.secrets.insert(secret.id.clone(), secret);
    }

    pub(crate) fn take_secret(&mut self, id: &SecretId) -> Option<Arc<Secret>> {
        let secret = self.secrets.remove(id)?;
        self.secret_names.remove(&folded(&secret.name));
        Some(secret)
    }

    pub(crate) fn put_config(&mut self, config: Arc<Config>) {
        self.config_names.insert(folded(&config.name), config.id.clone());
        self.configs.insert(config.id.clone(), config);
    }

    pub(crate) fn take_config(&mut self, id: &ConfigId) -> Option<Arc<Config>> {
        let config = self.configs.remove(id)?;
        self.config_names.remove(&folded(&config.name));
        Some(config)
    }
}
