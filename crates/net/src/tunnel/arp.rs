//! Answers to who has an address: no question leaves the host, since a MAC follows from its address.

use std::net::Ipv4Addr;

use super::tap::VIRTIO;

const ETHERNET: usize = 14;
const ARP: usize = 28;
const ETHERTYPE: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, six and four bytes, a question.
const QUESTION: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

/// The address a message asks for, if it does.
pub(super) fn asked(message: &[u8]) -> Option<Ipv4Addr> {
    let frame = message.get(VIRTIO..VIRTIO + ETHERNET + ARP)?;
    (frame[12..14] == ETHERTYPE && frame[14..22] == QUESTION)
        .then(|| Ipv4Addr::new(frame[38], frame[39], frame[40], frame[41]))
}

/// The answer to a message for which [`asked`] found something.
pub(super) fn answer(question: &[u8], mac: [u8; 6]) -> [u8; VIRTIO + ETHERNET + ARP] {
    let question = &question[VIRTIO..];
    let mut out = [0; VIRTIO + ETHERNET + ARP];
    let frame = &mut out[VIRTIO..];
    frame[0..6].copy_from_slice(&question[22..28]);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&question[12..22]);
    frame[21] = 2;
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&question[38..42]);
    frame[32..42].copy_from_slice(&question[22..32]);
    out
}
