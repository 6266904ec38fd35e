//! Netlink messages as bytes: headers, nested attributes, padding.

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

pub(crate) const HEADER: usize = 16;
/// Netlink header and `nfgenmsg`.
pub(crate) const PREAMBLE: usize = HEADER + 4;

/// Messages one after the other.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
    sequence: u32,
    start: usize,
}

impl Writer {
    pub(crate) fn batch() -> Self {
        let mut writer = Self::default();
        writer.raw_begin(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM);
        writer.end();
        writer
    }

    /// How many messages, the begin of the batch included.
    pub(crate) fn count(&self) -> u32 {
        self.sequence
    }

    /// Ends the batch and asks the kernel to acknowledge its last message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let flags = self.start + 6;
        let with_ack = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&with_ack.to_ne_bytes());
        self.raw_begin(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM);
        self.end();
        self.bytes
    }

    pub(crate) fn begin(&mut self, message: u16, flags: u16, family: u8) {
        self.begin_in(SUBSYSTEM, message, flags, family);
    }

    /// A message of another netfilter subsystem, outside a batch.
    pub(crate) fn begin_in(&mut self, subsystem: u16, message: u16, flags: u16, family: u8) {
        self.raw_begin((subsystem << 8) | message, NLM_F_REQUEST | flags, family, 0);
    }

    fn raw_begin(&mut self, message: u16, flags: u16, family: u8, resource: u16) {
        self.start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(message.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.sequence += 1;
    }

    pub(crate) fn end(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = value.len() + 4;
        self.bytes.extend((length as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        let over = self.bytes.len() % 4;
        if over != 0 {
            self.bytes.resize(self.bytes.len() + 4 - over, 0);
        }
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let length = value.len() + 5;
        self.bytes.extend((length as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(crate) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.open(kind);
        inside(self);
        self.close(start);
    }

    pub(crate) fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        start
    }

    pub(crate) fn close(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        assert!(length <= usize::from(u16::MAX), "a netlink attribute of {length} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }
}

/// A message that was read: its type, sequence and what follows the header.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// Splits what was read, or written, into messages; stops at nonsense.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = u32_at(header, 0) as usize;
        let body = bytes.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32_at(header, 8);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    })
}

/// Splits a run of attributes into (kind without flags, value).
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An attribute's text without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
