//! What somebody else has changed in the kernel is made good, and nothing else.

use skep_model::plan::{Backend, HostPlan, MeshPort};
use skep_model::service::Protocol;

use super::world::*;
use crate::dataplane::overlay_path;
use crate::ingress::rules::SourceMode;
use crate::link::{Entry, Links, Namespace};
use crate::nft::{Family, NftSocket, removal};

fn overlay(host: &Host) -> Namespace {
    Namespace::open(&overlay_path(&host.config.exec_root, &network())).unwrap()
}

fn delete(links: &Links, prefix: &str) {
    let found = links.list_prefix(prefix).unwrap();
    assert!(!found.is_empty(), "there is no {prefix}");
    for link in found {
        links.delete(&link.name).unwrap();
    }
}

fn flush(namespace: &Namespace, prefix: &str) {
    let mut nft = NftSocket::open(namespace.fd()).unwrap();
    let tables = nft.tables(Family::Ip, prefix).unwrap();
    assert!(!tables.is_empty());
    for table in tables {
        nft.send(&removal(Family::Ip, &table)).unwrap();
    }
}

fn forget(host: &Host, wanted: fn(&Entry) -> bool) {
    let overlay = overlay(host);
    let link = overlay.links().list_prefix("vx-").unwrap()[0].index;
    let entries: Vec<Entry> = overlay.links().entries(link).unwrap().into_iter().filter(wanted).collect();
    assert!(!entries.is_empty());
    for answer in overlay.links().delete_entries(&entries).unwrap() {
        answer.unwrap();
    }
}

/// Task 11 on the first host, 21 on the second: behind VIP 2, and port 8080 of both hosts.
fn plans(hosts: &[&Host; 2]) -> [HostPlan; 2] {
    [(0, 21), (1, 11)].map(|(me, other)| {
        let mut plan = plan(hosts, me, true);
        overlay_of(&mut plan).remote.insert(on_overlay(other), hosts[1 - me].underlay);
        overlay_of(&mut plan).balancers = [(on_overlay(2), vec![on_overlay(21)].into())].into();
        let ring = vec![Backend { address: on_overlay(21), port: 80 }].into();
        let port = MeshPort { ring, ..MeshPort::default() };
        plan.ingress.as_mut().unwrap().ports = [((Protocol::Tcp, 8080), port)].into();
        plan
    })
}

#[test]
fn what_somebody_else_has_changed_is_mended() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let outside = world.outside(9);
    for (host, plan) in [&a, &b].iter().zip(plans(&[&a, &b])) {
        world.apply(host, &plan);
    }
    let tasks = [world.task(&a, 11), world.task(&b, 21)];
    let _server = Server::start(&tasks[1].namespace, 80, "served");
    let works = |what: &str| {
        let within = ask(&tasks[0].namespace, on_overlay(2), 80).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(within, "served 10.0.1.11", "{what}");
        for host in [&a, &b] {
            let without = ask(&outside, host.underlay, 8080).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(without, "served 192.168.50.9", "{what}");
        }
    };
    let settled = |what: &str| {
        for host in [&a, &b] {
            let report = world.repair(host);
            assert_eq!((report.changes, report.failures), (0, Vec::new()), "{what}");
        }
    };
    works("as it was made");
    settled("as it was made");

    type Deed = fn(&Host);
    let deeds: [(&str, Deed); 8] = [
        ("the host's rules are flushed", |host| flush(&host.namespace, "skep-mesh-")),
        ("those against strangers are flushed", |host| flush(&host.namespace, "skep-members-")),
        ("the VXLAN link is deleted", |host| delete(overlay(host).links(), "vx-")),
        ("where MACs are is forgotten", |host| forget(host, |entry| matches!(entry, Entry::Forward { .. }))),
        ("whose addresses are which is forgotten", |host| {
            forget(host, |entry| matches!(entry, Entry::Neighbour { .. }));
        }),
        ("the host's leg is deleted", |host| delete(host.namespace.links(), "ing-")),
        ("all ports of the bridge are deleted", |host| delete(overlay(host).links(), "ep-")),
        ("the bridge is deleted", |host| delete(overlay(host).links(), "br0")),
    ];
    for (what, deed) in deeds {
        for host in [&a, &b] {
            deed(host);
            let report = world.repair(host);
            assert_eq!(report.failures, Vec::<String>::new(), "{what}");
            assert!(report.changes > 0, "{what}");
        }
        works(what);
        settled(what);
    }
}
