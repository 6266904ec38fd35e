//! Queries and replies as bytes.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use skep_model::dns::{Answer, Question};

use super::TTL_SECONDS;

/// Largest reply over UDP to a client that says it can take so much (the size the DNS flag day of 2020 settled on).
const UDP_LIMIT: u16 = 1232;

/// A query we can do something with.
pub(super) struct Asked {
    message: Message,
    query: Query,
}

/// Reads a query. The error is the reply to send instead, if one is due.
pub(super) fn parse(bytes: &[u8]) -> Result<Asked, Option<Vec<u8>>> {
    let Ok(message) = Message::from_vec(bytes) else { return Err(malformed(bytes)) };
    if message.metadata.message_type != MessageType::Query {
        return Err(None);
    }
    match (message.metadata.op_code, message.queries.as_slice()) {
        (OpCode::Query, [query]) => {
            let query = query.clone();
            Ok(Asked { message, query })
        }
        (OpCode::Query, _) => Err(reply_to(&message, ResponseCode::FormErr).to_vec().ok()),
        _ => Err(reply_to(&message, ResponseCode::NotImp).to_vec().ok()),
    }
}

fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let [a, b, flags, ..] = *bytes else { return None };
    // Never answer an answer.
    if bytes.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    Message::error_msg(u16::from_be_bytes([a, b]), OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

impl Asked {
    pub(super) fn question(&self) -> Question {
        let name = self.query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        if self.query.query_class() != DNSClass::IN {
            return Question::Other(name);
        }
        match self.query.query_type() {
            RecordType::A => Question::A(name),
            RecordType::AAAA => Question::Aaaa(name),
            RecordType::SRV => Question::Srv(name),
            RecordType::PTR => match self.query.name().parse_arpa_name().map(|net| (net.addr(), net.prefix_len())) {
                Ok((address @ IpAddr::V4(_), 32) | (address @ IpAddr::V6(_), 128)) => Question::Ptr(address),
                _ => Question::Other(name),
            },
            _ => Question::Other(name),
        }
    }

    /// Our own answer as a reply; `None` for what is to be forwarded. `turn` rotates the addresses, so that clients that
    /// take the first one are spread over all.
    pub(super) fn reply(&self, answer: &Answer, turn: usize, over_tcp: bool) -> Option<Vec<u8>> {
        let mut reply = reply_to(&self.message, ResponseCode::NoError);
        let mut add = |data: RData| {
            reply.add_answer(Record::from_rdata(self.query.name().clone(), TTL_SECONDS, data));
        };
        match answer {
            Answer::Forward => return None,
            Answer::NoData => {}
            Answer::NxDomain => reply.metadata.response_code = ResponseCode::NXDomain,
            Answer::A(list) => rotated(list, turn).for_each(|address| add(RData::A(A(*address)))),
            Answer::Aaaa(list) => rotated(list, turn).for_each(|address| add(RData::AAAA(AAAA(*address)))),
            Answer::Ptr(names) => {
                names.iter().filter_map(|name| full_name(name)).for_each(|name| add(RData::PTR(PTR(name))));
            }
            Answer::Srv(records) => {
                let mut additional = Vec::new();
                for record in records {
                    let Some(target) = full_name(&record.target) else { continue };
                    add(RData::SRV(SRV::new(10, 10, record.port, target.clone())));
                    additional.push(Record::from_rdata(target, TTL_SECONDS, RData::A(A(record.address))));
                }
                reply.add_additionals(additional);
            }
        }
        Some(self.encode(reply, over_tcp))
    }

    /// What a client gets when nobody upstream has answered.
    pub(super) fn failure(&self) -> Vec<u8> {
        self.encode(reply_to(&self.message, ResponseCode::ServFail), true)
    }

    pub(super) fn id(&self) -> u16 {
        self.message.metadata.id
    }

    fn encode(&self, reply: Message, over_tcp: bool) -> Vec<u8> {
        let limit = if over_tcp { u16::MAX } else { self.message.max_payload().min(UDP_LIMIT) };
        let bytes = reply.to_vec().unwrap_or_default();
        if bytes.len() <= usize::from(limit) { bytes } else { reply.truncate().to_vec().unwrap_or_default() }
    }
}

fn reply_to(message: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(message.queries.iter().cloned());
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT);
        reply.set_edns(edns);
    }
    reply
}

fn rotated<T>(list: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let start = if list.is_empty() { 0 } else { turn % list.len() };
    list[start..].iter().chain(&list[..start])
}

fn full_name(name: &str) -> Option<Name> {
    Name::from_str_relaxed(format!("{name}.")).ok()
}

/// Whether these bytes are a reply to the query of that id.
pub(super) fn is_reply(bytes: &[u8], id: u16) -> bool {
    bytes.len() >= 12 && bytes[..2] == id.to_be_bytes() && bytes[2] & 0x80 != 0
}

/// Whether a server's reply settles the matter: another server may know better than one that failed or refused.
pub(super) fn is_final(bytes: &[u8]) -> bool {
    bytes.get(3).is_some_and(|flags| matches!(flags & 0x0f, 0 | 3))
}
