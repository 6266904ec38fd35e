//! The firewall of bridge networks as one table, made from what networks and published ports there are.
//!
//! ```text
//! prerouting -300  to or from 127.0.0.0/8, from a bridge: drop (a bridge takes such packets, see below)
//! dstnat           to an address of the host: proto . address . port, then proto . port -> container . port
//! output nat       the same, for the host itself and its 127.0.0.1
//! forward          replies; else into a bridge published ports only, and out of an internal one nothing
//! srcnat           masquerade: what leaves a bridge, what comes back into it by a published port, what comes from 127.0.0.1
//! ```
//!
//! Published ports are elements of two maps, so that a container that starts changes one element and no rule. Nothing of
//! the user's is touched; an `accept` here ends only this table's say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use skep_model::service::Protocol;

use crate::nft::expr::{Compare, CtKey, Expr, FibOf, MetaKey, PayloadBase, SetRef};
use crate::nft::{
    Chain, ChainType, DataType, Element, Family, Hook, HookPoint, Ownership, Reg, Rule, Set, Table, Verdict,
};

/// What the rules need to know of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub(crate) link: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) internal: bool,
    pub(crate) masquerade: bool,
}

/// Where a published port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Published {
    pub(crate) protocol: Protocol,
    /// `0.0.0.0` is every IPv4 address of the host, `::` every IPv6 address.
    pub(crate) host_ip: IpAddr,
    pub(crate) host_port: u16,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) port: u16,
}

const ANY: &str = "published";
const FROM_BRIDGE: &str = "from-bridge";
const BY_ADDRESS: &str = "published-by-address";
/// `inet_proto . inet_service`, and with an address between; each part padded to four bytes.
const PROTO_PORT: DataType = DataType { id: (12 << 6) | 13, length: 8, host_order: false };
const PROTO_IPV4_PORT: DataType = DataType { id: (((12 << 6) | 7) << 6) | 13, length: 12, host_order: false };
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
/// `NF_CT_STATE_BIT(ESTABLISHED) | NF_CT_STATE_BIT(RELATED)`.
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

pub(crate) fn table_name(tag: &str) -> String {
    format!("skep-bridge-{tag}")
}

pub(crate) fn table<'a>(
    tag: &str,
    bridges: impl Iterator<Item = &'a Bridge> + Clone,
    published: impl Iterator<Item = Published>,
) -> Table {
    let mut table = Table::new(Family::Ip, table_name(tag), Ownership::Shared);
    let (any, by_address) = maps(published);
    table.sets.insert(ANY.to_owned(), any);
    table.sets.insert(BY_ADDRESS.to_owned(), by_address);

    let mut loopback = Vec::new();
    let mut forward = vec![replies()];
    let mut source = Vec::new();
    for bridge in bridges {
        loopback.push(Rule::new().input(&bridge.link).verdict(Verdict::Drop));
        forward.extend(passing(&bridge.link, bridge.internal));

        let own = || source_in(Rule::new(), bridge.subnet);
        if bridge.masquerade && !bridge.internal {
            source.push(not_to(own(), &bridge.link).masquerade());
        }
        // A container that reaches itself or a neighbour by a published port: the answer must come back through here.
        source.push(own().output(&bridge.link).was_dnat().masquerade());
        source.push(source_in(Rule::new(), LOOPBACK).output(&bridge.link).masquerade());
    }

    let nat = || {
        vec![
            Rule::new().local(FibOf::Destination).with(by_address_expr()),
            Rule::new().local(FibOf::Destination).with(any_expr()),
        ]
    };
    // Every packet of the host passes here and through `forward`: what concerns most of them least is said first.
    let raw = [destination_in(Rule::new(), LOOPBACK), source_in(Rule::new(), LOOPBACK)];
    let raw = raw.map(|rule| rule.verdict(Verdict::Jump(FROM_BRIDGE.to_owned()))).into();
    table.chain(FROM_BRIDGE, Chain::regular(loopback));
    let mut base = |name: &str, kind, point, priority, rules| {
        table.chain(name, Chain::base(Hook::new(kind, point, priority), rules));
    };
    base("raw", ChainType::Filter, HookPoint::Prerouting, -300, raw);
    base("prerouting", ChainType::Nat, HookPoint::Prerouting, -100, nat());
    base("output", ChainType::Nat, HookPoint::Output, -100, nat());
    base("forward", ChainType::Filter, HookPoint::Forward, 0, forward);
    base("postrouting", ChainType::Nat, HookPoint::Postrouting, 100, source);
    table
}

