//! The mesh's rules in the host's namespace.
//!
//! ```text
//! map ports-tcp { 8080 : goto tcp-8080 }
//! chain tcp-8080 { dnat to numgen inc mod 2 map { 0 : 10.0.0.21 . 80, 1 : 10.0.0.31 . 80 }; dnat to 10.0.0.31:80 }
//! chain prerouting { type nat hook prerouting priority -100; fib daddr type local meta l4proto tcp th dport vmap @ports-tcp }
//! chain output     { … the same, for this host's own clients }
//! chain postrouting { type nat hook postrouting priority 100;
//!     oifname ing ct status dnat meta l4proto tcp ct original proto-dst @masqueraded-tcp masquerade   # asked for by label
//!     oifname ing ct status dnat fib saddr type local masquerade          # 127.0.0.1 means nothing to a task
//!     oifname ing ct status dnat meta l4proto tcp snat to :1024-22527 }   # keeps the client's address
//! chain refuse { type filter hook input priority 0; meta l4proto udp th dport @published-udp goto rejected }   # no backend
//! chain guard { type filter hook prerouting priority -150; iifname ing ct state new drop }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use skep_model::plan::{Backend, MeshPort, Ring};
use skep_model::service::Protocol;

use super::Ports;
use crate::balance::{REJECTED, rejected, turned};
use crate::nft::expr::{Compare, Expr, FibOf, MetaKey, Reg};
use crate::nft::{Chain, ChainType, DataType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const FIRST_SOURCE_PORT: u32 = 1024;
const SOURCE_PORTS: u32 = 65_536 - FIRST_SOURCE_PORT;

/// What a task sees as the source of a connection through the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceMode {
    /// The client's own address.
    #[default]
    Preserve,
    /// The ingress address of the host the connection came by; where a kernel lacks what the way back needs.
    Masquerade,
}

/// The number of the protocol in IP headers.
pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// The source ports of one host. The number of shares is rounded up to a power of two, so that a host more rarely moves
/// everybody's.
pub fn source_ports(mesh_index: u16, mesh_size: u16) -> (u16, u16) {
    let shares = u32::from(mesh_size).max(u32::from(mesh_index) + 1).next_power_of_two();
    let each = (SOURCE_PORTS / shares).max(1);
    let first = (FIRST_SOURCE_PORT + u32::from(mesh_index) * each).min(65_535);
    let last = (first + each - 1).min(65_535);
    (first as u16, last as u16)
}

/// Port chains of the mesh, and how far each one's order is rotated.
#[derive(Clone, Debug, Default)]
pub struct MeshRules {
    entries: BTreeMap<(Protocol, u16), (MeshPort, usize)>,
    prepared: Option<(SourceMode, (u16, u16))>,
}

impl MeshRules {
    /// Puts base chains and maps into the table. `share` is mesh index and size.
    pub fn prepare(&mut self, table: &mut Table, leg: &str, mode: SourceMode, share: (u16, u16)) {
        if self.prepared == Some((mode, share)) {
            return;
        }
        self.prepared = Some((mode, share));
        for protocol in PROTOCOLS {
            table.sets.entry(map_name(protocol)).or_insert_with(|| Set::map(DataType::PORT, DataType::VERDICT));
            for set in [published(protocol), masqueraded(protocol)] {
                table.sets.entry(set).or_insert_with(|| Set::plain(DataType::PORT));
            }
        }
        let refuse = PROTOCOLS.iter().map(|protocol| {
            Rule::new()
                .l4proto(protocol_number(*protocol))
                .destination_port_in(&published(*protocol))
                .verdict(Verdict::Goto(REJECTED.to_owned()))
        });
        // What was not given to a task and would go to a process of this host has no backend.
        let hook = Hook::new(ChainType::Filter, HookPoint::Input, 0);
        table.chain("refuse", Chain::base(hook, refuse.collect()));
        table.chain(REJECTED, rejected());
        let dispatch: Vec<Rule> = PROTOCOLS
            .iter()
            .map(|protocol| {
                Rule::new()
                    .local(FibOf::Destination)
                    .l4proto(protocol_number(*protocol))
                    .destination_port_vmap(&map_name(*protocol))
            })
            .collect();
        let nat = |point, priority| Hook::new(ChainType::Nat, point, priority);
        table.chain("prerouting", Chain::base(nat(HookPoint::Prerouting, -100), dispatch.clone()));
        table.chain("output", Chain::base(nat(HookPoint::Output, -100), dispatch));
        table.chain("postrouting", Chain::base(nat(HookPoint::Postrouting, 100), source_rules(leg, mode, share)));
        // Tasks answer through the leg and never begin there: without this, one could reach the host's 127.0.0.1.
        let guard = vec![Rule::new().input(leg).state_new().verdict(Verdict::Drop)];
        table.chain("guard", Chain::base(Hook::new(ChainType::Filter, HookPoint::Prerouting, -150), guard));
    }

