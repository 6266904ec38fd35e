//! What is sealed, opened and dropped between two hosts.

use std::net::Ipv4Addr;

use skep_model::Timestamp;
use skep_model::network::{NetworkKey, NetworkKeys};
use skep_model::secret::SecretBytes;

use super::open::{Dropped, News, Receiver};
use super::seal::{Sender, Way};
use super::wire::{HEADER, OVERHEAD, SessionId, name_of};

const SIZE: usize = 1472;

fn secret(byte: u8) -> SecretBytes {
    SecretBytes(vec![byte; 32])
}

fn keys() -> NetworkKeys {
    NetworkKeys::new(secret(1), secret(2), Timestamp::ZERO)
}

/// One side.
struct Side {
    session: SessionId,
    sender: Sender,
    receiver: Receiver,
}

const A: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

fn side(vni: u32, own: Ipv4Addr, peer: Ipv4Addr, session: u8) -> Side {
    let session = [session; 16];
    let mut sender = Sender::new(Way { vni, from: own, to: peer }, session);
    let mut receiver = Receiver::new(Way { vni, from: peer, to: own }, session);
    sender.use_keys(&keys());
    receiver.use_keys(&keys());
    Side { session, sender, receiver }
}

impl Side {
    fn greet(&mut self, to: u64) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(self.sender.greet(to, &mut out));
        out
    }

    fn seal(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        assert!(self.sender.seal(message, SIZE, &mut out));
        out.chunks(SIZE).map(<[u8]>::to_vec).collect()
    }

    fn renew(&mut self) {
        self.session = self.session.map(|byte| byte + 100);
        self.sender.renew(self.session);
        self.receiver.renew(self.session);
    }

    /// What becomes of a datagram, with the answers that are due sent back.
    fn hear(&mut self, datagram: &[u8], from: &mut Side) -> Result<Option<Vec<u8>>, Dropped> {
        let answer = match self.receiver.open(&mut datagram.to_vec())? {
            News::Message(message) => return Ok(Some(message.to_vec())),
            News::Nothing => return Ok(None),
            News::Met(peer, message) => {
                assert_eq!(message, None);
                self.sender.meet(peer);
                self.greet(name_of(&peer))
            }
            News::Stranger(peer) => self.greet(name_of(&peer)),
            News::Another(peer) => {
                self.renew();
                self.greet(name_of(&peer))
            }
        };
        from.hear(&answer, self)
    }

    fn take(&mut self, datagram: &[u8]) -> Result<Option<Vec<u8>>, Dropped> {
        match self.receiver.open(&mut datagram.to_vec())? {
            News::Message(message) => Ok(Some(message.to_vec())),
            _ => Ok(None),
        }
    }
}

fn pair() -> (Side, Side) {
    let (mut a, mut b) = (side(4097, A, B, 10), side(4097, B, A, 20));
    let hello = a.greet(0);
    assert_eq!(b.hear(&hello, &mut a), Ok(None));
    assert!(a.sender.has_met() && b.sender.has_met());
    (a, b)
}

#[test]
fn a_frame_of_any_size_comes_out_as_it_went_in_and_is_not_to_be_read_between() {
    let (mut a, mut b) = pair();
    for length in [24, SIZE - OVERHEAD, SIZE - OVERHEAD + 1, 9000, 65_559] {
        let message: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let datagrams = a.seal(&message);
        assert!(datagrams[..datagrams.len() - 1].iter().all(|d| d.len() == SIZE));
        for sealed in &datagrams {
            assert!(!sealed.windows(16).any(|part| part == &message[..16]), "in the clear");
        }
        let (last, before) = datagrams.split_last().unwrap();
        for datagram in before {
            assert_eq!(b.take(datagram), Ok(None));
        }
        assert_eq!(b.take(last), Ok(Some(message)));
    }
}

