//! Containers that are no tasks, on networks of the swarm (`docker run --network`): their daemons ask the leader for an
//! address before they start, and mend afterwards what the swarm has wrong of them (`skep-node`'s `host.rs`,
//! `attachments.rs` and `manager/attach.rs`).
//!
//! A manager answers from its own View, which may be old; a daemon reads one that a quorum confirmed, and that too is old when
//! it writes. That nothing comes of it is the log's doing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use skep_control::{AttachmentRequest, Unattachable};
use skep_model::network::Attachment;
use skep_model::{ContainerId, NetworkId};
use skep_store::{Batch, Change};

use crate::HostId;
use crate::trace::Detail;
use crate::world::{Event, World, host_of};

/// Times of `attachments.rs`.
const ATTACH_DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(5);

pub(crate) type Key = (NetworkId, ContainerId);

/// What is due on a host, if its daemon still lives then.
pub(crate) enum Due {
    /// Somebody starts the container.
    Run {
        container: ContainerId,
        network: String,
    },
    /// The container has its address and is there.
    Started {
        key: Key,
        address: Ipv4Addr,
    },
    /// The next manager is asked.
    Call {
        number: u64,
        attempt: u32,
    },
    /// On a manager.
    Asked(Asked),
    Answered {
        number: u64,
        attempt: u32,
        answer: Answer,
    },
    Keep,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    At(NetworkId, Ipv4Addr),
    Detached,
    Refused(String),
    /// Somebody else may know.
    Elsewhere(Option<HostId>),
}

#[derive(Clone, Debug)]
enum Ask {
    Attach { network: String, container: ContainerId, address: Option<Ipv4Addr> },
    Detach(Key),
}

impl Ask {
    fn container(&self) -> &ContainerId {
        match self {
            Self::Attach { container, .. } | Self::Detach((_, container)) => container,
        }
    }
}

/// A call on its way, or being answered: whoever sent it may not wait for it any more.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    number: u64,
    attempt: u32,
    host: HostId,
    ask: Ask,
}

/// What a daemon waits for.
struct Call {
    host: HostId,
    life: u64,
    ask: Ask,
    /// For a container that starts; else for [`Keeper`].
    starts: bool,
    since: Duration,
    attempt: u32,
    hint: Option<HostId>,
}

#[derive(Default)]
pub(crate) struct Calls {
    open: BTreeMap<u64, Call>,
    next: u64,
}

/// What a daemon remembers of it.
#[derive(Default)]
pub(crate) struct Keeper {
    /// Containers whose place is being changed.
    turns: BTreeSet<ContainerId>,
    /// A manager has said what should be here.
    fresh: bool,
    woken: bool,
    round: Option<Round>,
}

struct Round {
    known: BTreeMap<Key, Attachment>,
    todo: VecDeque<Step>,
    all: bool,
}

enum Step {
    Look(Key),
    /// All that is not there has been looked at.
    Turn,
    Tell(Key, Ipv4Addr),
}

/// One of a few containers a host has.
pub(crate) fn container(host: HostId, number: usize) -> ContainerId {
    ContainerId::from_bits([host.0 as u128, number as u128])
}

impl World {
    fn keeper(&mut self, host: HostId) -> Option<&mut Keeper> {
        self.hosts[host.0].daemon.as_mut().map(|d| &mut d.keeper)
    }

    fn due(&mut self, delay: Duration, host: HostId, what: Due) {
        let life = self.hosts[host.0].life;
        self.after(delay, Event::Place { host, life, what });
    }

    /// A user stops a container that runs, or starts one that does not.
    pub(crate) fn toggle(&mut self, host: HostId, container: ContainerId, network: String) {
        if self.hosts[host.0].daemon.is_none() {
            return;
        }
        let there = self.hosts[host.0].placed.keys().find(|(_, c)| *c == container).cloned();
        let Some(key) = there else { return self.due(Duration::ZERO, host, Due::Run { container, network }) };
        self.tell(Detail::Step, format!("{host}: container {} stops", container.short()));
        self.hosts[host.0].placed.remove(&key);
        self.watch.left(&key);
        self.wake_keeper(host);
    }

    pub(crate) fn place_due(&mut self, host: HostId, what: Due) {
        match what {
            Due::Run { container, network } => self.run(host, container, network),
            Due::Started { key, address } => self.started(host, key, address),
            Due::Call { number, attempt } => self.call(number, attempt),
            Due::Asked(asked) => self.asked_for_place(host, asked),
            Due::Answered { number, attempt, answer } => self.place_answered(number, attempt, answer),
            Due::Keep => self.wake_keeper(host),
        }
    }

