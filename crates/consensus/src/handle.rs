//! The handle everything else uses: open, propose, read, follow, change the membership, shut down.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{BasicNode, ReadPolicy, SnapshotPolicy};
use skep_store::{Batch, Refused, View};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::{Error, ProposeError};
use crate::feed::{EventStream, Published};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::member::{Leadership, Peer};
use crate::network::{Network, Transport};
use crate::patience::Heard;
use crate::snapshot::SnapshotDir;
use crate::types::{Blob, EntryTerm, Raft, Types};
use crate::work::Work;
use crate::{leadership, patience, runtime, wire};

/// A proposal asks again this often while a leader is being elected or has not heard from its quorum yet.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Where a proposal took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Index of the log entry; equals the version of the objects it changed.
    pub index: u64,
    pub term: u64,
}

/// One manager's consensus. Cheap to clone; dropping the last clone without [`Consensus::shutdown`] is a crash, which
/// loses nothing that was acknowledged.
#[derive(Clone)]
pub struct Consensus {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    pub(crate) published: Arc<Published>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) incoming: wire::Incoming,
    log: LogStore,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.published.close();
    }
}

impl Consensus {
    /// Opens (or makes) the files in `config.dir` and starts taking part. A manager without state waits until it is
    /// bootstrapped or a leader adds it; one with state goes on where it stopped.
    pub async fn open(config: Config, transport: Arc<dyn Transport>) -> Result<Self, Error> {
        let snapshots = SnapshotDir::open(&config)?;
        let log = LogStore::open(&config).await?;
        let machine = Machine::open(snapshots, Work::of(&config)).await?;
        let published = machine.published();
        let network = Network::new(config.raft_id, config.timing.clone(), transport);
        let starting = Raft::new(config.raft_id, Arc::new(raft_config(&config)?), network, log.clone(), machine);
        let seed = config.simulation_seed.unwrap_or_else(runtime::random_seed);
        let raft = runtime::with_seed(seed, starting).await.map_err(|fatal| log.explain(&fatal))?;

        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let (sender, leadership) = watch::channel(Leadership::default());
        tasks.spawn(leadership::watch(config.raft_id, config.timing.clone(), raft.clone(), sender, cancel.clone()));
        let heard = Heard::now();
        tasks.spawn(patience::watch(config.timing.clone(), raft.clone(), heard.clone(), cancel.clone()));
        tasks.close();
        let incoming = wire::Incoming::new(heard);
        let inner = Inner { config, raft, published, leadership, incoming, log, tasks, cancel };
        let consensus = Self { inner: Arc::new(inner) };
        // Answers once it has begun: from then on the members are those of the log.
        consensus.has_state().await?;
        Ok(consensus)
    }

    /// Whether this manager has ever been part of a cluster (it has a vote or a log).
    pub async fn has_state(&self) -> Result<bool, Error> {
        self.inner.raft.is_initialized().await.map_err(|fatal| self.stopped(&fatal))
    }

