//! What a datagram between two hosts looks like. Numbers are big-endian.
//!
//! ```text
//!   0        version (high four bits), kind (low four)
//!   1..4     VNI of the network
//!   4..8     generation of the network's key
//!   8..24    the sender's session
//!   24..32   the receiver's session, its first eight bytes; 0 if the sender does not know it
//!   32..40   count: every datagram of a session has its own
//!   40..     sealed: place (2 bytes), then a part of a message; tag (16 bytes)
//! ```
//!
//! All before the sealed part is authenticated with it. A message is what a TAP device gives and takes: a virtio-net header
//! (little-endian) and an Ethernet frame, which may be as large as the kernel's segmentation makes them. Its parts have
//! consecutive counts; the place says which of how many parts it is.

pub(super) const HEADER: usize = 40;
pub(super) const PLACE: usize = 2;
pub(super) const TAG: usize = 16;
/// How much longer a part gets.
pub(super) const OVERHEAD: usize = HEADER + PLACE + TAG;

const VERSION: u8 = 1;

/// Of one side of one pair of hosts on one network; drawn at random, never used again.
pub(super) type SessionId = [u8; 16];

/// How a session is named to the one it belongs to.
pub(super) fn name_of(session: &SessionId) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|at| session[at]))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of a message.
    Part,
    /// Says who the sender is, to one who does not know.
    Greeting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) vni: u32,
    pub(super) generation: u32,
    pub(super) from: SessionId,
    pub(super) to: u64,
    pub(super) count: u64,
}

impl Header {
    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.vni.to_be_bytes());
        bytes[0] = VERSION << 4 | self.kind as u8;
        bytes[4..8].copy_from_slice(&self.generation.to_be_bytes());
        bytes[8..24].copy_from_slice(&self.from);
        bytes[24..32].copy_from_slice(&self.to.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    /// `None` for what is none of ours, or too short to be.
    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = datagram.first_chunk().filter(|_| datagram.len() >= OVERHEAD)?;
        let kind = match bytes[0] {
            byte if byte == VERSION << 4 | Kind::Part as u8 => Kind::Part,
            byte if byte == VERSION << 4 | Kind::Greeting as u8 => Kind::Greeting,
            _ => return None,
        };
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        Some(Self {
            kind,
            vni: u32::from_be_bytes([0, bytes[1], bytes[2], bytes[3]]),
            generation: u32::from_be_bytes(std::array::from_fn(|i| bytes[4 + i])),
            from: std::array::from_fn(|i| bytes[8 + i]),
            to: number(24),
            count: number(32),
        })
    }
}
