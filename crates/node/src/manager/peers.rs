//! The other managers as seen from here: one connection each, made when first needed, over which consensus speaks; and
//! whether they answer.
//!
//! Every manager asks every other one a few times a second, so that each of them can say truthfully who is reached, also when
//! none leads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use skep_consensus::{Consensus, Peer, Transport, TransportError};
use skep_model::node::Reachability;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::error::Result;
use crate::transport::message::Pong;
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls, TlsMaterial, pack, unpack};

/// More managers than this have never made sense; those that left are not kept for ever.
const MAX_KEPT: usize = 64;
const PING_PERIOD: Duration = Duration::from_millis(250);
/// A manager that takes longer twice in a row is not reached: about a second, as Docker's users expect of `node ls`.
const PING_DEADLINE: Duration = Duration::from_millis(400);
const SILENT_PINGS: u32 = 2;

/// What is known of another manager.
#[derive(Clone, Copy, Default)]
struct Seen {
    answered: bool,
    /// Unanswered in a row.
    missed: u32,
    /// It refused the connection, or somebody else is at its address.
    absent: bool,
    /// It said that it leads.
    leads: bool,
}

pub(crate) struct PeerPool {
    tls: LiveTls,
    kept: Mutex<Kept>,
    seen: Mutex<BTreeMap<u64, Seen>>,
    /// Where the newest membership says they are: a member that moves is not looked for where it was.
    addresses: Mutex<BTreeMap<u64, String>>,
}

struct Kept {
    connections: BTreeMap<String, Connection>,
    /// Connections made with a certificate that was replaced are given up before it runs out.
    certificate: watch::Receiver<Arc<TlsMaterial>>,
}

impl PeerPool {
    pub(crate) fn new(tls: LiveTls) -> Self {
        let kept = Kept { connections: BTreeMap::new(), certificate: tls.subscribe() };
        Self { tls, kept: Mutex::new(kept), seen: Mutex::default(), addresses: Mutex::default() }
    }

    pub(crate) fn connection(&self, address: &str) -> Result<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.certificate.has_changed().unwrap_or(false) {
            kept.certificate.mark_unchanged();
            kept.connections.clear();
        }
        let connections = &mut kept.connections;
        if let Some(connection) = connections.get(address) {
            return Ok(connection.clone());
        }
        if connections.len() >= MAX_KEPT {
            connections.clear();
        }
        let connection = Connection::lazy(address, &self.tls)?;
        connections.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// Dials anew at the next call: what is behind the address may be another process now.
    pub(crate) fn forget(&self, address: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(address);
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<u64, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reachability(&self, raft_id: u64) -> Reachability {
        match self.seen().get(&raft_id) {
            Some(seen) if seen.absent || seen.missed >= SILENT_PINGS => Reachability::Unreachable,
            Some(Seen { answered: true, .. }) => Reachability::Reachable,
            Some(_) | None => Reachability::Unknown,
        }
    }

    /// Whether that manager answers and says that it leads.
    pub(crate) fn says_it_leads(&self, raft_id: u64) -> bool {
        self.reachability(raft_id) == Reachability::Reachable && self.seen().get(&raft_id).is_some_and(|s| s.leads)
    }

    async fn ping(&self, peer: &Peer) {
        let asked = async {
            let reply = self.connection(&peer.address).ok()?.raft().ping(pack(&())).await;
            Some(reply.and_then(|reply| unpack::<Pong>(reply.get_ref())))
        };
        let outcome = tokio::time::timeout(PING_DEADLINE, asked).await;
        let mut all = self.seen();
        let seen = all.entry(peer.raft_id).or_default();
        match outcome {
            Ok(Some(Ok(pong))) if pong.raft_id == peer.raft_id => {
                *seen = Seen { answered: true, missed: 0, absent: false, leads: pong.leads };
            }
            Err(_) => seen.missed = seen.missed.saturating_add(1),
            Ok(answer) => {
                seen.absent = true;
                if matches!(answer, Some(Err(status)) if status.code() == Code::Unavailable) {
                    drop(all);
                    self.forget(&peer.address);
                }
            }
        }
    }
}

/// Asks all the others, over and over, and at once who has just become one.
pub(super) async fn ping_all(pool: Arc<PeerPool>, consensus: Consensus, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(PING_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut others: Vec<Peer> = Vec::new();
    loop {
        let round = async {
            tokio::select! { _ = tick.tick() => {}, () = consensus.members_beside(&others) => {} }
            others = consensus.members().into_iter().map(|m| m.peer).collect();
            others.retain(|peer| peer.raft_id != consensus.raft_id());
            *pool.addresses.lock().unwrap_or_else(PoisonError::into_inner) =
                others.iter().map(|peer| (peer.raft_id, peer.address.clone())).collect();
            pool.seen().retain(|id, _| others.iter().any(|peer| peer.raft_id == *id));
            join_all(others.iter().map(|peer| pool.ping(peer))).await;
        };
        tokio::select! { () = cancel.cancelled() => return, () = round => {} }
    }
}

#[async_trait]
impl Transport for PeerPool {
    async fn call(&self, peer: &Peer, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        let known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&peer.raft_id).cloned();
        let address = known.as_deref().unwrap_or(&peer.address);
        let connection = self.connection(address).map_err(|error| TransportError::Unreachable(error.to_string()))?;
        let mut client = connection.raft();
        let call = client.call(Request::new(Envelope { body: message }));
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().body),
            Ok(Err(status)) if status.code() == Code::Unavailable => {
                self.forget(address);
                Err(TransportError::Unreachable(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(TransportError::Failed(status.to_string())),
            Err(_) => Err(TransportError::Failed(format!("no answer from {address} within {timeout:?}"))),
        }
    }
}