    fn run(&mut self, host: HostId, container: ContainerId, network: String) {
        if self.hosts[host.0].placed.keys().any(|(_, c)| *c == container) {
            return;
        }
        let Some(keeper) = self.keeper(host) else { return };
        if !keeper.turns.insert(container.clone()) {
            return self.due(LOOK_AGAIN, host, Due::Run { container, network });
        }
        self.begin_call(host, Ask::Attach { network, container, address: None }, true);
    }

    fn started(&mut self, host: HostId, key: Key, address: Ipv4Addr) {
        self.tell(Detail::Step, format!("{host}: container {} has {address}", key.1.short()));
        self.hosts[host.0].placed.insert(key.clone(), address);
        if let Err(violation) = self.watch.placed(&key, address) {
            self.violated(violation);
        }
        self.end_turn(host, &key.1);
    }

    fn end_turn(&mut self, host: HostId, container: &ContainerId) {
        if let Some(keeper) = self.keeper(host) {
            keeper.turns.remove(container);
        }
        self.wake_keeper(host);
    }

    fn begin_call(&mut self, host: HostId, ask: Ask, starts: bool) {
        self.calls.next += 1;
        let (number, life, since) = (self.calls.next, self.hosts[host.0].life, self.now);
        self.calls.open.insert(number, Call { host, life, ask, starts, since, attempt: 0, hint: None });
        self.call(number, 0);
    }

    /// Asks one manager after the other.
    fn call(&mut self, number: u64, attempt: u32) {
        let now = self.now;
        let Some(call) = self.calls.open.get_mut(&number).filter(|c| c.attempt == attempt) else { return };
        let (host, late) = (call.host, now.saturating_sub(call.since) > ATTACH_DEADLINE);
        if self.hosts[host.0].life != call.life {
            self.calls.open.remove(&number);
            return;
        }
        if late {
            return self.call_over(number, None);
        }
        let known = &self.hosts[host.0].known_managers;
        let in_turn = known.get(attempt as usize % known.len().max(1)).copied();
        call.attempt += 1;
        let (attempt, manager) = (call.attempt, call.hint.take().or(in_turn));
        let asked = Asked { number, attempt, host, ask: call.ask.clone() };
        self.due(CALL_DEADLINE, host, Due::Call { number, attempt });
        if let Some(manager) = manager
            && self.net.reaches(host, manager)
            && !self.net.loses(host, manager, &mut self.dice.wire)
        {
            let delay = self.net.delay(host, manager, &mut self.dice.wire);
            self.due(delay, manager, Due::Asked(asked));
        }
    }

    /// A manager is asked, or asks itself again because somebody else was given the address meanwhile.
    pub(crate) fn asked_for_place(&mut self, manager: HostId, asked: Asked) {
        let term = self.leader(manager).map(|leader| leader.term);
        let Some(term) = term else {
            let elsewhere = self.log.leader(manager).filter(|leader| *leader != manager);
            return self.answer_call(manager, &asked, Answer::Elsewhere(elsewhere));
        };
        let view = self.log.view(manager);
        let node_id = self.hosts[asked.host.0].node_id.clone();
        let (change, answer) = match &asked.ask {
            Ask::Attach { network, container, address } => {
                let request = AttachmentRequest {
                    network,
                    container_id: container,
                    node_id: &node_id,
                    names: &[],
                    address: *address,
                    address6: None,
                };
                match skep_control::attach(&view, &request) {
                    Ok((network_id, Some(address), change)) => (Some(change), Answer::At(network_id, address)),
                    Ok((network_id, None, _)) => (None, Answer::Refused(format!("no address on network {network_id}"))),
                    Err(Unattachable::Unallocated(_)) => (None, Answer::Elsewhere(None)),
                    Err(refused) => (None, Answer::Refused(refused.to_string())),
                }
            }
            Ask::Detach((network_id, container_id)) => {
                let there = view.network(network_id).and_then(|n| n.attachments.get(container_id));
                let (network_id, container_id) = (network_id.clone(), container_id.clone());
                let own = there.is_some_and(|there| there.node_id == node_id);
                (own.then_some(Change::DetachContainer { network_id, container_id }), Answer::Detached)
            }
        };
        match change {
            None => self.answer_call(manager, &asked, answer),
            Some(change) => {
                let batch = Batch::new(self.hosts[manager.0].clock(self.now), vec![change]).in_term(term);
                self.settle_place(manager, batch, (asked, answer));
            }
        }
    }

