//! The way back from a task to the host a mesh connection came by, inside the task's namespace.
//!
//! ```text
//! table ip: chain mesh-zone { iifname eth1 meta mark set ether saddr map @mesh-nodes  ct original zone set <its lower half> }
//!           chain mesh-in  { iifname eth1 ct state new ct mark set ether saddr map @mesh-nodes }
//!           chain mesh-out { type route hook output; ct direction reply ct mark & bit != 0 meta mark set ct mark }
//!           chain mesh-udp { ct mark & bit != 0 meta l4proto udp ip saddr != <subnet> dnat to <address of the way out> }
//! ip rule fwmark bit/bit lookup 100;  table 100: default via <gateway>, whose MAC no host has
//! table netdev: chain egress { ether daddr <gateway's MAC> ether daddr set meta mark map @mesh-macs }
//! ```
//!
//! The client's address says nothing about the host that has the connection in its tables; the MAC of the first packet
//! does. It is kept as the connection's mark, and written as destination MAC over that of a gateway that does not exist.
//!
//! A client may use one port of its own with several hosts at once, and they may send it all to one task. So connections are
//! told apart by their host as well (its index is the zone of what comes in), and where two would look alike to the task's
//! process, conntrack gives the later one another source port here, and nowhere else.
//!
//! A UDP server that is bound to no address answers from the one that its default route suggests, before any mark is
//! known. So its datagrams are translated to come in at that address; the answer is translated back.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::network::mac_of;

use crate::link::{Entry, Namespace, Route};
use crate::nft::expr::{Compare, CtKey, Expr, MetaKey, PayloadBase, Reg, SetRef};
use crate::nft::{
    Bytes, Chain, ChainType, DataType, Element, Family, Hook, HookPoint, NftSocket, Ownership, Rule, Set, Table,
    removal,
};

/// Set in every mark of ours; the host's mesh index is in the lower half.
const MARK_BIT: u32 = 0x1_0000;
const ROUTE_TABLE: u32 = 100;
const RULE_PRIORITY: u32 = 100;
const R: Reg = Reg(0);
const NODES: &str = "mesh-nodes";
const MACS: &str = "mesh-macs";
const UDP_CHAIN: &str = "mesh-udp";
const ZONE_CHAIN: &str = "mesh-zone";

/// Mesh index of every host -> MAC of its leg.
pub type NodeMacs = BTreeMap<u16, [u8; 6]>;

fn mark(index: u16) -> Bytes {
    Bytes::from_slice(&(MARK_BIT | u32::from(index)).to_ne_bytes())
}

/// Adds the marking of connections to the container's table.
pub fn mark_connections(table: &mut Table, ifname: &str, nodes: &NodeMacs) {
    let mut map = Set::map(DataType::ETHER, DataType::MARK);
    for (index, mac) in nodes {
        map.elements.insert(Bytes::from_slice(mac), Element::Value(mark(*index)));
    }
    table.sets.insert(NODES.to_owned(), map);
    let load_connection_mark = Expr::Ct { key: CtKey::Mark, original: false, to: R };
    let set_packet_mark = Expr::MetaSet { key: MetaKey::Mark, from: R };
    let find_node = [
        Expr::Payload { base: PayloadBase::Link, offset: 6, length: 6, to: R },
        Expr::Lookup { set: SetRef::Named(NODES.to_owned()), from: R, to: Some(R), vmap: false },
    ];
    // The mark's lower half is its first two bytes in a register; where the processor has it otherwise, all are in one zone.
    let set_zone = Expr::CtSet { key: CtKey::Zone, original: true, from: R };
    let untracked = vec![Rule::new().input(ifname).with(find_node.clone()).with([set_packet_mark.clone(), set_zone])];
    let set_connection_mark = Expr::CtSet { key: CtKey::Mark, original: false, from: R };
    let incoming = vec![Rule::new().input(ifname).state_new().with(find_node).with([set_connection_mark])];
    let outgoing = vec![Rule::new().direction_reply().with(marked()).with([load_connection_mark, set_packet_mark])];
    let hook = |chain_type, point| Hook::new(chain_type, point, -150);
    let before_conntrack = Hook::new(ChainType::Filter, HookPoint::Prerouting, -300);
    table.chain(ZONE_CHAIN, Chain::base(before_conntrack, untracked));
    table.chain("mesh-in", Chain::base(hook(ChainType::Filter, HookPoint::Prerouting), incoming));
    table.chain("mesh-out", Chain::base(hook(ChainType::Route, HookPoint::Output), outgoing));
}

