//! The protocol: foca, with its clockwork and its words.
//!
//! Tuned for suspicion, not for certainty: that a member is suspected is told to the leader at once, and the leader has other
//! witnesses. A suspected member that is well refutes it within a period.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use foca::{AccumulatingRuntime, Config, Foca, Header, Member, NoCustomBroadcast, PeriodicParams, State, Timer};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use skep_model::NodeId;
use tokio::time::Instant;

/// Fits an Ethernet frame with the seal around it, through a tunnel as well.
pub(super) const MAX_PLAIN: usize = 1200;
/// One member is asked for a sign of life so often, each in its turn.
const PROBE_PERIOD: Duration = Duration::from_millis(200);
/// It answers by then, or others are asked to ask it.
const PROBE_RTT: Duration = Duration::from_millis(70);
const INDIRECT_PROBES: usize = 3;
/// News travel with probes, and so often besides, to so many members.
const NEWS_PERIOD: Duration = Duration::from_millis(100);
const NEWS_TO: usize = 3;
/// How often a piece of news is passed on by each member.
const NEWS_TIMES: u8 = 6;
/// A suspect that has not refuted it is called down.
const SUSPECT_FOR: Duration = Duration::from_secs(2);
/// A member that is down is remembered for so long, under the name it had then.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Nodes gossip does not reach are called so often, and so many at a time.
const CALL_PERIOD: Duration = Duration::from_secs(1);
const CALLS: usize = 3;

/// One life of one node's gossip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberId {
    node: NodeId,
    address: Ipv4Addr,
    /// The later life wins.
    life: u64,
}

impl foca::Identity for MemberId {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { life: self.life.max(a_life()) + 1, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life > adversary.life
    }
}

/// Later than that of the process before, by the clock.
fn a_life() -> u64 {
    u64::try_from(crate::clock::now().0).unwrap_or(0)
}

struct Words;

#[derive(Debug, thiserror::Error)]
enum WordsError {
    #[error("malformed gossip: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("cannot encode gossip: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("no room for it")]
    Full,
}

fn encode(value: &impl Serialize, mut to: impl BufMut) -> Result<(), WordsError> {
    let bytes = rmp_serde::to_vec(value)?;
    if to.remaining_mut() < bytes.len() {
        return Err(WordsError::Full);
    }
    to.put_slice(&bytes);
    Ok(())
}

impl foca::Codec<MemberId> for Words {
    type Error = WordsError;

    fn encode_header(&mut self, header: &Header<MemberId>, to: impl BufMut) -> Result<(), WordsError> {
        encode(header, to)
    }

    fn decode_header(&mut self, from: impl Buf) -> Result<Header<MemberId>, WordsError> {
        Ok(rmp_serde::from_read(from.reader())?)
    }

    fn encode_member(&mut self, member: &Member<MemberId>, to: impl BufMut) -> Result<(), WordsError> {
        encode(member, to)
    }

    fn decode_member(&mut self, from: impl Buf) -> Result<Member<MemberId>, WordsError> {
        Ok(rmp_serde::from_read(from.reader())?)
    }
}

fn config() -> Config {
    let some = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: some(INDIRECT_PROBES),
        max_transmissions: NonZeroU8::new(NEWS_TIMES).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: SUSPECT_FOR,
        remove_down_after: Some(REMEMBERED),
        max_packet_size: some(MAX_PLAIN),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: NEWS_PERIOD, num_members: some(NEWS_TO) }),
    }
}

pub(super) struct Swim {
    foca: Foca<MemberId, Words, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<MemberId>,
    /// In the order in which they are due; the number keeps those due at once in the order they were asked for.
    timers: BTreeMap<(Instant, u64), Timer<MemberId>>,
    asked: u64,
    /// The swarm's nodes, from the log.
    nodes: BTreeMap<NodeId, Ipv4Addr>,
    next_call: Instant,
}

impl Swim {
    pub(super) fn new(node: &NodeId, address: Ipv4Addr) -> Self {
        let own = MemberId { node: node.clone(), address, life: a_life() };
        Self {
            foca: Foca::new(own, config(), rand::make_rng(), Words),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            asked: 0,
            nodes: BTreeMap::new(),
            next_call: Instant::now(),
        }
    }

    /// Which nodes there are, and where this one is.
    pub(super) fn know(&mut self, own: Ipv4Addr, nodes: BTreeMap<NodeId, Ipv4Addr>) {
        if nodes.keys().any(|id| !self.nodes.contains_key(id)) {
            self.next_call = Instant::now();
        }
        self.nodes = nodes;
        let before = self.foca.identity();
        if before.address != own
            && let Some(now) = foca::Identity::renew(before)
        {
            let changed = self.foca.change_identity(MemberId { address: own, ..now }, &mut self.runtime);
            self.after(changed);
        }
    }

    /// A datagram a member sent.
    pub(super) fn take(&mut self, plain: &[u8]) {
        let taken = self.foca.handle_data(plain, &mut self.runtime);
        self.after(taken);
    }

    pub(super) fn due(&self) -> Instant {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        timer.map_or(self.next_call, |at| at.min(self.next_call))
    }

    /// What is due now.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry().filter(|e| e.key().0 <= now) {
            let timer = entry.remove();
            let handled = self.foca.handle_timer(timer, &mut self.runtime);
            self.after(handled);
        }
        if self.next_call <= now {
            self.next_call = now + CALL_PERIOD;
            self.call();
        }
    }

    /// Nodes that are not reached: at the beginning all, later those that were away.
    fn call(&mut self) {
        let own = self.foca.identity().node.clone();
        let reached: Vec<NodeId> = self.foca.iter_members().map(|m| m.id().node.clone()).collect();
        let mut missing: Vec<MemberId> = self
            .nodes
            .iter()
            .filter(|(id, _)| **id != own && !reached.contains(id))
            .map(|(id, address)| MemberId { node: id.clone(), address: *address, life: 0 })
            .collect();
        for _ in 0..CALLS.min(missing.len()) {
            let chosen = missing.swap_remove(rand::random_range(0..missing.len()));
            let called = self.foca.announce(chosen, &mut self.runtime);
            self.after(called);
        }
    }

    fn after(&mut self, outcome: Result<(), foca::Error>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "gossip");
        }
        let now = Instant::now();
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            self.asked += 1;
            self.timers.insert((now + delay, self.asked), timer);
        }
        while let Some(news) = self.runtime.to_notify() {
            tracing::debug!(?news, "gossip");
        }
    }

    /// What is to be sent, and where.
    pub(super) fn next_datagram(&mut self) -> Option<(Ipv4Addr, Bytes)> {
        self.runtime.to_send().map(|(to, plain)| (to.address, plain))
    }

    /// The other members heard of, and whether they are reached.
    pub(super) fn members(&self) -> impl Iterator<Item = (NodeId, bool)> {
        self.foca.iter_membership_state().map(|m| (m.id().node.clone(), m.state() == State::Alive))
    }
}
