//! Containers of two hosts on one overlay, and what services' addresses lead to.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use skep_model::plan::Guard;

use super::world::*;
use crate::dataplane::overlay_path;
use crate::ingress::rules::SourceMode;

/// Two hosts, tasks 11 and 13 on the first, 12 on the second; VIP 2 is before the tasks given.
fn plans(a: &Host, b: &Host, backends: &[u8]) -> [skep_model::plan::HostPlan; 2] {
    let mut plans = [plan(&[a, b], 0, false), plan(&[a, b], 1, false)];
    overlay_of(&mut plans[0]).remote = [(on_overlay(12), b.underlay)].into();
    overlay_of(&mut plans[1]).remote = [11, 13].map(|last| (on_overlay(last), a.underlay)).into();
    for plan in &mut plans {
        let backends: Vec<_> = backends.iter().map(|last| on_overlay(*last)).collect();
        overlay_of(plan).balancers = [(on_overlay(2), backends.into())].into();
    }
    plans
}

#[test]
fn containers_reach_each_other_and_services_across_hosts() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[11, 12, 13]);
    assert!(world.apply(&a, &plan_a).changes > 0);
    world.apply(&b, &plan_b);
    let tasks = [world.task(&a, 11), world.task(&b, 12), world.task(&a, 13)];
    let _servers: Vec<_> =
        tasks.iter().map(|task| Server::start(&task.namespace, 80, &task.address.to_string())).collect();
    for from in &tasks {
        for to in &tasks {
            let expected = format!("{} {}", to.address, from.address);
            assert_eq!(ask(&from.namespace, to.address, 80).unwrap(), expected);
        }
    }

    // Each new connection takes the next; the task sees its client, itself included.
    for client in &tasks {
        let mut count = BTreeMap::new();
        for _ in 0..9 {
            let answer = ask(&client.namespace, on_overlay(2), 80).unwrap();
            let (server, seen) = answer.split_once(' ').unwrap();
            assert_eq!(seen, client.address.to_string());
            *count.entry(server.to_owned()).or_insert(0) += 1;
        }
        assert_eq!(count.into_values().collect::<Vec<_>>(), [3, 3, 3]);
        assert!(ask_udp(&client.namespace, on_overlay(2), 80).unwrap().ends_with(&client.address.to_string()));
    }

    // By client, each keeps the one that it got.
    let [mut plan_a, _] = plans(&a, &b, &[11, 12, 13]);
    overlay_of(&mut plan_a).balancers.values_mut().for_each(|ring| ring.by_client = true);
    world.apply(&a, &plan_a);
    let answers: std::collections::BTreeSet<_> =
        (0..6).map(|_| ask(&tasks[0].namespace, on_overlay(2), 80).unwrap()).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");

    // With nobody behind it a connection is refused at once.
    let [plan_a, plan_b] = plans(&a, &b, &[]);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    for client in &tasks {
        assert_eq!(ask(&client.namespace, on_overlay(2), 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // A datagram that is refused on its way out fails in `send` itself.
        assert_eq!(ask_udp(&client.namespace, on_overlay(2), 80).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}

#[test]
fn only_who_is_allowed_opens_connections_and_either_end_refuses_others() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    // 12 takes connections of 11 only; 13 is on the same host as 11.
    let guard = |clients: &[u8]| Guard {
        tasks: [on_overlay(12)].into(),
        clients: clients.iter().map(|last| on_overlay(*last)).collect(),
        outside: false,
    };
    let tell = |at_clients: &[Guard], at_task: &[Guard]| {
        let [mut plan_a, mut plan_b] = plans(&a, &b, &[12]);
        overlay_of(&mut plan_a).guards = at_clients.to_vec();
        overlay_of(&mut plan_b).guards = at_task.to_vec();
        world.apply(&a, &plan_a);
        world.apply(&b, &plan_b);
        assert_eq!(world.apply(&a, &plan_a).changes, 0);
    };
    tell(&[guard(&[11])], &[guard(&[11])]);
    let [friend, stranger] = [11, 13].map(|last| world.task(&a, last));
    let task = world.task(&b, 12);
    let _servers: Vec<_> =
        [&friend, &stranger, &task].map(|task| Server::start(&task.namespace, 80, &task.address.to_string())).into();
    let refused = |from: &Task| {
        for address in [on_overlay(12), on_overlay(2)] {
            assert_eq!(
                ask(&from.namespace, address, 80).unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{address}"
            );
            assert!(ask_udp(&from.namespace, address, 80).is_err(), "{address}");
        }
    };
    let admitted = |from: &Task| {
        for address in [on_overlay(12), on_overlay(2)] {
            assert!(ask(&from.namespace, address, 80).is_ok() && ask_udp(&from.namespace, address, 80).is_ok());
        }
    };
    admitted(&friend);
    refused(&stranger);
    assert!(ask(&task.namespace, task.address, 80).is_ok(), "itself");
    assert!(ask(&task.namespace, stranger.address, 80).is_ok(), "who may not be asked may ask");

    // Each end alone.
    tell(&[guard(&[11])], &[]);
    refused(&stranger);
    tell(&[], &[guard(&[11])]);
    refused(&stranger);
    admitted(&friend);

    // Who comes to be allowed is, and who is not any more loses what it had.
    tell(&[guard(&[13])], &[guard(&[13])]);
    admitted(&stranger);
    refused(&friend);
    let mut stream = open(&stranger.namespace, task.address, 80).unwrap();
    read_line(&mut stream).unwrap();
    tell(&[guard(&[])], &[guard(&[])]);
    refused(&stranger);
    std::io::Write::write_all(&mut stream, b"x").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    tell(&[], &[]);
    admitted(&friend);
}

#[test]
fn clients_of_a_backend_that_is_gone_are_let_go() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[12]);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let tasks = [world.task(&a, 11), world.task(&b, 12), world.task(&a, 13)];
    let _servers = [Server::start(&tasks[1].namespace, 80, "second"), Server::start(&tasks[2].namespace, 80, "third")];
    let client = &tasks[0].namespace;
    let mut stream = open(client, on_overlay(2), 80).unwrap();
    assert!(read_line(&mut stream).unwrap().starts_with("second"));
    let socket = udp_socket(client);
    assert!(ask_udp_with(&socket, on_overlay(2), 80).unwrap().starts_with("second"));

    // Draining: off the balancer, still there. The connection stays; the next datagram goes elsewhere.
    let [plan_a, _] = plans(&a, &b, &[13]);
    world.apply(&a, &plan_a);
    assert!(ask_udp_with(&socket, on_overlay(2), 80).unwrap().starts_with("third"));
    let probe = std::io::Write::write(&mut stream, b"x");
    assert!(probe.is_ok());
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);

    // Gone: what is sent next is answered with a reset instead of nothing.
    let [mut plan_a, _] = plans(&a, &b, &[13]);
    overlay_of(&mut plan_a).remote.clear();
    world.apply(&a, &plan_a);
    std::io::Write::write(&mut stream, b"y").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_task_that_moves_to_another_host_is_found_there() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[12]);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let client = world.task(&a, 11);
    let there = world.task(&b, 12);
    {
        let _server = Server::start(&there.namespace, 80, "there");
        assert!(ask(&client.namespace, on_overlay(12), 80).unwrap().starts_with("there"));
    }
    world.block_on(b.dataplane.forget(&there.id));
    let mut moved = plan_a;
    overlay_of(&mut moved).remote.clear();
    world.apply(&a, &moved);
    let here = world.task(&a, 12);
    let _server = Server::start(&here.namespace, 80, "here");
    assert!(ask(&client.namespace, on_overlay(12), 80).unwrap().starts_with("here"));
}

