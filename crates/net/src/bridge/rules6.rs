//! The same for the IPv6 side of bridge networks, as a table of its own.
//!
//! ```text
//! dstnat   to an address of the host: port, or address . port -> container . port (TCP)
//! forward  replies; else into a bridge published ports only, and out of an internal one nothing
//! srcnat   masquerade: what leaves a bridge, what comes back into it by a published port
//! ```
//!
//! What comes from the host itself, datagrams, and ports of containers without IPv6 are carried by [`crate::publish`]: `::1`
//! cannot be translated, and a datagram's translation would outlive its container.

use std::net::IpAddr;

use ipnet::Ipv6Net;
use skep_model::service::Protocol;

use super::rules::{Published, not_to, passing, replies, table_name};
use crate::nft::expr::{Compare, Expr, FibOf, PayloadBase, SetRef};
use crate::nft::{
    Bytes, Chain, ChainType, DataType, Element, Family, Hook, HookPoint, Ownership, Reg, Rule, Set, Table,
};

/// What the rules need to know of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge6 {
    pub(crate) link: String,
    pub(crate) subnet: Ipv6Net,
    pub(crate) internal: bool,
    pub(crate) masquerade: bool,
}

const ANY: &str = "published";
const BY_ADDRESS: &str = "published-by-address";
const TCP: u8 = 6;

pub(crate) fn table<'a>(
    tag: &str,
    bridges: impl Iterator<Item = &'a Bridge6>,
    published: impl Iterator<Item = Published>,
) -> Table {
    let mut table = Table::new(Family::Ip6, table_name(tag), Ownership::Shared);
    let (any, by_address) = maps(published);
    table.sets.insert(ANY.to_owned(), any);
    table.sets.insert(BY_ADDRESS.to_owned(), by_address);

    let mut forward = vec![replies()];
    let mut source = Vec::new();
    for bridge in bridges {
        forward.extend(passing(&bridge.link, bridge.internal));
        let own = || from(bridge.subnet);
        if bridge.masquerade && !bridge.internal {
            source.push(not_to(own(), &bridge.link).masquerade());
        }
        source.push(own().output(&bridge.link).was_dnat().masquerade());
    }
    let destination = vec![
        Rule::new().l4proto(TCP).local(FibOf::Destination).with(by_address_expr()),
        Rule::new().l4proto(TCP).local(FibOf::Destination).with(any_expr()),
    ];
    let mut base = |name: &str, kind, point, priority, rules| {
        table.chain(name, Chain::base(Hook::new(kind, point, priority), rules));
    };
    base("prerouting", ChainType::Nat, HookPoint::Prerouting, -100, destination);
    base("forward", ChainType::Filter, HookPoint::Forward, 0, forward);
    base("postrouting", ChainType::Nat, HookPoint::Postrouting, 100, source);
    table
}

fn maps(published: impl Iterator<Item = Published>) -> (Set, Set) {
    let mut any = Set::map(DataType::PORT, DataType::IPV6_PORT);
    let mut by_address = Set::map(DataType::IPV6_PORT, DataType::IPV6_PORT);
    for port in published.filter(|port| port.protocol == Protocol::Tcp) {
        let (IpAddr::V6(host_ip), Some(address)) = (port.host_ip, port.address6) else { continue };
        let host_port = port.host_port.to_be_bytes();
        let pair =
            |address: std::net::Ipv6Addr, port: [u8; 2]| Bytes::from([&address.octets()[..], &port, &[0, 0]].concat());
        let value = Element::Value(pair(address, port.port.to_be_bytes()));
        if host_ip.is_unspecified() {
            any.elements.insert(Bytes::from_slice(&host_port), value);
        } else {
            by_address.elements.insert(pair(host_ip, host_port), value);
        }
    }
    (any, by_address)
}

/// `dnat to th dport map @published`
fn any_expr() -> [Expr; 3] {
    let port = Expr::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: Reg(0) };
    let find = Expr::Lookup { set: SetRef::Named(ANY.to_owned()), from: Reg(0), to: Some(Reg(0)), vmap: false };
    [port, find, destination_nat()]
}

/// `dnat to ip6 daddr . th dport map @published-by-address`
fn by_address_expr() -> [Expr; 4] {
    [
        Expr::Payload { base: PayloadBase::Network, offset: 24, length: 16, to: Reg(0) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: Reg(4) },
        Expr::Lookup { set: SetRef::Named(BY_ADDRESS.to_owned()), from: Reg(0), to: Some(Reg(0)), vmap: false },
        destination_nat(),
    ]
}

fn destination_nat() -> Expr {
    Expr::Nat { address: Some(Reg(0)), port: Some(Reg(4)) }
}

/// `ip6 saddr <subnet>`
fn from(subnet: Ipv6Net) -> Rule {
    Rule::new().with([
        Expr::Payload { base: PayloadBase::Network, offset: 8, length: 16, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: subnet.netmask().octets().to_vec(), xor: vec![0; 16] },
        Expr::Cmp { from: Reg(0), compare: Compare::Equal, value: subnet.network().octets().to_vec() },
    ])
}
