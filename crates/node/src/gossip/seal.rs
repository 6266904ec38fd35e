//! Datagrams only members can read or make, and none that is taken twice.
//!
//! `version || key number || nonce || ciphertext || tag`, AES-256-GCM-SIV with random nonces: should one repeat, all it tells
//! is that two datagrams are the same. Within: a number of this process's life and a counter, by which a recorded datagram
//! is known when somebody sends it again.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use skep_model::cluster::GossipKey;
use tokio::time::Instant;

const VERSION: u8 = 1;
const HEAD: usize = 1 + 4;
const TAG: usize = 16;
const STAMP: usize = 8 + 8;
/// How much longer a datagram gets.
pub(super) const OVERHEAD: usize = HEAD + NONCE_LEN + STAMP + TAG;
/// The key before is understood for so long: not every member hears of the next one at the same instant.
const BEFORE: Duration = Duration::from_secs(5);
/// Lives of senders remembered; a swarm has fewer nodes.
const LIVES: usize = 4096;

struct Key {
    number: u32,
    aead: LessSafeKey,
    until: Option<Instant>,
}

/// The keys in use, and what was seen under them.
pub(super) struct Ring {
    /// The last is the one to seal with.
    keys: Vec<Key>,
    life: u64,
    count: u64,
    seen: BTreeMap<u64, Window>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { keys: Vec::new(), life: rand::random(), count: 0, seen: BTreeMap::new() }
    }
}

/// The highest count seen of one sender, and which of the 64 up to it.
#[derive(Default)]
struct Window {
    highest: u64,
    bits: u64,
}

impl Window {
    fn is_new(&mut self, count: u64) -> bool {
        if count > self.highest {
            let ahead = count - self.highest;
            self.bits = if ahead < 64 { (self.bits << ahead) | 1 } else { 1 };
            self.highest = count;
            return true;
        }
        let behind = self.highest - count;
        let bit = 1u64.checked_shl(u32::try_from(behind).unwrap_or(u32::MAX)).unwrap_or(0);
        let new = bit != 0 && self.bits & bit == 0;
        self.bits |= bit;
        new
    }
}

fn head(number: u32) -> [u8; HEAD] {
    let mut head = [VERSION; HEAD];
    head[1..].copy_from_slice(&number.to_be_bytes());
    head
}

impl Ring {
    /// From now on sealed with this one. The one before is understood a while longer.
    pub(super) fn put(&mut self, key: &GossipKey, now: Instant) {
        let Ok(unbound) = UnboundKey::new(&AES_256_GCM_SIV, &key.secret.0) else { return };
        self.keys.retain(|k| k.number != key.number && k.until.is_none_or(|until| until > now));
        for old in &mut self.keys {
            old.until.get_or_insert(now + BEFORE);
        }
        self.keys.push(Key { number: key.number, aead: LessSafeKey::new(unbound), until: None });
    }

    /// `None` while there is no key.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.last()?;
        self.count += 1;
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut body = Vec::with_capacity(STAMP + plain.len() + TAG);
        body.extend_from_slice(&self.life.to_be_bytes());
        body.extend_from_slice(&self.count.to_be_bytes());
        body.extend_from_slice(plain);
        let head = head(key.number);
        key.aead.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut body).ok()?;
        Some([&head[..], &nonce[..], &body[..]].concat())
    }

    /// What was sealed, if a member did and it is seen for the first time.
    pub(super) fn open<'a>(&mut self, datagram: &'a mut [u8], now: Instant) -> Option<&'a [u8]> {
        let (front, body) = datagram.split_at_mut_checked(HEAD + NONCE_LEN)?;
        let (front, nonce) = front.split_at(HEAD);
        let key = self.keys.iter().find(|k| head(k.number) == *front && k.until.is_none_or(|until| until > now))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = key.aead.open_in_place(nonce, Aad::from(front), body).ok()?;
        let (stamp, plain) = plain.split_at_checked(STAMP)?;
        let (life, count) = stamp.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
        let (life, count) = (number(life)?, number(count)?);
        if self.seen.len() >= LIVES && !self.seen.contains_key(&life) {
            self.seen.clear();
        }
        self.seen.entry(life).or_default().is_new(count).then_some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::new_key;

    fn ring(keys: &[&GossipKey]) -> Ring {
        let mut ring = Ring::default();
        keys.iter().for_each(|key| ring.put(key, Instant::now()));
        ring
    }

    fn open(ring: &mut Ring, datagram: &[u8]) -> Option<Vec<u8>> {
        ring.open(&mut datagram.to_vec(), Instant::now()).map(<[u8]>::to_vec)
    }

    #[test]
    fn only_who_has_the_key_reads_and_makes_datagrams() {
        let (ours, theirs) = (new_key(), new_key());
        let sealed = ring(&[&ours]).seal(b"hello from node7").unwrap();
        assert!(!sealed.windows(5).any(|w| w == b"hello"));
        assert_eq!(open(&mut ring(&[&theirs]), &sealed), None);
        let imitated = GossipKey { number: ours.number, ..theirs };
        let forged = ring(&[&imitated]).seal(b"node7 is dead").unwrap();
        assert_eq!(open(&mut ring(&[&ours]), &forged), None);
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(open(&mut ring(&[&ours]), &bent), None, "byte {at}");
            assert_eq!(open(&mut ring(&[&ours]), &sealed[..at]), None);
        }
        assert_eq!(open(&mut ring(&[&ours]), &sealed).unwrap(), b"hello from node7");
    }

    #[test]
    fn a_recorded_datagram_is_not_taken_again() {
        let key = new_key();
        let (mut from, mut to) = (ring(&[&key]), ring(&[&key]));
        let sealed: Vec<_> = (0..100u8).map(|n| from.seal(&[n]).unwrap()).collect();
        // In any order, as long as it is not too old to tell.
        for n in [1u8, 0, 70, 7, 69, 99] {
            let datagram = &sealed[usize::from(n)];
            assert_eq!(open(&mut to, datagram).unwrap(), [n]);
            assert_eq!(open(&mut to, datagram), None, "{n} again");
        }
        assert_eq!(open(&mut to, &sealed[2]), None, "too old");
    }

    #[test]
    fn the_key_of_a_removed_node_is_worth_nothing_soon() {
        let (old, new) = (new_key(), new_key());
        let mut removed = ring(&[&old]);
        let mut member = ring(&[&old, &new]);
        let in_time = removed.seal(b"it may not know yet").unwrap();
        assert!(open(&mut member, &in_time).is_some());
        let mut late = removed.seal(b"too late").unwrap();
        assert!(member.open(&mut late, Instant::now() + BEFORE).is_none());
        assert!(open(&mut removed, &member.seal(b"ours").unwrap()).is_none());
    }
}
