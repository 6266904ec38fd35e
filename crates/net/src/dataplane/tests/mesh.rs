//! Published ports on every host, from outside and from the hosts themselves.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use skep_model::plan::{Backend, HostPlan, MeshPort, Ring};
use skep_model::service::Protocol;

use super::world::*;
use crate::conntrack::Conntrack;
use crate::ingress::rules::SourceMode;

/// Port 8080 of three hosts, the tasks on the second and third.
fn plans(hosts: &[&Host], backends: &[u8]) -> Vec<HostPlan> {
    let places = [(21, 1), (31, 2)];
    (0..hosts.len())
        .map(|me| {
            let mut plan = plan(hosts, me, true);
            for (last, place) in places {
                if place != me {
                    overlay_of(&mut plan).remote.insert(on_overlay(last), hosts[place].underlay);
                }
            }
            let backends: Vec<Backend> =
                backends.iter().map(|last| Backend { address: on_overlay(*last), port: 80 }).collect();
            let port = MeshPort { ring: backends.into(), ..MeshPort::default() };
            plan.ingress.as_mut().unwrap().ports =
                [((Protocol::Tcp, 8080), port.clone()), ((Protocol::Udp, 8080), port)].into();
            plan
        })
        .collect()
}

/// Three hosts; the task itself is yet to come.
fn with_a_task_on_the_third(world: &World) -> Vec<Host> {
    let hosts: Vec<Host> = (1..=3).map(|last| world.host(last, SourceMode::Preserve)).collect();
    for (host, plan) in hosts.iter().zip(plans(&hosts.iter().collect::<Vec<_>>(), &[31])) {
        world.apply(host, &plan);
    }
    hosts
}

