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
//! under way when its client is no longer allowed is reset.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::plan::OverlayPlan;

use crate::balance::{REJECTED, rejected};
use crate::nft::{Chain, ChainType, DataType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const DENY: &str = "deny";
const DENIED: &str = "denied";
const ADMIT: &str = "admit";

/// What one container may open and takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    denied: BTreeSet<Ipv4Addr>,
    /// By the interface that connections come in by; what is not here takes all.
    admitted: BTreeMap<String, Admitted>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Admitted {
    clients: BTreeSet<Ipv4Addr>,
    /// All addresses outside this subnet, too.
    outside: Option<Ipv4Net>,
}

impl Policy {
    /// Takes in what an overlay's guards say to a container with this address on it.
    pub(crate) fn add(&mut self, overlay: &OverlayPlan, ifname: &str, address: Ipv4Addr) {
        for guard in &overlay.guards {
            if guard.tasks.contains(&address) {
                let outside = overlay.subnet.filter(|_| guard.outside);
                self.admitted.insert(ifname.to_owned(), Admitted { clients: guard.clients.clone(), outside });
            }
            if !guard.clients.contains(&address) {
                self.denied.extend(guard.tasks.iter().filter(|task| **task != address));
            }
        }
    }

    /// Makes the table say so. [`Balancers::prepare`](crate::balance::Balancers::prepare) has put in the chain that rejects.
    pub(crate) fn put(&self, table: &mut Table) {
        table.chains.retain(|name, _| name != DENY && !name.starts_with(ADMIT));
        table.sets.retain(|name, _| name != DENIED && !name.starts_with(ADMIT));
        let filter = |point| Hook::new(ChainType::Filter, point, 0);
        if !self.denied.is_empty() {
            table.sets.insert(DENIED.to_owned(), addresses(&self.denied));
            let deny = Rule::new().destination_in(DENIED).direction_original();
            let deny = deny.verdict(Verdict::Goto(REJECTED.to_owned()));
            table.chain(DENY, Chain::base(filter(HookPoint::Output), vec![deny]));
        }
        let mut admit = Vec::new();
        for (ifname, admitted) in &self.admitted {
            let (chain, set) = (format!("{ADMIT}-{ifname}"), format!("{ADMIT}ted-{ifname}"));
            table.sets.insert(set.clone(), addresses(&admitted.clients));
            let mut rules = vec![Rule::new().source_in(&set).verdict(Verdict::Accept)];
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

fn addresses(of: &BTreeSet<Ipv4Addr>) -> Set {
    let mut set = Set::plain(DataType::IPV4);
    set.elements = of.iter().map(|address| (address.octets().to_vec(), Element::Present)).collect();
    set
}
