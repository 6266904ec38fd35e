//! One container's share of the data plane: its places on overlays, its balancers, its way back into the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::plan::HostPlan;
use skep_model::{ContainerId, NetworkId};

use super::six::Six;
use crate::balance::{Balancers, Changed, Forget, UDP};
use crate::conntrack::Conntrack;
use crate::guard::Policy;
use crate::ingress::rules::SourceMode;
use crate::ingress::task::{self, NodeMacs};
use crate::ingress::{fresh_name, remove_others};
use crate::link::Namespace;
use crate::nft::{Address, Family, NftError, NftSocket, Ownership, Table};

pub(super) const TABLE_PREFIX: &str = "skep-lb-";
const EGRESS_PREFIX: &str = "skep-mesh-";

/// A container that is on at least one overlay.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) namespace: Namespace,
    pub(super) connections: BTreeMap<NetworkId, Connection>,
    nft: NftSocket,
    balancers: Balancers<Ipv4Addr>,
    policy: Policy<Ipv4Addr>,
    /// Since it was on a network with IPv6.
    six: Option<Six>,
    seed: usize,
    wanted: Table,
    applied: Option<Table>,
    egress: Option<Table>,
    /// What the way back was last made for.
    mesh: Option<Mesh>,
    /// Where answers to datagrams of the mesh are sent from; not known before the container has a default route.
    way_out: Option<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) address: Ipv4Addr,
    pub(super) ifname: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mesh {
    ifname: String,
    gateway: Ipv4Addr,
    subnet: Ipv4Net,
    nodes: NodeMacs,
}

/// Changes made, what failed, and backends taken off a VIP.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: usize,
    pub(super) failures: Vec<String>,
    /// The balancers' rules could not be put in force.
    pub(super) misdirected: bool,
    pub(super) balancers: Changed<Ipv4Addr>,
}

impl Container {
    pub(super) fn open(id: &ContainerId, namespace: Namespace) -> Result<Self, NftError> {
        let mut nft = NftSocket::open(namespace.fd())?;
        let mut wanted = Table::new(Family::Ip, fresh_name(&mut nft, Family::Ip, TABLE_PREFIX)?, Ownership::Ours);
        Balancers::<Ipv4Addr>::prepare(&mut wanted);
        let mut used = BTreeSet::new();
        for earlier in nft.tables(Family::Ip, TABLE_PREFIX)? {
            used.extend(Balancers::used(&mut nft, &earlier)?);
        }
        let seed = id.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let mut balancers = Balancers::new(seed);
        balancers.used_before(used);
        Ok(Self {
            namespace,
            connections: BTreeMap::new(),
            nft,
            balancers,
            policy: Policy::default(),
            six: None,
            seed,
            wanted,
            applied: None,
            egress: None,
            mesh: None,
            way_out: None,
        })
    }

    /// Makes the rules in the namespace those that the plan wants for the container's connections.
    pub(super) fn update(&mut self, plan: &HostPlan, mode: SourceMode) -> Outcome {
        let mut outcome = Outcome::default();
        let wanted = self
            .connections
            .keys()
            .filter_map(|network| plan.overlays.get(network))
            .flat_map(|overlay| overlay.balancers.iter())
            .map(|(vip, backends)| (*vip, backends))
            .collect();
        outcome.balancers = self.balancers.update(&mut self.wanted, &wanted);
        let policy = self.policy_of(plan);
        if policy != self.policy {
            policy.put(&mut self.wanted);
            self.policy = policy;
        }
        if self.applied.is_none() {
            // Nobody has tried these addresses in vain yet, or an earlier daemon has seen to it.
            outcome.balancers.added.clear();
        }
        let mesh = self.mesh_of(plan, mode);
        if mesh != self.mesh {
            match self.update_mesh(mesh.clone()) {
                Ok(changes) => {
                    outcome.changes += changes;
                    self.mesh = mesh;
                }
                Err(failure) => outcome.failures.push(failure),
            }
        }
        outcome.failures.extend(self.update_way_out());
        match self.commit() {
            Ok(changes) => outcome.changes += changes,
            Err(error) => {
                outcome.misdirected = true;
                outcome.failures.push(super::chain_of(&error));
            }
        }
        match self.update_six(plan) {
            Ok(changes) => outcome.changes += changes,
            Err(error) => {
                outcome.misdirected = true;
                outcome.failures.push(super::chain_of(&error));
            }
        }
        outcome
    }

    fn update_six(&mut self, plan: &HostPlan) -> Result<usize, NftError> {
        if self.six.is_none() {
            if !Six::is_needed(plan, &self.connections) {
                return Ok(0);
            }
            self.six = Some(Six::open(&mut self.nft, self.seed)?);
        }
        let Some(six) = &mut self.six else { return Ok(0) };
        six.update(&mut self.nft, plan, &self.connections)
    }

    /// New datagrams of clients that used a backend which takes no more connections go elsewhere; and everything of
    /// endpoints that are `gone` is forgotten.
    pub(super) fn forget_connections(
        &mut self,
        changed: &Changed<Ipv4Addr>,
        gone: &BTreeSet<Ipv4Addr>,
    ) -> Option<String> {
        let six = self.six.as_mut().and_then(|six| six.forget_connections(&mut self.nft, &self.namespace, gone));
        self.forget_ipv4_connections(changed, gone).or(six)
    }

    fn forget_ipv4_connections(&mut self, changed: &Changed<Ipv4Addr>, gone: &BTreeSet<Ipv4Addr>) -> Option<String> {
        if !self.balancers.concerned(changed, gone) {
            return None;
        }
        let forget = match Balancers::used(&mut self.nft, &self.wanted.name) {
            Ok(used) => self.balancers.forget(changed, gone, used),
            Err(error) => return Some(super::chain_of(&error)),
        };
        forget_connections(&self.namespace, &forget)
    }

