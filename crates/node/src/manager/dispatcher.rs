//! The leader's side of every session: who is alive, and who is told what.
//!
//! One task owns all sessions and lives as long as the leadership. After any change of the state it makes each node's
//! assignments anew from a View and sends the difference; a node that lost count gets the whole set. Who is given up is
//! decided by `control::dispatch::Liveness`; here its witnesses are heard, on a clock that stops while this process is stalled.

mod errands;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use futures_util::FutureExt;
use skep_consensus::{Consensus, EventStream, Notice};
use skep_control::dispatch::{
    Affected, Assigner, Balancers, KNOCK_AFTER, KNOCK_PERIOD, Knock, LiveClock, Liveness, PULSE, Patience, RECONNECT,
    due_keys,
};
use skep_control::membership;
use skep_model::node::NodeState;
use skep_model::{NodeId, SessionId, TaskId, Timestamp};
use skep_store::{Change, Object, View};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::leader::Input;
use crate::ca::{Identity, issuer_of};
use crate::clock::now;
use crate::config::Timing;
use crate::facade::{LogRequest, RemoteManager, new_network_key};
use crate::gossip::{self, Gossip};
use crate::transport::message::{Down, Facts, Hello, Trust, Up, Welcome};
use crate::transport::proto::Envelope;
pub(crate) use errands::Ends;
use errands::Errands;
pub(super) use errands::{LogSink, Reached};
use session::Session;

/// Knocks under way at once; if that many nodes fall silent together it is not theirs that broke.
const KNOCKS: usize = 256;

pub(super) type DownStream = mpsc::Receiver<Result<Envelope, Status>>;

/// A session that has begun.
pub(super) struct Opened {
    pub(super) id: SessionId,
    pub(super) down: DownStream,
    /// Ends when what the node said of itself is in the log, or never will be.
    pub(super) written: oneshot::Receiver<()>,
}

enum Command {
    Open {
        identity: Identity,
        hello: Box<Hello>,
        peer: IpAddr,
        reply: oneshot::Sender<Result<Opened, Status>>,
    },
    Heard {
        node_id: NodeId,
        session_id: SessionId,
        message: Up,
    },
    Closed {
        node_id: NodeId,
        session_id: SessionId,
    },
    Leave {
        node_id: NodeId,
    },
    Subscribe {
        tasks: Vec<TaskId>,
        request: LogRequest,
        sink: LogSink,
    },
    Reach {
        node_id: NodeId,
        ends: Ends,
        reply: oneshot::Sender<bool>,
    },
    Reached {
        id: u64,
        node_id: NodeId,
        /// The node would rather call who wants it.
        directly: bool,
        reply: oneshot::Sender<Option<Reached>>,
    },
    Knocked {
        node_id: NodeId,
        /// When, on the live clock: what was heard later counts more.
        at: Timestamp,
        knock: Knock,
    },
    Publish {
        id: u64,
        node_id: NodeId,
        reply: oneshot::Sender<Option<LogSink>>,
    },
}

/// The way in, for RPC.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    commands: mpsc::Sender<Command>,
}

impl Dispatcher {
    pub(super) fn new() -> (Self, DispatcherTask) {
        let (commands, receiver) = mpsc::channel(4096);
        (Self { commands: commands.clone() }, DispatcherTask { commands: receiver, own: commands.downgrade() })
    }

    pub(super) async fn open(&self, identity: Identity, hello: Hello, peer: IpAddr) -> Result<Opened, Status> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Open { identity, hello: Box::new(hello), peer, reply };
        self.commands.send(command).await.map_err(|_| Status::unavailable("leadership ended"))?;
        answer.await.map_err(|_| Status::unavailable("leadership ended"))?
    }

    pub(super) async fn heard(&self, node_id: NodeId, session_id: SessionId, message: Up) -> bool {
        self.commands.send(Command::Heard { node_id, session_id, message }).await.is_ok()
    }

    pub(super) async fn closed(&self, node_id: NodeId, session_id: SessionId) {
        let _ = self.commands.send(Command::Closed { node_id, session_id }).await;
    }

    pub(super) async fn leave(&self, node_id: NodeId) {
        let _ = self.commands.send(Command::Leave { node_id }).await;
    }

    pub(crate) async fn subscribe(&self, tasks: Vec<TaskId>, request: LogRequest, sink: LogSink) {
        let _ = self.commands.send(Command::Subscribe { tasks, request, sink }).await;
    }

    /// Asks a node for a connection; false if it has no session.
    pub(crate) async fn reach(&self, node_id: NodeId, ends: Ends) -> bool {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Reach { node_id, ends, reply }).await;
        answer.await.unwrap_or(false)
    }

    /// What a node that was asked for a connection is connected with.
    pub(super) async fn reached(&self, id: u64, node_id: NodeId, directly: bool) -> Option<Reached> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Reached { id, node_id, directly, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// The sink of a subscription that was sent to this node.
    pub(super) async fn sink_of(&self, id: u64, node_id: NodeId) -> Option<LogSink> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Publish { id, node_id, reply }).await.ok()?;
        answer.await.ok()?
    }
}

