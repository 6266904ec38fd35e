//! One rtnetlink socket: send, wait for the kernel's answers. The kernel handles a request within `send`, so there is
//! nothing to gain from doing this asynchronously, and a task switch to lose.

use std::io;
use std::sync::{Mutex, PoisonError};

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Answers of this many requests fit the socket's receive buffer with room to spare.
const BATCH: usize = 64;
/// Dumps of many links come in messages of up to 32 kB; the kernel sizes them by what we offer.
const RECEIVE_BYTES: usize = 64 * 1024;

/// A message and what should happen if its object exists.
#[derive(Clone, Debug)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// Makes something; fails with `EEXIST` if it is there.
    pub fn create(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: NLM_F_CREATE | NLM_F_EXCL }
    }

    /// Makes something or puts it in the place of what is there.
    pub fn replace(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// Changes or deletes what is there.
    pub fn change(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: 0 }
    }
}

/// An rtnetlink socket of one namespace. It works on that namespace from whichever thread it is used, and pins it.
pub struct RouteSocket {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    sequence: u32,
}

impl RouteSocket {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it every acknowledgement carries the whole request back.
        socket.set_cap_ack(true)?;
        Ok(Self { inner: Mutex::new(Inner { socket, sequence: 0 }) })
    }

    /// Sends one request and waits until the kernel has done it.
    pub fn send(&self, request: Request) -> io::Result<()> {
        self.lock().batch(std::slice::from_ref(&request))?.pop().unwrap_or_else(|| Err(no_answer()))
    }

    /// Sends many requests with few system calls. One answer for each, in order; the outer error is the socket's.
    pub fn send_all(&self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        let mut inner = self.lock();
        let mut answers = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(BATCH) {
            answers.append(&mut inner.batch(chunk)?);
        }
        Ok(answers)
    }

    /// Everything the kernel has of a kind.
    pub fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.lock().ask(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// The one object asked for.
    pub fn get(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.lock().ask(message, NLM_F_REQUEST | NLM_F_ACK)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic between send and receive leaves answers behind; they are skipped by their sequence number.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn batch(&mut self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.append(&mut bytes, request.message.clone(), request.flags | NLM_F_REQUEST | NLM_F_ACK);
        }
        self.socket.send(&bytes, 0)?;
        let mut answers: Vec<Option<io::Result<()>>> = (0..requests.len()).map(|_| None).collect();
        let mut missing = requests.len();
        while missing > 0 {
            for message in self.receive()? {
                let slot = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(slot) = answers.get_mut(slot) else { continue };
                if let NetlinkPayload::Error(error) = message.payload
                    && slot.replace(to_result(&error)).is_none()
                {
                    missing -= 1;
                }
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(no_answer()))).collect())
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, flags);
        let sequence = self.sequence;
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return to_result(&error).map(|()| found),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// The messages of one datagram. One that we cannot read (a newer kernel's) is left out rather than failing the rest.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut bytes = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => bytes.clear(),
                Err(error) => return Err(error),
            }
        }
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                break;
            }
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "unreadable rtnetlink message"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

fn to_result(error: &rtnetlink::packet_core::ErrorMessage) -> io::Result<()> {
    match error.code {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "no answer from the kernel")
}
