//! nf_tables without the `nft` binary: rulesets as values, their encoding, and a socket in a given network namespace.
//!
//! ```text
//! Table (value) --encode::difference(old, new)--> Batch (bytes) --NftSocket::send--> kernel, all or nothing
//! ```
//!
//! Decides what the bytes are. Must not know what a ruleset is for. Read [`expr`] for what a rule can say, then
//! [`encode`] for the order of a transaction.

pub mod address;
pub mod encode;
pub mod expr;
pub mod socket;
#[cfg(test)]
mod tests;
mod user_data;
pub(crate) mod wire;

use std::sync::Arc;

use imbl::OrdMap;
use smallvec::SmallVec;

pub use address::Address;
pub use encode::{Batch, difference, removal};
pub use expr::{Expr, Reg, Rule, Verdict};
pub use socket::{NftError, NftSocket};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// Both IP versions.
    Inet = 1,
    Ip = 2,
    /// One device, below IP.
    Netdev = 5,
    Ip6 = 10,
}

/// Whom a table belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Anyone with `CAP_NET_ADMIN` in the namespace may change it.
    #[default]
    Shared,
    /// Only the socket that made it may change it, and it stays when that socket closes (flags `owner,persist`). For tables
    /// in containers, whose root may hold `CAP_NET_ADMIN`.
    Ours,
}

/// A key or a value of a set; the longest of ours fits without an allocation.
pub type Bytes = SmallVec<[u8; 24]>;

/// One table, whole. A copy costs next to nothing, and what it has in common with the original need not be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    pub ownership: Ownership,
    pub sets: OrdMap<String, Set>,
    pub chains: OrdMap<String, Arc<Chain>>,
}

impl Table {
    pub fn new(family: Family, name: impl Into<String>, ownership: Ownership) -> Self {
        Self { family, name: name.into(), ownership, sets: OrdMap::new(), chains: OrdMap::new() }
    }

    pub fn chain(&mut self, name: impl Into<String>, chain: Chain) {
        self.chains.insert(name.into(), Arc::new(chain));
    }
}

/// A list of rules; with a hook the kernel runs it on packets, without it is a target of jumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

impl Chain {
    pub fn regular(rules: Vec<Rule>) -> Self {
        Self { hook: None, rules }
    }

    pub fn base(hook: Hook, rules: Vec<Rule>) -> Self {
        Self { hook: Some(hook), rules }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    Filter,
    Nat,
    Route,
}

/// Points where a packet can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Of one device (family netdev).
    Ingress,
    /// Of one device (family netdev).
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub chain_type: ChainType,
    pub point: HookPoint,
    pub priority: i32,
    /// For [`HookPoint::Ingress`] and [`HookPoint::Egress`].
    pub device: Option<String>,
}

impl Hook {
    pub fn new(chain_type: ChainType, point: HookPoint, priority: i32) -> Self {
        Self { chain_type, point, priority, device: None }
    }

    pub fn ingress(device: impl Into<String>) -> Self {
        Self { chain_type: ChainType::Filter, point: HookPoint::Ingress, priority: 0, device: Some(device.into()) }
    }

    pub fn egress(device: impl Into<String>) -> Self {
        Self { chain_type: ChainType::Filter, point: HookPoint::Egress, priority: 0, device: Some(device.into()) }
    }
}

/// How long a value is, and what `nft list` should take it for (the numbers of nftables' `datatypes.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataType {
    pub id: u32,
    pub length: u32,
    /// Kept in the CPU's byte order rather than the network's.
    pub host_order: bool,
}

impl DataType {
    pub const INTEGER: Self = Self { id: 4, length: 4, host_order: true };
    pub const IPV4: Self = Self { id: 7, length: 4, host_order: false };
    pub const IPV6: Self = Self { id: 8, length: 16, host_order: false };
    pub const ETHER: Self = Self { id: 9, length: 6, host_order: false };
    pub const PORT: Self = Self { id: 13, length: 2, host_order: false };
    pub const MARK: Self = Self { id: 19, length: 4, host_order: true };
    /// `ipv4_addr . inet_service`, each padded to four bytes.
    pub const IPV4_PORT: Self = Self { id: (7 << 6) | 13, length: 8, host_order: false };
    /// `ipv4_addr . inet_proto`, each padded to four bytes.
    pub const IPV4_PROTOCOL: Self = Self { id: (7 << 6) | 12, length: 8, host_order: false };
    /// `ipv6_addr . inet_service`, the port padded to four bytes.
    pub const IPV6_PORT: Self = Self { id: (8 << 6) | 13, length: 20, host_order: false };
    /// `ipv6_addr . inet_proto`, the protocol padded to four bytes.
    pub const IPV6_PROTOCOL: Self = Self { id: (8 << 6) | 12, length: 20, host_order: false };
    /// Goto or jump (`NFT_DATA_VERDICT`).
    pub const VERDICT: Self = Self { id: 0xffff_ff00, length: 0, host_order: false };
}

/// A set, or with `data` a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub key: DataType,
    pub data: Option<DataType>,
    /// Filled by rules ([`Expr::Add`]) up to so many elements; those are the kernel's business and not in `elements`.
    pub dynamic: Option<u32>,
    pub elements: OrdMap<Bytes, Element>,
    /// Besides `elements`, in a map from [`DataType::INTEGER`]: runs of numbers by their first; no two have one in common.
    pub numbered: OrdMap<u32, Numbered>,
}

impl Set {
    pub fn map(key: DataType, data: DataType) -> Self {
        Self { data: Some(data), ..Self::plain(key) }
    }

    fn len(&self) -> usize {
        self.elements.len() + self.numbered.values().map(|numbered| numbered.count as usize).sum::<usize>()
    }

    fn contains(&self, key: &[u8]) -> bool {
        let run = || {
            let number = u32::from_ne_bytes(key.try_into().ok()?);
            let (first, numbered) = self.numbered.get_prev(&number)?;
            (number - first < numbered.count).then_some(())
        };
        self.elements.contains_key(key) || run().is_some()
    }

    pub fn plain(key: DataType) -> Self {
        Self { key, data: None, dynamic: None, elements: OrdMap::new(), numbered: OrdMap::new() }
    }
}

/// So many numbers in a row, each mapped to the next of `values` (one at least), over and over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub count: u32,
    pub values: Vec<Bytes>,
}

impl Numbered {
    /// What the number, counted from the first, is mapped to.
    pub(crate) fn value(&self, number: u32) -> Option<&Bytes> {
        self.values.get((number as usize).checked_rem(self.values.len())?).filter(|_| number < self.count)
    }
}

/// What a key of a set maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// The key is in the set.
    Present,
    Value(Bytes),
    Verdict(Verdict),
}
