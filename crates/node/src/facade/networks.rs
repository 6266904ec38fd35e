//! Swarm-scoped networks: `docker network create -d overlay`.

use skep_model::network::{Network, NetworkSpec};
use skep_model::{Meta, NetworkId, validate};
use skep_store::{Batch, Change};

use super::Node;
use crate::clock::now;
use crate::error::{NodeError, Result};

impl Node {
    pub async fn network_create(&self, mut spec: NetworkSpec) -> Result<NetworkId> {
        let manager = self.inner.manager()?;
        validate::name(&spec.name)?;
        if spec.driver.is_empty() {
            spec.driver = "overlay".into();
        }
        if spec.driver != "overlay" {
            return Err(NodeError::NotImplemented("a swarm network with a driver other than overlay"));
        }
        if spec.driver_options.contains_key("encrypted") {
            return Err(NodeError::NotImplemented("an encrypted overlay network"));
        }
        if spec.ipv6 {
            return Err(NodeError::NotImplemented("IPv6 on an overlay network"));
        }
        if spec.ingress && spec.attachable {
            return Err(NodeError::Invalid("ingress network cannot be attachable".into()));
        }
        if spec.ingress && manager.view().ingress_network().is_some() {
            return Err(NodeError::Refused {
                code: "AlreadyExists",
                text: "ingress network already exists".into(),
                kind: crate::error::Kind::Conflict,
            });
        }
        let id = NetworkId::from_bits(rand::random());
        let network = Network { id: id.clone(), meta: Meta::default(), spec, allocation: None };
        manager.propose(Batch::new(now(), vec![Change::CreateNetwork(Box::new(network))])).await?;
        Ok(id)
    }

    pub fn network_list(&self) -> Result<Vec<Network>> {
        Ok(self.view()?.networks().map(|n| (**n).clone()).collect())
    }

    pub fn network_inspect(&self, reference: &str) -> Result<Network> {
        Ok((**self.view()?.find_network(reference)?).clone())
    }

    pub async fn network_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let network_id = manager.view().find_network(reference)?.id.clone();
        manager.propose(Batch::new(now(), vec![Change::RemoveNetwork { network_id }])).await.map(drop)
    }
}
