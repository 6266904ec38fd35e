//! 127.0.0.11:53 of a container leads to our sockets.

use crate::nft::{Chain, ChainType, Family, Hook, HookPoint, Ownership, Rule, Table};

use super::RESOLVER_ADDRESS;

const TABLE: &str = "skep-dns";
/// Before the balancers, whose chain is at -100.
const PRIORITY: i32 = -101;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

/// The way back needs no rule: conntrack undoes the translation.
pub(super) fn table(udp_port: u16, tcp_port: u16) -> Table {
    let to = |protocol, port| {
        Rule::new().destination(RESOLVER_ADDRESS).l4proto(protocol).destination_port(DNS_PORT).redirect_port(port)
    };
    let mut table = Table::new(Family::Ip, TABLE, Ownership::Shared);
    let hook = Hook::new(ChainType::Nat, HookPoint::Output, PRIORITY);
    table.chain("output", Chain::base(hook, vec![to(UDP, udp_port), to(TCP, tcp_port)]));
    table
}

/// A table of that name that differs in what cannot be changed in place: the difference to it replaces whatever is there.
pub(super) fn whatever_is_there() -> Table {
    Table::new(Family::Ip, TABLE, Ownership::Ours)
}
