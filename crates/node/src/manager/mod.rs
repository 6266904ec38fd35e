//! What a manager runs besides its agent: consensus, cluster RPC, and, while it leads, the leader.
//!
//! ```text
//! rpc (certificates, raft, forwarded writes, sessions) --+--> consensus --> events --> leader: control::tick --> propose
//!                                                        +--> leader.dispatcher --> assignments to every session
//! ```

mod access;
mod attach;
mod calls;
mod dispatcher;
mod issue;
mod leader;
mod lock;
mod peers;
mod roles;
mod root;
mod rpc;

pub(crate) use dispatcher::{Dispatcher, Ends};
pub(crate) use roles::Roster;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;
use skep_consensus::{Consensus, Leadership, Member, MemberRole, Notice, Peer, ProposeError};
use skep_model::NodeId;
use skep_model::node::{ManagerInfo, Node, Reachability};
use skep_store::{Batch, Refused, View};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;

use crate::audit::AuditLog;
use crate::ca::CertificateFiles;
use crate::clock::now;
use crate::config::Timing;
use crate::error::{NodeError, Result};
use crate::facade::{EventAction, EventCursor, EventKind, EventLog, SwarmEvent};
use crate::gossip::Gossip;
use crate::transport::message::{JoinRaft, Propose, Proposed};
use crate::transport::{Connection, LiveTls, pack, serve, unpack};
use calls::Calls;
use leader::Leader;
use peers::PeerPool;

/// A write is answered or given up by then (swarmkit's `defaultRequestTimeout` is the client's; ours is fixed).
const WRITE_DEADLINE: Duration = Duration::from_secs(8);
/// How long a write waits while there is no leader at all; an election takes about a second.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at who leads and whether it is reached.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub(crate) struct ManagerConfig {
    pub(crate) node_id: NodeId,
    pub(crate) raft_dir: PathBuf,
    pub(crate) raft_id: u64,
    pub(crate) storage_key: [u8; 32],
    /// Locked as the swarm has it.
    pub(crate) certificates: CertificateFiles,
    pub(crate) advertise: SocketAddr,
    pub(crate) tls: LiveTls,
    pub(crate) timing: Timing,
    pub(crate) events: Arc<EventLog>,
    pub(crate) gossip: Gossip,
    pub(crate) audit: AuditLog,
}

impl ManagerConfig {
    pub(crate) fn log(&self) -> skep_consensus::Config {
        skep_consensus::Config::new(&self.raft_dir, self.raft_id, self.advertise.to_string(), self.storage_key)
    }
}

pub(crate) struct Manager {
    config: ManagerConfig,
    consensus: Consensus,
    peers: Arc<PeerPool>,
    roster: Arc<Roster>,
    calls: Calls,
    /// Present while this manager leads.
    dispatcher: watch::Receiver<Option<Dispatcher>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    /// Where the RPC listens; freed by [`Manager::stop`].
    stopped: Mutex<bool>,
}

impl Manager {
    /// Opens the log and starts to serve; whether it is part of a cluster is for the caller to see to.
    pub(crate) async fn start(config: ManagerConfig, listener: TcpListener) -> Result<Arc<Self>> {
        let peers = Arc::new(PeerPool::new(config.tls.clone()));
        let consensus = Consensus::open(config.log(), peers.clone()).await.map_err(internal)?;
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (sender, dispatcher) = watch::channel(None);
        let roster = Arc::new(Roster::new(consensus.clone(), peers.clone()));
        let manager = Arc::new(Self {
            consensus: consensus.clone(),
            peers: peers.clone(),
            roster: roster.clone(),
            calls: Calls::default(),
            dispatcher,
            cancel: cancel.clone(),
            tasks: tasks.clone(),
            stopped: Mutex::new(false),
            config,
        });
        tasks.spawn(lead(consensus.clone(), roster.clone(), manager.config.clone(), sender, cancel.clone()));
        tasks.spawn(peers::ping_all(peers, consensus.clone(), cancel.clone()));
        tasks.spawn(lock::follow(consensus.clone(), manager.config.certificates.clone(), cancel.clone()));
        tasks.spawn(publish(consensus, roster, manager.config.events.clone(), cancel.clone()));
        let router = rpc::router(&manager);
        tasks.spawn(serve(listener, manager.config.tls.clone(), router, cancel));
        Ok(manager)
    }

