//! Thousands of swaps under load: no connection may fail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::world::*;
use crate::ingress::rules::SourceMode;

const CONNECTS: usize = 4000;

#[test]
fn no_connection_fails_while_backends_are_swapped() {
    let world = World::new();
    let a = world.host(1, SourceMode::Preserve);
    let with = |backends: &[u8]| {
        let mut plan = plan(&[&a], 0, false);
        overlay_of(&mut plan).balancers = [(on_overlay(2), backends.iter().map(|b| on_overlay(*b)).collect())].into();
        plan
    };
    let layouts = [with(&[11, 12, 13]), with(&[12, 13]), with(&[13, 11, 12, 13]), with(&[11])];
    world.apply(&a, &layouts[0]);
    let tasks = [11, 12, 13].map(|last| world.task(&a, last));
    let client = world.task(&a, 20);
    let _servers: Vec<_> = tasks.iter().map(|task| Server::start(&task.namespace, 80, "task")).collect();
    let done = AtomicBool::new(false);
    let slowest = std::sync::Mutex::new(Duration::ZERO);
    let failures = AtomicUsize::new(0);
    let swaps = std::thread::scope(|scope| {
        let namespace = &client.namespace;
        let connector = scope.spawn(|| {
            namespace
                .run(|| {
                    for _ in 0..CONNECTS {
                        let start = Instant::now();
                        let address = std::net::SocketAddr::from((on_overlay(2), 80));
                        // Waits for the answer, so that no server's queue of connections overflows.
                        let answer = std::net::TcpStream::connect_timeout(&address, PATIENCE)
                            .and_then(|mut stream| read_line(&mut stream));
                        if answer.is_err() {
                            failures.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        let mut slowest = slowest.lock().unwrap();
                        *slowest = start.elapsed().max(*slowest);
                    }
                })
                .unwrap();
            done.store(true, Ordering::Relaxed);
        });
        let mut swaps = 0;
        while !done.load(Ordering::Relaxed) {
            world.apply(&a, &layouts[swaps % layouts.len()]);
            swaps += 1;
        }
        connector.join().unwrap();
        swaps
    });
    let slowest = *slowest.lock().unwrap();
    eprintln!("{CONNECTS} connections during {swaps} swaps, the slowest took {slowest:?}");
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    // A lost first packet is sent again after a second: that would be a failure too.
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
}
