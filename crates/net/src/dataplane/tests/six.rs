//! Overlays with IPv6: the same as without, by the addresses that go with the others.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr};

use skep_model::Timestamp;
use skep_model::network::{DualStack, ENCRYPTED_OVERLAY_MTU, NetworkKeys};
use skep_model::plan::{Guard, HostPlan};
use skep_model::secret::SecretBytes;

use super::world::*;
use crate::dataplane::overlay_path;
use crate::ingress::rules::SourceMode;
use crate::link::{Entry, Namespace};

fn six(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, u16::from(last))
}

/// Two hosts, tasks 11 and 13 on the first, 12 on the second; VIP 2 is before the tasks given.
fn plans(a: &Host, b: &Host, backends: &[u8], sealed: bool) -> [HostPlan; 2] {
    let mut plans = [plan(&[a, b], 0, false), plan(&[a, b], 1, false)];
    overlay_of(&mut plans[0]).remote = [(on_overlay(12), b.underlay)].into();
    overlay_of(&mut plans[1]).remote = [11, 13].map(|last| (on_overlay(last), a.underlay)).into();
    for plan in &mut plans {
        let backends: Vec<_> = backends.iter().map(|last| on_overlay(*last)).collect();
        let overlay = overlay_of(plan);
        overlay.balancers = [(on_overlay(2), backends.into())].into();
        let subnet = overlay.subnet.unwrap().trunc();
        overlay.dual_stack = Some(DualStack { subnet, subnet6: "fd00:a::/64".parse().unwrap() });
        if sealed {
            let secret = |byte| SecretBytes(vec![byte; 32]);
            overlay.keys = Some(NetworkKeys::new(secret(1), secret(2), Timestamp::ZERO));
            overlay.mtu = ENCRYPTED_OVERLAY_MTU;
        }
    }
    plans
}

fn reach_each_other(sealed: bool) {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[11, 12, 13], sealed);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let tasks = [(world.task(&a, 11), 11), (world.task(&b, 12), 12), (world.task(&a, 13), 13)];
    let _servers: Vec<_> =
        tasks.iter().map(|(task, last)| Server::start6(&task.namespace, 80, &six(*last).to_string())).collect();
    for (from, client) in &tasks {
        for (_, to) in &tasks {
            let answer = ask(&from.namespace, six(*to), 80).unwrap();
            assert_eq!(answer, format!("{} {}", six(*to), six(*client)));
        }
        let mut count = BTreeMap::new();
        for _ in 0..9 {
            let answer = ask(&from.namespace, six(2), 80).unwrap();
            let (server, seen) = answer.split_once(' ').unwrap();
            assert_eq!(seen, six(*client).to_string());
            *count.entry(server.to_owned()).or_insert(0) += 1;
        }
        assert_eq!(count.into_values().collect::<Vec<_>>(), [3, 3, 3], "each takes the next");
        let answer = ask_udp_with(&udp_socket6(&from.namespace), six(2), 80).unwrap();
        assert!(answer.ends_with(&six(*client).to_string()), "{answer}");
    }
    assert_eq!(world.apply(&a, &plan_a).changes, 0);

    let [plan_a, _] = plans(&a, &b, &[], sealed);
    world.apply(&a, &plan_a);
    let client = &tasks[0].0.namespace;
    assert_eq!(ask(client, six(2), 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(ask_udp_with(&udp_socket6(client), six(2), 80).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn containers_reach_each_other_and_services_by_ipv6() {
    reach_each_other(false);
}

#[test]
fn so_they_do_on_an_encrypted_overlay() {
    reach_each_other(true);
}

#[test]
fn clients_by_ipv6_of_a_backend_that_is_gone_are_let_go() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[12], false);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let tasks = [world.task(&a, 11), world.task(&b, 12), world.task(&a, 13)];
    let _servers =
        [Server::start6(&tasks[1].namespace, 80, "second"), Server::start6(&tasks[2].namespace, 80, "third")];
    let client = &tasks[0].namespace;
    let mut stream = open(client, six(2), 80).unwrap();
    assert!(read_line(&mut stream).unwrap().starts_with("second"));
    let socket = udp_socket6(client);
    assert!(ask_udp_with(&socket, six(2), 80).unwrap().starts_with("second"));

    // Draining: the connection stays; the next datagram goes elsewhere.
    let [plan_a, _] = plans(&a, &b, &[13], false);
    world.apply(&a, &plan_a);
    assert!(ask_udp_with(&socket, six(2), 80).unwrap().starts_with("third"));
    assert!(stream.write(b"x").is_ok());
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);

    // Gone: what is sent next is answered with a reset.
    let [mut plan_a, _] = plans(&a, &b, &[13], false);
    overlay_of(&mut plan_a).remote.clear();
    world.apply(&a, &plan_a);
    stream.write_all(b"y").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_new_daemon_adopts_an_overlay_with_ipv6_and_mends_it() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[12], false);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let (client, task) = (world.task(&a, 11), world.task(&b, 12));
    let _server = Server::start6(&task.namespace, 80, "task");
    let mut stream = open(&client.namespace, six(2), 80).unwrap();
    read_line(&mut stream).unwrap();

    let a = a.restarted();
    assert_eq!(world.apply(&a, &plan_a).changes, ADOPTED);
    world.connect(&a, &client);
    assert_eq!(world.apply(&a, &plan_a).changes, 0);
    stream.write_all(b"x").unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "the connection lives");

    let overlay = Namespace::open(&overlay_path(&a.config.exec_root, &network())).unwrap();
    let link = overlay.links().list_prefix("vx-").unwrap()[0].index;
    let of_six = |entry: &Entry| matches!(entry, Entry::Neighbour { address: IpAddr::V6(_), .. });
    let entries: Vec<_> = overlay.links().entries(link).unwrap().into_iter().filter(of_six).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    overlay.links().delete_entries(&entries).unwrap();
    let report = world.repair(&a);
    assert!(report.changes > 0 && report.failures.is_empty(), "{report:?}");
    assert_eq!(ask(&client.namespace, six(12), 80).unwrap(), format!("task {}", six(11)));
    assert_eq!(world.repair(&a).changes, 0);
}

#[test]
fn who_may_not_connect_may_not_by_ipv6_either() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let mut plans = plans(&a, &b, &[12], false);
    for plan in &mut plans {
        let guard = Guard { tasks: [on_overlay(12)].into(), clients: [on_overlay(13)].into(), outside: false };
        overlay_of(plan).guards = vec![guard];
    }
    world.apply(&a, &plans[0]);
    world.apply(&b, &plans[1]);
    let (denied, guarded, allowed) = (world.task(&a, 11), world.task(&b, 12), world.task(&a, 13));
    let _servers = [Server::start6(&guarded.namespace, 80, "guarded"), Server::start6(&denied.namespace, 80, "open")];
    for to in [six(12), six(2)] {
        assert!(ask(&allowed.namespace, to, 80).unwrap().starts_with("guarded"));
        assert_eq!(ask(&denied.namespace, to, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(ask(&guarded.namespace, six(11), 80).unwrap().starts_with("open"), "it may still ask");

    // Where the client's host does not refuse, the task's does.
    overlay_of(&mut plans[0]).guards.clear();
    world.apply(&a, &plans[0]);
    assert_eq!(ask(&denied.namespace, six(12), 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(ask(&allowed.namespace, six(12), 80).unwrap().starts_with("guarded"));
}
