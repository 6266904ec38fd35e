//! Thousands of swaps under load: no connection may fail.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skep_model::plan::{Backend, MeshPort};
use skep_model::service::Protocol;

use super::world::*;
use crate::ingress::rules::SourceMode;
use crate::link::Namespace;

const CONNECTS: usize = 4000;

/// Connects again and again from `namespace` to `address` while `swap` runs; returns the number of swaps.
fn hammer(namespace: &Namespace, address: (Ipv4Addr, u16), mut swap: impl FnMut(usize)) -> usize {
    let done = AtomicBool::new(false);
    let connect = || {
        let mut slowest = Duration::ZERO;
        for _ in 0..CONNECTS {
            let start = Instant::now();
            // Waits for the answer, so that no server's queue of connections overflows.
            TcpStream::connect_timeout(&address.into(), PATIENCE).and_then(|mut stream| read_line(&mut stream))?;
            slowest = start.elapsed().max(slowest);
        }
        Ok(slowest)
    };
    let (swaps, slowest) = std::thread::scope(|scope| {
        let connector = scope.spawn(|| {
            let result: std::io::Result<Duration> = namespace.run(connect).unwrap();
            done.store(true, Ordering::Relaxed);
            result
        });
        let mut swaps = 0;
        while !done.load(Ordering::Relaxed) {
            swap(swaps);
            swaps += 1;
        }
        (swaps, connector.join().unwrap())
    });
    let slowest = slowest.unwrap();
    eprintln!("{CONNECTS} connections during {swaps} swaps, the slowest took {slowest:?}");
    // A lost first packet is sent again after a second: that would be a failure too.
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
    swaps
}

#[test]
fn no_connection_fails_while_backends_are_swapped() {
    let world = World::new();
    let a = world.host(1, SourceMode::Preserve);
    let with = |backends: &[u8]| {
        let mut plan = plan(&[&a], 0, false);
        overlay_of(&mut plan).balancers =
            [(on_overlay(2), backends.iter().map(|b| on_overlay(*b)).collect::<Vec<_>>().into())].into();
        plan
    };
    let layouts =
        [with(&[11, 12, 13]), with(&[12, 13]), with(&[13, 11, 12, 13]), with(&[11]), with(&[11, 12, 13, 11, 12])];
    world.apply(&a, &layouts[0]);
    let tasks = [11, 12, 13].map(|last| world.task(&a, last));
    let client = world.task(&a, 20);
    let _servers: Vec<_> = tasks.iter().map(|task| Server::start(&task.namespace, 80, "task")).collect();
    hammer(&client.namespace, (on_overlay(2), 80), |round| {
        world.block_on(a.dataplane.apply(&Arc::new(layouts[round % layouts.len()].clone())));
    });
}

#[test]
fn no_connection_through_the_mesh_fails_while_backends_are_swapped() {
    let world = World::new();
    let a = world.host(1, SourceMode::Preserve);
    let outside = world.outside(9);
    let with = |backends: &[u8]| {
        let mut plan = plan(&[&a], 0, true);
        let backend = |last: &u8| Backend { address: on_overlay(*last), port: 80 };
        let ring = backends.iter().map(backend).collect::<Vec<_>>().into();
        let port = MeshPort { ring, ..MeshPort::default() };
        plan.ingress.as_mut().unwrap().ports = [((Protocol::Tcp, 8080), port)].into();
        plan
    };
    let layouts =
        [with(&[11, 12, 13]), with(&[12, 13]), with(&[13, 11, 12, 13]), with(&[11]), with(&[11, 12, 13, 11, 12])];
    world.apply(&a, &layouts[0]);
    let tasks = [11, 12, 13].map(|last| world.task(&a, last));
    let _servers: Vec<_> = tasks.iter().map(|task| Server::start(&task.namespace, 80, "task")).collect();
    hammer(&outside, (a.underlay, 8080), |round| {
        world.block_on(a.dataplane.apply(&Arc::new(layouts[round % layouts.len()].clone())));
    });
}

#[test]
fn no_connection_fails_while_daemons_are_restarted() {
    let world = World::new();
    let a = world.host(1, SourceMode::Preserve);
    let mut plan = plan(&[&a], 0, true);
    overlay_of(&mut plan).balancers = [(on_overlay(2), vec![on_overlay(11), on_overlay(12)].into())].into();
    world.apply(&a, &plan);
    let tasks = [11, 12].map(|last| world.task(&a, last));
    let client = world.task(&a, 20);
    let _servers: Vec<_> = tasks.iter().map(|task| Server::start(&task.namespace, 80, "task")).collect();
    let mut host = Some(a);
    hammer(&client.namespace, (on_overlay(2), 80), |_| {
        let restarted = host.take().unwrap().restarted();
        world.apply(&restarted, &plan);
        for task in tasks.iter().chain([&client]) {
            world.connect(&restarted, task);
        }
        host = Some(restarted);
    });
}

#[test]
fn a_thousand_services_are_applied_and_one_is_changed() {
    let world = World::new();
    let a = world.host(1, SourceMode::Preserve);
    let mut plan = plan(&[&a], 0, true);
    world.apply(&a, &plan);
    let _task = world.task(&a, 11);
    let address = |third: u8, n: u16| Ipv4Addr::new(10, third, (n / 250) as u8, (n % 250) as u8);
    let backends: Vec<Ipv4Addr> = (1..=3).map(|n| address(9, n)).collect();
    let there = Ipv4Addr::new(192, 168, 50, 77);
    let overlay = overlay_of(&mut plan);
    overlay.balancers = (0..1000).map(|n| (address(8, n), backends.clone().into())).collect();
    overlay.remote = (0..3000).map(|n| (address(9, n), there)).collect();
    plan.ingress.as_mut().unwrap().ports = (0..1000)
        .map(|n| {
            let backends: Vec<_> = backends.iter().map(|address| Backend { address: *address, port: 80 }).collect();
            ((Protocol::Tcp, 20_000 + n), MeshPort { ring: backends.into(), ..MeshPort::default() })
        })
        .collect();
    let start = Instant::now();
    world.apply(&a, &plan);
    let all = start.elapsed();
    let start = Instant::now();
    assert_eq!(world.apply(&a, &plan).changes, 0);
    let none = start.elapsed();
    overlay_of(&mut plan).balancers.values_mut().next().unwrap().backends.pop();
    let start = Instant::now();
    // Places of the one that goes, taken away and given to the others.
    assert_eq!(world.apply(&a, &plan).changes, 2);
    let one = start.elapsed();
    eprintln!("1000 services, 1000 ports, 3000 endpoints: {all:?}; again: {none:?}; one backend less: {one:?}");
}
