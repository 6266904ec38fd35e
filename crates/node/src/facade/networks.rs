//! Swarm-scoped networks: `docker network create -d overlay`, and those that every node makes for itself.

use skep_model::network::{DualStack, IPV6_MTU, MTU_OPTION, NETWORK_KEY_BYTES, Network, NetworkKeys, NetworkSpec};
use skep_model::secret::SecretBytes;
use skep_model::{NetworkId, validate};
use skep_store::{Batch, Change};

use super::Node;
use crate::clock::now;
use crate::error::{NodeError, Result};

/// The least MTU of a link that carries IPv4 (RFC 791), and the largest of a container's.
const IPV4_MTU: u32 = 68;
const LARGEST_MTU: u32 = 65535;

/// What an encrypted network's frames are sealed with.
pub(crate) fn new_network_key() -> SecretBytes {
    let secret: [u8; NETWORK_KEY_BYTES] = rand::random();
    SecretBytes(secret.to_vec())
}

/// Options of an overlay that hosts could only fail at, or overlook.
fn check_options(spec: &NetworkSpec) -> Result<()> {
    spec.vxlan_id().map_err(NodeError::Invalid)?;
    let Some(text) = spec.driver_options.get(MTU_OPTION) else { return Ok(()) };
    match text.parse::<u32>() {
        Ok(0 | IPV4_MTU..=LARGEST_MTU) => Ok(()),
        Ok(_) | Err(_) => Err(NodeError::Invalid(format!(
            "failed to parse {MTU_OPTION} value: {text} (it is a number from {IPV4_MTU} to {LARGEST_MTU})"
        ))),
    }
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
        if spec.driver != "overlay" && !spec.is_node_local() {
            return Err(NodeError::NotImplemented(
                "a swarm network with a driver other than overlay, bridge and macvlan",
            ));
        }
        if !spec.is_node_local() {
            check_options(&spec)?;
        }
        if spec.ipv6 && !spec.is_node_local() {
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
        let network = Network { keys, ..Network::new(id.clone(), spec) };
        manager.propose(Batch::new(now(), vec![Change::CreateNetwork(Box::new(network))])).await?;
        Ok(id)
    }

    /// All of the swarm's; on a worker, those its tasks and containers are on.
    pub fn network_list(&self) -> Result<Vec<Network>> {
        match self.view() {
            Err(NodeError::NotManager) => Ok(self.networks_here()),
            view => Ok(view?.networks().map(|n| (**n).clone()).collect()),
        }
    }

    /// By full id, then name, then an unambiguous beginning of the id, out of [`Node::network_list`].
    pub fn network_inspect(&self, reference: &str) -> Result<Network> {
        match self.view() {
            Err(NodeError::NotManager) => {
                let networks = self.networks_here();
                let exact = |n: &&Network| n.id.as_str() == reference || n.spec.name == reference;
                let found = networks.iter().find(exact);
                found.cloned().ok_or_else(|| NodeError::NotFound { object: "network", name: reference.to_owned() })
            }
            view => Ok((**view?.find_network(reference)?).clone()),
        }
    }

    fn networks_here(&self) -> Vec<Network> {
        let orders = self.inner.member().and_then(|member| member.orders().borrow().clone());
        orders.iter().flat_map(|orders| orders.set.networks.values().cloned()).collect()
    }

    pub async fn network_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let network_id = manager.view().find_network(reference)?.id.clone();
        manager.propose(Batch::new(now(), vec![Change::RemoveNetwork { network_id }])).await.map(drop)
    }
}
