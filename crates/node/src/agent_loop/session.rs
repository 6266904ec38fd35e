//! The worker's line to the leader: finds it, says what runs here, hears what should.
//!
//! One bidirectional stream carries heartbeats, reports and assignments. If it breaks or falls silent (`agent::line` says
//! when) all the managers are asked at once; tasks go on meanwhile.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use skep_agent::line::{self, OPEN_DEADLINE};
use skep_model::assignment::AssignmentSet;
use skep_model::node::{NodeDescription, Role};
use skep_model::{NodeId, SessionId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::board::StatusBoard;
use super::executor::Executor;
use super::log_feed;
use super::plane::InForce;
use super::reached::Switchboard;
use crate::address;
use crate::config::Timing;
use crate::facade::RemoteManager;
use crate::gossip::Gossip;
use crate::transport::message::{Down, Facts, Hello, Trust, Up};
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls, TlsMaterial, pack, unpack};

/// Header in which a manager that does not lead names the one that does.
pub(crate) const LEADER_HEADER: &str = "skep-leader";
/// What the leader says to a node that has no object any more.
pub(crate) const REMOVED: &str =
    "this node was removed from the swarm: run \"docker swarm leave --force\" on it and join again with a token";

const MAX_REPORTS: usize = 500;
/// How often this host looks whether it is still as it told the leader (swarmkit's `nodeUpdatePeriod`).
const DESCRIBE_PERIOD: Duration = Duration::from_secs(20);

/// What the manager told this node last, whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Orders {
    pub(crate) facts: Facts,
    pub(crate) set: Arc<AssignmentSet>,
    /// Whether a manager said so in this life of the daemon, rather than the disk.
    pub(crate) fresh: bool,
    /// The message after which it is so; absent for what came from no session.
    pub(crate) word: Option<(SessionId, u64)>,
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
    /// What of it new connections follow.
    pub(crate) in_force: watch::Receiver<InForce>,
    /// When the last heartbeat that a leader answered was sent, since boot.
    pub(crate) answered: watch::Sender<Option<Duration>>,
    pub(crate) managers: watch::Sender<Vec<RemoteManager>>,
    pub(crate) connected: watch::Sender<bool>,
    /// The leader does not know this node any more.
    pub(crate) removed: watch::Sender<bool>,
    /// The role the leader wants this node to have.
    pub(crate) wanted_role: watch::Sender<Option<Role>>,
    /// What the leader wants this node to trust and to have a certificate of.
    pub(crate) wanted_trust: watch::Sender<Option<Trust>>,
    pub(crate) advertise: Option<IpAddr>,
}

/// Why a manager opened no session.
enum Unopened {
    /// It answered that it does not lead, and who does.
    Elsewhere(Option<String>),
    /// This node is in the swarm no more.
    Removed,
    Failed(String),
}

/// Why a session ended.
enum Ended {
    /// This node has another certificate now; the connection shows the old one.
    Renewed,
    /// This host is not what it told the leader: a link has another MTU, it has other processors.
    Changed,
    Broken(String),
}

struct Opened {
    address: String,
    connection: Connection,
    /// What the leader was told of this host, and at which of its addresses it is.
    told: NodeDescription,
    own: Option<IpAddr>,
    /// Changes when the certificate it was opened with is replaced.
    renewed: watch::Receiver<Arc<TlsMaterial>>,
    up: mpsc::Sender<Envelope>,
    down: tonic::Streaming<Envelope>,
}

