//! Who has been heard of, and when silence is long enough. The leader's own memory on purpose: a new leader starts every node
//! with a full timeout, so that no node is given up for a silence it was not heard in.
//!
//! There are three witnesses, and none is believed alone (ADR 0009). The node's own word, on its session: silence there may
//! be the link's or the leader's. Its peers' ([`Gossip`]): whether anybody reaches it. Its kernel's ([`Knock`]): a host whose
//! daemon is paused or gone still answers a connection. All three silent is a dead host, and soon said; one that speaks is a
//! slow one, and given time. Without gossip the timeout on its word is longer, and raised for a node that was late before.
//!
//! `now` is of a clock that never jumps and stands still while the leader's process does; the caller keeps it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use skep_model::node::{Node, NodeState};
use skep_model::{NodeId, Timestamp};
use skep_store::{Change, View};

use crate::membership;

/// Gaps between signs of life remembered of a node.
const GAPS: usize = 64;
/// Knocks in a row without an answer after which a kernel is taken for silent. One is easily lost.
const KNOCKS: u32 = 4;
/// Gossip that lost a node this long before its last sign of life is wrong about it (a firewall, say) and not listened to.
const CONTRADICTION: Duration = Duration::from_secs(2);

/// How often [`Liveness::expire`] is asked.
pub const PULSE: Duration = Duration::from_millis(50);
/// A node silent for so long is asked whether its host is there at all, and again so often.
pub const KNOCK_AFTER: Duration = Duration::from_millis(200);
pub const KNOCK_PERIOD: Duration = Duration::from_millis(100);
/// A node whose session broke usually has another by then; if not it is [`membership::disconnected`].
pub const RECONNECT: Duration = Duration::from_millis(300);

/// How long silence may last, by what else is known. swarmkit waits fifteen seconds; there is no reason to on a local network.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Peers do not reach the node, and its kernel does not answer.
    pub dead: Duration,
    /// Nothing else is known.
    pub alone: Duration,
    /// The same for a node whose signs of life came late before; and for a host that answers, but runs no daemon.
    pub late: Duration,
    /// A peer reaches it, or its kernel answers.
    pub slow: Duration,
    /// How long after the beginning of the term a node may take to find the new leader.
    pub grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            dead: Duration::from_millis(700),
            alone: Duration::from_millis(1_000),
            late: Duration::from_millis(3_000),
            slow: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}

/// What the leader's gossip says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gossip {
    Reached,
    /// Nobody who tried reached it for so long.
    Lost {
        lasting: Duration,
    },
}

/// What became of a connection from the leader to the node's gossip port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// A daemon is there, though it may be paused.
    Open,
    /// The host is there, the daemon is not.
    Refused,
    Unanswered,
}

#[derive(Clone, Debug, Default)]
struct Pulse {
    heard: Option<Timestamp>,
    gaps: VecDeque<Duration>,
    /// Since when gossip has lost it; `Some(None)` while it is reached.
    gossip: Option<Option<Timestamp>>,
    knock: Option<Knock>,
    unanswered: u32,
}

#[derive(Clone, Debug)]
pub struct Liveness {
    began: Timestamp,
    pulses: BTreeMap<NodeId, Pulse>,
    patience: Patience,
}

impl Liveness {
    /// With one timeout for all that is silent.
    pub fn new(began: Timestamp, timeout: Duration, grace: Duration) -> Self {
        Self::with(began, Patience { dead: timeout, alone: timeout, late: timeout, slow: timeout, grace })
    }

    pub fn with(began: Timestamp, patience: Patience) -> Self {
        Self { began, pulses: BTreeMap::new(), patience }
    }

    /// A heartbeat, a report, anything.
    pub fn heard(&mut self, node: &NodeId, now: Timestamp) {
        let pulse = self.pulses.entry(node.clone()).or_default();
        if let Some(before) = pulse.heard {
            if pulse.gaps.len() == GAPS {
                pulse.gaps.pop_front();
            }
            pulse.gaps.push_back(now.since(before));
        }
        pulse.heard = Some(now);
        (pulse.knock, pulse.unanswered) = (None, 0);
    }

