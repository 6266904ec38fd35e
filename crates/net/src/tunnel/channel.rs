//! Both halves of a pair of hosts on a network, each behind its own lock: one thread sends, another receives.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skep_model::network::NetworkKeys;

use super::open::Receiver;
use super::seal::{Sender, Way};
use super::wire::SessionId;

/// However often a peer asks, or does not answer, it is not greeted more often than this.
const GREETINGS: u32 = 8;
const GREETINGS_PERIOD: Duration = Duration::from_millis(50);

pub(super) struct Channel {
    pub(super) peer: Ipv4Addr,
    pub(super) sender: Mutex<Sender>,
    pub(super) receiver: Mutex<Receiver>,
    /// Since when so many greetings were sent.
    greeted: Mutex<(Instant, u32)>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// With a session of its own: a host that comes back onto a network is not sealed to with counts that were used before.
    pub(super) fn new(vni: u32, own: Ipv4Addr, peer: Ipv4Addr) -> Self {
        let session: SessionId = rand::random();
        Self {
            peer,
            sender: Mutex::new(Sender::new(Way { vni, from: own, to: peer }, session)),
            receiver: Mutex::new(Receiver::new(Way { vni, from: peer, to: own }, session)),
            greeted: Mutex::new((Instant::now(), 0)),
        }
    }

    pub(super) fn use_keys(&self, keys: &NetworkKeys) {
        // What is sent with a new key may be answered with it at once.
        locked(&self.receiver).use_keys(keys);
        locked(&self.sender).use_keys(keys);
    }

    /// Another session, of both halves; `receiver` is this channel's.
    pub(super) fn renew(&self, receiver: &mut Receiver) {
        let session: SessionId = rand::random();
        receiver.renew(session);
        locked(&self.sender).renew(session);
    }

    /// Whether the peer may be greeted now; it then counts as greeted.
    pub(super) fn may_greet(&self) -> bool {
        let (mut greeted, now) = (locked(&self.greeted), Instant::now());
        if now.duration_since(greeted.0) >= GREETINGS_PERIOD {
            *greeted = (now, 0);
        }
        greeted.1 += 1;
        greeted.1 <= GREETINGS
    }
}