fn check(mode: SourceMode) {
    let world = World::new();
    let hosts: Vec<Host> = (1..=3).map(|last| world.host(last, mode)).collect();
    let hosts: Vec<&Host> = hosts.iter().collect();
    let outside = world.outside(9);
    for (host, plan) in hosts.iter().zip(plans(&hosts, &[21, 31])) {
        world.apply(host, &plan);
    }
    let tasks = [world.task(hosts[1], 21), world.task(hosts[2], 31)];
    let _servers: Vec<_> =
        tasks.iter().map(|task| Server::start(&task.namespace, 80, &task.address.to_string())).collect();
    let everybody: BTreeSet<String> = tasks.iter().map(|task| task.address.to_string()).collect();

    for (index, host) in hosts.iter().enumerate() {
        let leg = on_overlay(240 + u8::try_from(index).unwrap()).to_string();
        let client = if mode == SourceMode::Preserve { "192.168.50.9" } else { &leg };
        let mut answered = BTreeSet::new();
        for _ in 0..4 {
            for answer in [ask(&outside, host.underlay, 8080), ask_udp(&outside, host.underlay, 8080)] {
                let answer = answer.unwrap_or_else(|error| panic!("outside to {}: {error}", host.underlay));
                let (server, seen) = answer.split_once(' ').unwrap();
                assert_eq!(seen, client);
                answered.insert(server.to_owned());
            }
        }
        assert_eq!(answered, everybody);
        for address in [Ipv4Addr::LOCALHOST, host.underlay] {
            for _ in 0..2 {
                assert!(ask(&host.namespace, address, 8080).unwrap().ends_with(&leg));
                assert!(ask_udp(&host.namespace, address, 8080).unwrap().ends_with(&leg));
            }
        }
    }

    for (host, plan) in hosts.iter().zip(plans(&hosts, &[])) {
        world.apply(host, &plan);
        assert_eq!(world.apply(host, &plan).changes, 0);
        for (from, address) in
            [(&outside, host.underlay), (&host.namespace, host.underlay), (&host.namespace, Ipv4Addr::LOCALHOST)]
        {
            assert_eq!(ask(from, address, 8080).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(ask_udp(from, address, 8080).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    }
}

#[test]
fn the_mesh_keeps_the_clients_address() {
    check(SourceMode::Preserve);
}

#[test]
fn the_mesh_works_without_policy_routing() {
    check(SourceMode::Masquerade);
}

#[test]
fn of_two_ports_one_can_hide_the_clients_address() {
    let world = World::new();
    let hosts = [world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve)];
    let hosts: Vec<&Host> = hosts.iter().collect();
    let outside = world.outside(9);
    let mut plans: Vec<HostPlan> = (0..2).map(|me| plan(&hosts, me, true)).collect();
    overlay_of(&mut plans[0]).remote.insert(on_overlay(21), hosts[1].underlay);
    let task = |port| Ring::from(vec![Backend { address: on_overlay(21), port }]);
    let told = |plans: &mut [HostPlan], masquerade| {
        for (host, plan) in hosts.iter().zip(plans) {
            let port = |masquerade| MeshPort { ring: task(80), masquerade, ..MeshPort::default() };
            plan.ingress.as_mut().unwrap().ports = [
                ((Protocol::Tcp, 8080), port(masquerade)),
                ((Protocol::Udp, 8080), port(masquerade)),
                ((Protocol::Tcp, 8081), port(false)),
            ]
            .into();
            world.apply(host, plan);
        }
    };
    told(&mut plans, true);
    let task = world.task(hosts[1], 21);
    let _server = Server::start(&task.namespace, 80, "task");
    for (host, leg) in hosts.iter().zip([240, 241]) {
        let leg = format!("task {}", on_overlay(leg));
        assert_eq!(ask(&outside, host.underlay, 8080).unwrap(), leg);
        assert_eq!(ask_udp(&outside, host.underlay, 8080).unwrap(), leg);
        assert_eq!(ask(&outside, host.underlay, 8081).unwrap(), "task 192.168.50.9");
    }
    told(&mut plans, false);
    assert_eq!(ask(&outside, hosts[0].underlay, 8080).unwrap(), "task 192.168.50.9");
}

#[test]
fn by_client_every_host_gives_the_same_task() {
    let world = World::new();
    let hosts: Vec<Host> = (1..=3).map(|last| world.host(last, SourceMode::Preserve)).collect();
    let hosts: Vec<&Host> = hosts.iter().collect();
    let slots: Vec<u8> = (0..64).map(|slot| if slot % 2 == 0 { 21 } else { 31 }).collect();
    for (host, mut plan) in hosts.iter().zip(plans(&hosts, &slots)) {
        plan.ingress.as_mut().unwrap().ports.values_mut().for_each(|port| port.ring.by_client = true);
        world.apply(host, &plan);
    }
    let tasks = [world.task(hosts[1], 21), world.task(hosts[2], 31)];
    let _servers: Vec<_> =
        tasks.iter().map(|task| Server::start(&task.namespace, 80, &task.address.to_string())).collect();
    let answered: BTreeSet<String> = (9..=20)
        .map(|last| {
            let client = world.outside(last);
            let mut answers = BTreeSet::new();
            for host in &hosts {
                for _ in 0..2 {
                    let answer = ask(&client, host.underlay, 8080).unwrap();
                    answers.insert(answer.split_once(' ').unwrap().0.to_owned());
                }
            }
            assert_eq!(answers.len(), 1, "client {last}: {answers:?}");
            answers.into_iter().next().unwrap()
        })
        .collect();
    assert_eq!(answered.len(), 2, "of twelve clients some get either");
}

#[test]
fn a_client_port_used_with_several_hosts_is_no_collision() {
    let world = World::new();
    let hosts = with_a_task_on_the_third(&world);
    let (outside, task) = (world.outside(9), world.task(&hosts[2], 31));
    let server = Server::start(&task.namespace, 80, "task");
    let socket = udp_socket(&outside);
    for _ in 0..3 {
        for host in &hosts {
            assert_eq!(ask_udp_with(&socket, host.underlay, 8080).unwrap(), "task 192.168.50.9");
        }
    }
    drop(server);

    // All at the same time. The first keeps its port; to the task the others have another.
    let listener = task.namespace.run(|| TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
    let mut pairs = Vec::new();
    for host in &hosts {
        let client = open_from(&outside, 40_000, host.underlay, 8080);
        pairs.push((client, listener.accept().unwrap()));
    }
    let seen: Vec<SocketAddr> = pairs.iter().map(|(_, (_, peer))| *peer).collect();
    assert!(seen.iter().all(|peer| peer.ip() == Ipv4Addr::new(192, 168, 50, 9)), "{seen:?}");
    assert_eq!(seen[0].port(), 40_000);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 3, "{seen:?}");
    for (number, (client, (server, _))) in (b'0'..).zip(&mut pairs) {
        let mut byte = [0];
        client.write_all(&[number]).unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(&byte).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number]);
    }
}