    /// Makes this manager a cluster of one and waits until it leads.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        let config = &self.inner.config;
        let members = std::collections::BTreeMap::from([(config.raft_id, BasicNode::new(&config.address))]);
        match self.inner.raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Err(Error::AlreadyBootstrapped),
            Err(RaftError::APIError(other)) => return Err(Error::Refused(other.to_string())),
            Err(RaftError::Fatal(fatal)) => return Err(self.stopped(&fatal)),
        }
        let mut leadership = self.leadership();
        let led = leadership.wait_for(|now| now.is_leader);
        match tokio::time::timeout(config.timing.propose_timeout, led).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped(self.inner.log.why_stopped())),
            Err(_) => Err(Error::Timeout("becoming the leader of a new cluster")),
        }
    }

    /// Proposes a batch and waits until it is applied here. Proposals made at the same time share one write to disk.
    pub async fn propose(&self, batch: Batch) -> Result<Applied, ProposeError> {
        self.propose_encoded(encode(&batch)?, None).await
    }

    /// Like [`propose`](Self::propose), for a leader's own decisions: takes effect only if this manager still leads `term`.
    /// However long it takes: whoever decides again must know what became of the decision before.
    pub async fn propose_as_leader(&self, term: u64, batch: Batch) -> Result<Applied, ProposeError> {
        let payload = encode(&batch.in_term(term))?;
        let mut leadership = self.leadership();
        tokio::select! {
            biased;
            outcome = self.propose_encoded(payload, Some(term)) => outcome,
            _ = leadership.wait_for(|now| !now.is_leader || now.term != term) => Err(ProposeError::TermOver { wanted: term }),
        }
    }

    async fn propose_encoded(&self, payload: Blob, term: Option<u64>) -> Result<Applied, ProposeError> {
        let timing = &self.inner.config.timing;
        let started = Instant::now();
        let deadline = started + timing.propose_timeout;
        let patience = started + timing.leader_wait.min(timing.propose_timeout);
        loop {
            let attempt = self.write_once(payload.clone(), term);
            let attempt = match term {
                Some(_) => attempt.await,
                None => tokio::time::timeout_at(deadline, attempt).await.map_err(|_| self.timed_out())?,
            };
            let refused = match attempt {
                Ok(applied) => return Ok(applied),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::NotLeading(forward)) => forward,
            };
            if let Some(wanted) = term
                && self.inner.raft.as_leader().map(|leader| leader.term()).ok() != Some(wanted)
            {
                return Err(ProposeError::TermOver { wanted });
            }
            if let Some(leader) = peer_of(&refused) {
                return Err(ProposeError::NotLeader { leader: Some(leader) });
            }
            // Nothing was appended. Just elected (LeaseExpired), handing over, or an election is running: it passes.
            if Instant::now() >= patience {
                return Err(ProposeError::NoLeader);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn timed_out(&self) -> ProposeError {
        match self.inner.log.stalled() {
            Some((path, stalled)) => ProposeError::DiskStalled { path, stalled_ms: stalled.as_millis() },
            None => ProposeError::Timeout,
        }
    }

    async fn write_once(&self, payload: Blob, term: Option<u64>) -> Result<Applied, Attempt> {
        let (responder, answered) = ProgressResponder::complete_only();
        let mut write = self.inner.raft.write(payload).responder(responder);
        if let Some(term) = term {
            write = write.with_leader(EntryTerm::new(term));
        }
        write.await.map_err(|fatal| Attempt::Final(self.unavailable(&fatal)))?;
        match answered.await {
            Ok(Ok(response)) => match response.data.refused {
                None => Ok(Applied { index: response.log_id.index, term: response.log_id.committed_leader_id().term }),
                Some(refused) => Err(Attempt::Final(ProposeError::Refused(refused))),
            },
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(Attempt::NotLeading(forward)),
            Ok(Err(ClientWriteError::LogEntryDiscarded(forward))) => {
                Err(Attempt::Final(ProposeError::Interrupted { leader: peer_of(&forward) }))
            }
            Ok(Err(other)) => Err(Attempt::Final(ProposeError::Unavailable(other.to_string()))),
            // The core dropped the request: it has stopped.
            Err(_) => Err(Attempt::Final(ProposeError::Unavailable(self.inner.log.why_stopped()))),
        }
    }

    /// The latest state applied here. Never waits; on a follower, or a leader that lost its quorum, it may be old.
    pub fn view(&self) -> View {
        self.inner.published.view()
    }

    /// Log index the current [`view`](Self::view) was made by.
    pub fn applied_index(&self) -> u64 {
        self.inner.published.index()
    }

    /// A view that contains everything acknowledged before the call. Only the leader can give one.
    pub async fn linearizable_view(&self) -> Result<View, Error> {
        let confirmed = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(self.inner.config.timing.propose_timeout, confirmed).await {
            Err(_) => Err(Error::Timeout("confirming leadership with a quorum")),
            Ok(Ok(_)) => Ok(self.view()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => match peer_of(&forward) {
                Some(leader) => Err(Error::NotLeader { leader: Some(leader) }),
                None => Err(Error::NoLeader),
            },
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => Err(Error::NoLeader),
            Ok(Err(RaftError::Fatal(fatal))) => Err(self.stopped(&fatal)),
        }
    }

    /// Changes applied from now on. Subscribe first, then take a view: nothing falls in between.
    pub fn events(&self) -> EventStream {
        self.inner.published.subscribe()
    }

    /// Who leads; a leader loop starts when `is_leader` turns true and ends when it turns false or `term` moves.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Answers a message another manager's [`Transport::call`] carried. The caller has authenticated the sender as a manager.
    /// Total: what cannot be understood is answered with an error message.
    pub async fn handle_rpc(&self, message: Bytes) -> Bytes {
        wire::answer(&self.inner.raft, self.inner.config.raft_id, &self.inner.incoming, &message).await
    }

    pub fn raft_id(&self) -> u64 {
        self.inner.config.raft_id
    }

    /// Stops taking part and closes the files. Reads keep serving the last view.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.wait().await;
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft core ended abnormally");
        }
        self.inner.log.close().await;
        self.inner.published.close();
    }

    /// Whether it takes part no more: its disk failed, or it was shut down.
    pub fn has_ended(&self) -> bool {
        self.inner.raft.metrics().borrow_watched().running_state.is_err()
    }

    /// Until then.
    pub async fn ended(&self) {
        let mut metrics = self.inner.raft.metrics();
        while !self.has_ended() {
            if metrics.changed().await.is_err() {
                // Dropped with its runtime: nothing goes on from here, and nobody may spin on it.
                return std::future::pending().await;
            }
        }
    }

    pub(crate) fn stopped(&self, fatal: &Fatal<Types>) -> Error {
        self.inner.log.explain(fatal)
    }

    fn unavailable(&self, fatal: &Fatal<Types>) -> ProposeError {
        ProposeError::Unavailable(self.inner.log.explain(fatal).to_string())
    }
}

