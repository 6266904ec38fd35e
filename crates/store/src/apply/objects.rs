//! Networks, secrets and configs: made, relabelled, removed; refused while something needs them.

use std::sync::Arc;

use skep_model::network::{Attachment, NETWORK_KEY_BYTES, Network, NetworkAllocation, NetworkKeys};
use skep_model::secret::{Config, Secret, SecretBytes};
use skep_model::{ConfigId, ContainerId, Labels, NetworkId, NodeId, SecretId};

use super::{Done, Entry};
use crate::address::AddressOwner;
use crate::event::Object;
use crate::refused::Refused;
use crate::view::folded;

fn exists(kind: &str, name: &str) -> Refused {
    Refused::NameConflict(format!("rpc error: code = AlreadyExists desc = {kind} {name} already exists"))
}

impl Entry {
    pub(super) fn create_network(&mut self, network: &Network) -> Done {
        let name = &network.spec.name;
        if self.view.networks.contains_key(&network.id) || self.view.network_names.contains_key(&folded(name)) {
            return Err(Refused::NameConflict(format!("network with name {name} already exists")));
        }
        if network.spec.ingress && self.view.ingress_network().is_some() {
            return Err(Refused::NameConflict(
                "rpc error: code = AlreadyExists desc = ingress network already exists".into(),
            ));
        }
        changed!(self, put_network, Network, None, Network { meta: self.created(), ..network.clone() })
    }

    pub(super) fn allocate_network(&mut self, id: &NetworkId, allocation: &NetworkAllocation) -> Done {
        let Some(old) = self.view.network(id).cloned() else {
            return Err(Refused::Stale(format!("network {id} is gone")));
        };
        if old.allocation.is_some() || old.spec.is_node_local() {
            return Err(Refused::Stale(format!("network {id} has its subnet")));
        }
        let others = self.view.networks().filter_map(|n| n.allocation.as_ref());
        let clash = |a: &NetworkAllocation| {
            a.vni == allocation.vni
                || a.subnet.contains(&allocation.subnet.network())
                || allocation.subnet.contains(&a.subnet.network())
        };
        if others.into_iter().any(clash) {
            return Err(Refused::Stale(format!("subnet {} or its VNI is taken", allocation.subnet)));
        }
        let mut new = (*old).clone();
        new.allocation = Some(allocation.clone());
        new.meta = self.touched(old.meta);
        changed!(self, put_network, Network, Some(old), new)
    }

    pub(super) fn rotate_keys(&mut self, id: &NetworkId, from: u32, next: &SecretBytes) -> Done {
        if next.0.len() != NETWORK_KEY_BYTES {
            return Err(Refused::Invalid(format!("a key of a network has {NETWORK_KEY_BYTES} bytes")));
        }
        let (old, at) = (self.view.network(id).cloned(), self.at);
        let due = |n: &Network| n.keys.as_ref().is_some_and(|keys| keys.current == from);
        let Some(old) = old.filter(|n| due(n)) else {
            return Err(Refused::Stale(format!("network {id} has another key in use")));
        };
        self.with_keys(old, |keys| keys.rotate(next.clone(), at))
    }

    /// A node that is gone knows what was sealed with.
    pub(super) fn hurry_keys(&mut self) -> Done {
        let encrypted: Vec<_> = self.view.networks().filter(|n| n.keys.is_some()).cloned().collect();
        encrypted.into_iter().try_for_each(|network| self.with_keys(network, NetworkKeys::hurry))
    }

    fn with_keys(&mut self, old: Arc<Network>, edit: impl FnOnce(&mut NetworkKeys)) -> Done {
        self.with_network(old, |network| {
            network.keys.as_mut().map(edit);
        })
    }

    fn with_network(&mut self, old: Arc<Network>, edit: impl FnOnce(&mut Network)) -> Done {
        let mut new = (*old).clone();
        edit(&mut new);
        if new == *old {
            return Ok(());
        }
        new.meta = self.touched(old.meta);
        changed!(self, put_network, Network, Some(old), new)
    }