#[test]
fn datagrams_of_a_client_follow_the_backends() {
    let world = World::new();
    let hosts: Vec<Host> = (1..=3).map(|last| world.host(last, SourceMode::Preserve)).collect();
    let hosts: Vec<&Host> = hosts.iter().collect();
    let outside = world.outside(9);
    let tell = |backends: &[u8]| {
        for (host, plan) in hosts.iter().zip(plans(&hosts, backends)) {
            world.apply(host, &plan);
        }
    };
    tell(&[21]);
    let tasks = [world.task(hosts[1], 21), world.task(hosts[2], 31)];
    let _servers: Vec<_> =
        tasks.iter().map(|task| Server::start(&task.namespace, 80, &task.address.to_string())).collect();
    let socket = udp_socket(&outside);
    for (backends, answers) in [([21], 21), ([31], 31), ([21], 21)] {
        tell(&backends);
        let expected = format!("{} 192.168.50.9", on_overlay(answers));
        assert_eq!(ask_udp_with(&socket, hosts[0].underlay, 8080).unwrap(), expected);
    }
}

#[test]
fn a_task_cannot_reach_the_hosts_loopback_through_the_leg() {
    let world = World::new();
    let host = world.host(1, SourceMode::Preserve);
    let plan = plan(&[&host], 0, true);
    world.apply(&host, &plan);
    let task = world.task(&host, 21);
    let _secret = Server::start(&host.namespace, 7000, "secret");
    assert!(ask(&host.namespace, Ipv4Addr::LOCALHOST, 7000).is_ok());
    let socket = udp_socket(&task.namespace);
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(ask_udp_with(&socket, on_overlay(240), 7000).is_err());
}

#[test]
fn published_ports_are_held_and_one_that_is_taken_is_told() {
    let world = World::new();
    let host = world.host(1, SourceMode::Preserve);
    let port_taken =
        |port: u16| host.namespace.run(|| std::net::TcpListener::bind(("0.0.0.0", port)).is_err()).unwrap();
    let other = host.namespace.run(|| std::net::TcpListener::bind("0.0.0.0:8081").unwrap()).unwrap();
    let mut plan = plan(&[&host], 0, true);
    plan.ingress.as_mut().unwrap().ports = [8080, 8081].map(|port| ((Protocol::Tcp, port), MeshPort::default())).into();
    let report = world.block_on(host.dataplane.apply(&Arc::new(plan.clone())));
    assert_eq!(report.failures.len(), 1);
    assert!(report.failures[0].starts_with("published port 8081/tcp could not be reserved"), "{:?}", report.failures);
    assert!(port_taken(8080));
    drop(other);
    assert_eq!(world.apply(&host, &plan).changes, 1);
    assert!(port_taken(8081));
    plan.ingress.as_mut().unwrap().ports.clear();
    world.apply(&host, &plan);
    assert!(!port_taken(8080));
}

#[test]
fn a_new_daemon_adopts_the_mesh_and_an_unwanted_one_goes() {
    let world = World::new();
    let host = world.host(1, SourceMode::Preserve);
    let outside = world.outside(9);
    let mut plan = plan(&[&host], 0, true);
    let backend = Backend { address: on_overlay(21), port: 80 };
    let port = MeshPort { ring: vec![backend].into(), ..MeshPort::default() };
    plan.ingress.as_mut().unwrap().ports = [((Protocol::Tcp, 8080), port)].into();
    world.apply(&host, &plan);
    let task = world.task(&host, 21);
    let _server = Server::start(&task.namespace, 80, "task");
    let mut stream = open(&outside, host.underlay, 8080).unwrap();
    assert_eq!(read_line(&mut stream).unwrap(), "task 192.168.50.9");

    let host = host.restarted();
    world.apply(&host, &plan);
    world.connect(&host, &task);
    assert_eq!(world.apply(&host, &plan).changes, 0);
    std::io::Write::write(&mut stream, b"x").unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(ask(&outside, host.underlay, 8080).unwrap(), "task 192.168.50.9");

    let host = host.restarted();
    world.apply(&host, &HostPlan::default());
    assert!(host.namespace.links().find("ing-ab12").unwrap().is_none());
    assert_eq!(ask(&outside, host.underlay, 8080).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn frames_between_hosts_take_no_place_in_their_tables_of_connections() {
    let world = World::new();
    let hosts = with_a_task_on_the_third(&world);
    let (outside, task) = (world.outside(9), world.task(&hosts[2], 31));
    let _server = Server::start(&task.namespace, 80, "31");
    ask(&outside, hosts[0].underlay, 8080).unwrap();
    let tracked = |host: usize| {
        let conntrack = Conntrack::open(hosts[host].namespace.fd()).unwrap();
        let between = [hosts[0].underlay, hosts[2].underlay].into();
        conntrack.forget(&between, |connection| connection.protocol == 17).unwrap()
    };
    assert_eq!([0, 2].map(tracked), [0, 0]);
    // Other datagrams do.
    udp_socket(&hosts[0].namespace).send_to(b"tracked", (hosts[2].underlay, 4790)).unwrap();
    assert_eq!([0, 2].map(tracked), [1, 1]);
}
