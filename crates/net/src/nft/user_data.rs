//! What `nft list` reads beside a set to print it, and to print it so that it can be loaded again: the kernel keeps these
//! bytes and does not look at them.
//!
//! Each part is a type, a length and a value, all numbers in the CPU's order (libnftnl's `udata.h`, nftables' expressions).

use super::{DataType, Set};

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
/// Of an expression: what it is, and its own parts.
const KIND: u8 = 0;
const PARTS: u8 = 1;

/// `EXPR_*` of nftables.
const PAYLOAD: u32 = 7;
const CONCAT: u32 = 13;
const NUMGEN: u32 = 23;

/// Protocol and field as nftables numbers them.
const IP_DADDR: [u32; 2] = [12, 12];
const IP6_DADDR: [u32; 2] = [13, 9];
const TH_DPORT: [u32; 2] = [11, 2];

/// For `NFTA_SET_USERDATA`.
pub(super) fn of(set: &Set) -> Vec<u8> {
    let order = |data: DataType| if data.host_order { 1 } else { 2 };
    let mut bytes = number(KEY_BYTE_ORDER, order(set.key));
    if let Some(data) = set.data {
        bytes.extend(number(DATA_BYTE_ORDER, order(data)));
        if set.key == DataType::INTEGER {
            // An integer has no name for a type: it is "what numgen gives".
            let numgen = expression(NUMGEN, &numbers(&[0, u32::MAX, 0]));
            bytes.extend(part(KEY_TYPEOF, &numgen));
            bytes.extend(part(DATA_TYPEOF, &type_of(data)));
        }
    }
    bytes
}

fn type_of(data: DataType) -> Vec<u8> {
    let payload = |field: [u32; 2]| expression(PAYLOAD, &numbers(&field));
    match data {
        DataType::IPV6 => payload(IP6_DADDR),
        DataType::IPV4_PORT => expression(CONCAT, &[part(0, &payload(IP_DADDR)), part(1, &payload(TH_DPORT))].concat()),
        _ => payload(IP_DADDR),
    }
}

fn expression(kind: u32, parts: &[u8]) -> Vec<u8> {
    [number(KIND, kind), part(PARTS, parts)].concat()
}

fn part(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, value.len() as u8], value].concat()
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    part(kind, &value.to_ne_bytes())
}

/// Parts 0, 1, … of a number each.
fn numbers(values: &[u32]) -> Vec<u8> {
    (0..).zip(values).flat_map(|(kind, value)| number(kind, *value)).collect()
}
