//! The difference of two tables as one transaction.
//!
//! The order within a transaction is the kernel's demand: a name must exist before it is used, and must be unused before
//! it goes. So: table, new sets, new chains, rules, elements removed and added, chains removed, sets removed.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::expr::{Expr, RejectWith, Rule, SetRef, Verdict};
use super::wire::{NLM_F_APPEND, NLM_F_CREATE, Writer};
use super::{
    Bytes, Chain, ChainType, DataType, Element, Family, HookPoint, Numbered, Ownership, Set, Table, user_data,
};

/// `NFT_MSG_*`.
pub(super) mod message {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DELETE_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const DELETE_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const DELETE_RULE: u16 = 8;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const DELETE_SET: u16 = 11;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DELETE_ELEMENT: u16 = 14;
}
use message::{
    DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, DELETE_TABLE, NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET,
    NEW_TABLE,
};

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`.
const OWNER_PERSIST: u32 = 2 | 4;
const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;
const SET_EVAL: u32 = 0x20;
const LIST_ELEMENT: u16 = 1;
/// An attribute holds 64 KiB; an element of ours takes up to about a hundred bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Messages that take effect together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    messages: usize,
}

impl Batch {
    /// Changes in it; an empty batch is never sent.
    pub fn messages(&self) -> usize {
        self.messages
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn of(writer: Writer) -> Self {
        let messages = writer.count() as usize - 1;
        if messages == 0 { Self::default() } else { Self { bytes: writer.finish(), messages } }
    }
}

/// What turns `old` (nothing: the table is not there) into `new`, which have the same name.
pub fn difference(old: Option<&Table>, new: &Table) -> Batch {
    let mut encoder = Encoder { writer: Writer::batch(), family: new.family, table: &new.name, next_set_id: 1 };
    match old {
        Some(old) if same_shape(old, new) => encoder.update(old, new),
        Some(_) => {
            encoder.remove_table();
            encoder.create(new);
        }
        None => encoder.create(new),
    }
    Batch::of(encoder.writer)
}

/// What removes a table that is there.
pub fn removal(family: Family, name: &str) -> Batch {
    let mut encoder = Encoder { writer: Writer::batch(), family, table: name, next_set_id: 1 };
    encoder.remove_table();
    Batch::of(encoder.writer)
}

/// Whether the parts that cannot be changed in place agree.
fn same_shape(old: &Table, new: &Table) -> bool {
    let types = |set: &Set| (set.key, set.data, set.dynamic);
    old.ownership == new.ownership
        && old.sets.diff(&new.sets).all(|item| match item {
            DiffItem::Update { old: (_, old), new: (_, new) } => types(old) == types(new),
            DiffItem::Add(..) | DiffItem::Remove(..) => true,
        })
        && old.chains.diff(&new.chains).all(|item| match item {
            DiffItem::Update { old: (_, old), new: (_, new) } => old.hook == new.hook,
            DiffItem::Add(..) | DiffItem::Remove(..) => true,
        })
}

struct Encoder<'a> {
    writer: Writer,
    family: Family,
    table: &'a str,
    next_set_id: u32,
}

impl Encoder<'_> {
    fn begin(&mut self, message: u16, flags: u16) {
        self.writer.begin(message, flags, self.family as u8);
    }

    fn create(&mut self, new: &Table) {
        self.begin(NEW_TABLE, NLM_F_CREATE);
        self.writer.text(1, self.table);
        let flags = match new.ownership {
            Ownership::Shared => 0,
            Ownership::Ours => OWNER_PERSIST,
        };
        self.writer.number(2, flags);
        self.writer.end();
        let nothing = Table::new(new.family, new.name.clone(), new.ownership);
        self.update(&nothing, new);
    }

    fn remove_table(&mut self) {
        self.begin(DELETE_TABLE, 0);
        self.writer.text(1, self.table);
        self.writer.end();
    }

    fn update(&mut self, old: &Table, new: &Table) {
        let (sets, chains): (Vec<_>, Vec<_>) =
            (old.sets.diff(&new.sets).collect(), old.chains.diff(&new.chains).collect());
        for item in &sets {
            if let DiffItem::Add(name, set) = item {
                self.new_set(name, set, 0);
            }
        }
        for change in &chains {
            if let DiffItem::Add(name, chain) = change {
                self.new_chain(name, chain);
            }
        }
        for change in &chains {
            let (name, chain) = match change {
                DiffItem::Add(name, chain) => (name, chain),
                DiffItem::Update { new: (name, chain), .. } => {
                    self.named(DELETE_RULE, 2, name);
                    (name, chain)
                }
                DiffItem::Remove(..) => continue,
            };
            for rule in &chain.rules {
                self.new_rule(name, rule);
            }
        }
        for item in &sets {
            match item {
                DiffItem::Add(name, set) => self.contents(name, None, Some(set)),
                DiffItem::Update { old: (_, old), new: (name, new) } => self.contents(name, Some(old), Some(new)),
                // Emptied first, since its elements hold the chains they lead to.
                DiffItem::Remove(name, set) => self.contents(name, Some(set), None),
            }
        }
        for change in &chains {
            if let DiffItem::Remove(name, _) = change {
                self.named(DELETE_CHAIN, 3, name);
            }
        }
        for item in &sets {
            if let DiffItem::Remove(name, _) = item {
                self.named(DELETE_SET, 2, name);
            }
        }
    }

    /// A message that is nothing but the table's name and one more.
    fn named(&mut self, message: u16, kind: u16, name: &str) {
        self.begin(message, 0);
        self.writer.text(1, self.table);
        self.writer.text(kind, name);
        self.writer.end();
    }

    /// What is in a set, of which there was nothing, or will be.
    fn contents(&mut self, name: &str, old: Option<&Set>, new: Option<&Set>) {
        let nothing = Set::plain(DataType::INTEGER);
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        self.elements(name, &old.elements, &new.elements);
        let value = |numbered: Option<&Numbered>, number| numbered.and_then(|numbered| numbered.value(number).cloned());
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for item in old.numbered.diff(&new.numbered) {
            let (first, old, new) = match item {
                DiffItem::Add(first, new) => (first, None, Some(new)),
                DiffItem::Remove(first, old) => (first, Some(old), None),
                DiffItem::Update { old: (first, old), new: (_, new) } => (first, Some(old), Some(new)),
            };
            let count = old.into_iter().chain(new).map(|numbered| numbered.count).max().unwrap_or_default();
            for number in (0..count).filter(|number| value(old, *number) != value(new, *number)) {
                let key = Bytes::from_slice(&(first + number).to_ne_bytes());
                gone.extend(value(old, number).map(|_| (key.clone(), Element::Present)));
                come.extend(value(new, number).map(|value| (key, Element::Value(value))));
            }
        }
        self.element_messages(DELETE_ELEMENT, 0, name, 0, gone.iter().map(|(key, element)| (key, element)));
        self.element_messages(NEW_ELEMENT, NLM_F_CREATE, name, 0, come.iter().map(|(key, element)| (key, element)));
    }

    fn elements(&mut self, name: &str, old: &OrdMap<Bytes, Element>, new: &OrdMap<Bytes, Element>) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for item in old.diff(new) {
            match item {
                DiffItem::Add(key, element) => come.push((key, element)),
                DiffItem::Remove(key, _) => gone.push((key, &Element::Present)),
                // Taken away and put back: within one transaction every look-up sees one or the other.
                DiffItem::Update { old: (key, _), new } => {
                    gone.push((key, &Element::Present));
                    come.push(new);
                }
            }
        }
        self.element_messages(DELETE_ELEMENT, 0, name, 0, gone.into_iter());
        self.element_messages(NEW_ELEMENT, NLM_F_CREATE, name, 0, come.into_iter());
    }

    fn element_messages<'e>(
        &mut self,
        message: u16,
        flags: u16,
        set: &str,
        set_id: u32,
        elements: impl Iterator<Item = (&'e Bytes, &'e Element)>,
    ) {
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            self.begin(message, flags);
            self.writer.text(1, self.table);
            self.writer.text(2, set);
            if set_id != 0 {
                self.writer.number(4, set_id);
            }
            self.writer.nested(3, |writer| {
                for (key, element) in elements.by_ref().take(ELEMENTS_PER_MESSAGE) {
                    writer.nested(LIST_ELEMENT, |writer| write_element(writer, key, element));
                }
            });
            self.writer.end();
        }
    }

    fn new_set(&mut self, name: &str, set: &Set, set_id: u32) {
        let anonymous = set_id != 0;
        let id = if anonymous { set_id } else { self.set_id() };
        self.begin(NEW_SET, NLM_F_CREATE);
        self.writer.text(1, self.table);
        self.writer.text(2, name);
        let mut flags = if anonymous { SET_ANONYMOUS | SET_CONSTANT } else { 0 };
        if set.data.is_some() {
            flags |= SET_MAP;
        }
        if set.dynamic.is_some() {
            flags |= SET_EVAL;
        }
        self.writer.number(3, flags);
        self.writer.number(4, set.key.id);
        self.writer.number(5, set.key.length);
        if let Some(data) = set.data {
            self.writer.number(6, data.id);
            self.writer.number(7, data.length);
        }
        if let Some(size) = set.dynamic {
            self.writer.nested(9, |writer| writer.number(1, size));
        }
        self.writer.number(10, id);
        self.writer.attribute(13, &user_data::of(set));
        self.writer.end();
    }

    fn set_id(&mut self) -> u32 {
        let id = self.next_set_id;
        self.next_set_id += 1;
        id
    }

    fn new_chain(&mut self, name: &str, chain: &Chain) {
        self.begin(NEW_CHAIN, NLM_F_CREATE);
        self.writer.text(1, self.table);
        self.writer.text(3, name);
        if let Some(hook) = &chain.hook {
            self.writer.nested(4, |writer| {
                writer.number(1, hook_number(hook.point));
                writer.attribute(2, &hook.priority.to_be_bytes());
                if let Some(device) = &hook.device {
                    writer.text(3, device);
                }
            });
            self.writer.number(5, 1); // NF_ACCEPT
            self.writer.text(
                7,
                match hook.chain_type {
                    ChainType::Filter => "filter",
                    ChainType::Nat => "nat",
                    ChainType::Route => "route",
                },
            );
        }
        self.writer.end();
    }

    fn new_rule(&mut self, chain: &str, rule: &Rule) {
        let mut ids = Vec::new();
        for expression in &rule.0 {
            if let Expr::Lookup { set: SetRef::Anonymous(set), .. } = expression {
                let name = if set.data.is_some() { "__map%d" } else { "__set%d" };
                let id = self.set_id();
                self.new_set(name, set, id);
                self.element_messages(NEW_ELEMENT, NLM_F_CREATE, name, id, set.elements.iter());
                ids.push(id);
            }
        }
        let (mut ids, family) = (ids.into_iter(), self.family);
        self.begin(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND);
        self.writer.text(1, self.table);
        self.writer.text(2, chain);
        self.writer.nested(4, |writer| {
            for expression in &rule.0 {
                writer.nested(LIST_ELEMENT, |writer| write_expression(writer, expression, family, &mut ids));
            }
        });
        self.writer.end();
    }
}

fn hook_number(point: HookPoint) -> u32 {
    match point {
        HookPoint::Prerouting | HookPoint::Ingress => 0,
        HookPoint::Input | HookPoint::Egress => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    }
}

fn write_element(writer: &mut Writer, key: &[u8], element: &Element) {
    writer.nested(1, |writer| writer.attribute(1, key));
    match element {
        Element::Present => {}
        Element::Value(value) => writer.nested(2, |writer| writer.attribute(1, value)),
        Element::Verdict(verdict) => writer.nested(2, |writer| write_verdict(writer, verdict)),
    }
}

fn write_verdict(writer: &mut Writer, verdict: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    writer.nested(2, |writer| {
        writer.attribute(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            writer.text(2, chain);
        }
    });
}

/// `NFT_REG32_00 + n`.
fn register(reg: super::Reg) -> u32 {
    8 + u32::from(reg.0)
}

fn write_expression(writer: &mut Writer, expression: &Expr, family: Family, set_ids: &mut impl Iterator<Item = u32>) {
    writer.text(1, name_of(expression));
    let data = writer.open(2);
    let value = |writer: &mut Writer, kind: u16, value: &[u8]| writer.nested(kind, |writer| writer.attribute(1, value));
    match expression {
        Expr::Payload { base, offset, length, to } => {
            writer.number(1, register(*to));
            writer.number(2, *base as u32);
            writer.number(3, *offset);
            writer.number(4, *length);
        }
        Expr::PayloadSet { base, offset, length, from } => {
            writer.number(5, register(*from));
            writer.number(2, *base as u32);
            writer.number(3, *offset);
            writer.number(4, *length);
            writer.number(6, 0);
            writer.number(7, 0);
        }
        Expr::Meta { key, to } => {
            writer.number(1, register(*to));
            writer.number(2, *key as u32);
        }
        Expr::MetaSet { key, from } => {
            writer.number(2, *key as u32);
            writer.number(3, register(*from));
        }
        Expr::Ct { key, original, to } => {
            writer.number(1, register(*to));
            writer.number(2, *key as u32);
            if *original {
                writer.attribute(3, &[0]);
            }
        }
        Expr::CtSet { key, original, from } => {
            writer.number(2, *key as u32);
            writer.number(4, register(*from));
            if *original {
                writer.attribute(3, &[0]);
            }
        }
        Expr::FibType { of, to } => {
            writer.number(1, register(*to));
            writer.number(2, 3); // NFT_FIB_RESULT_ADDRTYPE
            writer.number(3, *of as u32);
        }
        Expr::Bitwise { from, to, mask, xor } => {
            writer.number(1, register(*from));
            writer.number(2, register(*to));
            writer.number(3, mask.len() as u32);
            value(writer, 4, mask);
            value(writer, 5, xor);
        }
        Expr::Cmp { from, compare, value: with } => {
            writer.number(1, register(*from));
            writer.number(2, *compare as u32);
            value(writer, 3, with);
        }
        Expr::Immediate { to, value: with } => {
            writer.number(1, register(*to));
            value(writer, 2, with);
        }
        Expr::Verdict(verdict) => {
            writer.number(1, 0); // NFT_REG_VERDICT
            writer.nested(2, |writer| write_verdict(writer, verdict));
        }
        Expr::Lookup { set, from, to, vmap } => {
            match set {
                SetRef::Named(name) => writer.text(1, name),
                SetRef::Anonymous(set) => {
                    writer.text(1, if set.data.is_some() { "__map%d" } else { "__set%d" });
                    writer.number(4, set_ids.next().expect("every anonymous set of a rule was numbered before it"));
                }
            }
            writer.number(2, register(*from));
            match to {
                Some(to) => writer.number(3, register(*to)),
                None if *vmap => writer.number(3, 0),
                None => {}
            }
        }
        Expr::Add { set, from } => {
            writer.text(1, set);
            writer.number(3, 0); // NFT_DYNSET_OP_ADD
            writer.number(4, register(*from));
        }
        Expr::Nat { address, port } => {
            writer.number(1, 1); // NFT_NAT_DNAT
            // NFPROTO_IPV4 but in tables of the other.
            writer.number(2, if family == Family::Ip6 { 10 } else { 2 });
            if let Some(address) = address {
                writer.number(3, register(*address));
            }
            if let Some(port) = port {
                writer.number(5, register(*port));
            }
        }
        Expr::NumgenInc { numbers, to } | Expr::NumgenRandom { numbers, to } => {
            writer.number(1, register(*to));
            writer.number(2, numbers.end - numbers.start);
            // NFT_NG_INCREMENTAL, NFT_NG_RANDOM
            writer.number(3, u32::from(matches!(expression, Expr::NumgenRandom { .. })));
            writer.number(4, numbers.start);
        }
        Expr::Hash { from, length, numbers, seed, to } => {
            writer.number(1, register(*from));
            writer.number(2, register(*to));
            writer.number(3, *length);
            writer.number(4, numbers.end - numbers.start);
            writer.number(5, *seed);
            writer.number(6, numbers.start);
            writer.number(7, 0); // NFT_HASH_JENKINS
        }
        Expr::Reject(RejectWith::TcpReset) => {
            writer.number(1, 1);
            writer.attribute(2, &[0]);
        }
        Expr::Reject(RejectWith::IcmpPortUnreachable) => {
            writer.number(1, 0);
            // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH
            writer.attribute(2, &[if family == Family::Ip6 { 4 } else { 3 }]);
        }
        Expr::Masquerade | Expr::Notrack | Expr::Counter => {}
    }
    writer.close(data);
}

fn name_of(expression: &Expr) -> &'static str {
    match expression {
        Expr::Payload { .. } | Expr::PayloadSet { .. } => "payload",
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Ct { .. } | Expr::CtSet { .. } => "ct",
        Expr::FibType { .. } => "fib",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Cmp { .. } => "cmp",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Lookup { .. } => "lookup",
        Expr::Add { .. } => "dynset",
        Expr::Nat { .. } => "nat",
        Expr::Masquerade => "masq",
        Expr::NumgenInc { .. } | Expr::NumgenRandom { .. } => "numgen",
        Expr::Hash { .. } => "hash",
        Expr::Reject(_) => "reject",
        Expr::Notrack => "notrack",
        Expr::Counter => "counter",
    }
}