/// What is passed on to a bridge and from it, of either IP version.
pub(super) fn passing(link: &str, internal: bool) -> Vec<Rule> {
    let into = || not_from(Rule::new().output(link), link);
    let closed = into().verdict(Verdict::Drop);
    if internal {
        vec![closed, not_to(Rule::new().input(link), link).verdict(Verdict::Drop)]
    } else {
        vec![into().was_dnat().verdict(Verdict::Accept), closed]
    }
}

/// `ct state established,related accept`, before all else.
pub(super) fn replies() -> Rule {
    let known = [
        Expr::Ct { key: CtKey::State, original: false, to: Reg(0) },
        Expr::Bitwise {
            from: Reg(0),
            to: Reg(0),
            mask: ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp { from: Reg(0), compare: Compare::NotEqual, value: vec![0; 4] },
    ];
    Rule::new().with(known).verdict(Verdict::Accept)
}

fn maps(published: impl Iterator<Item = Published>) -> (Set, Set) {
    let mut any = Set::map(PROTO_PORT, DataType::IPV4_PORT);
    let mut by_address = Set::map(PROTO_IPV4_PORT, DataType::IPV4_PORT);
    for port in published {
        let IpAddr::V4(host_ip) = port.host_ip else { continue };
        let mut key = vec![protocol_number(port.protocol), 0, 0, 0];
        let set = if host_ip.is_unspecified() {
            &mut any
        } else {
            key.extend(host_ip.octets());
            &mut by_address
        };
        key.extend(port.host_port.to_be_bytes());
        key.extend([0, 0]);
        let mut value = port.address.octets().to_vec();
        value.extend(port.port.to_be_bytes());
        value.extend([0, 0]);
        set.elements.insert(key.into(), Element::Value(value.into()));
    }
    (any, by_address)
}

pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// `dnat to meta l4proto . th dport map @published`
fn any_expr() -> [Expr; 4] {
    [
        Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: Reg(1) },
        Expr::Lookup { set: SetRef::Named(ANY.to_owned()), from: Reg(0), to: Some(Reg(0)), vmap: false },
        destination_nat(),
    ]
}

/// `dnat to meta l4proto . ip daddr . th dport map @published-by-address`
fn by_address_expr() -> [Expr; 5] {
    [
        Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) },
        Expr::Payload { base: PayloadBase::Network, offset: 16, length: 4, to: Reg(1) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: Reg(2) },
        Expr::Lookup { set: SetRef::Named(BY_ADDRESS.to_owned()), from: Reg(0), to: Some(Reg(0)), vmap: false },
        destination_nat(),
    ]
}

fn destination_nat() -> Expr {
    Expr::Nat { address: Some(Reg(0)), port: Some(Reg(1)) }
}

fn source_in(rule: Rule, subnet: Ipv4Net) -> Rule {
    in_subnet(rule, 12, subnet)
}

fn destination_in(rule: Rule, subnet: Ipv4Net) -> Rule {
    in_subnet(rule, 16, subnet)
}

fn in_subnet(rule: Rule, offset: u32, subnet: Ipv4Net) -> Rule {
    rule.with([
        Expr::Payload { base: PayloadBase::Network, offset, length: 4, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: subnet.netmask().octets().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { from: Reg(0), compare: Compare::Equal, value: subnet.network().octets().to_vec() },
    ])
}

fn not_from(rule: Rule, link: &str) -> Rule {
    other_link(rule, MetaKey::InputName, link)
}

pub(super) fn not_to(rule: Rule, link: &str) -> Rule {
    other_link(rule, MetaKey::OutputName, link)
}

fn other_link(rule: Rule, key: MetaKey, link: &str) -> Rule {
    let mut name = link.as_bytes().to_vec();
    name.resize(16, 0);
    rule.with([Expr::Meta { key, to: Reg(0) }, Expr::Cmp { from: Reg(0), compare: Compare::NotEqual, value: name }])
}
