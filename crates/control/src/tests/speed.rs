//! Sizes at which a quadratic would show. Not a benchmark: the bound is far above what it takes.

use std::time::Instant;

use super::*;

#[test]
fn thousands_of_tasks_are_placed_in_one_pass() {
    let mut world = World::new(100);
    world.settle();
    let web = world.create("web", |s| replicas(s, 3000));
    let started = Instant::now();
    world.lead();
    let took = started.elapsed();
    assert!(world.tasks(&web).iter().all(|t| t.status.state == TaskState::Assigned));
    assert!(took < Duration::from_secs(20), "{took:?}");
    eprintln!("3000 tasks on 100 nodes: {took:?}");
}