    pub(crate) async fn stop(&self) {
        {
            let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut *stopped, true) {
                return;
            }
        }
        self.hand_over().await;
        self.cancel.cancel();
        self.tasks.close();
        // Open streams of peers may take their time; what matters is on disk.
        let _ = tokio::time::timeout(Duration::from_secs(3), self.tasks.wait()).await;
        self.consensus.shutdown().await;
    }

    #[cfg(test)]
    pub(crate) fn abandon(self: Arc<Self>) {
        self.cancel.cancel();
        tokio::spawn(async move { self.consensus.shutdown().await });
    }

    pub(crate) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.roster
    }

    /// A leader that goes names its successor, so that nobody has to find out by waiting.
    pub(crate) async fn hand_over(&self) {
        if let Err(error) = self.roster.hand_over().await {
            tracing::debug!(%error, "going without a successor");
        }
    }

    pub(crate) fn tls(&self) -> &LiveTls {
        &self.config.tls
    }

    pub(crate) fn node_id(&self) -> &NodeId {
        &self.config.node_id
    }

    pub(crate) fn view(&self) -> View {
        self.consensus.view()
    }

    pub(crate) fn dispatcher(&self) -> Option<Dispatcher> {
        self.dispatcher.borrow().clone()
    }

    pub(crate) fn leader(&self) -> Option<Peer> {
        self.consensus.leadership().borrow().leader.clone()
    }

    /// The node that leads, as far as it can be told from here: one that is not reached, or says that no quorum answers
    /// it, leads nobody.
    pub(crate) fn leader_node(&self) -> Option<Arc<Node>> {
        let leadership = self.consensus.leadership().borrow().clone();
        let leader = leadership.leader?;
        let leads = if leader.raft_id == self.consensus.raft_id() {
            leadership.is_leader
        } else {
            self.peers.says_it_leads(leader.raft_id)
        };
        let view = self.view();
        let node = view.nodes().find(|n| n.manager.as_ref().is_some_and(|m| m.raft_id == leader.raft_id));
        node.filter(|_| leads).cloned()
    }

    /// A connection to the leader, when that is another manager.
    pub(crate) fn leader_connection(&self) -> Option<Connection> {
        let leader = self.leader().filter(|l| l.raft_id != self.consensus.raft_id())?;
        self.peers.connection(&leader.address).ok()
    }

    /// Returns when this manager's keys are locked as the swarm has it, or that failed for now.
    pub(crate) async fn lock_keys(&self) {
        lock::lock(&self.consensus, &self.config.certificates).await;
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Where nodes and managers call this one.
    pub(crate) fn address(&self) -> SocketAddr {
        self.config.advertise
    }

    pub(crate) fn audit(&self) -> &AuditLog {
        &self.config.audit
    }

    /// What somebody asked for: committed wherever the leader is, seen in this manager's view, and put on record.
    pub(crate) async fn propose(&self, batch: Batch) -> Result<u64> {
        let (view, changes) = (self.view(), batch.changes.clone());
        let named = batch.named(skep_store::Request { id: rand::random(), since: view.index() });
        // Boxed: every operation carries it.
        let index = Box::pin(self.settle(named)).await?;
        self.config.audit.record(index, &view, &changes);
        Ok(index)
    }

    /// While leaders come and go the batch is sent again, always under the same name: it takes effect once, and the answer
    /// is what became of it.
    pub(crate) async fn settle(&self, batch: Batch) -> Result<u64> {
        let begun = Instant::now();
        let deadline = begun + WRITE_DEADLINE;
        let (mut unknown, mut led) = (false, begun);
        loop {
            let leadership = self.consensus.leadership().borrow().clone();
            let outcome = match leadership.leader {
                Some(leader) if leader.raft_id != self.consensus.raft_id() => {
                    self.while_it_leads(&leader, deadline, self.forward(&leader, &batch)).await?
                }
                Some(leader) => {
                    let here = async { Ok(self.propose_here(batch.clone()).await) };
                    self.while_it_leads(&leader, deadline, here).await?
                }
                None => Proposed::NotLeader,
            };
            match outcome {
                Proposed::Applied { index } => {
                    self.wait_applied(index, deadline).await;
                    return Ok(index);
                }
                Proposed::Refused(refused) => return Err(NodeError::Store(refused)),
                Proposed::TooLarge { bytes, limit } => return Err(too_large(bytes, limit)),
                Proposed::NotLeader => {}
                Proposed::Unknown(reason) => {
                    (unknown, led) = (true, Instant::now());
                    tracing::debug!(reason, "a write goes unanswered");
                }
            }
            if Instant::now() >= deadline || led.elapsed() >= LEADER_PATIENCE {
                return Err(self.no_leader(unknown));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Commits a batch if this manager leads and a quorum answers it.
    async fn propose_here(&self, batch: Batch) -> Proposed {
        if !self.consensus.leadership().borrow().is_leader {
            return Proposed::NotLeader;
        }
        match self.consensus.propose(batch).await {
            Ok(applied) => Proposed::Applied { index: applied.index },
            Err(ProposeError::Refused(Refused::Repeated { index })) => Proposed::Applied { index },
            Err(ProposeError::Refused(refused)) => Proposed::Refused(refused),
            Err(ProposeError::TooLarge { bytes, limit }) => Proposed::TooLarge { bytes, limit },
            Err(ProposeError::NotLeader { .. } | ProposeError::NoLeader | ProposeError::TermOver { .. }) => {
                Proposed::NotLeader
            }
            Err(error) => Proposed::Unknown(error.to_string()),
        }
    }

    async fn forward(&self, leader: &Peer, batch: &Batch) -> Result<Proposed> {
        let Ok(connection) = self.peers.connection(&leader.address) else { return Ok(Proposed::NotLeader) };
        let encoded = batch.encode().map_err(internal)?;
        let mut request = Request::new(pack(&Propose { batch: ByteBuf::from(encoded) }));
        request.set_timeout(WRITE_DEADLINE);
        match connection.control().propose(request).await {
            Ok(reply) => unpack(reply.get_ref()).map_err(internal),
            Err(status) => {
                if status.code() == tonic::Code::Unavailable {
                    self.peers.forget(&leader.address);
                }
                // Whether it was on its way out or on its way back that it broke cannot be told.
                Ok(Proposed::Unknown(status.to_string()))
            }
        }
    }

    /// Gives up on an answer that cannot come any more: another one leads, the leader is gone, or time is up.
    async fn while_it_leads(
        &self,
        leader: &Peer,
        deadline: Instant,
        answer: impl Future<Output = Result<Proposed>>,
    ) -> Result<Proposed> {
        let own = leader.raft_id == self.consensus.raft_id();
        let leads = |now: &Leadership| {
            now.leader.as_ref().is_some_and(|l| l.raft_id == leader.raft_id)
                && (!own || now.is_leader)
                && self.roster.reachability(leader.raft_id) != Reachability::Unreachable
        };
        let mut leadership = self.consensus.leadership();
        if !leads(&leadership.borrow_and_update()) {
            return Ok(Proposed::NotLeader);
        }
        let over = async {
            while leads(&leadership.borrow_and_update()) {
                let _ = tokio::time::timeout(LOOK_AGAIN * 5, leadership.changed()).await;
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = over => Ok(Proposed::Unknown("its leader is gone".into())),
            () = tokio::time::sleep_until(deadline) => Ok(Proposed::Unknown("no answer in time".into())),
        }
    }

    /// Docker's sentence, and which managers are missing.
    pub(crate) fn no_leader(&self, may_take_effect: bool) -> NodeError {
        let view = self.view();
        let missing: Vec<String> = view
            .nodes()
            .filter_map(|node| Some((node, node.manager.as_ref()?)))
            .filter(|(_, manager)| self.roster.reachability(manager.raft_id) == Reachability::Unreachable)
            .map(|(node, manager)| format!("{} ({})", node.description.hostname, manager.address))
            .collect();
        let mut more = String::new();
        if !missing.is_empty() {
            more = format!(
                " Not reached from {}: {}. Start them again or mend the network; if they are lost for good, run \"docker swarm init --force-new-cluster\" on one manager that is left.",
                view.node(&self.config.node_id).map_or("here", |node| &node.description.hostname),
                missing.join(", ")
            );
        }
        if may_take_effect {
            more.push_str(" The change was on its way and may still take effect.");
        }
        NodeError::NoLeader(more)
    }

    /// A write forwarded to the leader shows here a heartbeat later; who reads after writing must see it.
    async fn wait_applied(&self, index: u64, deadline: Instant) {
        let mut events = self.consensus.events();
        while self.consensus.applied_index() < index && Instant::now() < deadline {
            let _ = tokio::time::timeout(Duration::from_millis(20), events.next()).await;
        }
    }

    /// moby's `daemon/cluster/swarm.go`: what happens if this manager goes.
    pub(crate) fn leave_warning(&self) -> String {
        let mut text =
            String::from("You are attempting to leave the swarm on a node that is participating as a manager. ");
        let view = self.view();
        let ids = view.nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id));
        let reached: Vec<Reachability> = ids.map(|id| self.roster.reachability(id)).collect();
        // One that was not asked yet, by a manager just joined, counts as reached.
        let unreachable = reached.iter().filter(|r| **r == Reachability::Unreachable).count();
        let reachable = reached.len() - unreachable;
        if reachable <= unreachable + 2 {
            if (reachable, unreachable) == (1, 0) {
                text.push_str(
                    "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ",
                );
                return text;
            }
            text.push_str(&format!(
                "Removing this node leaves {} managers out of {}. Without a Raft quorum your swarm will be inaccessible. ",
                reachable.saturating_sub(1),
                reachable + unreachable
            ));
        }
        text.push_str(
            "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.",
        );
        text
    }

    /// Whether it knows itself to count in consensus.
    pub(crate) fn votes(&self) -> bool {
        let own = |member: &Member| member.peer.raft_id == self.config.raft_id && member.role == MemberRole::Voter;
        self.consensus.members().iter().any(own)
    }

    /// Asks the leader to take this manager into consensus, at any of the given managers; asked again, it moves its address.
    /// False if its certificate has to be renewed first.
    pub(crate) async fn join_consensus(&self, managers: &[String]) -> Result<bool> {
        if self.consensus.leadership().borrow().is_leader {
            let own = ManagerInfo { raft_id: self.config.raft_id, address: self.config.advertise };
            return Box::pin(self.roster.join(&self.config.node_id, own)).await.map(|()| true).map_err(internal);
        }
        let message = JoinRaft { raft_id: self.config.raft_id, address: self.config.advertise };
        let mut last = NodeError::NoLeader(String::new());
        let mut queue: Vec<String> = managers.to_vec();
        for _ in 0..40 {
            let Some(address) = queue.pop() else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                queue = managers.to_vec();
                continue;
            };
            let connection = self.peers.connection(&address)?;
            let mut request = Request::new(pack(&message));
            request.set_timeout(Duration::from_secs(15));
            match connection.control().join_raft(request).await {
                Ok(_) => return Ok(true),
                // Demoted again, or removed, before it got here: it will be told.
                Err(status) if status.code() == tonic::Code::PermissionDenied => return Ok(true),
                Err(status) if status.code() == tonic::Code::Unauthenticated => return Ok(false),
                Err(status) => {
                    if let Some(leader) = status.metadata().get(crate::agent_loop::LEADER_HEADER) {
                        queue.extend(leader.to_str().ok().map(str::to_owned));
                    }
                    last = NodeError::Internal(status.to_string());
                }
            }
        }
        Err(last)
    }
}

impl Drop for Manager {
    /// A manager given up half-way must free its address and files.
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn too_large(bytes: usize, limit: usize) -> NodeError {
    NodeError::Invalid(format!("the change is too large: {bytes} bytes, {limit} allowed"))
}

fn internal(error: impl std::fmt::Display) -> NodeError {
    NodeError::Internal(error.to_string())
}

/// Makes a [`Leader`] on election and drops it on demotion.
async fn lead(
    consensus: Consensus,
    roster: Arc<Roster>,
    config: ManagerConfig,
    dispatcher: watch::Sender<Option<Dispatcher>>,
    cancel: CancellationToken,
) {
    let mut leadership = consensus.leadership();
    let mut leading: Option<((u64, u64), Leader)> = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        let reign = now.is_leader.then_some((now.term, now.reign));
        if leading.as_ref().map(|(reign, _)| *reign) != reign {
            dispatcher.send_replace(None);
            if let Some(((term, _), leader)) = leading.take() {
                tracing::info!(term, "leadership ended");
                leader.stop().await;
            }
            if let Some(reign @ (term, _)) = reign {
                tracing::info!(term, "leading");
                let (timing, gossip) = (config.timing, config.gossip.clone());
                let leader = Leader::start(consensus.clone(), roster.clone(), term, timing, gossip);
                dispatcher.send_replace(Some(leader.dispatcher.clone()));
                leading = Some((reign, leader));
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = leadership.changed() => if changed.is_err() { break },
        }
    }
    dispatcher.send_replace(None);
    if let Some((_, leader)) = leading {
        leader.stop().await;
    }
}

/// How often is looked who leads and who is reached, for events.
const LOOK: Duration = Duration::from_millis(500);

/// Docker's events, on every manager from its own copy of the state.
async fn publish(consensus: Consensus, roster: Arc<Roster>, log: Arc<EventLog>, cancel: CancellationToken) {
    let mut events = consensus.events();
    log.begin_after(consensus.applied_index());
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: BTreeMap<NodeId, (bool, Reachability)> = BTreeMap::new();
    loop {
        let notice = tokio::select! {
            () = cancel.cancelled() => return,
            notice = events.next() => notice,
            _ = look.tick() => {
                let leader = consensus.leadership().borrow().leader.as_ref().map(|l| l.raft_id);
                let view = consensus.view();
                let managers = view.nodes().filter_map(|node| Some((node, node.manager.as_ref()?.raft_id)));
                let mut now = BTreeMap::new();
                for (node, raft_id) in managers {
                    let state = (leader == Some(raft_id), roster.reachability(raft_id));
                    if let Some(old) = before.get(&node.id).filter(|old| **old != state) {
                        log.seen(moved(node, *old, state));
                    }
                    now.insert(node.id.clone(), state);
                }
                before = now;
                continue;
            }
        };
        match notice {
            None => return,
            Some(Notice::Resync { index }) => log.begin_after(index),
            Some(Notice::Applied { index, events }) => log.applied(index, &events),
        }
    }
}

fn moved(node: &Node, old: (bool, Reachability), new: (bool, Reachability)) -> SwarmEvent {
    let mut attributes = BTreeMap::from([("name".to_owned(), node.description.hostname.clone())]);
    let mut put = |key: &str, old: String, new: String| {
        if old != new {
            attributes.insert(format!("{key}.old"), old);
            attributes.insert(format!("{key}.new"), new);
        }
    };
    put("leader", old.0.to_string(), new.0.to_string());
    put("reachability", word(old.1).into(), word(new.1).into());
    SwarmEvent {
        kind: EventKind::Node,
        action: EventAction::Update,
        id: node.id.to_string(),
        attributes,
        at: now(),
        cursor: EventCursor::default(),
    }
}

fn word(reachability: Reachability) -> &'static str {
    match reachability {
        Reachability::Unknown => "unknown",
        Reachability::Unreachable => "unreachable",
        Reachability::Reachable => "reachable",
    }
}