pub(super) struct DispatcherTask {
    commands: mpsc::Receiver<Command>,
    /// For what this task asks of others.
    own: mpsc::WeakSender<Command>,
}

struct State {
    consensus: Consensus,
    inbox: mpsc::Sender<Input>,
    timing: Timing,
    gossip: Gossip,
    own: mpsc::WeakSender<Command>,
    sessions: BTreeMap<NodeId, Session>,
    began: Instant,
    clock: LiveClock,
    liveness: Liveness,
    /// When each was last asked, on the live clock.
    knocks: BTreeMap<NodeId, Timestamp>,
    knocking: TaskTracker,
    /// Nodes whose session broke.
    closed: BTreeMap<NodeId, Timestamp>,
    balancers: Balancers,
    /// A host said what its balancers do.
    acknowledged: bool,
    errands: Errands,
}

fn patience(timing: &Timing) -> Patience {
    Patience {
        dead: timing.node_dead,
        alone: timing.node_timeout,
        late: timing.node_timeout_max,
        slow: timing.node_slow,
        grace: timing.leader_grace,
    }
}

impl DispatcherTask {
    pub(super) async fn run(
        mut self,
        consensus: Consensus,
        inbox: mpsc::Sender<Input>,
        timing: Timing,
        gossip: Gossip,
        cancel: CancellationToken,
    ) {
        let mut events = consensus.events();
        let mut state = State {
            consensus,
            inbox,
            timing,
            gossip,
            own: self.own,
            sessions: BTreeMap::new(),
            liveness: Liveness::with(Timestamp::ZERO, patience(&timing)),
            began: Instant::now(),
            clock: LiveClock::default(),
            knocks: BTreeMap::new(),
            knocking: TaskTracker::new(),
            closed: BTreeMap::new(),
            balancers: Balancers::default(),
            acknowledged: false,
            errands: Errands::default(),
        };
        let unknown = membership::unknown(&state.consensus.view(), now());
        if state.inbox.send(Input::Changes(unknown)).await.is_err() {
            return;
        }
        let mut tick = interval(PULSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut news = News::default();
            tokio::select! {
                () = cancel.cancelled() => return,
                command = self.commands.recv() => match command {
                    Some(command) => state.command(command).await,
                    None => return,
                },
                notice = events.next() => match notice {
                    Some(notice) => news.note(&notice),
                    None => return,
                },
                _ = tick.tick() => {
                    state.check_pulses().await;
                    state.errands.retain(&state.sessions);
                }
            }
            // What else is ready is taken first: one look at the state serves all of it.
            while let Ok(command) = self.commands.try_recv() {
                state.command(command).await;
            }
            news.drain(&mut events);
            state.dispatch(&news);
        }
    }
}

/// What has to be told to whom.
#[derive(Default)]
struct News {
    affected: Affected,
    /// Managers, wanted roles or the cluster's facts moved.
    world: bool,
}

impl News {
    fn note(&mut self, notice: &Notice) {
        let Notice::Applied { events, .. } = notice else {
            self.affected = Affected::Everybody;
            self.world = true;
            return;
        };
        for event in events.iter() {
            self.affected.note(event);
            self.world |= match &event.object {
                Object::Cluster(..) => true,
                Object::Node(Some(old), Some(new)) => old.manager != new.manager || old.spec.role != new.spec.role,
                Object::Node(..) => true,
                Object::Service(..)
                | Object::Task(..)
                | Object::Network(..)
                | Object::Secret(..)
                | Object::Config(..) => false,
            };
        }
    }

    fn drain(&mut self, events: &mut EventStream) {
        while let Some(Some(notice)) = events.next().now_or_never() {
            self.note(&notice);
        }
    }
}

pub(crate) fn managers_of(view: &View) -> Vec<RemoteManager> {
    view.nodes()
        .filter_map(|node| {
            let manager = node.manager.as_ref()?;
            Some(RemoteManager { node_id: node.id.clone(), addr: manager.address.to_string() })
        })
        .collect()
}