    pub(super) fn attach_container(&mut self, id: &NetworkId, container: &ContainerId, wanted: &Attachment) -> Done {
        let network = self.view.network(id).cloned().ok_or_else(|| Refused::not_found("network", id))?;
        if !network.spec.attachable {
            return Err(Refused::Invalid(format!("network {} not manually attachable", network.spec.name)));
        }
        if self.view.node(&wanted.node_id).is_none() {
            return Err(Refused::not_found("node", &wanted.node_id));
        }
        if network.attachments.get(container).is_some_and(|there| there.node_id != wanted.node_id) {
            return Err(Refused::Stale(format!("container {container} is attached on another node")));
        }
        if let Some(address) = wanted.address.filter(|_| !network.spec.is_node_local()) {
            self.claim(id, address, &AddressOwner::Container(container.clone()))?;
        }
        self.with_network(network, |n| drop(n.attachments.insert(container.clone(), wanted.clone())))
    }

    pub(super) fn detach_container(&mut self, id: &NetworkId, container: &ContainerId) -> Done {
        let Some(network) = self.view.network(id).cloned() else { return Ok(()) };
        self.with_network(network, |n| drop(n.attachments.remove(container)))
    }

    /// Containers of a node that is gone: it is told nothing any more, so neither who they are.
    pub(super) fn detach_all_of(&mut self, node: &NodeId) -> Done {
        let networks: Vec<_> = self.view.networks().cloned().collect();
        networks
            .into_iter()
            .try_for_each(|network| self.with_network(network, |n| n.attachments.retain(|_, a| a.node_id != *node)))
    }

    pub(super) fn remove_network(&mut self, id: &NetworkId) -> Done {
        let network = self.view.network(id).cloned().ok_or_else(|| Refused::not_found("network", id))?;
        if network.spec.ingress {
            if let Some(service) = self.view.services().find(|s| s.spec.ingress_ports().next().is_some()) {
                return Err(Refused::Precondition(format!(
                    "ingress network cannot be removed because service {} depends on it",
                    service.id
                )));
            }
            // The nodes' legs go with it.
            let legs: Vec<_> =
                self.view.nodes().filter(|n| n.attachments.contains_key(id)).map(|n| n.id.clone()).collect();
            for node in legs {
                self.with_node(&node, |n| {
                    n.attachments.remove(id);
                })?;
            }
        } else {
            self.view.network_unused(id, &network.spec.name)?;
        }
        self.view.take_network(id);
        self.view.addresses.remove(id);
        self.tell(Object::Network(Some(network), None));
        Ok(())
    }

    pub(super) fn create_secret(&mut self, secret: &Secret) -> Done {
        if self.view.secrets.contains_key(&secret.id) || self.view.secret_names.contains_key(&folded(&secret.name)) {
            return Err(exists("secret", &secret.name));
        }
        changed!(self, put_secret, Secret, None, Secret { meta: self.created(), ..secret.clone() })
    }

    pub(super) fn label_secret(&mut self, id: &SecretId, labels: &Labels) -> Done {
        let old = self.view.secret(id).cloned().ok_or_else(|| Refused::not_found("secret", id))?;
        if old.labels == *labels {
            return Ok(());
        }
        let new = Secret { labels: labels.clone(), meta: self.touched(old.meta), ..(*old).clone() };
        changed!(self, put_secret, Secret, Some(old), new)
    }

    pub(super) fn remove_secret(&mut self, id: &SecretId) -> Done {
        let old = self.view.secret(id).cloned().ok_or_else(|| Refused::not_found("secret", id))?;
        self.view.secret_unused(id, &old.name)?;
        self.view.take_secret(id);
        self.tell(Object::Secret(Some(old), None));
        Ok(())
    }

    pub(super) fn create_config(&mut self, config: &Config) -> Done {
        if self.view.configs.contains_key(&config.id) || self.view.config_names.contains_key(&folded(&config.name)) {
            return Err(exists("config", &config.name));
        }
        changed!(self, put_config, Config, None, Config { meta: self.created(), ..config.clone() })
    }

    pub(super) fn label_config(&mut self, id: &ConfigId, labels: &Labels) -> Done {
        let old = self.view.config(id).cloned().ok_or_else(|| Refused::not_found("config", id))?;
        if old.labels == *labels {
            return Ok(());
        }
        let new = Config { labels: labels.clone(), meta: self.touched(old.meta), ..(*old).clone() };
        changed!(self, put_config, Config, Some(old), new)
    }

    pub(super) fn remove_config(&mut self, id: &ConfigId) -> Done {
        let old = self.view.config(id).cloned().ok_or_else(|| Refused::not_found("config", id))?;
        self.view.config_unused(id, &old.name)?;
        self.view.take_config(id);
        self.tell(Object::Config(Some(old), None));
        Ok(())
    }
}
