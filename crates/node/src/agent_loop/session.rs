//! The worker's line to the leader: finds it, says what runs here, hears what should.
//!
//! One bidirectional stream carries heartbeats, reports and assignments. If it breaks or falls silent the next manager is
//! tried at once; tasks go on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use skep_model::NodeId;
use skep_model::assignment::AssignmentSet;
use skep_model::node::Role;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::board::StatusBoard;
use super::executor::Executor;
use super::log_feed;
use crate::config::Timing;
use crate::facade::RemoteManager;
use crate::gossip::Gossip;
use crate::transport::message::{Down, Facts, Hello, Trust, Up};
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls, pack, unpack};

/// Header in which a manager that does not lead names the one that does.
pub(crate) const LEADER_HEADER: &str = "skep-leader";
/// What the leader says to a node that has no object any more.
pub(crate) const REMOVED: &str =
    "this node was removed from the swarm: run \"docker swarm leave --force\" on it and join again with a token";

/// A manager that has not answered by then is probably dead, and this node would be taken for dead next.
const OPEN_DEADLINE: Duration = Duration::from_millis(1_500);
/// A leader that could not be reached is not tried again on a follower's word for so long: it has not noticed yet.
const DISTRUST: Duration = Duration::from_secs(2);
/// A leader silent for so long is given up.
const SILENCE: Duration = Duration::from_millis(1_500);
/// swarmkit's session backoff starts at 100 ms; ours ends sooner, since a node without a session is taken for dead.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
const MAX_REPORTS: usize = 500;

/// What the manager told this node last, whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Orders {
    pub(crate) facts: Facts,
    pub(crate) set: Arc<AssignmentSet>,
    /// Whether a manager said so in this life of the daemon, rather than the disk.
    pub(crate) fresh: bool,
}

/// What the session shares with the rest of the member.
pub(crate) struct Session {
    pub(crate) node_id: NodeId,
    pub(crate) tls: LiveTls,
    pub(crate) timing: Timing,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) board: Arc<StatusBoard>,
    pub(crate) orders: watch::Sender<Option<Orders>>,
    pub(crate) gossip: Gossip,
    /// When the last heartbeat that a leader answered was sent, since boot.
    pub(crate) answered: watch::Sender<Option<Duration>>,
    pub(crate) managers: watch::Sender<Vec<RemoteManager>>,
    pub(crate) connected: watch::Sender<bool>,
    /// The role the leader wants this node to have.
    pub(crate) wanted_role: watch::Sender<Option<Role>>,
    /// What the leader wants this node to trust and to have a certificate of.
    pub(crate) wanted_trust: watch::Sender<Option<Trust>>,
    pub(crate) advertise: Option<std::net::IpAddr>,
}

enum Ended {
    /// The manager answered that another one leads.
    Elsewhere(Option<String>),
    /// This node has another certificate now; the connection shows the old one.
    Renewed,
    /// It ran for a while and broke.
    Broken(String),
    /// It could not be opened.
    Refused(String),
}

impl Session {
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut backoff = BACKOFF_FIRST;
        let mut next: Option<String> = None;
        let mut failed: Option<(String, Instant)> = None;
        let mut turn = 0usize;
        loop {
            let address = next.take().or_else(|| {
                let managers = self.managers.borrow();
                turn = turn.wrapping_add(1);
                (!managers.is_empty()).then(|| managers[turn % managers.len()].addr.clone())
            });
            let Some(address) = address else {
                tracing::warn!("no manager is known");
                tokio::select! { () = cancel.cancelled() => return, () = tokio::time::sleep(BACKOFF_LAST) => continue }
            };
            let ended = tokio::select! {
                () = cancel.cancelled() => return,
                ended = self.once(&address) => ended,
            };
            self.connected.send_replace(false);
            match ended {
                Ended::Elsewhere(Some(leader))
                    if leader != address
                        && !failed.as_ref().is_some_and(|(dead, at)| *dead == leader && at.elapsed() < DISTRUST) =>
                {
                    next = Some(leader);
                    continue;
                }
                Ended::Renewed => {
                    next = Some(address);
                    continue;
                }
                Ended::Elsewhere(_) => backoff = BACKOFF_FIRST,
                Ended::Broken(reason) => {
                    failed = Some((address.clone(), Instant::now()));
                    tracing::info!(manager = address, reason, "session ended");
                    backoff = BACKOFF_FIRST;
                }
                Ended::Refused(reason) => {
                    failed = Some((address.clone(), Instant::now()));
                    tracing::debug!(manager = address, reason, "no session");
                }
            }
            let pause = backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! { () = cancel.cancelled() => return, () = tokio::time::sleep(pause) => {} }
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
    }

    async fn open(
        &self,
        connection: &Connection,
    ) -> Result<(mpsc::Sender<Envelope>, tonic::Streaming<Envelope>), Status> {
        let (up, outgoing) = mpsc::channel(64);
        let tls = self.tls.current();
        let mut description = self.executor.describe(&tls.root_pem).await;
        description.tls_issuer_subject.clone_from(&tls.issuer.subject);
        description.tls_issuer_key.clone_from(&tls.issuer.key);
        let hello = Up::Hello(Box::new(Hello { description, address: self.advertise }));
        up.try_send(pack(&hello)).map_err(|_| Status::internal("an empty channel is full"))?;
        let call = async { connection.dispatcher().session(ReceiverStream::new(outgoing)).await };
        let response = timeout(OPEN_DEADLINE, call).await.map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok((up, response.into_inner()))
    }

