//! Swarm-scoped networks: `docker network create -d overlay`.

use skep_model::network::{DualStack, IPV6_MTU, MTU_OPTION, NETWORK_KEY_BYTES, Network, NetworkKeys, NetworkSpec};
use skep_model::secret::SecretBytes;
use skep_model::{Meta, NetworkId, validate};
use skep_store::{Batch, Change};

use super::Node;
use crate::clock::now;
use crate::error::{NodeError, Result};

/// What an encrypted network's frames are sealed with.
pub(crate) fn new_network_key() -> SecretBytes {
    let secret: [u8; NETWORK_KEY_BYTES] = rand::random();
    SecretBytes(secret.to_vec())
}

/// What an overlay's IPv6 addresses cannot be: they follow from the IPv4 ones.
fn check_ipv6(spec: &NetworkSpec) -> Result<()> {
    if spec.ingress {
        return Err(NodeError::NotImplemented("IPv6 on the ingress network"));
    }
    let asked = spec.driver_options.get(MTU_OPTION).and_then(|text| text.parse::<u32>().ok());
    if let Some(mtu) = asked.filter(|mtu| (1..IPV6_MTU).contains(mtu)) {
        return Err(NodeError::Invalid(format!("an MTU of {mtu} is too small for IPv6: it is {IPV6_MTU} at least")));
    }
    let Some(pool) = &spec.pool6 else { return Ok(()) };
    if pool.ip_range.is_some() {
        return Err(NodeError::NotImplemented("an IPv6 ip-range on an overlay network (the IPv4 one holds for both)"));
    }
    if pool.subnet.prefix_len() > DualStack::LONGEST_PREFIX {
        let (subnet, longest) = (pool.subnet, DualStack::LONGEST_PREFIX);
        return Err(NodeError::Invalid(format!(
            "invalid network config:\nIPv6 subnet {subnet} of an overlay network is too small: its prefix may have {longest} \
             bits"
        )));
    }
    Ok(())
}

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
        if spec.ipv6 {
            check_ipv6(&spec)?;
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
        let keys = spec.is_encrypted().then(|| NetworkKeys::new(new_network_key(), new_network_key(), now()));
        let network = Network { id: id.clone(), meta: Meta::default(), spec, allocation: None, keys };
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
