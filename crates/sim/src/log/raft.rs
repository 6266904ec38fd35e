//! The real consensus, openraft and redb and all, in a tokio runtime of one thread whose clock stands still while the rest
//! of the world acts: its disk is `SimDisk`, its transport the world's wires. (What of it is simulated: ADR 0008.)

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skep_consensus::{
    Config, Consensus, EventStream, Fault, MemberRole, Notice, Peer, ProposeError, SimDisk, Transport, TransportError,
};
use skep_store::{Batch, View};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Crash, Disk, Failure, Log, LogEvent, Move, Ticket, host_of, raft_id};
use crate::HostId;
use crate::dice::Dice;
use crate::net::Net;

/// Small, so that followers that were away for a while get a snapshot.
const SNAPSHOT_INTERVAL: u64 = 150;
const LOG_ENTRIES_FOR_SLOW_FOLLOWERS: u64 = 20;

/// What the world and the runtime share.
struct Shared {
    out: Vec<LogEvent>,
    net: Net,
    dice: Dice,
    /// By host: who answers there.
    open: Vec<Option<Consensus>>,
    frozen_until: Vec<Duration>,
    has_power: Vec<bool>,
    began: Instant,
}

#[derive(Clone)]
struct Link {
    shared: Arc<Mutex<Shared>>,
    news: Arc<Notify>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: LogEvent) {
        self.lock().out.push(event);
        self.news.notify_one();
    }
}

struct Member {
    disk: SimDisk,
    /// Tasks of this life.
    tasks: Vec<AbortHandle>,
    lives: u64,
    /// How many logs it had before this one.
    generation: u64,
}

pub(crate) struct RaftLog {
    members: Vec<Member>,
    link: Link,
    tickets: Ticket,
    seed: u64,
    net: Net,
    runtime: Runtime,
}

impl RaftLog {
    /// A cluster of so many, with `found` as its first entry; so many hosts may ever take part.
    pub(crate) fn new(managers: usize, hosts: usize, mut dice: Dice, found: Batch) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        let seed = dice.number();
        let began = runtime.block_on(async { Instant::now() });
        let shared = Shared {
            out: Vec::new(),
            net: Net::default(),
            dice,
            open: vec![None; hosts],
            frozen_until: vec![Duration::ZERO; hosts],
            has_power: vec![true; hosts],
            began,
        };
        let link = Link { shared: Arc::new(Mutex::new(shared)), news: Arc::new(Notify::new()) };
        let member = |_| Member { disk: SimDisk::default(), tasks: Vec::new(), lives: 0, generation: 0 };
        let members = (0..hosts).map(member).collect();
        let mut log = Self { members, link, tickets: 0, seed, net: Net::default(), runtime };
        for host in (0..managers).map(HostId) {
            log.start(host);
        }
        let link = log.link.clone();
        log.runtime.block_on(async move {
            while link.lock().open.iter().take(managers).any(Option::is_none) {
                sleep(Duration::from_millis(1)).await;
            }
            let first = link.lock().open[0].clone().ok_or("the first manager is gone")?;
            let text = |error: skep_consensus::Error| error.to_string();
            first.bootstrap().await.map_err(text)?;
            for id in 2..=managers as u64 {
                first.add_learner(Peer { raft_id: id, address: id.to_string() }).await.map_err(text)?;
                first.promote(id).await.map_err(text)?;
            }
            first.propose(found).await.map_err(|error| error.to_string())?;
            link.lock().began = Instant::now();
            Ok::<(), String>(())
        })?;
        Ok(log)
    }

    fn config(&mut self, host: HostId) -> Config {
        let member = &mut self.members[host.0];
        member.lives += 1;
        let id = raft_id(host, member.generation);
        let mut config = Config::new("/sim/raft", id, id.to_string(), [7; 32]);
        config.disk = Arc::new(member.disk.clone());
        let life = member.lives.wrapping_mul(0x9e37_79b9).wrapping_add(id);
        config.simulation_seed = Some(self.seed ^ life);
        config.snapshot_interval = SNAPSHOT_INTERVAL;
        config.log_entries_for_slow_followers = LOG_ENTRIES_FOR_SLOW_FOLLOWERS;
        config
    }

    fn open(&self, host: HostId) -> Option<Consensus> {
        self.link.lock().open[host.0].clone()
    }
}

