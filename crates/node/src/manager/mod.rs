//! What a manager runs besides its agent: consensus, cluster RPC, and, while it leads, the leader.
//!
//! ```text
//! rpc (certificates, raft, forwarded writes, sessions) --+--> consensus --> events --> leader: control::tick --> propose
//!                                                        +--> leader.dispatcher --> assignments to every session
//! ```

mod access;
mod dispatcher;
mod issue;
mod leader;
mod lock;
mod peers;
mod roles;
mod root;
mod rpc;

pub(crate) use dispatcher::Dispatcher;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;
use skep_consensus::{Consensus, Notice, Peer, ProposeError};
use skep_model::NodeId;
use skep_model::node::{Node, Role};
use skep_store::{Batch, View};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;

use crate::audit::AuditLog;
use crate::ca::CertificateFiles;
use crate::config::Timing;
use crate::error::{NodeError, Result};
use crate::facade::SwarmEvent;
use crate::gossip::Gossip;
use crate::transport::message::{JoinRaft, Propose, Proposed};
use crate::transport::{Connection, LiveTls, pack, serve, unpack};
use leader::Leader;
use peers::PeerPool;

/// A write is answered or given up by then (swarmkit's `defaultRequestTimeout` is the client's; ours is fixed).
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a write waits for a leader while one is elected.
const LEADER_PATIENCE: Duration = Duration::from_secs(4);

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
    pub(crate) events: broadcast::Sender<SwarmEvent>,
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
        let manager = Arc::new(Self {
            consensus: consensus.clone(),
            peers,
            dispatcher,
            cancel: cancel.clone(),
            tasks: tasks.clone(),
            stopped: Mutex::new(false),
            config,
        });
        tasks.spawn(lead(consensus.clone(), manager.config.clone(), sender, cancel.clone()));
        tasks.spawn(lock::follow(consensus.clone(), manager.config.certificates.clone(), cancel.clone()));
        tasks.spawn(publish(consensus, manager.config.events.clone(), cancel.clone()));
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

    /// A leader that goes names its successor, so that nobody has to find out by waiting.
    pub(crate) async fn hand_over(&self) {
        if !self.consensus.leadership().borrow().is_leader {
            return;
        }
        let members = self.consensus.members();
        let successor = members
            .iter()
            .filter(|m| m.role == skep_consensus::MemberRole::Voter && m.peer.raft_id != self.consensus.raft_id())
            .max_by_key(|m| m.matched_index);
        if let Some(successor) = successor {
            let handed = self.consensus.transfer_leader(successor.peer.raft_id);
            if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), handed).await {
                tracing::debug!(%error, "leadership was not handed over");
            }
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

    pub(crate) fn leader_node(&self) -> Option<Arc<Node>> {
        let leader = self.leader()?;
        let view = self.view();
        view.nodes().find(|n| n.manager.as_ref().is_some_and(|m| m.raft_id == leader.raft_id)).cloned()
    }

    /// A connection to the leader, when that is another manager.
    pub(crate) fn leader_connection(&self) -> Option<Connection> {
        let leader = self.leader().filter(|l| l.raft_id != self.consensus.raft_id())?;
        self.peers.connection(&leader.address).ok()
    }

    pub(crate) fn audit(&self) -> &AuditLog {
        &self.config.audit
    }

    /// What somebody asked for: committed wherever the leader is, seen in this manager's view, and put on record.
    pub(crate) async fn propose(&self, batch: Batch) -> Result<u64> {
        let (view, changes) = (self.view(), batch.changes.clone());
        let index = self.commit(batch).await?;
        self.config.audit.record(index, &view, &changes);
        Ok(index)
    }

    async fn commit(&self, batch: Batch) -> Result<u64> {
        let deadline = tokio::time::Instant::now() + WRITE_DEADLINE;
        let patience = tokio::time::Instant::now() + LEADER_PATIENCE;
        loop {
            let outcome = match self.consensus.propose(batch.clone()).await {
                Ok(applied) => return Ok(applied.index),
                Err(ProposeError::NotLeader { leader: Some(leader) }) => self.forward(&leader, &batch).await?,
                Err(ProposeError::NotLeader { leader: None } | ProposeError::NoLeader) => None,
                Err(ProposeError::Refused(refused)) => return Err(NodeError::Store(refused)),
                Err(ProposeError::TooLarge { bytes, limit }) => return Err(too_large(bytes, limit)),
                Err(ProposeError::Timeout) => return Err(NodeError::NoLeader),
                Err(error) => return Err(NodeError::Internal(error.to_string())),
            };
            if let Some(index) = outcome {
                self.wait_applied(index, deadline).await;
                return Ok(index);
            }
            if tokio::time::Instant::now() >= patience {
                return Err(NodeError::NoLeader);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `None` if the other one does not lead (any more): ask again.
    async fn forward(&self, leader: &Peer, batch: &Batch) -> Result<Option<u64>> {
        let Ok(connection) = self.peers.connection(&leader.address) else { return Ok(None) };
        let encoded = batch.encode().map_err(|e| NodeError::Internal(e.to_string()))?;
        let mut request = Request::new(pack(&Propose { batch: ByteBuf::from(encoded) }));
        request.set_timeout(WRITE_DEADLINE);
        let reply = match connection.control().propose(request).await {
            Ok(reply) => reply,
            Err(status) if status.code() == tonic::Code::Unavailable => {
                // The connection was refused or broke: the write may or may not have happened. A guarded write can be
                // repeated; an unguarded one is refused by its name the second time.
                self.peers.forget(&leader.address);
                return Ok(None);
            }
            Err(status) => return Err(NodeError::Internal(status.to_string())),
        };
        match unpack::<Proposed>(reply.get_ref()).map_err(|s| NodeError::Internal(s.to_string()))? {
            Proposed::Applied { index } => Ok(Some(index)),
            Proposed::Refused(refused) => Err(NodeError::Store(refused)),
            Proposed::TooLarge { bytes, limit } => Err(too_large(bytes, limit)),
            Proposed::NotLeader => Ok(None),
            Proposed::Unknown(text) => Err(NodeError::Internal(text)),
        }
    }

    /// A write forwarded to the leader shows here a heartbeat later; who reads after writing must see it.
    async fn wait_applied(&self, index: u64, deadline: tokio::time::Instant) {
        let mut events = self.consensus.events();
        while self.consensus.applied_index() < index && tokio::time::Instant::now() < deadline {
            let _ = tokio::time::timeout(Duration::from_millis(20), events.next()).await;
        }
    }

    /// Asks the leader to take this manager into consensus, at any of the given managers.
    pub(crate) async fn join_consensus(&self, managers: &[String]) -> Result<()> {
        let message = JoinRaft { raft_id: self.config.raft_id, address: self.config.advertise };
        let mut last = NodeError::NoLeader;
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
                Ok(_) => return Ok(()),
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

/// The role a node's certificate should carry: a demoted manager keeps its own until it is out of consensus.
fn role_due(node: &Node) -> Role {
    match (node.spec.role, &node.manager) {
        (Role::Worker, None) => Role::Worker,
        (Role::Worker, Some(_)) | (Role::Manager, _) => Role::Manager,
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
    config: ManagerConfig,
    dispatcher: watch::Sender<Option<Dispatcher>>,
    cancel: CancellationToken,
) {
    let mut leadership = consensus.leadership();
    let mut leading: Option<(u64, Leader)> = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        let term = now.is_leader.then_some(now.term);
        if leading.as_ref().map(|(term, _)| *term) != term {
            dispatcher.send_replace(None);
            if let Some((term, leader)) = leading.take() {
                tracing::info!(term, "leadership ended");
                leader.stop().await;
            }
            if let Some(term) = term {
                tracing::info!(term, "leading");
                let leader = Leader::start(consensus.clone(), term, config.timing, config.gossip.clone());
                dispatcher.send_replace(Some(leader.dispatcher.clone()));
                leading = Some((term, leader));
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

/// Docker's events, on every manager from its own copy of the state.
async fn publish(consensus: Consensus, sender: broadcast::Sender<SwarmEvent>, cancel: CancellationToken) {
    let mut events = consensus.events();
    loop {
        let notice = tokio::select! { () = cancel.cancelled() => return, notice = events.next() => notice };
        match notice {
            None => return,
            Some(Notice::Resync { .. }) => {}
            Some(Notice::Applied { events, .. }) => {
                for event in events.iter().filter_map(SwarmEvent::from_store) {
                    // Nobody listening is fine.
                    let _ = sender.send(event);
                }
            }
        }
    }
}