    /// Makes the port chains those of `wanted`. Returns the backends that some UDP port no longer uses.
    pub fn update(&mut self, table: &mut Table, wanted: &Ports) -> BTreeSet<Ipv4Addr> {
        let mut dropped = BTreeSet::new();
        self.entries.retain(|(protocol, port), (old, _)| {
            let keep = wanted.get(&(*protocol, *port)).is_some_and(|plan| is_translated(*protocol, plan));
            if !keep {
                contain(table, &published(*protocol), *port, false);
                contain(table, &masqueraded(*protocol), *port, false);
                put(table, *protocol, *port, &Ring::default(), 0);
                let backends = old.ring.backends.iter().filter(|_| *protocol == Protocol::Udp);
                dropped.extend(backends.map(|backend| backend.address));
            }
            keep
        });
        for ((protocol, port), new) in wanted.iter().filter(|((protocol, _), plan)| is_translated(*protocol, plan)) {
            let rotation = match self.entries.get(&(*protocol, *port)) {
                Some((old, _)) if old == new => continue,
                Some((old, rotation)) => {
                    let now: BTreeSet<_> = new.ring.backends.iter().collect();
                    let before = old.ring.backends.iter().filter(|_| *protocol == Protocol::Udp);
                    dropped.extend(before.filter(|old| !now.contains(old)).map(|backend| backend.address));
                    rotation + 1
                }
                None => usize::from(*port),
            };
            contain(table, &published(*protocol), *port, true);
            contain(table, &masqueraded(*protocol), *port, new.masquerade);
            put(table, *protocol, *port, &new.ring, rotation);
            self.entries.insert((*protocol, *port), (new.clone(), rotation));
        }
        dropped
    }
}

/// Whether the kernel passes the port's connections on. Those that begin with a header it cannot.
fn is_translated(protocol: Protocol, plan: &MeshPort) -> bool {
    protocol != Protocol::Tcp || !plan.proxy_protocol
}

fn map_name(protocol: Protocol) -> String {
    format!("ports-{protocol}")
}

fn published(protocol: Protocol) -> String {
    format!("published-{protocol}")
}

/// Ports whose clients the tasks are not to see.
fn masqueraded(protocol: Protocol) -> String {
    format!("masqueraded-{protocol}")
}

/// Puts a port into a set, or takes it out.
fn contain(table: &mut Table, set: &str, port: u16, contained: bool) {
    let key = port.to_be_bytes().to_vec();
    if contained {
        elements(table, set).insert(key, Element::Present);
    } else {
        elements(table, set).remove(&key);
    }
}

fn elements<'t>(table: &'t mut Table, set: &str) -> &'t mut BTreeMap<Vec<u8>, Element> {
    &mut table.sets.get_mut(set).expect("the table was prepared").elements
}

fn put(table: &mut Table, protocol: Protocol, port: u16, ring: &Ring<Backend>, rotation: usize) {
    let name = chain_name(protocol, port);
    let key = port.to_be_bytes().to_vec();
    if ring.backends.is_empty() {
        elements(table, &map_name(protocol)).remove(&key);
        table.chains.remove(&name);
    } else {
        elements(table, &map_name(protocol)).insert(key, Element::Verdict(Verdict::Goto(name.clone())));
        table.chains.insert(name, Arc::new(Chain::regular(port_rules(ring, rotation))));
    }
}

fn chain_name(protocol: Protocol, port: u16) -> String {
    format!("{protocol}-{port}")
}

fn port_rules(ring: &Ring<Backend>, rotation: usize) -> Vec<Rule> {
    let (by, order) = turned(ring, rotation);
    let order: Vec<(Ipv4Addr, u16)> = order.iter().map(|backend| (backend.address, backend.port)).collect();
    match order.as_slice() {
        [] => Vec::new(),
        [(address, port)] => vec![Rule::new().dnat_port(*address, *port)],
        // The second rule is for packets that meet the first one while it is being replaced; see `balance`.
        several => {
            vec![Rule::new().dnat_port_chosen(by, several), Rule::new().dnat_port(several[1].0, several[1].1)]
        }
    }
}

fn source_rules(leg: &str, mode: SourceMode, (index, size): (u16, u16)) -> Vec<Rule> {
    let translated = || Rule::new().output(leg).was_dnat();
    match mode {
        SourceMode::Masquerade => vec![translated().masquerade()],
        SourceMode::Preserve => {
            let (first, last) = source_ports(index, size);
            let mut rules = vec![translated().local(FibOf::Source).masquerade()];
            // A container of this host, by its bridge address: the same address may be the task's own on its host.
            rules.push(from_interfaces(translated(), "docker").masquerade());
            for protocol in PROTOCOLS {
                let asked = translated().l4proto(protocol_number(protocol));
                rules.push(asked.original_port_in(&masqueraded(protocol)).masquerade());
            }
            for protocol in PROTOCOLS {
                rules.push(translated().l4proto(protocol_number(protocol)).snat_ports(first, last));
            }
            rules
        }
    }
}

/// `iifname "<prefix>*"`
fn from_interfaces(rule: Rule, prefix: &str) -> Rule {
    rule.with([
        Expr::Meta { key: MetaKey::InputName, to: Reg(0) },
        Expr::Cmp { from: Reg(0), compare: Compare::Equal, value: prefix.as_bytes().to_vec() },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_hosts_share_a_source_port() {
        for size in [1_u16, 2, 3, 7, 50, 1000] {
            let mut last_of_previous = 1023_u16;
            for index in 0..size {
                let (first, last) = source_ports(index, size);
                assert!(first > last_of_previous && first <= last, "{index} of {size}: {first}-{last}");
                last_of_previous = last;
            }
        }
        assert_eq!(source_ports(0, 1), (1024, 65_535));
        assert_eq!(source_ports(0, 3), source_ports(0, 4));
        assert_eq!(source_ports(5, 2), source_ports(5, 8));
    }
}
