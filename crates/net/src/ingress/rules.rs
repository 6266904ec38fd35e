//! The mesh's rules in the host's namespace.
//!
//! ```text
//! map ports-tcp { 8080 : jump tcp-8080 }
//! chain tcp-8080 { … }     # see `balance::rings`
//! chain ports { meta l4proto tcp th dport vmap @ports-tcp; … and once more }
//! chain prerouting { type nat hook prerouting priority -100; fib daddr type local jump ports }
//! chain output     { … the same, for this host's own clients }
//! chain postrouting { type nat hook postrouting priority 100;
//!     oifname ing ct status dnat meta l4proto tcp ct original proto-dst @masqueraded-tcp masquerade   # asked for by label
//!     oifname ing ct status dnat fib saddr type local masquerade }        # 127.0.0.1 means nothing to a task
//! chain refuse { type filter hook input priority 0; meta l4proto udp th dport @published-udp goto rejected }   # no backend
//! chain guard { type filter hook prerouting priority -150; iifname ing ct state new drop }
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;

use skep_model::plan::{Backend, MeshPort};
use skep_model::service::Protocol;

use super::Ports;
use crate::balance::rings::{Destination, Rings, elements};
use crate::balance::{REJECTED, rejected};
use crate::nft::expr::{Choice, Compare, Expr, FibOf, MetaKey, Reg};
use crate::nft::{Bytes, Chain, ChainType, DataType, Element, Hook, HookPoint, Rule, Set, Table, Verdict};

const PORTS: &str = "ports";
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

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

/// Port chains of the mesh.
#[derive(Clone, Debug, Default)]
pub struct MeshRules {
    rings: Rings<Published>,
    masqueraded: BTreeSet<(Protocol, u16)>,
    prepared: Option<SourceMode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Published(Protocol, u16);

impl Destination for Published {
    type Backend = Backend;
    const BACKEND: DataType = DataType::IPV4_PORT;

    fn chains(self) -> String {
        map_name(self.0)
    }

    fn chain(self) -> String {
        format!("{}-{}", self.0, self.1)
    }

    fn key(self) -> Bytes {
        Bytes::from_slice(&self.1.to_be_bytes())
    }

    fn value(backend: Backend) -> Bytes {
        let mut value = Bytes::from_slice(&backend.address.octets());
        value.extend_from_slice(&backend.port.to_be_bytes());
        value.extend_from_slice(&[0, 0]);
        value
    }

    // The protocol is known by then; `nft` reads no port in a rule that does not say it.
    fn to_only(self, backend: Backend) -> Rule {
        Rule::new().l4proto(protocol_number(self.0)).dnat_port(backend.address, backend.port)
    }

    fn to_numbered(self, by: Choice, numbers: Range<u32>, map: &str) -> Rule {
        Rule::new().l4proto(protocol_number(self.0)).dnat_port_numbered(by, numbers, map)
    }
}

impl MeshRules {
    /// Puts base chains and maps into the table.
    pub fn prepare(&mut self, table: &mut Table, leg: &str, mode: SourceMode) {
        if self.prepared == Some(mode) {
            return;
        }
        self.prepared = Some(mode);
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
        let of_protocol = |protocol: &Protocol| {
            Rule::new().l4proto(protocol_number(*protocol)).destination_port_vmap(&map_name(*protocol))
        };
        table.chain(PORTS, Chain::regular([PROTOCOLS, PROTOCOLS].as_flattened().iter().map(of_protocol).collect()));
        let dispatch = vec![Rule::new().local(FibOf::Destination).verdict(Verdict::Jump(PORTS.to_owned()))];
        let nat = |point, priority| Hook::new(ChainType::Nat, point, priority);
        table.chain("prerouting", Chain::base(nat(HookPoint::Prerouting, -100), dispatch.clone()));
        table.chain("output", Chain::base(nat(HookPoint::Output, -100), dispatch));
        table.chain("postrouting", Chain::base(nat(HookPoint::Postrouting, 100), source_rules(leg, mode)));
        // Tasks answer through the leg and never begin there: without this, one could reach the host's 127.0.0.1.
        let guard = vec![Rule::new().input(leg).state_new().verdict(Verdict::Drop)];
        table.chain("guard", Chain::base(Hook::new(ChainType::Filter, HookPoint::Prerouting, -150), guard));
    }

    /// Makes the port chains those of `wanted`. Returns the backends that some UDP port no longer uses.
    pub fn update(&mut self, table: &mut Table, wanted: &Ports) -> BTreeSet<Ipv4Addr> {
        let translated = || wanted.iter().filter(|((protocol, _), plan)| is_translated(*protocol, plan));
        let now: BTreeSet<_> = translated().filter(|(_, plan)| plan.masquerade).map(|(port, _)| *port).collect();
        for (protocol, port) in self.masqueraded.symmetric_difference(&now) {
            contain(table, &masqueraded(*protocol), *port, now.contains(&(*protocol, *port)));
        }
        self.masqueraded = now;
        let rings = translated().map(|((protocol, port), plan)| (Published(*protocol, *port), &plan.ring));
        let turned = self.rings.update(table, rings, |Published(_, port)| usize::from(port));
        for Published(protocol, port) in turned.removed {
            contain(table, &published(protocol), port, false);
        }
        for Published(protocol, port) in turned.added {
            contain(table, &published(protocol), port, true);
        }
        let datagrams = turned.dropped.iter().filter(|(Published(protocol, _), _)| *protocol == Protocol::Udp);
        datagrams.map(|(_, backend)| backend.address).collect()
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
    let key = Bytes::from_slice(&port.to_be_bytes());
    if contained {
        elements(table, set).insert(key, Element::Present);
    } else {
        elements(table, set).remove(key.as_slice());
    }
}

/// Other connections keep the client's address and port: which host one came by, the task's own namespace knows.
fn source_rules(leg: &str, mode: SourceMode) -> Vec<Rule> {
    let translated = || Rule::new().output(leg).was_dnat();
    match mode {
        SourceMode::Masquerade => vec![translated().masquerade()],
        SourceMode::Preserve => {
            let mut rules = vec![translated().local(FibOf::Source).masquerade()];
            // A container of this host, by its bridge address: the same address may be the task's own on its host.
            rules.push(from_interfaces(translated(), "docker").masquerade());
            for protocol in PROTOCOLS {
                let asked = translated().l4proto(protocol_number(protocol));
                rules.push(asked.original_port_in(&masqueraded(protocol)).masquerade());
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
