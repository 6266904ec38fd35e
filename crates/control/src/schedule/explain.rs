//! Why no node will do, in swarmkit's words: how many nodes failed at which filter, most first.

use std::collections::BTreeMap;

use super::filter::{Demand, Refusal};
use super::ledger::{Group, Ledger};

fn text(refusal: Refusal, nodes: usize) -> String {
    let on = |what: &str| if nodes == 1 { format!("{what} on 1 node") } else { format!("{what} on {nodes} nodes") };
    match refusal {
        Refusal::NotReady if nodes == 1 => "1 node not available for new tasks".into(),
        Refusal::NotReady => format!("{nodes} nodes not available for new tasks"),
        Refusal::Resources => on("insufficient resources"),
        Refusal::Plugin => on("missing plugin"),
        Refusal::Constraint => on("scheduling constraints not satisfied"),
        Refusal::Platform => on("unsupported platform"),
        Refusal::HostPort => on("host-mode port already in use"),
        Refusal::MaxReplicas => "max replicas per node limit exceed".into(),
    }
}

pub(super) fn one(refusal: Refusal) -> String {
    text(refusal, 1)
}

/// Empty if there is no node at all.
pub(super) fn all(ledger: &Ledger, group: &Group, demand: &Demand) -> String {
    let mut counts: BTreeMap<Refusal, usize> = BTreeMap::new();
    for (load, own) in ledger.loads().iter().zip(&group.own) {
        if let Some(refusal) = demand.refusal(load, *own) {
            *counts.entry(refusal).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(refusal, count)| (std::cmp::Reverse(*count), *refusal));
    counts.into_iter().map(|(refusal, count)| text(refusal, count)).collect::<Vec<_>>().join("; ")
}
