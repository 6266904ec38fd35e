//! Frames of our overlays in the host's namespace. Those from hosts that are no members of the swarm, or no more, are dropped
//! before anything looks at them; those of members are no connections to keep a table of.
//!
//! ```text
//! set members { 10.91.0.2, 10.91.0.3 }
//! chain arriving { type filter hook prerouting priority -300
//!     meta l4proto udp th dport 4789 @th,96,24 { 0x1001, 0x1002 } goto sender }
//! chain sender {
//!     ip saddr @members ip daddr 10.91.0.1 notrack accept
//!     ip saddr @members accept; fib daddr type unicast accept; drop }     # unicast: to another host
//! chain leaving { type filter hook output priority -300
//!     meta l4proto udp th dport 4789 @th,96,24 { 0x1001, 0x1002 } ip saddr 10.91.0.1 notrack }
//! ```
//!
//! To whichever of this host's addresses they come, since VXLAN listens at all of them. What is passed on is not ours.
//!
//! Every connection inside has a source port of its own outside, and so would take a place in the host's table of connections,
//! which is full one day, and the time to make it. A firewall that lets in packets to the port lets these in; one that lets in
//! new *connections* to it alone would not (`ct state new,untracked` is what it is to say).
//!
//! VXLAN itself takes a frame from anybody who sends one. Other networks (VNIs) on the port are somebody else's and are left
//! alone. Encrypted overlays have no VXLAN: their frames are known by their keys.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::Underlay;
use crate::ingress::{fresh_name, remove_others};
use crate::link::Namespace;
use crate::nft::expr::{Compare, Expr, FibOf, PayloadBase, Reg, SetRef};
use crate::nft::{
    Address, Bytes, Chain, ChainType, DataType, Element, Family, Hook, HookPoint, NftError, NftSocket, Ownership, Rule,
    Set, Table, Verdict,
};

/// Before connections are tracked.
const PRIORITY_RAW: i32 = -300;
const MEMBERS: &str = "members";
const SENDER: &str = "sender";
const UDP: u8 = 17;
/// `RTN_UNICAST`: of another host.
const UNICAST: u32 = 1;
/// In a VXLAN packet, after the headers of UDP (8 bytes) and VXLAN's flags (4).
const VNI_OFFSET: u32 = 12;
const VNI: DataType = DataType { length: 3, ..DataType::INTEGER };

/// The table in the host's namespace that drops them.
#[derive(Debug)]
pub struct MembersOnly {
    nft: NftSocket,
    prefix: String,
    applied: Option<Table>,
}

impl MembersOnly {
    pub fn open(host: &Namespace, tag: &str) -> Result<Self, NftError> {
        Ok(Self { nft: NftSocket::open(host.fd())?, prefix: format!("skep-members-{tag}-"), applied: None })
    }

    /// Lets in frames of these networks from these hosts alone. The count is of changes made.
    pub fn update(
        &mut self,
        underlay: Underlay,
        vnis: &BTreeSet<u32>,
        members: &[Ipv4Addr],
    ) -> Result<usize, NftError> {
        let name = match &self.applied {
            Some(applied) => applied.name.clone(),
            None => fresh_name(&mut self.nft, Family::Ip, &self.prefix)?,
        };
        let table = table(name, underlay, vnis, members);
        let mut changes = self.nft.apply(self.applied.as_ref(), &table)?;
        if self.applied.is_none() {
            changes += remove_others(&mut self.nft, Family::Ip, &self.prefix, &table.name)?;
        }
        self.applied = Some(table);
        Ok(changes)
    }

    /// Takes it away, an earlier daemon's too.
    pub fn remove(&mut self) -> Result<usize, NftError> {
        remove_others(&mut self.nft, Family::Ip, &self.prefix, "")
    }

    /// Forgets what somebody else has taken away or changed, so that the next update makes it.
    pub fn look_again(&mut self) -> Result<(), NftError> {
        if let Some(applied) = &self.applied
            && !self.nft.has(applied)?
        {
            self.applied = None;
        }
        Ok(())
    }
}

fn table(name: String, underlay: Underlay, vnis: &BTreeSet<u32>, members: &[Ipv4Addr]) -> Table {
    let mut table = Table::new(Family::Ip, name, Ownership::Shared);
    let present = |key: Bytes| (key, Element::Present);
    let members = members.iter().map(|address| present(address.bytes())).collect();
    table.sets.insert(MEMBERS.to_owned(), Set { elements: members, ..Set::plain(DataType::IPV4) });
    let ours = vnis.iter().map(|vni| present(Bytes::from_slice(&vni.to_be_bytes()[1..]))).collect();
    let ours = Set { elements: ours, ..Set::plain(VNI) };
    let of_ours = Rule::new().l4proto(UDP).destination_port(underlay.vxlan_port()).with([
        Expr::Payload { base: PayloadBase::Transport, offset: VNI_OFFSET, length: VNI.length, to: Reg(0) },
        Expr::Lookup { set: SetRef::Anonymous(Box::new(ours)), from: Reg(0), to: None, vmap: false },
    ]);
    let raw = |point| Hook::new(ChainType::Filter, point, PRIORITY_RAW);
    let arriving = of_ours.clone().verdict(Verdict::Goto(SENDER.to_owned()));
    table.chain("arriving", Chain::base(raw(HookPoint::Prerouting), vec![arriving]));
    let member = || Rule::new().source_in::<Ipv4Addr>(MEMBERS);
    let elsewhere = [
        Expr::FibType { of: FibOf::Destination, to: Reg(0) },
        Expr::Cmp { from: Reg(0), compare: Compare::Equal, value: UNICAST.to_ne_bytes().to_vec() },
    ];
    let elsewhere = Rule::new().with(elsewhere).verdict(Verdict::Accept);
    let mut sender = vec![member().verdict(Verdict::Accept), elsewhere, Rule::new().verdict(Verdict::Drop)];
    if let Some(own) = underlay.vtep {
        sender.insert(0, member().destination(own).notrack().verdict(Verdict::Accept));
        let leaving = of_ours.source(own).notrack();
        table.chain("leaving", Chain::base(raw(HookPoint::Output), vec![leaving]));
    }
    table.chain(SENDER, Chain::regular(sender));
    table
}
