use std::net::Ipv4Addr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::*;

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn question(name: &str, kind: RecordType) -> Question {
    wire::parse(&query(name, kind)).ok().unwrap().question()
}

#[test]
fn questions_are_read() {
    assert_eq!(question("Web.Front.", RecordType::A), Question::A("web.front".into()));
    assert_eq!(question("web.", RecordType::AAAA), Question::Aaaa("web".into()));
    assert_eq!(question("my_web.", RecordType::A), Question::A("my_web".into()));
    assert_eq!(question("2.1.0.10.in-addr.arpa.", RecordType::PTR), Question::Ptr(Ipv4Addr::new(10, 0, 1, 2).into()));
    assert_eq!(question("1.0.10.in-addr.arpa.", RecordType::PTR), Question::Other("1.0.10.in-addr.arpa".into()));
    assert_eq!(question("web.", RecordType::MX), Question::Other("web".into()));
}

#[test]
fn addresses_take_turns_and_too_many_are_truncated_over_udp_only() {
    let bytes = query("web.", RecordType::A);
    let asked = wire::parse(&bytes).ok().unwrap();
    let list: Vec<Ipv4Addr> = (0..200).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect();
    let first = |turn| {
        let reply = Message::from_vec(&asked.reply(&Answer::A(list[..3].to_vec()), turn, false).unwrap()).unwrap();
        assert_eq!((reply.metadata.id, reply.answers.len()), (asked.id(), 3));
        assert_eq!(reply.answers[0].ttl, TTL_SECONDS);
        match &reply.answers[0].data {
            RData::A(address) => address.0,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([first(0), first(1), first(5)], [list[0], list[1], list[2]]);
    let truncated = Message::from_vec(&asked.reply(&Answer::A(list.clone()), 0, false).unwrap()).unwrap();
    assert!(truncated.metadata.truncation && truncated.answers.is_empty());
    let whole = Message::from_vec(&asked.reply(&Answer::A(list), 0, true).unwrap()).unwrap();
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 200));
}

#[test]
fn nothing_and_nobody_are_different() {
    let bytes = query("web.", RecordType::AAAA);
    let asked = wire::parse(&bytes).ok().unwrap();
    let code = |answer| Message::from_vec(&asked.reply(&answer, 0, false).unwrap()).unwrap().metadata.response_code;
    assert_eq!(code(Answer::NoData), ResponseCode::NoError);
    assert_eq!(code(Answer::NxDomain), ResponseCode::NXDomain);
    assert!(asked.reply(&Answer::Forward, 0, false).is_none());
    assert_eq!(Message::from_vec(&asked.failure()).unwrap().metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn rubbish_is_answered_once_and_answers_never() {
    assert!(wire::parse(&[]).is_err_and(|reply| reply.is_none()));
    assert!(wire::parse(&[1; 11]).is_err_and(|reply| reply.is_none()));
    let mut broken = query("web.", RecordType::A);
    broken.truncate(14);
    let reply = wire::parse(&broken).err().unwrap().unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::FormErr);
    assert!(wire::parse(&reply).is_err_and(|reply| reply.is_none()));
}
