//! What the encoder says, the kernel understands and `nft` prints.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use skep_model::plan::{Backend, MeshPort, Ring};
use skep_model::service::Protocol;

use super::expr::{Choice, CtKey, Expr, FibOf, MetaKey, PayloadBase, Reg, RejectWith, SetRef};
use super::*;
use crate::ingress::rules::{MeshRules, SourceMode};

fn namespace() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

fn run(netns: &OwnedFd, script: &'static str) -> std::process::Output {
    let fd = netns.try_clone().unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(fd.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Command::new("sh").args(["-c", script]).output().unwrap()
    })
    .join()
    .unwrap()
}

/// What `nft list ruleset` prints in a namespace, with single spaces.
fn list(netns: &OwnedFd) -> String {
    let text = String::from_utf8(run(netns, "nft list ruleset").stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn base(chain_type: ChainType, point: HookPoint, rules: Vec<Rule>) -> Chain {
    Chain::base(Hook::new(chain_type, point, -100), rules)
}

fn example() -> Table {
    let mut table = Table::new(Family::Ip, "example", Ownership::Shared);
    let mut vips = Set::map(DataType::IPV4, DataType::VERDICT);
    vips.elements.insert(address(2).bytes(), Element::Verdict(Verdict::Goto("web".to_owned())));
    table.sets.insert("vips".to_owned(), vips);
    let mut nodes = Set::map(DataType::ETHER, DataType::MARK);
    let mac = Bytes::from_slice(&[2, 0x42, 10, 0, 0, 2]);
    nodes.elements.insert(mac, Element::Value(Bytes::from_slice(&0x10001_u32.to_ne_bytes())));

    table.sets.insert("nodes".to_owned(), nodes);
    let numbered = |data, numbered: OrdMap<u32, Numbered>| Set { numbered, ..Set::map(DataType::INTEGER, data) };
    let addresses = vec![address(12).bytes(), address(21).bytes()];
    let runs = [(0_u32, 4), (8, 1)].map(|(first, count)| (first, Numbered { count, values: addresses.clone() }));
    table.sets.insert("places".to_owned(), numbered(DataType::IPV4, runs.into_iter().collect()));
    let values = [[10, 0, 1, 12, 0, 80, 0, 0], [10, 0, 1, 21, 0, 81, 0, 0]].map(|value| Bytes::from_slice(&value));
    let run = Numbered { count: 2, values: values.to_vec() };
    table.sets.insert("ports".to_owned(), numbered(DataType::IPV4_PORT, OrdMap::unit(0, run)));
    table.chain(
        "output",
        base(ChainType::Nat, HookPoint::Output, vec![Rule::new().destination_vmap::<Ipv4Addr>("vips")]),
    );
    table.chain(
        "web",
        Chain::regular(vec![
            Rule::new().dnat_numbered::<Ipv4Addr>(Choice::RoundRobin, 0..4, "places"),
            Rule::new().dnat(address(12)),
        ]),
    );
    table.chain(
        "port",
        Chain::regular(vec![
            Rule::new().l4proto(6).dnat_port_numbered(Choice::RoundRobin, 0..2, "ports"),
            Rule::new().l4proto(6).dnat_port(address(12), 80),
        ]),
    );
    table.chain(
        "sticky",
        Chain::regular(vec![Rule::new().l4proto(6).dnat_port_numbered(Choice::Source, 2..4, "ports")]),
    );
    table.chain(
        "empty",
        Chain::regular(vec![
            Rule::new().l4proto(6).reject(RejectWith::TcpReset),
            Rule::new().reject(RejectWith::IcmpPortUnreachable),
        ]),
    );
    table.chain(
        "post",
        base(
            ChainType::Nat,
            HookPoint::Postrouting,
            vec![
                Rule::new().output("ing0").was_dnat().local(FibOf::Source).masquerade(),
                Rule::new().source(address(9)).masquerade(),
            ],
        ),
    );
    table.chain(
        "marks",
        base(
            ChainType::Filter,
            HookPoint::Prerouting,
            vec![
                Rule::new().input("eth1").state_new().with([
                    Expr::Payload { base: PayloadBase::Link, offset: 6, length: 6, to: Reg(0) },
                    Expr::Lookup {
                        set: SetRef::Named("nodes".to_owned()),
                        from: Reg(0),
                        to: Some(Reg(0)),
                        vmap: false,
                    },
                    Expr::CtSet { key: CtKey::Mark, original: false, from: Reg(0) },
                ]),
                Rule::new().with([
                    Expr::Ct { key: CtKey::Mark, original: false, to: Reg(0) },
                    Expr::MetaSet { key: MetaKey::Mark, from: Reg(0) },
                ]),
            ],
        ),
    );
    table
}

#[test]
fn what_somebody_else_took_away_or_added_is_missed() {
    let netns = namespace();
    let (mut ours, mut theirs) = (NftSocket::open(&netns).unwrap(), NftSocket::open(&netns).unwrap());
    let table = example();
    assert!(!ours.has(&table).unwrap());
    ours.apply(None, &table).unwrap();
    assert!(ours.has(&table).unwrap());
    type Deed = fn(&mut Table);
    let deeds: [(&str, Deed); 5] = [
        ("a rule is deleted", |table| _ = Arc::make_mut(table.chains.get_mut("web").unwrap()).rules.pop()),
        ("a rule is added", |table| {
            Arc::make_mut(table.chains.get_mut("empty").unwrap()).rules.push(Rule::new().masquerade());
        }),
        ("a chain is flushed", |table| Arc::make_mut(table.chains.get_mut("post").unwrap()).rules.clear()),
        ("an element is deleted", |table| table.sets.get_mut("nodes").unwrap().elements.clear()),
        ("an element is added", |table| {
            let element = Element::Verdict(Verdict::Goto("web".to_owned()));
            table.sets.get_mut("vips").unwrap().elements.insert(address(3).bytes(), element);
        }),
    ];
    for (what, deed) in deeds {
        let mut changed = table.clone();
        deed(&mut changed);
        theirs.apply(Some(&table), &changed).unwrap();
        assert!(!ours.has(&table).unwrap(), "{what}");
        theirs.apply(Some(&changed), &table).unwrap();
        assert!(ours.has(&table).unwrap(), "{what}, and undone");
    }
    theirs.send(&removal(Family::Ip, "example")).unwrap();
    assert!(!ours.has(&table).unwrap());
}

#[test]
fn nft_prints_what_was_meant() {
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    socket.apply(None, &example()).unwrap();
    let text = list(&netns);
    for phrase in [
        "map vips { type ipv4_addr : verdict elements = { 10.0.1.2 : goto web } }",
        "map nodes { type ether_addr : mark elements = { 02:42:0a:00:00:02 : 0x00010001 } }",
        "chain output { type nat hook output priority -100; policy accept; ip daddr vmap @vips }",
        "dnat to numgen inc mod 4 map @places dnat to 10.0.1.12",
        "map places { typeof numgen inc mod 4294967295 : ip daddr elements = { 0 : 10.0.1.12, 1 : 10.0.1.21, 2 : 10.0.1.12, 3 : 10.0.1.21, 8 : 10.0.1.12 } }",
        "meta l4proto tcp dnat ip to numgen inc mod 2 map @ports",
        "meta l4proto tcp dnat to 10.0.1.12:80",
        "dnat ip to jhash ip saddr mod 2 seed 0x736b6570 offset 2 map @ports",
        "chain empty { reject with tcp reset reject }",
        r#"oifname "ing0" ct status dnat fib saddr type local masquerade"#,
        "ip saddr 10.0.1.9 masquerade",
        r#"iifname "eth1" ct state new ct mark set @ll,48,48 map @nodes"#,
        "meta mark set ct mark",
    ] {
        assert!(text.contains(phrase), "{phrase:?} is not in {text}");
    }
}

/// `nft list ruleset >/etc/nftables.conf` is how rules are kept over a restart: a line of ours that cannot be read would
/// keep the others out.
#[test]
fn what_an_administrator_saves_can_be_loaded() {
    fn balancers<A: Address>(vips: [A; 3]) -> Table {
        let mut table = Table::new(A::FAMILY, "balanced", Ownership::Shared);
        let mut balancers = crate::balance::Balancers::new(0);
        crate::balance::Balancers::<A>::prepare(&mut table);
        let ring = |backends: Vec<A>, by_client| Ring { backends, by_client };
        let rings = [ring(vips.to_vec(), false), ring(vips.to_vec(), true), ring(vec![vips[0]], false)];
        balancers.update(&mut table, &vips.into_iter().zip(&rings).collect());
        table
    }
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    socket.apply(None, &balancers([address(2), address(3), address(4)])).unwrap();
    socket.apply(None, &balancers([2, 3, 4].map(|last| address(last).to_ipv6_mapped()))).unwrap();
    let mut mesh = Table::new(Family::Ip, "mesh", Ownership::Shared);
    let mut rules = MeshRules::default();
    rules.prepare(&mut mesh, "ing0", SourceMode::Preserve);
    let ring = [12, 21].map(|last| Backend { address: address(last), port: 80 }).to_vec().into();
    let port = MeshPort { ring, masquerade: true, proxy_protocol: false };
    let only = MeshPort { ring: port.ring.backends[..1].to_vec().into(), ..port.clone() };
    let ports = [((Protocol::Tcp, 8080), port.clone()), ((Protocol::Tcp, 8081), only), ((Protocol::Udp, 53), port)];
    rules.update(&mut mesh, &ports.into());
    socket.apply(None, &mesh).unwrap();
    let text = list(&netns);
    let loaded = run(&netns, "saved=$(nft list ruleset) && nft flush ruleset && echo \"$saved\" | nft -f -");
    assert_eq!(String::from_utf8_lossy(&loaded.stderr), "");
    assert_eq!(list(&netns), text);
    assert!(text.contains("numgen inc mod 12 map @places-12-0") && text.contains("jhash ip6 saddr"), "{text}");
}

#[test]
fn a_table_in_place_takes_no_message_and_a_changed_chain_takes_few() {
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    let old = example();
    socket.apply(None, &old).unwrap();
    assert_eq!(socket.apply(Some(&old), &old.clone()).unwrap(), 0);

    let mut new = old.clone();
    new.chain("web", Chain::regular(vec![Rule::new().dnat(address(30))]));
    assert_eq!(socket.apply(Some(&old), &new).unwrap(), 2);
    assert!(list(&netns).contains("chain web { dnat to 10.0.1.30 }"));

    let mut third = new.clone();
    third.sets.get_mut("vips").unwrap().elements.clear();
    third.chains.remove("web");
    socket.apply(Some(&new), &third).unwrap();
    assert!(!list(&netns).contains("web"));

    let mut empty = Table::new(Family::Ip, "example", Ownership::Shared);
    socket.apply(Some(&third), &empty).unwrap();
    socket.apply(Some(&empty), &old).unwrap();
    empty.chain("output", base(ChainType::Nat, HookPoint::Output, Vec::new()));
    socket.apply(Some(&old), &empty).unwrap();
    assert!(!list(&netns).contains("map") && list(&netns).contains("chain output"));
    socket.send(&removal(Family::Ip, "example")).unwrap();
    assert_eq!(list(&netns), "");
}

#[test]
fn a_refusal_names_the_object_and_leaves_nothing() {
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    let mut table = example();
    table.chain("bad", Chain::regular(vec![Rule::new().verdict(Verdict::Goto("nowhere".to_owned()))]));
    let error = socket.apply(None, &table).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("new rule example bad"), "{error}");
    assert_eq!(list(&netns), "");
    socket.apply(None, &example()).unwrap();
}

#[test]
fn an_owned_table_is_out_of_others_reach_and_can_be_taken_over_later() {
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    let table = Table { ownership: Ownership::Ours, ..example() };
    socket.apply(None, &table).unwrap();
    let mut other = NftSocket::open(&netns).unwrap();
    assert_eq!(other.send(&removal(Family::Ip, "example")).unwrap_err().errno(), Some(libc::EPERM));
    drop(socket);
    assert_eq!(other.tables(Family::Ip, "exam").unwrap(), ["example"]);
    other.apply(None, &Table { name: "second".to_owned(), ..table }).unwrap();
    other.send(&removal(Family::Ip, "example")).unwrap();
    assert_eq!(other.tables(Family::Ip, "").unwrap(), ["second"]);
}

#[test]
fn a_thousand_services_fit_in_one_batch() {
    let netns = namespace();
    let mut socket = NftSocket::open(&netns).unwrap();
    let mut table = Table::new(Family::Ip, "many", Ownership::Ours);
    crate::balance::Balancers::<Ipv4Addr>::prepare(&mut table);
    let ring = (0..3).map(|n| Ipv4Addr::new(10, 1, 0, n)).collect::<Vec<_>>().into();
    let wanted = (0..1000_u32).map(|n| (Ipv4Addr::from(0x0a02_0000 + n), &ring)).collect();
    crate::balance::Balancers::new(0).update(&mut table, &wanted);
    let start = std::time::Instant::now();
    socket.apply(None, &table).unwrap();
    let first = start.elapsed();
    let mut changed = table.clone();
    changed.chain("vip-10.2.0.7", Chain::regular(vec![Rule::new().dnat(address(1))]));
    let start = std::time::Instant::now();
    assert_eq!(socket.apply(Some(&table), &changed).unwrap(), 2);
    eprintln!("1000 services: {first:?}, one change: {:?}", start.elapsed());
}

/// The kinds of a batch's messages, begin and end of the batch left out.
fn kinds(batch: &Batch) -> Vec<u16> {
    let all: Vec<u16> = wire::messages(batch.bytes()).map(|message| message.kind & 0xff).collect();
    all[1..all.len() - 1].to_vec()
}

#[test]
fn a_transaction_makes_before_it_uses_and_lets_go_before_it_removes() {
    use encode::message as m;
    let mut old = Table::new(Family::Ip, "t", Ownership::Shared);
    let mut map = Set::map(DataType::IPV4, DataType::VERDICT);
    map.elements.insert(address(2).bytes(), Element::Verdict(Verdict::Goto("web".to_owned())));
    old.sets.insert("vips".to_owned(), map);
    old.chain("web", Chain::regular(vec![Rule::new().percent(2).dnat(address(12))]));
    assert_eq!(
        kinds(&difference(None, &old)),
        [m::NEW_TABLE, m::NEW_SET, m::NEW_CHAIN, m::NEW_SET, m::NEW_ELEMENT, m::NEW_RULE, m::NEW_ELEMENT]
    );
    let mut new = Table::new(Family::Ip, "t", Ownership::Shared);
    new.chain("output", base(ChainType::Nat, HookPoint::Output, Vec::new()));
    assert_eq!(kinds(&difference(Some(&old), &new)), [m::NEW_CHAIN, m::DELETE_ELEMENT, m::DELETE_CHAIN, m::DELETE_SET]);
    assert_eq!(difference(Some(&new), &new), Batch::default());
}

#[test]
fn the_bytes_of_a_message_are_netlinks() {
    let batch = removal(Family::Ip, "t");
    let expected = [
        [20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10].as_slice(),
        &[28, 0, 0, 0, 2, 10, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 6, 0, 1, 0, b't', 0, 0, 0],
        &[20, 0, 0, 0, 0x11, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
    ];
    assert_eq!(batch.bytes(), expected.concat());
}