fn facts_of(view: &View) -> Facts {
    Facts { data_path_port: view.cluster().map_or(crate::config::DEFAULT_DATA_PATH_PORT, |c| c.data_path_port) }
}

fn trust_of(view: &View) -> Option<Trust> {
    let root = &view.cluster()?.root_ca;
    let issuer = issuer_of(root.signing().0).ok()?;
    Some(Trust { root_pem: root.cert_pem.clone(), issuer_key: issuer.key })
}

impl State {
    fn live(&mut self) -> Timestamp {
        self.clock.now(self.began.elapsed())
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Open { identity, hello, peer, reply } => {
                let opened = self.open(identity, *hello, peer).await;
                let _ = reply.send(opened);
            }
            Command::Heard { node_id, session_id, message } => self.heard(node_id, &session_id, message).await,
            Command::Closed { node_id, session_id } => {
                // A broken connection says nothing about the node's tasks: silence decides.
                if self.sessions.get(&node_id).is_some_and(|s| s.id == session_id) {
                    self.sessions.remove(&node_id);
                    let now = self.live();
                    self.closed.insert(node_id, now);
                }
            }
            Command::Knocked { node_id, at, knock } => {
                let now = self.live();
                if self.liveness.silent_for(&node_id, now) > now.since(at) {
                    self.liveness.knocked(&node_id, knock);
                }
            }
            Command::Leave { node_id } => {
                self.sessions.remove(&node_id);
                self.liveness.forget(&node_id);
                self.down(&node_id, "node left the swarm").await;
            }
            Command::Subscribe { tasks, request, sink } => {
                self.errands.subscribe(&self.consensus.view(), &self.sessions, &tasks, &request, &sink);
            }
            Command::Reach { node_id, ends, reply } => {
                let _ = reply.send(self.errands.reach(&self.sessions, node_id, ends));
            }
            Command::Reached { id, node_id, directly, reply } => {
                let _ = reply.send(self.errands.connection(id, &node_id, directly));
            }
            Command::Publish { id, node_id, reply } => {
                let _ = reply.send(self.errands.sink(id, &node_id));
            }
        }
    }

    async fn open(&mut self, identity: Identity, mut hello: Hello, peer: IpAddr) -> Result<Opened, Status> {
        let view = self.consensus.view();
        let node_id = identity.node_id;
        if view.node(&node_id).is_none() {
            return Err(super::access::removed());
        }
        let address = Some(hello.address.unwrap_or(peer));
        hello.description.tls_certificate.clone_from(&identity.certificate);
        let mut changes = membership::ready(&view, &node_id, &hello.description, address, now());
        changes.extend(membership::carries_role(&view, &node_id, identity.role));
        let (is_written, written) = oneshot::channel();
        if !changes.is_empty() {
            let _ = self.inbox.send(Input::Opened(changes, is_written)).await;
        }
        let id = SessionId::from_bits(rand::random());
        let welcome = Welcome {
            session_id: id.clone(),
            heartbeat_ms: u64::try_from(self.timing.heartbeat_period.as_millis()).unwrap_or(100),
            managers: managers_of(&view),
        };
        let trust =
            Trust { root_pem: hello.description.tls_trust_root_pem, issuer_key: hello.description.tls_issuer_key };
        let (session, down) = Session::open(welcome, address, identity.role, trust);
        tracing::info!(node.id = %node_id, session.id = %id, "session opened");
        let live = self.live();
        self.liveness.heard(&node_id, live);
        self.closed.remove(&node_id);
        self.balancers.opened(node_id.clone());
        self.sessions.insert(node_id, session);
        Ok(Opened { id, down, written })
    }

    async fn heard(&mut self, node_id: NodeId, session_id: &SessionId, message: Up) {
        let live = self.live();
        let Some(session) = self.sessions.get_mut(&node_id).filter(|s| s.id == *session_id) else { return };
        self.liveness.heard(&node_id, live);
        match message {
            Up::Heartbeat { sent_ms } => {
                session.send(&Down::Heartbeat { sent_ms });
                let address = session.address;
                self.revive(&node_id, address).await;
            }
            Up::Reports(mut reports) => {
                // A node speaks for its own tasks only.
                let view = self.consensus.view();
                reports.retain(|r| view.task(&r.task_id).is_some_and(|t| t.node_id.as_ref() == Some(&node_id)));
                if !reports.is_empty() {
                    let _ = self.inbox.send(Input::Reports(reports)).await;
                }
            }
            Up::Applied { sequence } => {
                self.balancers.applied(&node_id, sequence);
                self.acknowledged = true;
            }
            Up::Resync => session.needs_all = true,
            Up::Hello(_) => {}
        }
    }

    /// A node called dead that still speaks was only late.
    async fn revive(&mut self, node_id: &NodeId, address: Option<IpAddr>) {
        let view = self.consensus.view();
        let Some(node) = view.node(node_id) else { return };
        if node.status.state != NodeState::Ready {
            let changes = membership::ready(&view, node_id, &node.description, address, now());
            let _ = self.inbox.send(Input::Changes(changes)).await;
        }
    }

    async fn down(&self, node_id: &NodeId, message: &str) {
        let view = self.consensus.view();
        if let Some(change) = membership::down(&view, node_id, message, now()) {
            tracing::info!(node.id = %node_id, reason = message, "node is down");
            let _ = self.inbox.send(Input::Changes(vec![change])).await;
        }
    }

    async fn check_pulses(&mut self) {
        let live = self.live();
        let view = self.consensus.view();
        self.liveness.retain(|id| view.node(id).is_some());
        self.sessions.retain(|id, _| view.node(id).is_some());
        self.knock_where_silent(&view, live);
        let said = self.gossip.says();
        self.liveness.gossiped(&said.into_iter().filter(|(id, _)| view.node(id).is_some()).collect(), live);
        let (mut changes, _) = self.liveness.expire(&view, live);
        for change in &mut changes {
            if let Change::SetNodeStatus { node_id, status } = change {
                // The world's clock, not ours.
                status.since = now();
                tracing::info!(node.id = %node_id, reason = status.message, "node is down");
                self.sessions.remove(node_id);
                self.liveness.forget(node_id);
            }
        }
        self.closed.retain(|node_id, at| {
            let waiting = live.since(*at) < RECONNECT;
            if !waiting {
                changes.extend(membership::disconnected(&view, node_id, now()));
            }
            waiting
        });
        let key_is_gone = view.cluster().is_some_and(|c| c.gossip_key.is_none());
        changes.extend(key_is_gone.then(|| Change::SetGossipKey(gossip::new_key())));
        let rotate = |(network_id, from)| Change::RotateNetworkKeys { network_id, from, next: new_network_key() };
        changes.extend(due_keys(&view, now()).into_iter().map(rotate));
        if !changes.is_empty() {
            let _ = self.inbox.send(Input::Changes(changes)).await;
        }
    }

    /// A node that should be heard and is not: is its host there?
    fn knock_where_silent(&mut self, view: &View, live: Timestamp) {
        self.knocks.retain(|id, _| view.node(id).is_some());
        for node in view.nodes().filter(|n| n.status.state != NodeState::Down) {
            let Some(address) = node.status.address else { continue };
            let asked = self.knocks.get(&node.id).is_some_and(|at| live.since(*at) < KNOCK_PERIOD);
            if asked || self.liveness.silent_for(&node.id, live) < KNOCK_AFTER || self.knocking.len() >= KNOCKS {
                continue;
            }
            self.knocks.insert(node.id.clone(), live);
            let (node_id, own) = (node.id.clone(), self.own.clone());
            self.knocking.spawn(gossip::knock(SocketAddr::new(address, gossip::PORT), async move |knock| {
                if let Some(own) = own.upgrade() {
                    let _ = own.send(Command::Knocked { node_id: node_id.clone(), at: live, knock }).await;
                }
            }));
        }
    }

    fn dispatch(&mut self, news: &News) {
        let view = self.consensus.view();
        self.balancers.retain(|id| self.sessions.contains_key(id));
        let due = match std::mem::take(&mut self.acknowledged) {
            true => self.balancers.due(&view),
            false => BTreeSet::new(),
        };
        let wants =
            |id: &NodeId, s: &Session| news.world || s.needs_all || news.affected.contains(id) || due.contains(id);
        if !self.sessions.iter().any(|(id, s)| wants(id, s)) {
            return;
        }
        let (facts, managers) = (facts_of(&view), managers_of(&view));
        let trust = trust_of(&view);
        let mut assigner = Assigner::new(&view);
        for (node_id, session) in &mut self.sessions {
            let Some(node) = view.node(node_id).filter(|_| wants(node_id, session)) else { continue };
            session.introduce(&managers, membership::role_due(node), trust.as_ref());
            session.key(view.cluster().and_then(|c| c.gossip_key.as_ref()));
            let mut set = assigner.assignments(node_id);
            set.left = self.balancers.left(&view, &set);
            if session.tell(set, &facts) {
                self.balancers.told(node_id, session.sequence, &session.sent);
            }
        }
    }
}
