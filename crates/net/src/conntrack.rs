//! Forgetting tracked connections, so that clients of a backend that is gone try another one instead of hanging.
//!
//! A balanced connection stays with its backend because conntrack remembers the translation. That is what makes draining
//! free, and what makes a dead backend sticky: a TCP client keeps sending into the void, and a UDP client with a fixed
//! source port never leaves. Once the entry is deleted, the next packet is balanced anew (UDP) or reset (TCP).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use netlink_sys::Socket;

use crate::nft::socket::open_in;
use crate::nft::wire::{self, NLM_F_DUMP, PREAMBLE, Writer};
use crate::nft::{Address, Family};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `CTA_*`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const ID: u16 = 12;
const FILTER: u16 = 25;
/// `CTA_FILTER_F_CTA_IP_SRC`
const FILTER_IP_SOURCE: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Deletions per `send`; the receive buffer must hold the answers to those that were already gone.
const CHUNK: usize = 128;

/// What is known of a tracked connection when choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<A> {
    pub protocol: u8,
    pub original_destination: A,
    /// Who really answers.
    pub reply_source: A,
}

/// A conntrack socket of one namespace. Open it when needed: it pins the namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    pub fn open(netns: impl AsFd) -> io::Result<Self> {
        Ok(Self { socket: open_in(netns.as_fd())? })
    }

    /// Deletes the connections answered by one of `backends` that `gone` picks; returns how many. The kernel walks the
    /// whole machine's table for it, which takes milliseconds.
    pub fn forget<A: Address>(
        &self,
        backends: &BTreeSet<A>,
        gone: impl Fn(&Connection<A>) -> bool,
    ) -> io::Result<usize> {
        let mut writer = Writer::default();
        writer.begin_in(SUBSYSTEM, GET, NLM_F_DUMP, A::FAMILY as u8);
        if let (1, Some(backend), Family::Ip) = (backends.len(), backends.first(), A::FAMILY) {
            // The kernel picks by source of the reply direction; one too old for that sends all. Of IPv6 it would send those of
            // all others (`ctnetlink_filter_match_tuple` of Linux 6.18 has the comparison the wrong way round).
            writer.nested(TUPLE_REPLY, |writer| {
                writer.nested(TUPLE_IP, |writer| {
                    writer.attribute(A::TRACKED_SOURCE, &backend.bytes());
                    writer.attribute(A::TRACKED_SOURCE + 1, &vec![0; A::LENGTH as usize]);
                });
            });
            writer.nested(FILTER, |writer| {
                writer.attribute(1, &0_u32.to_ne_bytes());
                writer.attribute(2, &FILTER_IP_SOURCE.to_ne_bytes());
            });
        }
        writer.end();
        let gone = |connection: &Connection<A>| backends.contains(&connection.reply_source) && gone(connection);
        self.socket.send(&writer.bytes, 0)?;
        let mut keys = Vec::new();
        let mut buffer = vec![0_u8; 1 << 16];
        'dump: loop {
            let length = match self.socket.recv(&mut &mut buffer[..], 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for message in wire::messages(&buffer[..length]) {
                match message.kind {
                    NLMSG_DONE => break 'dump,
                    NLMSG_ERROR => {
                        return Err(io::Error::from_raw_os_error(-wire::u32_at(message.body, 0).cast_signed()));
                    }
                    _ => keys.extend(message.body.get(PREAMBLE - wire::HEADER..).and_then(|body| chosen(body, &gone))),
                }
            }
        }
        for chunk in keys.chunks(CHUNK) {
            self.delete(A::FAMILY as u8, chunk)?;
        }
        Ok(keys.len())
    }

    fn delete(&self, family: u8, keys: &[Key]) -> io::Result<()> {
        let mut writer = Writer::default();
        for key in keys {
            writer.begin_in(SUBSYSTEM, DELETE, 0, family);
            writer.nested(TUPLE_ORIGINAL, |writer| writer.bytes.extend_from_slice(&key.original));
            writer.attribute(ID, &key.id);
            writer.end();
        }
        self.socket.send(&writer.bytes, 0)?;
        // Only refusals are answered, and what has expired meanwhile is no failure: the answers are thrown away.
        let mut buffer = vec![0_u8; 1 << 14];
        while self.socket.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT).is_ok() {}
        Ok(())
    }
}

/// What names a connection to the kernel.
struct Key {
    original: Vec<u8>,
    id: Vec<u8>,
}

fn chosen<A: Address>(body: &[u8], gone: &impl Fn(&Connection<A>) -> bool) -> Option<Key> {
    let (mut original, mut reply, mut id) = (None, None, None);
    for (kind, value) in wire::attributes(body) {
        match kind {
            TUPLE_ORIGINAL => original = Some(value),
            TUPLE_REPLY => reply = Some(value),
            ID => id = Some(value),
            _ => {}
        }
    }
    let original = original?;
    let (_, original_destination, protocol) = tuple(original)?;
    let (reply_source, ..) = tuple(reply?)?;
    let connection = Connection { protocol, original_destination, reply_source };
    gone(&connection).then(|| Key { original: original.to_vec(), id: id.unwrap_or_default().to_vec() })
}

/// Source, destination and protocol of a tuple.
fn tuple<A: Address>(value: &[u8]) -> Option<(A, A, u8)> {
    let part = |wanted: u16, inside: &[u8], kind: u16| -> Option<Vec<u8>> {
        let (_, value) = wire::attributes(inside).find(|(kind, _)| *kind == wanted)?;
        wire::attributes(value).find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec())
    };
    let address = |kind| A::from_bytes(&part(1, value, kind)?);
    Some((address(A::TRACKED_SOURCE)?, address(A::TRACKED_SOURCE + 1)?, *part(2, value, 1)?.first()?))
}
