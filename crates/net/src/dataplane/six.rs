//! The IPv6 side of a container's balancers and of who may connect to whom: as the other side, for networks that have it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use skep_model::NetworkId;
use skep_model::network::DualStack;
use skep_model::plan::{HostPlan, OverlayPlan, Ring};

use super::container::{Connection, TABLE_PREFIX, forget_connections};
use crate::balance::{Balancers, Changed};
use crate::guard::Policy;
use crate::ingress::{fresh_name, remove_others};
use crate::link::Namespace;
use crate::nft::{Family, NftError, NftSocket, Ownership, Table};

#[derive(Debug)]
pub(super) struct Six {
    balancers: Balancers<Ipv6Addr>,
    policy: Policy<Ipv6Addr>,
    wanted: Table,
    applied: Option<Table>,
    /// What tracked connections have not heard of.
    changed: Changed<Ipv6Addr>,
    dual_stacks: Vec<DualStack>,
}

impl Six {
    pub(super) fn open(nft: &mut NftSocket, seed: usize) -> Result<Self, NftError> {
        let mut wanted = Table::new(Family::Ip6, fresh_name(nft, Family::Ip6, TABLE_PREFIX)?, Ownership::Ours);
        Balancers::<Ipv6Addr>::prepare(&mut wanted);
        let mut balancers = Balancers::new(seed);
        for earlier in nft.tables(Family::Ip6, TABLE_PREFIX)? {
            balancers.used_before(Balancers::used(nft, &earlier)?);
        }
        Ok(Self {
            balancers,
            policy: Policy::default(),
            wanted,
            applied: None,
            changed: Changed::default(),
            dual_stacks: Vec::new(),
        })
    }

    /// Whether a container with these connections needs it.
    pub(super) fn is_needed(plan: &HostPlan, connections: &BTreeMap<NetworkId, Connection>) -> bool {
        overlays(plan, connections).next().is_some()
    }

    /// The number of changes made.
    pub(super) fn update(
        &mut self,
        nft: &mut NftSocket,
        plan: &HostPlan,
        connections: &BTreeMap<NetworkId, Connection>,
    ) -> Result<usize, NftError> {
        self.dual_stacks.clear();
        let (mut rings, mut policy) = (BTreeMap::new(), Policy::default());
        for (dual, overlay, connection) in overlays(plan, connections) {
            self.dual_stacks.push(dual);
            policy.add(overlay, &connection.ifname, connection.address, |address| dual.six(address));
            for (vip, ring) in &overlay.balancers {
                let backends = ring.backends.iter().map(|address| dual.six(*address)).collect();
                rings.insert(dual.six(*vip), Ring { backends, by_client: ring.by_client });
            }
        }
        let wanted = rings.iter().map(|(vip, ring)| (*vip, ring)).collect();
        let changed = self.balancers.update(&mut self.wanted, &wanted);
        if self.applied.is_some() {
            self.changed.added.extend(changed.added);
        }
        self.changed.dropped.extend(changed.dropped);
        if policy != self.policy {
            policy.put(&mut self.wanted);
            self.policy = policy;
        }
        let mut changes = nft.apply(self.applied.as_ref(), &self.wanted)?;
        if changes > 0 && self.applied.replace(self.wanted.clone()).is_none() {
            changes += remove_others(nft, Family::Ip6, TABLE_PREFIX, &self.wanted.name)?;
        }
        Ok(changes)
    }

    /// What [`Container::forget_connections`](super::container::Container::forget_connections) does, for `gone` by their
    /// other addresses.
    pub(super) fn forget_connections(
        &mut self,
        nft: &mut NftSocket,
        namespace: &Namespace,
        gone: &BTreeSet<std::net::Ipv4Addr>,
    ) -> Option<String> {
        let changed = std::mem::take(&mut self.changed);
        let six = |address: &std::net::Ipv4Addr| {
            self.dual_stacks.iter().find(|dual| dual.subnet.contains(address)).map(|dual| dual.six(*address))
        };
        let gone: BTreeSet<Ipv6Addr> = gone.iter().filter_map(six).collect();
        if !self.balancers.concerned(&changed, &gone) {
            return None;
        }
        match Balancers::used(nft, &self.wanted.name) {
            Ok(used) => forget_connections(namespace, &self.balancers.forget(&changed, &gone, used)),
            Err(error) => Some(super::chain_of(&error)),
        }
    }

    /// Forgets its rules if they are not there any more, so that the next update makes them.
    pub(super) fn look_again(&mut self, nft: &mut NftSocket) -> Result<(), NftError> {
        if let Some(applied) = &self.applied
            && !nft.has(applied)?
        {
            self.wanted.name = fresh_name(nft, Family::Ip6, TABLE_PREFIX)?;
            self.applied = None;
        }
        Ok(())
    }
}

fn overlays<'a>(
    plan: &'a HostPlan,
    connections: &'a BTreeMap<NetworkId, Connection>,
) -> impl Iterator<Item = (DualStack, &'a OverlayPlan, &'a Connection)> {
    let overlays = connections.iter().filter_map(|(id, connection)| Some((plan.overlays.get(id)?, connection)));
    overlays.filter_map(|(overlay, connection)| Some((overlay.dual_stack?, overlay, connection)))
}
