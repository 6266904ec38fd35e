//! Who may open connections to whom over overlays, inside a container's own namespace: what it may open, and what it takes.
//!
//! ```text
//! chain deny  { type filter hook output priority 0; ip daddr @denied ct direction original goto rejected }
//! chain admit { type filter hook input priority 0; iifname eth0 ct direction original goto admit-eth0 }
//! chain admit-eth0 { ip saddr @admitted-eth0 accept; ip saddr != 10.0.0.0/24 accept; reject }   # the second for the mesh
//! ```
//!
//! Both ends refuse, so that neither a host that has not heard yet nor one that was taken over opens the way. Answers pass:
//! who may not be asked may still ask. After translation, so that addresses are those of tasks and not of services. What is
//! under way when its client is no longer allowed is reset. On networks with IPv6 the same is said of the addresses there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::plan::OverlayPlan;

use crate::balance::{REJECTED, rejected};
use crate::nft::{Address, Chain, ChainType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const DENY: &str = "deny";
const DENIED: &str = "denied";
const ADMIT: &str = "admit";

/// What one container may open and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy<A> {
    denied: BTreeSet<A>,
    /// By the interface that connections come in by; what is not here takes all.
    admitted: BTreeMap<String, Admitted<A>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Admitted<A> {
    clients: BTreeSet<A>,
    /// All addresses outside this subnet, too: of IPv4, the only one the mesh speaks to tasks.
    outside: Option<Ipv4Net>,
}

impl<A> Default for Policy<A> {
    fn default() -> Self {
        Self { denied: BTreeSet::new(), admitted: BTreeMap::new() }
    }
}

impl<A: Address> Policy<A> {
    /// Takes in what an overlay's guards say to a container with this address on it; `of` is the address of either IP version
    /// that goes with one of the plan's.
    pub(crate) fn add(
        &mut self,
        overlay: &OverlayPlan,
        ifname: &str,
        address: Ipv4Addr,
        of: impl Fn(Ipv4Addr) -> A + Copy,
    ) {
        for guard in &overlay.guards {
            if guard.tasks.contains(&address) {
                let outside = overlay.subnet.filter(|_| guard.outside);
                let clients = guard.clients.iter().copied().map(of).collect();
                self.admitted.insert(ifname.to_owned(), Admitted { clients, outside });
            }
            if !guard.clients.contains(&address) {
                self.denied.extend(guard.tasks.iter().copied().filter(|task| *task != address).map(of));
            }
        }
    }

    /// Makes the table say so. [`Balancers::prepare`](crate::balance::Balancers::prepare) has put in the chain that rejects.
    pub(crate) fn put(&self, table: &mut Table) {
        for name in table.chains.clone().keys().filter(|name| *name == DENY || name.starts_with(ADMIT)) {
            table.chains.remove(name);
        }
        for name in table.sets.clone().keys().filter(|name| *name == DENIED || name.starts_with(ADMIT)) {
            table.sets.remove(name);
        }
        let filter = |point| Hook::new(ChainType::Filter, point, 0);
        if !self.denied.is_empty() {
            table.sets.insert(DENIED.to_owned(), addresses(&self.denied));
            let deny = Rule::new().destination_in::<A>(DENIED).direction_original();
            let deny = deny.verdict(Verdict::Goto(REJECTED.to_owned()));
            table.chain(DENY, Chain::base(filter(HookPoint::Output), vec![deny]));
        }
        let mut admit = Vec::new();
        for (ifname, admitted) in &self.admitted {
            let (chain, set) = (format!("{ADMIT}-{ifname}"), format!("{ADMIT}ted-{ifname}"));
            table.sets.insert(set.clone(), addresses(&admitted.clients));
            let mut rules = vec![Rule::new().source_in::<A>(&set).verdict(Verdict::Accept)];
            rules.extend(admitted.outside.map(|net| Rule::new().source_outside(net).verdict(Verdict::Accept)));
            rules.extend(rejected().rules);
            table.chain(chain.clone(), Chain::regular(rules));
            admit.push(Rule::new().input(ifname).direction_original().verdict(Verdict::Goto(chain)));
        }
        if !admit.is_empty() {
            table.chain(ADMIT, Chain::base(filter(HookPoint::Input), admit));
        }
    }
}

fn addresses<A: Address>(of: &BTreeSet<A>) -> Set {
    let mut set = Set::plain(A::TYPE);
    set.elements = of.iter().map(|address| (address.bytes(), Element::Present)).collect();
    set
}