/// Opens a manager and passes on all it has to say.
async fn live(link: Link, host: HostId, config: Config) {
    let wire = Wire { link: link.clone(), from: host };
    let consensus = match Consensus::open(config, Arc::new(wire)).await {
        Ok(consensus) => consensus,
        Err(error) => return link.tell(LogEvent::Stopped { host, why: error.to_string() }),
    };
    let (mut events, mut leadership) = (consensus.events(), consensus.leadership());
    link.tell(LogEvent::Resync { host, index: consensus.applied_index() });
    link.lock().open[host.0] = Some(consensus.clone());
    drop(consensus);
    let mut led = None;
    loop {
        tokio::select! {
            biased;
            notice = events.next() => match notice {
                Some(notice) => pass_on(&link, host, notice),
                None => return,
            },
            changed = leadership.changed() => {
                drain(&link, host, &mut events);
                let now = leadership.borrow_and_update().clone();
                let leads = now.is_leader.then_some((now.term, now.reign));
                if led != leads {
                    if let Some((term, _)) = led {
                        link.tell(LogEvent::Leads { host, term, leads: false });
                    }
                    if let Some((term, _)) = leads {
                        link.tell(LogEvent::Leads { host, term, leads: true });
                    }
                    led = leads;
                }
                if changed.is_err() {
                    return link.tell(LogEvent::Stopped { host, why: "the core ended".into() });
                }
            }
        }
    }
}

fn pass_on(link: &Link, host: HostId, notice: Notice) {
    link.tell(match notice {
        Notice::Applied { index, events } => LogEvent::Applied { host, index, events },
        Notice::Resync { index } => LogEvent::Resync { host, index },
    });
}

/// What was applied is told before who leads because of it.
fn drain(link: &Link, host: HostId, events: &mut EventStream) {
    use futures_util::FutureExt;
    while let Some(Some(notice)) = events.next().now_or_never() {
        pass_on(link, host, notice);
    }
}

fn failure(error: ProposeError) -> Failure {
    match error {
        ProposeError::Refused(refused) => Failure::Refused(refused),
        ProposeError::NotLeader { leader } => Failure::NotLeader(leader.map(|peer| host_of(peer.raft_id))),
        ProposeError::NoLeader => Failure::NoLeader,
        ProposeError::TermOver { .. } => Failure::TermOver,
        ProposeError::Timeout => Failure::Unknown("no answer in time"),
        ProposeError::Interrupted { .. } => Failure::Unknown("interrupted"),
        _ => Failure::Unknown("unavailable"),
    }
}

impl Log for RaftLog {
    fn view(&self, host: HostId) -> View {
        self.open(host).map(|c| c.view()).unwrap_or_default()
    }

    fn leader(&self, host: HostId) -> Option<HostId> {
        let leadership = self.open(host)?.leadership();
        leadership.borrow().leader.as_ref().map(|peer| host_of(peer.raft_id))
    }

    fn propose(&mut self, host: HostId, term: Option<u64>, batch: Batch) -> Ticket {
        self.tickets += 1;
        let (ticket, link) = (self.tickets, self.link.clone());
        let Some(consensus) = self.open(host) else {
            link.tell(LogEvent::Proposed { host, ticket, outcome: Err(Failure::NoLeader) });
            return ticket;
        };
        let task = self.runtime.spawn(async move {
            let outcome = match term {
                Some(term) => consensus.propose_as_leader(term, batch).await,
                None => consensus.propose(batch).await,
            };
            drop(consensus);
            let outcome = outcome.map(|applied| applied.index).map_err(failure);
            // What was applied is told first.
            yield_now().await;
            link.tell(LogEvent::Proposed { host, ticket, outcome });
        });
        let tasks = &mut self.members[host.0].tasks;
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        ticket
    }

    fn change(&mut self, host: HostId, change: Move) -> Ticket {
        self.tickets += 1;
        let (ticket, link) = (self.tickets, self.link.clone());
        let Some(consensus) = self.open(host) else {
            link.tell(LogEvent::Changed { host, ticket, outcome: Err("it is down".into()) });
            return ticket;
        };
        let task = self.runtime.spawn(async move {
            let outcome = match change {
                Move::Join(_, id) => match consensus.add_learner(Peer { raft_id: id, address: id.to_string() }).await {
                    Ok(()) => consensus.promote(id).await,
                    Err(error) => Err(error),
                },
                Move::Remove(id) => consensus.remove(id).await,
                Move::HandOver(id) => consensus.transfer_leader(id).await,
            };
            drop(consensus);
            link.tell(LogEvent::Changed { host, ticket, outcome: outcome.map_err(|error| error.to_string()) });
        });
        self.members[host.0].tasks.push(task.abort_handle());
        ticket
    }

    fn members(&self, host: HostId) -> Vec<(u64, bool)> {
        let members = self.open(host).map(|c| c.members()).unwrap_or_default();
        members.into_iter().map(|m| (m.peer.raft_id, m.role == MemberRole::Voter)).collect()
    }

    fn raft_id(&self, host: HostId) -> u64 {
        raft_id(host, self.members[host.0].generation)
    }