#[test]
fn parts_come_in_any_order_and_a_lost_one_costs_its_message_alone() {
    let (mut a, mut b) = pair();
    let message: Vec<u8> = (0..20_000).map(|at| (at % 241) as u8).collect();
    let (first, second) = (a.seal(&message), a.seal(&message));
    for datagram in first[1..].iter().rev().chain(&second[..second.len() - 1]) {
        assert_eq!(b.take(datagram), Ok(None));
    }
    assert_eq!(b.take(second.last().unwrap()), Ok(Some(message.clone())));
    assert_eq!(b.take(&first[0]), Ok(Some(message)));
}

#[test]
fn what_is_forged_bent_or_cut_is_dropped() {
    let (mut a, mut b) = pair();
    let sealed = a.seal(&[7; 100]).remove(0);
    for at in 0..sealed.len() {
        let mut bent = sealed.clone();
        bent[at] ^= 1;
        assert!(b.take(&bent).is_err(), "byte {at}");
    }
    for length in 0..sealed.len() {
        assert!(b.take(&sealed[..length]).is_err(), "{length} bytes");
    }
    let mut other = keys();
    other.keys[0].secret = secret(9);
    let mut forger = side(4097, A, B, 10);
    forger.sender.use_keys(&other);
    forger.sender.meet(b.session);
    assert_eq!(b.take(&forger.seal(&[7; 100])[0]), Err(Dropped::Forged));
    assert_eq!(b.take(&sealed).unwrap().unwrap(), [7; 100], "none of it did harm");
}

#[test]
fn what_is_of_another_network_or_host_is_dropped() {
    let (mut a, mut b) = pair();
    let sealed = a.seal(&[7; 100]).remove(0);
    let mut elsewhere = side(4098, B, A, 20);
    assert_eq!(elsewhere.take(&sealed), Err(Dropped::Network));
    // The number alone changed: it is authenticated.
    let mut renumbered = sealed.clone();
    renumbered[3] = 2;
    assert_eq!(elsewhere.take(&renumbered), Err(Dropped::Forged));
    // Sent back to where it is from, or on in another's name.
    assert_eq!(a.take(&sealed), Err(Dropped::Forged));
    assert_eq!(side(4097, B, Ipv4Addr::new(192, 168, 0, 3), 20).take(&sealed), Err(Dropped::Forged));
    assert!(b.take(&sealed).is_ok());
}

#[test]
fn what_is_recorded_is_not_taken_again() {
    let (mut a, mut b) = pair();
    let sealed: Vec<_> = (0..100u8).map(|n| a.seal(&[n; 50]).remove(0)).collect();
    for n in [1u8, 0, 70, 7, 69, 99] {
        let datagram = &sealed[usize::from(n)];
        assert_eq!(b.take(datagram), Ok(Some(vec![n; 50])));
        assert_eq!(b.take(datagram), Err(Dropped::Replayed), "{n} again");
    }
}

#[test]
fn what_was_recorded_before_a_restart_is_not_taken_after_it() {
    let (mut a, b) = pair();
    let recorded = a.seal(&[7; 50]).remove(0);
    let recorded_greeting = a.greet(name_of(&b.session));

    // The receiver restarts: it has another session, and takes nothing meant for the one before.
    let mut b = side(4097, B, A, 21);
    assert_eq!(b.receiver.open(&mut recorded.clone()), Ok(News::Stranger(a.session)));
    assert_eq!(b.receiver.open(&mut recorded_greeting.clone()), Ok(News::Stranger(a.session)));
    assert!(!b.sender.has_met());
    // What the sender says next makes them meet again.
    let lost = a.seal(&[8; 50]).remove(0);
    assert_eq!(b.hear(&lost, &mut a), Ok(None));
    let next = a.seal(&[9; 50]).remove(0);
    assert_eq!(b.take(&next), Ok(Some(vec![9; 50])));

    // The sender restarts: what it said in its session before is over, though it named the receiver's of then.
    let unheard = [a.seal(&[1; 50]).remove(0), a.greet(name_of(&b.session))];
    let mut a = side(4097, A, B, 11);
    let hello = a.greet(0);
    assert_eq!(b.hear(&hello, &mut a), Ok(None));
    for datagram in &unheard {
        assert!(matches!(b.receiver.open(&mut datagram.clone()), Ok(News::Stranger(_))));
    }
    let next = a.seal(&[2; 50]).remove(0);
    assert_eq!(b.take(&next), Ok(Some(vec![2; 50])));
    assert!(a.take(&b.seal(&[3; 50])[0]).unwrap().is_some());
}