enum Attempt {
    Final(ProposeError),
    NotLeading(ForwardToLeader<Types>),
}

pub(crate) fn peer_of(forward: &ForwardToLeader<Types>) -> Option<Peer> {
    let (raft_id, node) = (forward.leader_id?, forward.leader_node.as_ref()?);
    Some(Peer { raft_id, address: node.addr.clone() })
}

fn encode(batch: &Batch) -> Result<Blob, ProposeError> {
    let bytes = batch.encode().map_err(|error| ProposeError::Refused(Refused::Invalid(error.to_string())))?;
    let limit = skep_model::MAX_BATCH_BYTES;
    if bytes.len() > limit {
        return Err(ProposeError::TooLarge { bytes: bytes.len(), limit });
    }
    Ok(Blob(bytes.into()))
}

fn raft_config(config: &Config) -> Result<openraft::Config, Error> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = &config.timing;
    openraft::Config {
        cluster_name: "skep".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.shortest_draw()),
        // Also the lease.
        election_timeout_max: ms(timing.lease()),
        // For a whole snapshot; each chunk has its own deadline in the transport.
        install_snapshot_timeout: 120_000,
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_interval),
        max_in_snapshot_log_to_keep: config.log_entries_for_slow_followers,
        // Purging is a write like any other: rarely, in one go.
        purge_batch_size: config.snapshot_interval.clamp(1, 256),
        enable_pre_vote: Some(true),
        // A leader that restarts may not go on in its term: how far that was committed it knows only from its followers, and
        // until then would answer reads without what it has acknowledged itself.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| Error::Refused(format!("timing of consensus is not usable: {error}")))
}
