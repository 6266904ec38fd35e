//! Whom the members of the swarm reach, as they tell one another: SWIM over UDP, sealed with a key only members have.
//!
//! A second opinion for the leader, and nothing else: who is a member, where it is and what runs there is in the log. What is
//! made of the opinion is decided in `control::dispatch::Liveness` (ADR 0009); here it is only formed. Where gossip cannot
//! run (no key yet, port taken or blocked) nothing is said of anybody, and the leader goes by sessions alone.

mod knock;
mod seal;
mod swim;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_control::dispatch::Gossip as Word;
use skep_model::NodeId;
use skep_model::cluster::GossipKey;
use skep_model::secret::SecretBytes;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent_loop::Orders;
use seal::Ring;
use swim::{MAX_PLAIN, Swim};

pub(crate) use knock::knock;

/// Swarm's gossip port, udp and tcp.
pub(crate) const PORT: u16 = skep_model::cluster::GOSSIP_PORT;
/// A port that is taken may become free: the daemon before this one is perhaps still ending.
const BIND_RETRY: Duration = Duration::from_secs(5);
/// Datagrams taken before timers are looked at: after a pause what came meanwhile counts first.
const BURST: usize = 256;

/// Made when a swarm is, and by the leader after a node was removed.
pub(crate) fn new_key() -> GossipKey {
    let secret: [u8; 32] = rand::random();
    GossipKey { number: rand::random(), secret: SecretBytes(secret.to_vec()) }
}

/// What one host's gossip and the rest of its daemon share.
#[derive(Clone)]
pub(crate) struct Gossip(Arc<Shared>);

struct Shared {
    key: watch::Sender<Option<GossipKey>>,
    /// Since when a member is lost, or not.
    members: Mutex<BTreeMap<NodeId, Option<Instant>>>,
}

impl Gossip {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { key: watch::channel(None).0, members: Mutex::default() }))
    }

    /// The key the leader hands out.
    pub(crate) fn take_key(&self, key: GossipKey) {
        self.0.key.send_if_modified(|known| known.replace(key.clone()).is_none_or(|old| old != key));
    }

    /// What is known of the other members.
    pub(crate) fn says(&self) -> BTreeMap<NodeId, Word> {
        let members = self.0.members.lock().unwrap_or_else(PoisonError::into_inner);
        let word = |lost: &Option<Instant>| match lost {
            None => Word::Reached,
            Some(since) => Word::Lost { lasting: since.elapsed() },
        };
        members.iter().map(|(id, lost)| (id.clone(), word(lost))).collect()
    }

    fn publish(&self, swim: Option<&Swim>) {
        let mut members = self.0.members.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(swim) = swim else { return members.clear() };
        let now = Instant::now();
        let before = std::mem::take(&mut *members);
        members.extend(swim.members().map(|(id, reached)| {
            let lost = (!reached).then(|| before.get(&id).copied().flatten().unwrap_or(now));
            (id, lost)
        }));
    }

    /// Takes part until cancelled.
    pub(crate) async fn run(
        self,
        node_id: NodeId,
        listen: IpAddr,
        orders: watch::Receiver<Option<Orders>>,
        cancel: CancellationToken,
    ) {
        let run = async {
            let mut said = false;
            let at = SocketAddr::new(listen, PORT);
            let (socket, door) = loop {
                match (UdpSocket::bind(at).await, TcpListener::bind(at).await) {
                    (Ok(socket), Ok(door)) => break (socket, door),
                    (Err(error), _) | (_, Err(error)) => {
                        if !std::mem::replace(&mut said, true) {
                            tracing::warn!(%at, %error, "no gossip: this node is judged by its session alone");
                        }
                        tokio::time::sleep(BIND_RETRY).await;
                    }
                }
            };
            tokio::join!(knock::answer(door), self.talk(node_id, &socket, orders));
        };
        tokio::select! { () = cancel.cancelled() => {}, () = run => {} }
        self.publish(None);
    }

    async fn talk(&self, node_id: NodeId, socket: &UdpSocket, mut orders: watch::Receiver<Option<Orders>>) {
        let mut keys = self.0.key.subscribe();
        let mut ring = Ring::default();
        let mut swim: Option<Swim> = None;
        let mut buffer = [0; MAX_PLAIN + seal::OVERHEAD];
        keys.mark_changed();
        orders.mark_changed();
        loop {
            let due = swim.as_ref().map(Swim::due);
            tokio::select! {
                biased;
                ready = socket.readable() => {
                    if ready.is_err() {
                        return;
                    }
                    for _ in 0..BURST {
                        // An error is about a datagram sent earlier to somebody who is not there.
                        let Ok((length, _)) = socket.try_recv_from(&mut buffer) else { break };
                        if let (Some(swim), Some(plain)) = (&mut swim, ring.open(&mut buffer[..length], Instant::now())) {
                            swim.take(plain);
                        }
                    }
                }
                changed = keys.changed() => {
                    if changed.is_err() { return }
                    if let Some(key) = keys.borrow_and_update().clone() {
                        ring.put(&key, Instant::now());
                    }
                }
                changed = orders.changed() => {
                    if changed.is_err() { return }
                    let nodes = nodes(orders.borrow_and_update().as_ref());
                    if let Some(own) = nodes.get(&node_id).copied() {
                        swim.get_or_insert_with(|| Swim::new(&node_id, own)).know(own, nodes);
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(swim) = &mut swim {
                        swim.tick();
                    }
                }
            }
            let Some(swim) = &mut swim else { continue };
            while let Some((to, plain)) = swim.next_datagram() {
                if let Some(sealed) = ring.seal(&plain) {
                    // A datagram may be lost in any case.
                    let _ = socket.try_send_to(&sealed, (to, PORT).into());
                }
            }
            self.publish(Some(swim));
        }
    }
}

fn nodes(orders: Option<&Orders>) -> BTreeMap<NodeId, Ipv4Addr> {
    orders.into_iter().flat_map(|o| &o.set.nodes).map(|(id, node)| (id.clone(), node.vtep)).collect()
}
