//! The receiving half of a pair of hosts on a network.
//!
//! A part is taken if it was sealed by the peer for this session and was not seen before. A session of here is with one
//! session of the peer: when the peer has another, this side begins another, too. So what was recorded or held back for an
//! earlier one is never taken. A peer that names one of before is told, sealed, which one it is now.

use std::collections::{BTreeMap, VecDeque};

use aws_lc_rs::aead::{Aad, LessSafeKey};
use skep_model::network::{NetworkKey, NetworkKeys};

use super::seal::{Way, derive, nonce};
use super::window::Window;
use super::wire::{HEADER, Header, Kind, PLACE, SessionId, name_of};

/// Messages of which parts are missing.
const UNFINISHED: usize = 32;

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Malformed,
    /// Of another network.
    Network,
    /// Sealed with a key that is not accepted (any more, or yet).
    Key,
    /// Not sealed with the key it names, or changed since.
    Forged,
    Replayed,
}

/// What an authentic datagram tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    Message(&'a [u8]),
    /// Nothing yet, or nothing but that the peer knows this session.
    Nothing,
    /// The peer knows this session, and has this one itself since now.
    Met(SessionId, Option<&'a [u8]>),
    /// The peer of this session, if it is one that lives, does not know this one.
    Stranger(SessionId),
    /// The peer has another session than the one this one is with: this side needs another, to greet it from.
    Another(SessionId),
}

struct Lane {
    of: NetworkKey,
    key: LessSafeKey,
    window: Window,
}

pub(super) struct Receiver {
    way: Way,
    session: SessionId,
    keys: NetworkKeys,
    peer: Option<SessionId>,
    /// The peer's session, under each key it used.
    lanes: Vec<Lane>,
    unfinished: VecDeque<Unfinished>,
    finished: Vec<u8>,
}

/// A message of more than one part.
struct Unfinished {
    /// Count of its first part.
    first: u64,
    parts: u8,
    next: u8,
    bytes: Vec<u8>,
    early: BTreeMap<u8, Vec<u8>>,
}

impl Receiver {
    /// `session` is the sender's of the other direction: drawn once.
    pub(super) fn new(way: Way, session: SessionId) -> Self {
        Self {
            way,
            session,
            keys: NetworkKeys::default(),
            peer: None,
            lanes: Vec::new(),
            unfinished: VecDeque::new(),
            finished: Vec::new(),
        }
    }

    pub(super) fn use_keys(&mut self, keys: &NetworkKeys) {
        self.keys = keys.clone();
        self.lanes.retain(|lane| keys.keys.contains(&lane.of));
    }

    /// Begins another session, which is with nobody yet.
    pub(super) fn renew(&mut self, session: SessionId) {
        *self = Self { keys: std::mem::take(&mut self.keys), ..Self::new(self.way, session) };
    }

    /// Opens a datagram in its place.
    pub(super) fn open<'a>(&'a mut self, datagram: &'a mut [u8]) -> Result<News<'a>, Dropped> {
        let header = Header::read(datagram).ok_or(Dropped::Malformed)?;
        if header.vni != self.way.vni {
            return Err(Dropped::Network);
        }
        let known = self.peer == Some(header.from);
        let lane = self.lanes.iter().position(|lane| known && lane.of.generation == header.generation);
        let mut fresh = None;
        let key = match lane.map(|at| &self.lanes[at]) {
            Some(lane) if !lane.window.is_new(header.count) => return Err(Dropped::Replayed),
            Some(lane) => &lane.key,
            None => {
                let of = self.keys.keys.iter().find(|key| key.generation == header.generation).ok_or(Dropped::Key)?;
                let key = derive(of, self.way, &header.from).ok_or(Dropped::Key)?;
                &fresh.insert(Lane { of: of.clone(), key, window: Window::default() }).key
            }
        };
        let (front, sealed) = datagram.split_at_mut(HEADER);
        let front: &[u8] = front;
        let plain = key.open_in_place(nonce(header.count), Aad::from(front), sealed).map_err(|_| Dropped::Forged)?;

        if header.to != name_of(&self.session) {
            return Ok(News::Stranger(header.from));
        }
        if *self.peer.get_or_insert(header.from) != header.from {
            return Ok(News::Another(header.from));
        }
        // Kept only now that it is known to be the peer's: nobody else can fill the list.
        let lane = lane.unwrap_or(self.lanes.len());
        self.lanes.extend(fresh);
        let lane = self.lanes.get_mut(lane).ok_or(Dropped::Key)?;
        lane.window.mark(header.count);

        let (place, part) = plain.split_first_chunk::<PLACE>().ok_or(Dropped::Malformed)?;
        let message = match header.kind {
            Kind::Greeting => None,
            Kind::Part => match *place {
                [0, 1] => Some(part),
                [number, parts] => {
                    collect(&mut self.unfinished, &mut self.finished, header.count, number, parts, part)?
                }
            },
        };
        Ok(match (known, message) {
            (false, message) => News::Met(header.from, message),
            (true, Some(message)) => News::Message(message),
            (true, None) => News::Nothing,
        })
    }
}

/// Adds a part; the message if it was the last one missing.
fn collect<'a>(
    unfinished: &mut VecDeque<Unfinished>,
    finished: &'a mut Vec<u8>,
    count: u64,
    number: u8,
    parts: u8,
    part: &[u8],
) -> Result<Option<&'a [u8]>, Dropped> {
    let first = count.checked_sub(u64::from(number)).filter(|_| number < parts).ok_or(Dropped::Malformed)?;
    let at = match unfinished.iter().position(|message| message.first == first && message.parts == parts) {
        Some(at) => at,
        None => {
            if unfinished.len() >= UNFINISHED {
                unfinished.pop_front();
            }
            let bytes = Vec::with_capacity(usize::from(parts) * part.len());
            unfinished.push_back(Unfinished { first, parts, next: 0, bytes, early: BTreeMap::new() });
            unfinished.len() - 1
        }
    };
    let message = &mut unfinished[at];
    if number != message.next {
        message.early.insert(number, part.to_vec());
        return Ok(None);
    }
    message.bytes.extend_from_slice(part);
    message.next += 1;
    while let Some(part) = message.early.remove(&message.next) {
        message.bytes.extend_from_slice(&part);
        message.next += 1;
    }
    if message.next < parts {
        return Ok(None);
    }
    *finished = unfinished.remove(at).map(|message| message.bytes).unwrap_or_default();
    Ok(Some(finished))
}