#[test]
fn what_was_held_back_on_the_wire_does_no_lasting_harm() {
    let (_, mut b) = pair();
    // A session of the sender that met the receiver, of which the receiver has heard nothing yet.
    let mut between = side(4097, A, B, 12);
    between.sender.meet(b.session);
    let held_back = [between.seal(&[1; 50]).remove(0), between.greet(name_of(&b.session))];
    let mut a = side(4097, A, B, 13);
    for datagram in held_back {
        assert_eq!(b.hear(&datagram, &mut a), Ok(None), "not taken");
        let hello = a.greet(0);
        assert_eq!(b.hear(&hello, &mut a), Ok(None));
        let next = a.seal(&[2; 50]).remove(0);
        assert_eq!(b.take(&next), Ok(Some(vec![2; 50])));
        let back = b.seal(&[3; 50]).remove(0);
        assert_eq!(a.take(&back), Ok(Some(vec![3; 50])));
    }
}

#[test]
fn keys_rotate_without_a_frame_lost_and_old_ones_are_refused() {
    let (mut a, mut b) = pair();
    let of_the_first = a.seal(&[1; 50]).remove(0);
    let mut rotating = keys();
    for generation in 2..=5u8 {
        rotating.rotate(secret(generation + 1), Timestamp::ZERO);
        assert_eq!(rotating.current, u32::from(generation));
        assert!(rotating.keys.len() == 3);
        // The sender hears of it first, then the receiver does.
        a.sender.use_keys(&rotating);
        let early = a.seal(&[generation; 50]).remove(0);
        assert_eq!(early[4..8], u32::from(generation).to_be_bytes());
        assert_eq!(b.take(&early), Ok(Some(vec![generation; 50])));
        // The other way round: the receiver accepts the key before.
        b.sender.use_keys(&rotating);
        b.receiver.use_keys(&rotating);
        a.receiver.use_keys(&rotating);
        assert!(a.take(&b.seal(&[3; 50])[0]).unwrap().is_some());
    }
    assert_eq!(b.take(&of_the_first), Err(Dropped::Key));
    let mut future = NetworkKeys { keys: vec![NetworkKey { generation: 9, secret: secret(9) }], ..keys() };
    future.current = 9;
    a.sender.use_keys(&future);
    assert_eq!(b.take(&a.seal(&[1; 50])[0]), Err(Dropped::Key));
}

#[test]
fn without_a_key_or_a_known_receiver_nothing_is_sent() {
    let mut out = Vec::new();
    let mut stranger = side(4097, A, B, 10);
    assert!(!stranger.sender.seal(&[1; 50], SIZE, &mut out));
    let (mut a, _) = pair();
    a.sender.use_keys(&NetworkKeys::default());
    assert!(!a.sender.seal(&[1; 50], SIZE, &mut out) && !a.sender.greet(0, &mut out));
    // Nor what would be too many parts.
    let (mut a, _) = pair();
    assert!(!a.sender.seal(&vec![1; 256 * (SIZE - OVERHEAD)], SIZE, &mut out));
    assert_eq!(out, [0; 0]);
}

#[test]
fn no_count_is_used_twice() {
    let (mut a, _) = pair();
    let mut counts = std::collections::BTreeSet::new();
    let mut rotating = keys();
    for round in 0..10 {
        let sealed = a.seal(&[1; 5000]);
        let greeting = a.greet(0);
        for datagram in sealed.iter().chain([&greeting]) {
            assert!(counts.insert(datagram[HEADER - 8..HEADER].to_vec()), "round {round}");
        }
        rotating.rotate(secret(round), Timestamp::ZERO);
        a.sender.use_keys(&rotating);
    }
}