#[test]
fn applying_again_does_nothing_and_a_new_daemon_adopts_without_breaking_traffic() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan_a, plan_b] = plans(&a, &b, &[12]);
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let (client, task) = (world.task(&a, 11), world.task(&b, 12));
    let _server = Server::start(&task.namespace, 80, "task");
    assert_eq!(world.apply(&a, &plan_a).changes, 0);
    let mut stream = open(&client.namespace, on_overlay(2), 80).unwrap();
    read_line(&mut stream).unwrap();

    let stale = a.config.exec_root.join("netns/ov-stale");
    drop(crate::link::Namespace::create(&stale).unwrap());
    let file = overlay_path(&a.config.exec_root, &network());
    let inode = std::fs::metadata(&file).unwrap().ino();
    let restarted = a.restarted();
    // Only the stale namespace goes.
    assert_eq!(world.apply(&restarted, &plan_a).changes, ADOPTED + 1);
    world.connect(&restarted, &client);
    assert_eq!(world.apply(&restarted, &plan_a).changes, 0);
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode);
    assert!(!stale.exists());
    std::io::Write::write(&mut stream, b"x").unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(ask(&client.namespace, on_overlay(2), 80).unwrap(), "task 10.0.1.11");

    world.block_on(restarted.dataplane.disconnect(&client.id, &network())).unwrap();
    assert!(client.namespace.links().find("eth0").unwrap().is_none());
    world.apply(&restarted, &skep_model::plan::HostPlan::default());
    assert!(!file.exists());
    assert!(world.path().exists());
}