    async fn once(&self, address: &str) -> Ended {
        let mut renewed = self.tls.subscribe();
        let connection = match Connection::lazy(address, &self.tls) {
            Ok(connection) => connection,
            Err(error) => return Ended::Refused(error.to_string()),
        };
        let (up, mut down) = match self.open(&connection).await {
            Ok(opened) => opened,
            Err(status) if status.code() == Code::FailedPrecondition => {
                let leader = status.metadata().get(LEADER_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
                return Ended::Elsewhere(leader);
            }
            Err(status) => {
                if status.code() == Code::PermissionDenied && status.message() == REMOVED {
                    self.hold_nothing();
                }
                return Ended::Refused(status.to_string());
            }
        };
        let mut logs = log_feed::LogFeeds::new(self.executor.clone(), connection.clone(), self.node_id.clone());
        let mut heartbeat = interval(self.timing.heartbeat_period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut have: Option<u64> = None;
        let mut heard = Instant::now();
        self.board.say_all_again();
        loop {
            tokio::select! {
                biased;
                message = down.next() => {
                    heard = Instant::now();
                    let message = match message {
                        Some(Ok(envelope)) => unpack::<Down>(&envelope),
                        Some(Err(status)) => Err(status),
                        None => return Ended::Broken("the manager closed it".into()),
                    };
                    match message {
                        Ok(message) => if !self.take(message, &mut have, &mut logs) {
                            let _ = up.send(pack(&Up::Resync)).await;
                        },
                        Err(status) => return Ended::Broken(status.to_string()),
                    }
                }
                _ = renewed.changed() => return Ended::Renewed,
                _ = heartbeat.tick() => {
                    // A stalled process hears late, too: only silence seen by a live clock counts.
                    if heard.elapsed() > SILENCE {
                        return Ended::Broken("the manager fell silent".into());
                    }
                    // A full channel carries messages, and those are signs of life as well.
                    if let Err(mpsc::error::TrySendError::Closed(_)) = up.try_send(pack(&Up::Heartbeat { sent_ms: since_boot_ms() })) {
                        return Ended::Broken("the stream was closed".into());
                    }
                }
                () = self.board.changed() => loop {
                    let reports = self.board.take(MAX_REPORTS);
                    if reports.is_empty() {
                        break;
                    }
                    if up.send(pack(&Up::Reports(reports))).await.is_err() {
                        return Ended::Broken("the stream was closed".into());
                    }
                },
            }
        }
    }

    /// Nobody will ever say again what is to run here: nothing is.
    fn hold_nothing(&self) {
        self.orders.send_if_modified(|orders| {
            let facts = orders.as_ref().map(|o| o.facts.clone()).unwrap_or_default();
            let nothing = Orders { facts, set: Arc::default(), fresh: true };
            orders.replace(nothing) != *orders
        });
    }

    /// False if a change did not fit what is here.
    fn take(&self, message: Down, have: &mut Option<u64>, logs: &mut log_feed::LogFeeds) -> bool {
        match message {
            Down::Welcome(welcome) => {
                tracing::info!(session.id = %welcome.session_id, "session with the leader");
                self.managers.send_if_modified(|known| replace_if_other(known, welcome.managers));
                self.connected.send_replace(true);
            }
            Down::Heartbeat { sent_ms } => {
                self.answered.send_replace(Some(Duration::from_millis(sent_ms)));
            }
            Down::Complete { results_in, facts, set } => {
                *have = Some(results_in);
                self.orders.send_replace(Some(Orders { facts, set: Arc::new(*set), fresh: true }));
            }
            Down::Incremental { applies_to, results_in, facts, change } => {
                if *have != Some(applies_to) {
                    *have = None;
                    return false;
                }
                *have = Some(results_in);
                self.orders.send_modify(|orders| {
                    if let Some(orders) = orders {
                        orders.facts = facts;
                        Arc::make_mut(&mut orders.set).apply(*change);
                    }
                });
            }
            Down::Managers(managers) => {
                self.managers.send_if_modified(|known| replace_if_other(known, managers));
            }
            Down::Role(role) => {
                self.wanted_role.send_replace(Some(role));
            }
            Down::Trust(trust) => {
                self.wanted_trust.send_replace(Some(trust));
            }
            Down::Subscribe(subscription) => logs.start(subscription),
            Down::Unsubscribe(id) => logs.stop(id),
            Down::Gossip(key) => self.gossip.take_key(key),
        }
        true
    }
}

fn since_boot_ms() -> u64 {
    u64::try_from(skep_engine::since_boot().as_millis()).unwrap_or(u64::MAX)
}

fn replace_if_other(known: &mut Vec<RemoteManager>, new: Vec<RemoteManager>) -> bool {
    if new.is_empty() || *known == new {
        return false;
    }
    *known = new;
    true
}
