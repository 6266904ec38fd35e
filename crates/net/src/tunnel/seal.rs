//! The sending half of a pair of hosts on a network.
//!
//! AES-256-GCM under a key of this session alone, so that the count of the session's datagrams is a nonce that never comes
//! again: a daemon that starts anew, and a host that is on a network anew, has another session and with it another key.

use std::net::Ipv4Addr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use skep_model::network::{NetworkKey, NetworkKeys};

use super::wire::{HEADER, Header, Kind, OVERHEAD, PLACE, SessionId, TAG, name_of};

const SALT: &[u8] = b"skep overlay v1";

/// Which way, on which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) vni: u32,
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
}

/// The key of a session: HKDF-SHA256 of the network's key, the way and the sender's session.
pub(super) fn derive(key: &NetworkKey, way: Way, session: &SessionId) -> Option<LessSafeKey> {
    let (vni, from, to) = (way.vni.to_be_bytes(), way.from.octets(), way.to.octets());
    let info = [&vni[..], &from, &to, session];
    let secret = Salt::new(HKDF_SHA256, SALT).extract(&key.secret.0);
    let expanded = secret.expand(&info, &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(expanded)))
}

pub(super) fn nonce(count: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

pub(super) struct Sender {
    way: Way,
    session: SessionId,
    /// The receiver's, once it has told.
    peer: Option<SessionId>,
    key: Option<(NetworkKey, LessSafeKey)>,
    count: u64,
}

impl Sender {
    /// `session` is drawn for this sender and no other.
    pub(super) fn new(way: Way, session: SessionId) -> Self {
        Self { way, session, peer: None, key: None, count: 0 }
    }

    /// Seals with the key in use from now on.
    pub(super) fn use_keys(&mut self, keys: &NetworkKeys) {
        let key = keys.keys.iter().find(|key| key.generation == keys.current);
        if key != self.key.as_ref().map(|(key, _)| key) {
            self.key = key.and_then(|key| Some((key.clone(), derive(key, self.way, &self.session)?)));
        }
    }

    /// Begins another session, which is with nobody yet.
    pub(super) fn renew(&mut self, session: SessionId) {
        let key = self.key.take().and_then(|(key, _)| derive(&key, self.way, &session).map(|derived| (key, derived)));
        *self = Self { key, ..Self::new(self.way, session) };
    }

    pub(super) fn meet(&mut self, peer: SessionId) {
        self.peer = Some(peer);
    }

    pub(super) fn has_met(&self) -> bool {
        self.peer.is_some()
    }

    /// Appends the message as datagrams of `size` bytes, the last one shorter. False, and nothing appended, without a key or
    /// a receiver that is known: there is no other way for a message to leave.
    pub(super) fn seal(&mut self, message: &[u8], size: usize, out: &mut Vec<u8>) -> bool {
        let room = size - OVERHEAD;
        let (Some(peer), Ok(parts)) = (self.peer, u8::try_from(message.len().div_ceil(room))) else { return false };
        let start = out.len();
        for (number, part) in (0..parts).zip(message.chunks(room)) {
            if !self.append(Kind::Part, name_of(&peer), [number, parts], part, out) {
                out.truncate(start);
                return false;
            }
        }
        true
    }

    /// Appends a datagram that says whose session this is, to the session named `to`; 0 to whoever is there.
    pub(super) fn greet(&mut self, to: u64, out: &mut Vec<u8>) -> bool {
        self.append(Kind::Greeting, to, [0, 1], &[], out)
    }

    fn append(&mut self, kind: Kind, to: u64, place: [u8; PLACE], part: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((NetworkKey { generation, .. }, key)) = &self.key else { return false };
        let (vni, from, count) = (self.way.vni, self.session, self.count);
        let header = Header { kind, vni, generation: *generation, from, to, count }.bytes();
        self.count += 1;
        let start = out.len();
        out.reserve(HEADER + PLACE + part.len() + TAG);
        out.extend_from_slice(&header);
        out.extend_from_slice(&place);
        out.extend_from_slice(part);
        match key.seal_in_place_separate_tag(nonce(count), Aad::from(header), &mut out[start + HEADER..]) {
            Ok(tag) => {
                out.extend_from_slice(tag.as_ref());
                true
            }
            Err(_) => {
                out.truncate(start);
                false
            }
        }
    }
}
