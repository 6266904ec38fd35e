//! A netfilter netlink socket that lives in one network namespace.
//!
//! Netlink handles a request within `sendmsg`, so everything here is synchronous and short: 0.02 ms for a changed backend,
//! tens of milliseconds for a thousand services.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::encode::{Batch, message};
use super::wire::{self, Message, NLM_F_DUMP, PREAMBLE, Writer};
use super::{Family, Ownership, Table, difference};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Larger batches are refused by the kernel with `EMSGSIZE` unless the send buffer is made as large.
const DEFAULT_SEND_BUFFER: usize = 200_000;
const RECEIVE_BUFFER: usize = 1 << 17;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("failed to open a netfilter socket in the namespace")]
    Open(#[source] io::Error),
    #[error("failed to talk to nf_tables")]
    Transport(#[source] io::Error),
    /// The kernel refused the batch, naming this message of it.
    #[error("nf_tables refused {object}")]
    Refused { object: String, source: io::Error },
}

impl NftError {
    /// The kernel's errno.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Transport(source) | Self::Refused { source, .. } => source.raw_os_error(),
        }
    }
}

/// One socket for all tables of one namespace; keep it as long as the tables, since it owns those with [`Ownership::Ours`].
#[derive(Debug)]
pub struct NftSocket {
    socket: Socket,
    send_buffer: usize,
    /// Batches the kernel took, for tests of idempotence.
    sent: usize,
}

/// Opens a netfilter socket in `netns`. A thread of its own enters the namespace, so that no other work ever runs there.
pub(crate) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Socket> {
    std::thread::scope(|scope| {
        let opener = scope.spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.set_cap_ack(true)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        });
        opener.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters the namespace panicked")))
    })
}

impl NftSocket {
    pub fn open(netns: impl AsFd) -> Result<Self, NftError> {
        let socket = open_in(netns.as_fd()).map_err(NftError::Open)?;
        Ok(Self { socket, send_buffer: DEFAULT_SEND_BUFFER, sent: 0 })
    }

    /// Messages the kernel has taken through this socket.
    pub fn messages_sent(&self) -> usize {
        self.sent
    }

    /// Sends a batch; nothing of it is in force when this fails.
    pub fn send(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.messages() == 0 {
            return Ok(());
        }
        self.make_room(batch.bytes().len());
        self.socket.send(batch.bytes(), 0).map_err(NftError::Transport)?;
        let mut failure = None;
        self.receive(|message| {
            if message.kind == NLMSG_ERROR {
                let code = wire::u32_at(message.body, 0).cast_signed();
                if code != 0 && failure.is_none() {
                    failure = Some((message.sequence, io::Error::from_raw_os_error(-code)));
                }
                // The acknowledgement of the last message, or the first error: the rest is drained without waiting.
                return true;
            }
            false
        })?;
        match failure {
            None => {
                self.sent += batch.messages();
                Ok(())
            }
            Some((sequence, source)) => Err(NftError::Refused { object: describe(batch.bytes(), sequence), source }),
        }
    }

    /// Brings a table from `old` to `new`; where the kernel has no owned tables, without ownership.
    pub fn apply(&mut self, old: Option<&Table>, new: &Table) -> Result<usize, NftError> {
        let batch = difference(old, new);
        match self.send(&batch) {
            Ok(()) => Ok(batch.messages()),
            Err(error) if old.is_none() && new.ownership == Ownership::Ours && flags_unknown(&error) => {
                let shared = Table { ownership: Ownership::Shared, ..new.clone() };
                let batch = difference(None, &shared);
                self.send(&batch).map(|()| batch.messages())
            }
            Err(error) => Err(error),
        }
    }

    /// The tables of a family whose name starts with `prefix`.
    pub fn tables(&mut self, family: Family, prefix: &str) -> Result<Vec<String>, NftError> {
        let mut names = Vec::new();
        self.dump(message::GET_TABLE, family, &[], |body| {
            names.extend(inside(body, 1).map(|(_, value)| wire::text(value)));
        })?;
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }

    /// Whether the kernel has the table, and nobody has added to it or taken from it. Of one that only this socket may change
    /// it is enough that it is there.
    pub fn has(&mut self, table: &Table) -> Result<bool, NftError> {
        let (family, name) = (table.family, table.name.as_str());
        if !self.tables(family, name)?.iter().any(|there| there == name) {
            return Ok(false);
        }
        if table.ownership == Ownership::Ours {
            return Ok(true);
        }
        let mut rules: BTreeMap<String, usize> = BTreeMap::new();
        self.dump(message::GET_RULE, family, &[name], |body| {
            // Kernels before 4.13 tell of all tables.
            if inside(body, 1).any(|(_, value)| wire::text(value) == name) {
                inside(body, 2).for_each(|(_, chain)| *rules.entry(wire::text(chain)).or_default() += 1);
            }
        })?;
        let count = |chain: &str| rules.get(chain).copied().unwrap_or_default();
        if !table.chains.iter().all(|(name, chain)| count(name) == chain.rules.len()) {
            return Ok(false);
        }
        for (set, wanted) in table.sets.iter().filter(|(_, set)| set.dynamic.is_none()) {
            let there = self.elements(family, name, set)?;
            if there.len() != wanted.len() || !there.iter().all(|key| wanted.contains(key)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The keys in a set now; empty when there is no such set.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NftError> {
        let mut keys = Vec::new();
        self.dump(message::GET_ELEMENT, family, &[table, set], |body| {
            let elements = inside(body, 3).flat_map(|(_, list)| wire::attributes(list));
            for (_, key) in elements.flat_map(|(_, element)| inside(element, 1)) {
                keys.extend(inside(key, 1).map(|(_, value)| value.to_vec()));
            }
        })?;
        Ok(keys)
    }

    /// Asks for all of a kind, of what `names` name from the table down; each answer's attributes.
    fn dump(&mut self, kind: u16, family: Family, names: &[&str], mut each: impl FnMut(&[u8])) -> Result<(), NftError> {
        let mut writer = Writer::default();
        writer.begin(kind, NLM_F_DUMP, family as u8);
        for (attribute, name) in (1..).zip(names) {
            writer.text(attribute, name);
        }
        writer.end();
        self.socket.send(&writer.bytes, 0).map_err(NftError::Transport)?;
        self.receive(|message| {
            if message.kind == NLMSG_DONE || message.kind == NLMSG_ERROR {
                return true;
            }
            if let Some(body) = message.body.get(PREAMBLE - wire::HEADER..) {
                each(body);
            }
            false
        })
    }

    fn make_room(&mut self, length: usize) {
        if length > self.send_buffer {
            // Refusal shows as EMSGSIZE of the send that follows.
            let _ = nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::SndBufForce, &(length * 2));
            self.send_buffer = length;
        }
    }

    /// Reads replies until `last` says one is the last, then whatever else is queued.
    fn receive(&mut self, mut last: impl FnMut(&Message<'_>) -> bool) -> Result<(), NftError> {
        let mut buffer = vec![0_u8; RECEIVE_BUFFER];
        let mut done = false;
        loop {
            let flags = if done { libc::MSG_DONTWAIT } else { 0 };
            match self.socket.recv(&mut &mut buffer[..], flags) {
                Ok(length) => {
                    for message in wire::messages(&buffer[..length]) {
                        done |= last(&message);
                    }
                }
                // Nothing more is queued; or more errors than the buffer holds, of which the first is known.
                Err(_) if done => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NftError::Transport(error)),
            }
        }
    }
}

impl AsRawFd for NftSocket {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

/// The attributes of one kind.
fn inside(body: &[u8], wanted: u16) -> impl Iterator<Item = (u16, &[u8])> {
    wire::attributes(body).filter(move |(kind, _)| *kind == wanted)
}

fn flags_unknown(error: &NftError) -> bool {
    matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// What a message of the batch was about, for errors.
fn describe(batch: &[u8], sequence: u32) -> String {
    let Some(message) = wire::messages(batch).find(|message| message.sequence == sequence) else {
        return "the batch".to_owned();
    };
    let kind = match message.kind & 0xff {
        message::NEW_TABLE => "new table",
        message::DELETE_TABLE => "removal of table",
        message::NEW_CHAIN => "new chain",
        message::DELETE_CHAIN => "removal of chain",
        message::NEW_RULE => "new rule",
        message::DELETE_RULE => "removal of rules",
        message::NEW_SET => "new set",
        message::DELETE_SET => "removal of set",
        message::NEW_ELEMENT => "new element",
        message::DELETE_ELEMENT => "removal of element",
        _ => "the batch",
    };
    let names: Vec<String> = message
        .body
        .get(PREAMBLE - wire::HEADER..)
        .into_iter()
        .flat_map(wire::attributes)
        .filter(|(kind, value)| matches!(kind, 1..=3) && is_name(value))
        .map(|(_, value)| wire::text(value))
        .collect();
    format!("{kind} {} (message {sequence})", names.join(" "))
}

fn is_name(value: &[u8]) -> bool {
    matches!(value, [name @ .., 0] if !name.is_empty() && name.iter().all(u8::is_ascii_graphic))
}
