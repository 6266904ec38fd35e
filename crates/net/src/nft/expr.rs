//! What a rule can say: the kernel's expressions, and the few phrases our rulesets are made of.

use std::net::Ipv4Addr;
use std::ops::Range;

use super::{Address, Bytes, DataType, Element, Set};

/// One of the sixteen 4-byte registers; a longer value takes the following ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

/// Where a rule goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PayloadBase {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// `NFT_META_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MetaKey {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    L4Proto = 16,
}

/// `NFT_CT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CtKey {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    ProtoDst = 12,
    /// The lower half of the first register.
    Zone = 17,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Compare {
    Equal = 0,
    NotEqual = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    TcpReset,
    IcmpPortUnreachable,
}

/// Whose address type `fib` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FibOf {
    Source = 1,
    Destination = 2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetRef {
    /// A set of the same table.
    Named(String),
    /// A constant set that lives and dies with its rule.
    Anonymous(Box<Set>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Payload {
        base: PayloadBase,
        offset: u32,
        length: u32,
        to: Reg,
    },
    /// Writes packet bytes; only where no checksum covers them.
    PayloadSet {
        base: PayloadBase,
        offset: u32,
        length: u32,
        from: Reg,
    },
    Meta {
        key: MetaKey,
        to: Reg,
    },
    MetaSet {
        key: MetaKey,
        from: Reg,
    },
    /// `original` reads the first direction's tuple, for keys that have one per direction.
    Ct {
        key: CtKey,
        original: bool,
        to: Reg,
    },
    CtSet {
        key: CtKey,
        original: bool,
        from: Reg,
    },
    /// The address type (`RTN_LOCAL` …) of an address.
    FibType {
        of: FibOf,
        to: Reg,
    },
    Bitwise {
        from: Reg,
        to: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Cmp {
        from: Reg,
        compare: Compare,
        value: Vec<u8>,
    },
    Immediate {
        to: Reg,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    /// Without `to` in a plain set: goes on if found. With `to` in a map: loads. `vmap` in a verdict map: jumps.
    Lookup {
        set: SetRef,
        from: Reg,
        to: Option<Reg>,
        vmap: bool,
    },
    /// Puts the key into a dynamic set.
    Add {
        set: String,
        from: Reg,
    },
    /// `dnat to` address and port from registers.
    Nat {
        address: Option<Reg>,
        port: Option<Reg>,
    },
    Masquerade,
    /// `numgen inc mod n offset m`: counts per rule, in CPU byte order.
    NumgenInc {
        numbers: Range<u32>,
        to: Reg,
    },
    /// `numgen random mod n offset m`: each packet's own dice, in CPU byte order.
    NumgenRandom {
        numbers: Range<u32>,
        to: Reg,
    },
    /// `jhash … mod n seed s offset m` of so many bytes, in CPU byte order.
    Hash {
        from: Reg,
        length: u32,
        numbers: Range<u32>,
        seed: u32,
        to: Reg,
    },
    Reject(RejectWith),
    /// The packet belongs to no connection; only at priorities before they are tracked.
    Notrack,
    Counter,
}

/// How one of several is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// Each takes the next.
    RoundRobin,
    /// By a hash of its source address.
    Source,
}

/// Expressions from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Expr>);

const R: Reg = Reg(0);
/// The same on every host, so that a client gets the same backend whichever host it comes by.
const SEED: u32 = 0x736b_6570;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 32;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const STATE_NEW: u32 = 8;

/// An interface name as the kernel compares it.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(mut self, expressions: impl IntoIterator<Item = Expr>) -> Self {
        self.0.extend(expressions);
        self
    }

    fn equals(self, load: Expr, value: Vec<u8>) -> Self {
        self.with([load, Expr::Cmp { from: R, compare: Compare::Equal, value }])
    }

    /// `meta l4proto <number>`
    pub fn l4proto(self, number: u8) -> Self {
        self.equals(Expr::Meta { key: MetaKey::L4Proto, to: R }, vec![number])
    }

    /// `iifname "<name>"`
    pub fn input(self, name: &str) -> Self {
        self.equals(Expr::Meta { key: MetaKey::InputName, to: R }, name_bytes(name))
    }

    /// `oifname "<name>"`
    pub fn output(self, name: &str) -> Self {
        self.equals(Expr::Meta { key: MetaKey::OutputName, to: R }, name_bytes(name))
    }

    /// `ip saddr <address>`
    pub fn source(self, address: Ipv4Addr) -> Self {
        self.equals(saddr(), address.octets().to_vec())
    }

    /// `ip saddr != <subnet>`
    pub fn source_outside(self, subnet: ipnet::Ipv4Net) -> Self {
        self.with([
            saddr(),
            Expr::Bitwise { from: R, to: R, mask: subnet.netmask().octets().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { from: R, compare: Compare::NotEqual, value: subnet.network().octets().to_vec() },
        ])
    }

    /// `ip daddr <address>`
    pub fn destination(self, address: Ipv4Addr) -> Self {
        self.equals(daddr(), address.octets().to_vec())
    }

    /// `th dport <port>`
    pub fn destination_port(self, port: u16) -> Self {
        self.equals(dport(), port.to_be_bytes().to_vec())
    }

    /// `fib saddr|daddr type local`
    pub fn local(self, of: FibOf) -> Self {
        self.equals(Expr::FibType { of, to: R }, LOCAL.to_ne_bytes().to_vec())
    }

    /// `ct status dnat`
    pub fn was_dnat(self) -> Self {
        self.ct_bit(CtKey::Status, DST_NAT)
    }

    /// `ct state new`
    pub fn state_new(self) -> Self {
        self.ct_bit(CtKey::State, STATE_NEW)
    }

    fn ct_bit(self, key: CtKey, bit: u32) -> Self {
        self.with([
            Expr::Ct { key, original: false, to: R },
            Expr::Bitwise { from: R, to: R, mask: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { from: R, compare: Compare::NotEqual, value: vec![0; 4] },
        ])
    }

    /// `ct direction reply`
    pub fn direction_reply(self) -> Self {
        self.equals(Expr::Ct { key: CtKey::Direction, original: false, to: R }, vec![1])
    }

    /// `ct direction original`
    pub fn direction_original(self) -> Self {
        self.equals(Expr::Ct { key: CtKey::Direction, original: false, to: R }, vec![0])
    }

    /// `ip daddr @<set>`
    pub fn destination_in<A: Address>(self, set: &str) -> Self {
        self.with([
            A::load_destination(),
            Expr::Lookup { set: SetRef::Named(set.to_owned()), from: R, to: None, vmap: false },
        ])
    }

    /// `add @<set> { ip daddr . meta l4proto }`
    pub fn add_destination_and_protocol<A: Address>(self, set: &str) -> Self {
        self.with([
            A::load_destination(),
            Expr::Meta { key: MetaKey::L4Proto, to: A::NEXT },
            Expr::Add { set: set.to_owned(), from: R },
        ])
    }

    /// `ip saddr @<set>`
    pub fn source_in<A: Address>(self, set: &str) -> Self {
        self.with([
            A::load_source(),
            Expr::Lookup { set: SetRef::Named(set.to_owned()), from: R, to: None, vmap: false },
        ])
    }

    /// `ct original proto-dst @<set>`
    pub fn original_port_in(self, set: &str) -> Self {
        let load = Expr::Ct { key: CtKey::ProtoDst, original: true, to: R };
        self.with([load, Expr::Lookup { set: SetRef::Named(set.to_owned()), from: R, to: None, vmap: false }])
    }

    /// `th dport @<set>`
    pub fn destination_port_in(self, set: &str) -> Self {
        self.with([dport(), Expr::Lookup { set: SetRef::Named(set.to_owned()), from: R, to: None, vmap: false }])
    }

    /// `ip daddr vmap @<map>`
    pub fn destination_vmap<A: Address>(self, map: &str) -> Self {
        self.with([
            A::load_destination(),
            Expr::Lookup { set: SetRef::Named(map.to_owned()), from: R, to: None, vmap: true },
        ])
    }

    /// `th dport vmap @<map>`
    pub fn destination_port_vmap(self, map: &str) -> Self {
        self.with([dport(), Expr::Lookup { set: SetRef::Named(map.to_owned()), from: R, to: None, vmap: true }])
    }

    /// `dnat to <address>`
    pub fn dnat<A: Address>(self, address: A) -> Self {
        self.with([
            Expr::Immediate { to: R, value: address.bytes().to_vec() },
            Expr::Nat { address: Some(R), port: None },
        ])
    }

    /// `dnat to <address>:<port>`
    pub fn dnat_port(self, address: Ipv4Addr, port: u16) -> Self {
        self.with([
            Expr::Immediate { to: R, value: address.octets().to_vec() },
            Expr::Immediate { to: Reg(1), value: port.to_be_bytes().to_vec() },
            Expr::Nat { address: Some(R), port: Some(Reg(1)) },
        ])
    }

    /// `dnat to :<port>` (the destination stays or, on output, is the host itself)
    pub fn redirect_port(self, port: u16) -> Self {
        self.with([
            Expr::Immediate { to: R, value: port.to_be_bytes().to_vec() },
            Expr::Nat { address: None, port: Some(R) },
        ])
    }

    /// `dnat to numgen inc mod <count> offset <first> map @<map>`, or `dnat to jhash ip saddr mod …`: by the number whose turn
    /// it is, or the client's.
    pub fn dnat_numbered<A: Address>(self, by: Choice, numbers: Range<u32>, map: &str) -> Self {
        self.numbered::<A>(by, numbers, map).with([Expr::Nat { address: Some(R), port: None }])
    }

    /// The same to an address and a port.
    pub fn dnat_port_numbered(self, by: Choice, numbers: Range<u32>, map: &str) -> Self {
        self.numbered::<Ipv4Addr>(by, numbers, map).with([Expr::Nat { address: Some(R), port: Some(Reg(1)) }])
    }

    fn numbered<A: Address>(self, by: Choice, numbers: Range<u32>, map: &str) -> Self {
        let rule = match by {
            Choice::RoundRobin => self.with([Expr::NumgenInc { numbers, to: R }]),
            Choice::Source => {
                let hash = Expr::Hash { from: R, length: A::LENGTH, numbers, seed: SEED, to: R };
                self.with([A::load_source(), hash])
            }
        };
        rule.with([Expr::Lookup { set: SetRef::Named(map.to_owned()), from: R, to: Some(R), vmap: false }])
    }

    /// `masquerade`
    pub fn masquerade(self) -> Self {
        self.with([Expr::Masquerade])
    }

    /// `reject with tcp reset` or `with icmp port-unreachable`
    pub fn reject(self, with: RejectWith) -> Self {
        self.with([Expr::Reject(with)])
    }

    /// `notrack`
    pub fn notrack(self) -> Self {
        self.with([Expr::Notrack])
    }

    /// Goes on with so many of a hundred packets, chosen by chance.
    pub fn percent(self, percent: u8) -> Self {
        let mut chosen = Set::plain(DataType::INTEGER);
        chosen
            .elements
            .extend((0..u32::from(percent)).map(|n| (Bytes::from_slice(&n.to_ne_bytes()), Element::Present)));
        self.with([
            Expr::NumgenRandom { numbers: 0..100, to: R },
            Expr::Lookup { set: SetRef::Anonymous(Box::new(chosen)), from: R, to: None, vmap: false },
        ])
    }

    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with([Expr::Verdict(verdict)])
    }
}

fn saddr() -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset: 12, length: 4, to: R }
}

fn daddr() -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset: 16, length: 4, to: R }
}

fn dport() -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: R }
}