/// Makes datagrams from outside `subnet` come in at the address that answers to them will be sent from.
pub fn receive_datagrams_at(table: &mut Table, ifname: &str, subnet: Ipv4Net, way_out: Option<Ipv4Addr>) {
    let Some(way_out) = way_out else {
        table.chains.remove(UDP_CHAIN);
        return;
    };
    let rule = Rule::new().input(ifname).l4proto(17).source_outside(subnet).with(marked()).dnat(way_out);
    table.chain(UDP_CHAIN, Chain::base(Hook::new(ChainType::Nat, HookPoint::Prerouting, -100), vec![rule]));
}

/// The address of the link that the default route leads through.
pub fn way_out(namespace: &Namespace) -> io::Result<Option<Ipv4Addr>> {
    let links = namespace.links();
    let routes = links.routes()?;
    let Some(link) = routes.iter().find(|route| route.destination.prefix_len() == 0).and_then(|route| route.link)
    else {
        return Ok(None);
    };
    Ok(links.addresses()?.iter().find(|(index, _)| *index == link).map(|(_, address)| address.addr()))
}

/// `ct mark & bit != 0`
fn marked() -> [Expr; 3] {
    [
        Expr::Ct { key: CtKey::Mark, original: false, to: R },
        Expr::Bitwise { from: R, to: R, mask: MARK_BIT.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { from: R, compare: Compare::NotEqual, value: vec![0; 4] },
    ]
}

/// Takes the marking out again.
pub fn unmark_connections(table: &mut Table) {
    table.sets.remove(NODES);
    table.chains.remove(ZONE_CHAIN);
    table.chains.remove("mesh-in");
    table.chains.remove("mesh-out");
    table.chains.remove(UDP_CHAIN);
}

/// The table that gives marked packets the MAC of their host.
pub fn egress_table(name: &str, ifname: &str, gateway: Ipv4Addr, nodes: &NodeMacs) -> Table {
    let mut table = Table::new(Family::Netdev, name, Ownership::Ours);
    let mut map = Set::map(DataType::MARK, DataType::ETHER);
    for (index, mac) in nodes {
        map.elements.insert(mark(*index), Element::Value(Bytes::from_slice(mac)));
    }
    table.sets.insert(MACS.to_owned(), map);
    let rule = Rule::new().with([
        Expr::Payload { base: PayloadBase::Link, offset: 0, length: 6, to: R },
        Expr::Cmp { from: R, compare: Compare::Equal, value: mac_of(gateway).to_vec() },
        Expr::Meta { key: MetaKey::Mark, to: R },
        Expr::Lookup { set: SetRef::Named(MACS.to_owned()), from: R, to: Some(R), vmap: false },
        Expr::PayloadSet { base: PayloadBase::Link, offset: 0, length: 6, from: R },
    ]);
    table.chain("egress", Chain::base(Hook::egress(ifname), vec![rule]));
    table
}

/// Whether this kernel has what the way back needs, tried out in a namespace of ours on one of its links.
pub fn probe(namespace: &Namespace, link: &str) -> Result<(), Box<dyn std::error::Error>> {
    let nodes = NodeMacs::from([(0, [2, 0, 0, 0, 0, 0])]);
    let mut marks = Table::new(Family::Ip, "skep-probe", Ownership::Shared);
    mark_connections(&mut marks, link, &nodes);
    let egress =
        Table { ownership: Ownership::Shared, ..egress_table("skep-probe", link, Ipv4Addr::LOCALHOST, &nodes) };
    let mut nft = NftSocket::open(namespace.fd())?;
    for table in [&marks, &egress] {
        nft.apply(None, table)?;
        nft.send(&removal(table.family, &table.name))?;
    }
    namespace.links().add_mark_rule(MARK_BIT, MARK_BIT, ROUTE_TABLE, RULE_PRIORITY)?;
    namespace.links().delete_mark_rule(MARK_BIT, MARK_BIT, ROUTE_TABLE, RULE_PRIORITY)?;
    Ok(())
}

/// Routes marked packets to the gateway that does not exist, and lets clients' addresses in. Idempotent.
pub fn route_back(namespace: &Namespace, ifname: &str, gateway: Ipv4Addr) -> io::Result<()> {
    namespace.write_sysctls(&[
        // The way to a client does not lead through this interface as far as the main table knows.
        ("ipv4/conf/all/rp_filter", "0"),
        (&format!("ipv4/conf/{ifname}/rp_filter"), "0"),
        // Accepted sockets answer with the mark at once, which also finds a route where there is no default one.
        ("ipv4/tcp_fwmark_accept", "1"),
    ])?;
    let links = namespace.links();
    let link = links.index(ifname)?;
    let neighbour = Entry::Neighbour { link, address: gateway.into(), mac: mac_of(gateway) };
    links.set_entries(&[neighbour])?.into_iter().collect::<io::Result<()>>()?;
    links.add_route(&Route { table: Some(ROUTE_TABLE), ..Route::default_via(gateway, link) })?;
    links.add_mark_rule(MARK_BIT, MARK_BIT, ROUTE_TABLE, RULE_PRIORITY)
}
