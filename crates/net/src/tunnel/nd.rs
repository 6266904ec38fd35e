//! The same for IPv6: answers to neighbour solicitations (RFC 4861).

use std::net::Ipv6Addr;

use super::tap::VIRTIO;

const ETHERNET: usize = 14;
const IPV6: usize = 40;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Type, checksum, flags, target; an advertisement also has a link-layer address as an option.
const SOLICITED: usize = 24;
const ADVERTISED: usize = SOLICITED + 8;
const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
/// Packets from further away are no neighbours'.
const HOP_LIMIT: u8 = 255;
/// An answer, and better than what was known.
const FLAGS: u8 = 0x60;

/// The address a message asks for, if it does.
pub(super) fn asked(message: &[u8]) -> Option<Ipv6Addr> {
    let frame = message.get(VIRTIO..)?;
    let packet = frame.get(ETHERNET..).filter(|packet| packet.len() >= IPV6 + SOLICITED)?;
    let fits = frame[12..14] == ETHERTYPE && packet[6] == ICMPV6 && packet[IPV6] == SOLICITATION;
    // Who asks whether an address is free has none.
    let has_source = packet[8..24] != [0; 16];
    let target = <[u8; 16]>::try_from(&packet[IPV6 + 8..IPV6 + 24]).ok()?;
    (fits && has_source).then(|| Ipv6Addr::from(target))
}

/// The answer to a message for which [`asked`] found something.
pub(super) fn answer(question: &[u8], mac: [u8; 6]) -> [u8; VIRTIO + ETHERNET + IPV6 + ADVERTISED] {
    let question = &question[VIRTIO..];
    let mut out = [0; VIRTIO + ETHERNET + IPV6 + ADVERTISED];
    let frame = &mut out[VIRTIO..];
    frame[0..6].copy_from_slice(&question[6..12]);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    let (asker, target) = (&question[ETHERNET + 8..ETHERNET + 24], &question[ETHERNET + 48..ETHERNET + 64]);
    let packet = &mut frame[ETHERNET..];
    packet[0] = 0x60;
    packet[5] = ADVERTISED as u8;
    packet[6] = ICMPV6;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(target);
    packet[24..40].copy_from_slice(asker);
    let message = &mut packet[IPV6..];
    message[0] = ADVERTISEMENT;
    message[4] = FLAGS;
    message[8..24].copy_from_slice(target);
    // Target link-layer address, in units of eight bytes.
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..32].copy_from_slice(&mac);
    let sum = checksum(packet);
    packet[IPV6 + 2..IPV6 + 4].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Of both addresses, the length, the protocol and the message.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet[8..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + u32::from(packet[5]) + u32::from(ICMPV6);
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