impl Session {
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut last: Option<(String, bool)> = None;
        let began = Instant::now();
        let mut hearing = line::Hearing::new(Duration::ZERO);
        let (executor, tls) = (self.executor.clone(), self.tls.clone());
        let switchboard = Switchboard { executor, tls, cancel: cancel.clone() };
        loop {
            let opened = tokio::select! { () = cancel.cancelled() => return, opened = self.find(last) => opened };
            let address = opened.address.clone();
            hearing.begin(address.clone(), began.elapsed());
            let once = self.once(opened, &mut hearing, began, &switchboard);
            let ended = tokio::select! { () = cancel.cancelled() => return, ended = once => ended };
            self.connected.send_replace(false);
            let broken = match ended {
                Ended::Renewed => false,
                Ended::Changed => {
                    tracing::info!(manager = address, "this host is not as the leader was told, and tells it again");
                    false
                }
                Ended::Broken(reason) => {
                    tracing::info!(manager = address, reason, "session ended");
                    true
                }
            };
            last = Some((address, broken));
        }
    }

    /// Asks the known managers until one opens a session.
    async fn find(&self, last: Option<(String, bool)>) -> Opened {
        let begun = Instant::now();
        let mut search = line::Search::new(last, Duration::ZERO);
        let mut answers = FuturesUnordered::new();
        loop {
            let known: Vec<String> = self.managers.borrow().iter().map(|m| m.addr.clone()).collect();
            search.know(known, begun.elapsed(), &mut rand::random::<u32>);
            for address in search.due(begun.elapsed()) {
                answers.push(async move { (address.clone(), self.open(address).await) });
            }
            let next = begun + search.next(begun.elapsed());
            let (address, answer) = tokio::select! {
                () = tokio::time::sleep_until(next) => continue,
                Some(answer) = answers.next() => answer,
            };
            let answer = match answer {
                Ok(opened) => return opened,
                Err(Unopened::Elsewhere(leader)) => line::Unopened::Elsewhere(leader),
                Err(Unopened::Removed) => {
                    self.removed.send_replace(true);
                    self.hold_nothing();
                    line::Unopened::Elsewhere(None)
                }
                Err(Unopened::Failed(reason)) => {
                    tracing::debug!(manager = address, reason, "no session");
                    line::Unopened::Failed
                }
            };
            search.answered(address, answer, begun.elapsed(), &mut rand::random::<u32>);
        }
    }

    async fn open(&self, address: String) -> Result<Opened, Unopened> {
        let renewed = self.tls.subscribe();
        let connection = Connection::lazy(&address, &self.tls).map_err(|error| Unopened::Failed(error.to_string()))?;
        let (up, outgoing) = mpsc::channel(64);
        // A name that nobody resolves must not hold up what is asked of the other managers for long.
        let own = match self.advertise {
            None => timeout(OPEN_DEADLINE, address::toward(&address)).await.ok().flatten(),
            given => given,
        };
        let told = self.describe(own).await;
        let hello = Up::Hello(Box::new(Hello { description: told.clone(), address: self.advertise }));
        up.try_send(pack(&hello)).map_err(|_| Unopened::Failed("an empty channel is full".into()))?;
        let call = async { connection.dispatcher().session(ReceiverStream::new(outgoing)).await };
        match timeout(OPEN_DEADLINE, call).await {
            Ok(Ok(response)) => Ok(Opened { address, connection, told, own, renewed, up, down: response.into_inner() }),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                let leader = status.metadata().get(LEADER_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
                Err(Unopened::Elsewhere(leader))
            }
            Ok(Err(status)) if status.code() == Code::PermissionDenied && status.message() == REMOVED => {
                Err(Unopened::Removed)
            }
            Ok(Err(status)) => Err(Unopened::Failed(status.to_string())),
            Err(_) => Err(Unopened::Failed("no answer".into())),
        }
    }

    /// This host, at that address of its own, as the leader is to know it.
    async fn describe(&self, own: Option<IpAddr>) -> NodeDescription {
        let tls = self.tls.current();
        let mut description = self.executor.describe(&tls.root_pem, own).await;
        description.tls_issuer_subject.clone_from(&tls.issuer.subject);
        description.tls_issuer_key.clone_from(&tls.issuer.key);
        description
    }

    /// Until the session breaks, and why it did.
    async fn once(
        &self,
        opened: Opened,
        hearing: &mut line::Hearing<String>,
        began: Instant,
        switchboard: &Switchboard,
    ) -> Ended {
        let Opened { connection, told, own, mut renewed, up, mut down, .. } = opened;
        let mut logs = log_feed::LogFeeds::new(self.executor.clone(), connection.clone(), self.node_id.clone());
        let mut heartbeat = interval(self.timing.heartbeat_period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut describe = interval_at(Instant::now() + DESCRIBE_PERIOD, DESCRIBE_PERIOD);
        describe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut have: Option<(SessionId, Option<u64>)> = None;
        let mut in_force = self.in_force.clone();
        in_force.mark_changed();
        self.board.say_all_again();
        loop {
            tokio::select! {
                biased;
                message = down.next() => {
                    hearing.heard(began.elapsed());
                    let message = match message {
                        Some(Ok(envelope)) => unpack::<Down>(&envelope),
                        Some(Err(status)) => Err(status),
                        None => return Ended::Broken("the manager closed it".into()),
                    };
                    match message {
                        Ok(Down::Reach(id)) => switchboard.answer(connection.clone(), id),
                        Ok(message) => if !self.take(message, &mut have, &mut logs) {
                            let _ = up.send(pack(&Up::Resync)).await;
                        },
                        Err(status) => return Ended::Broken(status.to_string()),
                    }
                }
                _ = renewed.changed() => return Ended::Renewed,
                _ = describe.tick() => if self.describe(own).await != told {
                    return Ended::Changed;
                },
                _ = heartbeat.tick() => {
                    if hearing.is_silent(self.timing.heartbeat_period, began.elapsed()) {
                        return Ended::Broken("the manager fell silent".into());
                    }
                    // A full channel carries messages, and those are signs of life as well.
                    if let Err(mpsc::error::TrySendError::Closed(_)) = up.try_send(pack(&Up::Heartbeat { sent_ms: since_boot_ms() })) {
                        return Ended::Broken("the stream was closed".into());
                    }
                }
                Ok(()) = in_force.changed() => {
                    let word = in_force.borrow_and_update().clone();
                    if let Some((session, sequence)) = word
                        && have.as_ref().is_some_and(|(current, _)| *current == session)
                        && up.send(pack(&Up::Applied { sequence })).await.is_err()
                    {
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
            let nothing = Orders { facts, set: Arc::default(), fresh: true, word: None };
            orders.replace(nothing) != *orders
        });
    }

    /// False if a change did not fit what is here.
    fn take(&self, message: Down, have: &mut Option<(SessionId, Option<u64>)>, logs: &mut log_feed::LogFeeds) -> bool {
        match message {
            Down::Welcome(welcome) => {
                tracing::info!(session.id = %welcome.session_id, "session with the leader");
                *have = Some((welcome.session_id, None));
                self.managers.send_if_modified(|known| replace_if_other(known, welcome.managers));
                // Said again if it still differs.
                self.wanted_role.send_replace(None);
                self.removed.send_replace(false);
                self.connected.send_replace(true);
            }
            Down::Heartbeat { sent_ms } => {
                self.answered.send_replace(Some(Duration::from_millis(sent_ms)));
            }
            Down::Complete { results_in, facts, set } => {
                let Some((session, sequence)) = have else { return true };
                *sequence = Some(results_in);
                let word = Some((session.clone(), results_in));
                self.orders.send_replace(Some(Orders { facts, set: Arc::new(*set), fresh: true, word }));
            }
            Down::Incremental { applies_to, results_in, facts, change } => {
                let Some((session, sequence)) = have else { return true };
                if *sequence != Some(applies_to) {
                    *sequence = None;
                    return false;
                }
                *sequence = Some(results_in);
                let word = Some((session.clone(), results_in));
                self.orders.send_modify(|orders| {
                    if let Some(orders) = orders {
                        orders.facts = facts;
                        orders.word = word;
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
            // Answered where the connection is.
            Down::Reach(_) => {}
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