    fn policy_of(&self, plan: &HostPlan) -> Policy<Ipv4Addr> {
        let mut policy = Policy::default();
        for (network, connection) in &self.connections {
            if let Some(overlay) = plan.overlays.get(network) {
                policy.add(overlay, &connection.ifname, connection.address, |address| address);
            }
        }
        policy
    }

    fn mesh_of(&self, plan: &HostPlan, mode: SourceMode) -> Option<Mesh> {
        let ingress = plan.ingress.as_ref().filter(|_| mode == SourceMode::Preserve)?;
        let network = ingress.network_id.as_ref()?;
        let connection = self.connections.get(network)?;
        let overlay = plan.overlays.get(network)?;
        let (gateway, subnet) = (overlay.gateway?, overlay.subnet?);
        Some(Mesh { ifname: connection.ifname.clone(), gateway, subnet, nodes: super::node_macs(ingress) })
    }

    pub(super) fn forget_way_out(&mut self) {
        self.way_out = None;
    }

    fn update_way_out(&mut self) -> Option<String> {
        let mesh = self.mesh.as_ref().filter(|_| self.way_out.is_none())?;
        match task::way_out(&self.namespace) {
            Ok(way_out) => {
                self.way_out = way_out;
                task::receive_datagrams_at(&mut self.wanted, &mesh.ifname, mesh.subnet, way_out);
                None
            }
            Err(error) => Some(format!("failed to find a container's default route: {error}")),
        }
    }

    fn update_mesh(&mut self, mesh: Option<Mesh>) -> Result<usize, String> {
        let Some(mesh) = mesh else {
            // The interface went, and with it what hung on it; the marks do no harm without their rule.
            task::unmark_connections(&mut self.wanted);
            self.egress = None;
            self.way_out = None;
            return Ok(0);
        };
        let Mesh { ifname, gateway, nodes, .. } = mesh;
        self.way_out = None;
        task::mark_connections(&mut self.wanted, &ifname, &nodes);
        let mut changes = 0;
        if self.mesh.as_ref().is_none_or(|old| old.ifname != ifname || old.gateway != gateway) {
            self.egress = None;
            task::route_back(&self.namespace, &ifname, gateway)
                .map_err(|error| format!("failed to route mesh connections back: {error}"))?;
            changes += 3;
        }
        let name = match &self.egress {
            Some(table) => table.name.clone(),
            None => {
                fresh_name(&mut self.nft, Family::Netdev, EGRESS_PREFIX).map_err(|error| super::chain_of(&error))?
            }
        };
        let egress = task::egress_table(&name, &ifname, gateway, &nodes);
        let apply = |nft: &mut NftSocket, old: Option<&Table>| -> Result<usize, NftError> {
            let mut changes = nft.apply(old, &egress)?;
            if old.is_none() {
                changes += remove_others(nft, Family::Netdev, EGRESS_PREFIX, &name)?;
            }
            Ok(changes)
        };
        changes += apply(&mut self.nft, self.egress.as_ref()).map_err(|error| super::chain_of(&error))?;
        self.egress = Some(egress);
        Ok(changes)
    }

    /// Forgets what of its rules is not there any more, so that the next update makes it.
    pub(super) fn look_again(&mut self) -> Result<(), NftError> {
        if let Some(six) = &mut self.six {
            six.look_again(&mut self.nft)?;
        }
        if let Some(applied) = &self.applied
            && !self.nft.has(applied)?
        {
            self.wanted.name = fresh_name(&mut self.nft, Family::Ip, TABLE_PREFIX)?;
            self.applied = None;
        }
        if let Some(egress) = &self.egress
            && !self.nft.has(egress)?
        {
            self.forget_way_back();
        }
        Ok(())
    }

    /// Its interface is another one: routes and neighbours went with the one before.
    pub(super) fn forget_way_back(&mut self) {
        (self.egress, self.mesh) = (None, None);
    }

    fn commit(&mut self) -> Result<usize, NftError> {
        let mut changes = self.nft.apply(self.applied.as_ref(), &self.wanted)?;
        if changes > 0 && self.applied.replace(self.wanted.clone()).is_none() {
            changes += remove_others(&mut self.nft, Family::Ip, TABLE_PREFIX, &self.wanted.name)?;
        }
        Ok(changes)
    }

    /// Takes the rules away.
    pub(super) fn clear(&mut self) -> Result<(), NftError> {
        remove_others(&mut self.nft, Family::Netdev, EGRESS_PREFIX, "")?;
        remove_others(&mut self.nft, Family::Ip6, TABLE_PREFIX, "")?;
        remove_others(&mut self.nft, Family::Ip, TABLE_PREFIX, "").map(drop)
    }
}

/// Deletes tracked connections.
pub(super) fn forget_connections<A: Address>(namespace: &Namespace, forget: &Forget<A>) -> Option<String> {
    let Forget { all, datagrams, untranslated } = forget;
    let backends: BTreeSet<A> = all.iter().chain(datagrams).chain(untranslated).copied().collect();
    if backends.is_empty() {
        return None;
    }
    let forgotten = Conntrack::open(namespace.fd()).and_then(|conntrack| {
        conntrack.forget(&backends, |connection| {
            let backend = connection.reply_source;
            if connection.original_destination == backend {
                return untranslated.contains(&backend);
            }
            all.contains(&backend) || (connection.protocol == UDP && datagrams.contains(&backend))
        })
    });
    forgotten.err().map(|error| format!("failed to forget connections of removed backends: {error}"))
}