    fn begin(&mut self, host: HostId) {
        self.end(host);
        self.members[host.0].generation += 1;
        self.start(host);
    }

    fn end(&mut self, host: HostId) {
        self.crash(host, Crash::Process);
        self.members[host.0].disk = SimDisk::default();
    }

    fn advance(&mut self, until: Duration, net: &Net, out: &mut Vec<LogEvent>) -> Duration {
        if self.net != *net {
            self.net = net.clone();
            self.link.lock().net = net.clone();
        }
        let began = self.link.lock().began;
        let news = self.link.news.clone();
        let now = self.runtime.block_on(async move {
            tokio::select! {
                biased;
                () = news.notified() => {}
                () = sleep_until(began + until) => {}
            }
            Instant::now() - began
        });
        out.append(&mut self.link.lock().out);
        now
    }

    fn start(&mut self, host: HostId) {
        let config = self.config(host);
        self.link.lock().has_power[host.0] = true;
        let task = self.runtime.spawn(live(self.link.clone(), host, config));
        self.members[host.0].tasks.push(task.abort_handle());
    }

    fn crash(&mut self, host: HostId, how: Crash) {
        // What it has said already was heard.
        self.runtime.block_on(async {
            for _ in 0..8 {
                yield_now().await;
            }
        });
        let mut shared = self.link.lock();
        let left = match how {
            Crash::Process => skep_consensus::Crash::Keep,
            Crash::Power if shared.dice.percent(30) => skep_consensus::Crash::Lose,
            Crash::Power => skep_consensus::Crash::Tear(shared.dice.number()),
        };
        shared.has_power[host.0] = how == Crash::Process;
        shared.open[host.0] = None;
        drop(shared);
        let member = &mut self.members[host.0];
        member.disk.crash(left);
        member.tasks.drain(..).for_each(|task| task.abort());
    }

    fn disk(&mut self, host: HostId, disk: Disk) {
        let there = &self.members[host.0].disk;
        there.set_fault((disk == Disk::Full).then_some(Fault::Full));
        there.set_latency(match disk {
            Disk::Slow(by) => by,
            Disk::Fine | Disk::Full => Duration::ZERO,
        });
    }

    fn freeze(&mut self, host: HostId, until: Duration) {
        self.link.lock().frozen_until[host.0] = until;
    }
}

/// One manager's way to the others.
struct Wire {
    link: Link,
    from: HostId,
}

/// What befalls one message.
enum Fate {
    Arrives(Consensus),
    /// The host is there, and nobody listens.
    Refused,
    Lost,
}

impl Wire {
    /// Lets a message travel; whoever is frozen sends and reads it later.
    async fn travels(&self, from: HostId, to: HostId) -> Fate {
        let (delay, lost) = {
            let mut shared = self.link.lock();
            let Shared { net, dice, .. } = &mut *shared;
            (net.delay(from, to, dice), net.loses(from, to, dice))
        };
        sleep(delay).await;
        let thaws = {
            let shared = self.link.lock();
            let frozen = |host: HostId| shared.frozen_until.get(host.0).copied().unwrap_or_default();
            shared.began + frozen(from).max(frozen(to))
        };
        if thaws > Instant::now() {
            sleep_until(thaws).await;
        }
        let shared = self.link.lock();
        let powered = shared.has_power.get(to.0).copied().unwrap_or_default();
        if lost || !powered || !shared.net.is_open(from, to) {
            return Fate::Lost;
        }
        shared.open.get(to.0).cloned().flatten().map_or(Fate::Refused, Fate::Arrives)
    }

    async fn deliver(&self, to: HostId, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        match self.travels(self.from, to).await {
            Fate::Arrives(consensus) => {
                let answer = consensus.handle_rpc(message).await;
                drop(consensus);
                if let Fate::Arrives(_) = self.travels(to, self.from).await {
                    return Ok(answer);
                }
            }
            Fate::Refused => return Err(TransportError::Unreachable("connection refused".into())),
            Fate::Lost => {}
        }
        sleep(timeout).await;
        Err(TransportError::Failed("no answer".into()))
    }
}

#[async_trait::async_trait]
impl Transport for Wire {
    async fn call(&self, peer: &Peer, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        let to = host_of(peer.raft_id);
        let twice = {
            let mut shared = self.link.lock();
            let Shared { net, dice, .. } = &mut *shared;
            net.doubles(self.from, to, dice)
        };
        if twice {
            let (again, message) = (Self { link: self.link.clone(), from: self.from }, message.clone());
            tokio::spawn(async move {
                // Nobody waits for the second answer.
                if let Fate::Arrives(consensus) = again.travels(again.from, to).await {
                    consensus.handle_rpc(message).await;
                }
            });
        }
        self.deliver(to, message, timeout).await
    }
}