    /// The manager's answer sets out.
    pub(crate) fn answer_call(&mut self, manager: HostId, asked: &Asked, answer: Answer) {
        let Asked { number, attempt, host, .. } = *asked;
        if self.net.reaches(host, manager) && !self.net.loses(manager, host, &mut self.dice.wire) {
            let delay = self.net.delay(manager, host, &mut self.dice.wire);
            self.due(delay, host, Due::Answered { number, attempt, answer });
        }
    }

    fn place_answered(&mut self, number: u64, attempt: u32, answer: Answer) {
        let Some(call) = self.calls.open.get_mut(&number).filter(|c| c.attempt == attempt) else { return };
        let (host, life) = (call.host, call.life);
        if let Answer::Elsewhere(leader) = answer {
            call.hint = leader;
            return self.due(LOOK_AGAIN, host, Due::Call { number, attempt });
        }
        if self.hosts[host.0].life == life {
            self.call_over(number, Some(answer));
        }
    }

    /// With the answer, or too late.
    fn call_over(&mut self, number: u64, answer: Option<Answer>) {
        let Some(call) = self.calls.open.remove(&number) else { return };
        let (host, container) = (call.host, call.ask.container().clone());
        if let Some(Answer::Refused(why)) = &answer {
            self.tell(Detail::Step, format!("{host}: container {} has no place: {why}", container.short()));
        }
        if call.starts {
            if let Some(Answer::At(network_id, address)) = answer {
                let takes = self.dice.engine.millis(10, 80);
                return self.due(takes, host, Due::Started { key: (network_id, container), address });
            }
            return self.end_turn(host, &container);
        }
        let done = matches!(answer, Some(Answer::At(..) | Answer::Detached));
        let Some(keeper) = self.keeper(host) else { return };
        keeper.turns.remove(&container);
        if let Some(round) = &mut keeper.round {
            round.all &= done;
        }
        self.keep(host);
    }

    /// A manager said what should be here.
    pub(crate) fn orders_came(&mut self, host: HostId) {
        if let Some(keeper) = self.keeper(host) {
            keeper.fresh = true;
            self.wake_keeper(host);
        }
    }

    fn wake_keeper(&mut self, host: HostId) {
        let Some(keeper) = self.keeper(host) else { return };
        keeper.woken = true;
        if keeper.round.is_none() {
            self.keep(host);
        }
    }

    /// Goes on until it waits for an answer, or all is as it should be.
    fn keep(&mut self, host: HostId) {
        loop {
            let there = &mut self.hosts[host.0];
            let (Some(daemon), Some(saved)) = (&mut there.daemon, &there.saved) else { return };
            let keeper = &mut daemon.keeper;
            if !keeper.fresh {
                return;
            }
            let Some(round) = &mut keeper.round else {
                if !std::mem::take(&mut keeper.woken) {
                    return;
                }
                let of = |a: &Attachment| host_of(&a.node_id) == host;
                let networks = saved.networks.iter().flat_map(|(id, n)| n.attachments.iter().map(move |a| (id, a)));
                let known: BTreeMap<Key, Attachment> = networks
                    .filter(|(_, (_, a))| of(a))
                    .map(|(id, (container, a))| ((id.clone(), container.clone()), a.clone()))
                    .collect();
                let todo = known.keys().cloned().map(Step::Look).chain([Step::Turn]).collect();
                keeper.round = Some(Round { known, todo, all: true });
                continue;
            };
            let ask = match round.todo.pop_front() {
                None => {
                    let all = keeper.round.take().is_none_or(|round| round.all);
                    if !all {
                        self.due(RETRY, host, Due::Keep);
                    }
                    continue;
                }
                Some(Step::Turn) => {
                    let tell = there.placed.iter().map(|(key, address)| Step::Tell(key.clone(), *address));
                    round.todo.extend(tell);
                    continue;
                }
                Some(Step::Look(key)) if there.placed.contains_key(&key) => continue,
                Some(Step::Look(key)) => Ask::Detach(key),
                Some(Step::Tell(key, address)) if round.known.get(&key).is_some_and(|a| a.address == Some(address)) => {
                    continue;
                }
                Some(Step::Tell((network, container), address)) => {
                    Ask::Attach { network: network.to_string(), container, address: Some(address) }
                }
            };
            if keeper.turns.insert(ask.container().clone()) {
                return self.begin_call(host, ask, false);
            }
        }
    }
}