    /// What gossip says of every node it knows. A node it does not know is judged without it.
    pub fn gossiped(&mut self, said: &BTreeMap<NodeId, Gossip>, now: Timestamp) {
        for (node, pulse) in &mut self.pulses {
            if !said.contains_key(node) {
                pulse.gossip = None;
            }
        }
        for (node, word) in said {
            let pulse = self.pulses.entry(node.clone()).or_default();
            pulse.gossip = Some(match word {
                Gossip::Reached => None,
                Gossip::Lost { lasting } => {
                    let lasting = i64::try_from(lasting.as_nanos()).unwrap_or(i64::MAX);
                    Some(Timestamp(now.0.saturating_sub(lasting)))
                }
            });
        }
    }

    /// An answer, or none, to a knock made since the node was last heard.
    pub fn knocked(&mut self, node: &NodeId, knock: Knock) {
        let pulse = self.pulses.entry(node.clone()).or_default();
        match knock {
            Knock::Open | Knock::Refused => (pulse.knock, pulse.unanswered) = (Some(knock), 0),
            Knock::Unanswered => {
                pulse.unanswered = pulse.unanswered.saturating_add(1);
                if pulse.unanswered >= KNOCKS {
                    pulse.knock = Some(knock);
                }
            }
        }
    }

    /// Forget a node that was removed.
    pub fn forget(&mut self, node: &NodeId) {
        self.pulses.remove(node);
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&NodeId) -> bool) {
        self.pulses.retain(|node, _| keep(node));
    }

    /// How long nothing was heard of a node: since the term began, if never.
    pub fn silent_for(&self, node: &NodeId, now: Timestamp) -> Duration {
        let heard = self.pulses.get(node).and_then(|p| p.heard);
        now.since(heard.unwrap_or(self.began))
    }

    /// When a node is given up, if nothing more is learnt of it.
    fn deadline(&self, node: &NodeId) -> Timestamp {
        let Patience { dead, alone, late, slow, grace } = self.patience;
        let Some(pulse) = self.pulses.get(node) else { return self.began.plus(alone.max(grace)) };
        let since = pulse.heard.unwrap_or(self.began);
        // Unheard of in this term, it may just not have found this leader.
        let allowed = |timeout: Duration| if pulse.heard.is_some() { timeout } else { timeout.max(grace) };
        since.plus(match (self.is_reached(node, pulse), pulse.knock) {
            (_, Some(Knock::Open)) | (Some(true), _) => allowed(slow),
            (_, Some(Knock::Refused)) => allowed(late),
            (Some(false), Some(Knock::Unanswered)) => dead,
            (Some(false) | None, _) => {
                let worst = pulse.gaps.iter().max().copied().unwrap_or_default();
                allowed((worst * 3).clamp(alone, late))
            }
        })
    }

    /// Whether peers reach a node, if gossip's word is worth something: while nobody else is reached it may be the leader that is cut
    /// off, or gossip that is blocked.
    fn is_reached(&self, node: &NodeId, pulse: &Pulse) -> Option<bool> {
        let Some(lost) = pulse.gossip? else { return Some(true) };
        let others = self.pulses.iter().any(|(id, p)| id != node && p.gossip == Some(None));
        let contradicted = pulse.heard.is_some_and(|heard| heard.since(lost) > CONTRADICTION);
        (others && !contradicted).then_some(false)
    }

    /// Changes that mark down those silent too long, and when to ask again.
    pub fn expire(&self, view: &View, now: Timestamp) -> (Vec<Change>, Option<Timestamp>) {
        let (mut changes, mut next) = (Vec::new(), None::<Timestamp>);
        for node in view.nodes().filter(|node| self.is_watched(view, node)) {
            let waits_for = self.deadline(&node.id);
            if waits_for <= now {
                changes.extend(membership::down(view, &node.id, why(node), now));
            } else {
                next = Some(next.map_or(waits_for, |n| n.min(waits_for)));
            }
        }
        (changes, next)
    }

    fn is_watched(&self, view: &View, node: &Node) -> bool {
        match node.status.state {
            NodeState::Down => false,
            // It never had a session; nothing runs there.
            NodeState::Unknown => {
                self.pulses.get(&node.id).is_some_and(|p| p.heard.is_some())
                    || node.status.address.is_some()
                    || view.tasks_of_node(&node.id).next().is_some()
            }
            NodeState::Ready | NodeState::Disconnected => true,
        }
    }
}

/// swarmkit's words (`manager/dispatcher`).
fn why(node: &Node) -> &'static str {
    match node.status.state {
        NodeState::Unknown => "heartbeat failure for node in \"unknown\" state",
        NodeState::Ready | NodeState::Disconnected | NodeState::Down => "heartbeat failure",
    }
}
