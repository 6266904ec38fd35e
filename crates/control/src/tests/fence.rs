//! `skep.stop-after`: one instance, never two, whatever happens to its host meanwhile.

use std::time::Duration;

use skep_model::node::Availability;
use skep_model::task::{Placement, TaskState};
use skep_model::{NodeId, ServiceId, Timestamp};
use skep_store::Change;

use super::{World, node_id, replicas};
use crate::membership;

const STOP_AFTER: Duration = Duration::from_secs(5);

fn single(world: &mut World) -> (ServiceId, NodeId) {
    let db = world.create("db", |s| {
        s.labels.insert("skep.stop-after".into(), "5s".into());
    });
    world.settle();
    let node = world.running(&db)[0].node_id.clone().unwrap();
    (db, node)
}

fn cut_off(world: &mut World, node: &NodeId) {
    world.hosts.get_mut(node).unwrap().up = false;
    let down = membership::down(world.view(), node, "heartbeat failure", world.now).unwrap();
    world.apply(vec![down]);
    world.settle();
}

/// Lets ten seconds pass. The host that is cut off runs its task as long as it may; afterwards one runs elsewhere.
#[track_caller]
fn never_two(world: &mut World, db: &ServiceId, cut_off: &NodeId) {
    let (began, step) = (world.now, Duration::from_millis(100));
    while world.now < began.plus(STOP_AFTER * 2) {
        if world.now >= began.plus(STOP_AFTER) {
            world.hosts.get_mut(cut_off).unwrap().running.clear();
        }
        assert!(world.containers() <= 1, "two run after {:?}", world.now.since(began));
        world.pass(step);
    }
    let running = world.running(db);
    assert_eq!((running.len(), world.containers()), (1, 1));
    assert_ne!(running[0].node_id.as_ref(), Some(cut_off));
}

#[test]
fn what_takes_the_place_of_a_single_instance_waits_until_that_must_be_dead() {
    let mut world = World::new(2);
    let (db, node) = single(&mut world);
    cut_off(&mut world, &node);
    let made: Vec<_> = world.tasks(&db).into_iter().filter(|t| t.node_id.as_ref() != Some(&node)).collect();
    assert_eq!((made.len(), made[0].status.state), (1, TaskState::Ready), "it is made ready meanwhile");
    never_two(&mut world, &db, &node);
}

#[test]
fn without_the_label_it_does_not_wait() {
    let mut world = World::new(2);
    let db = world.create("db", |_| {});
    world.settle();
    let node = world.running(&db)[0].node_id.clone().unwrap();
    cut_off(&mut world, &node);
    assert_eq!(world.containers(), 2);
}

fn another_clock(world: &mut World, shows: Timestamp) {
    (world.now, world.steady_since, world.forgetful) = (shows, shows, true);
}

#[test]
fn nothing_that_is_done_meanwhile_makes_two_of_one() {
    type Deed = fn(&mut World, &ServiceId, &NodeId);
    let deeds: [(&str, Deed); 7] = [
        ("the node is removed", |world, _, node| world.apply(vec![Change::RemoveNode { node_id: node.clone() }])),
        ("the service is scaled away and back", |world, db, _| {
            world.update(db, |s| replicas(s, 0));
            world.settle();
            world.update(db, |s| replicas(s, 1));
        }),
        ("it is updated", |world, db, _| world.update(db, |s| s.task.force_update += 1)),
        ("the label is taken away", |world, db, _| world.update(db, |s| s.labels.clear())),
        ("another leads", |world, _, _| world.forgetful = true),
        ("another leads, whose clock is ahead", |world, _, _| another_clock(world, world.now.plus(STOP_AFTER * 10))),
        ("another leads, whose clock is behind", |world, _, _| {
            another_clock(world, Timestamp(world.now.0 - 10 * i64::try_from(STOP_AFTER.as_nanos()).unwrap()));
        }),
    ];
    for (what, deed) in deeds {
        println!("{what}");
        let mut world = World::new(2);
        let (db, node) = single(&mut world);
        cut_off(&mut world, &node);
        deed(&mut world, &db, &node);
        never_two(&mut world, &db, &node);
        // And the other way round: it is on its way out already when its host is lost.
        println!("{what}, before");
        let mut world = World::new(2);
        let (db, node) = single(&mut world);
        world.hosts.get_mut(&node).unwrap().up = false;
        deed(&mut world, &db, &node);
        world.settle();
        if world.view().node(&node).is_some() {
            cut_off(&mut world, &node);
        }
        never_two(&mut world, &db, &node);
    }
}

#[test]
fn what_must_leave_a_node_that_does_not_fit_any_more_is_waited_for() {
    let mut world = World::new(2);
    let label = |world: &mut World, node: &NodeId, value: &str| {
        let mut spec = world.view().node(node).unwrap().spec.clone();
        spec.labels.insert("disk".into(), value.into());
        world.apply(vec![Change::SetNodeSpec { node_id: node.clone(), spec }]);
    };
    for name in ["n1", "n2"] {
        label(&mut world, &node_id(name), "fast");
    }
    let db = world.create("db", |s| {
        s.labels.insert("skep.stop-after".into(), "5s".into());
        s.task.placement =
            Some(Placement { constraints: vec!["node.labels.disk==fast".into()], ..Placement::default() });
    });
    world.settle();
    let node = world.running(&db)[0].node_id.clone().unwrap();
    // It stops slowly, and then its host is lost.
    world.hosts.get_mut(&node).unwrap().up = false;
    label(&mut world, &node, "slow");
    world.pass(Duration::from_secs(8));
    assert_eq!(world.containers(), 1);
    cut_off(&mut world, &node);
    never_two(&mut world, &db, &node);
}

#[test]
fn what_waits_and_is_displaced_itself_hands_on_what_it_waited_for() {
    let mut world = World::new(3);
    let (db, node) = single(&mut world);
    cut_off(&mut world, &node);
    let waiting = world.tasks(&db).into_iter().find(|t| t.status.state == TaskState::Ready).unwrap();
    world.availability(waiting.node_id.unwrap().as_str(), Availability::Drain);
    // The one that is displaced is the later to be surely gone, until it says so.
    never_two(&mut world, &db, &node);
}

#[test]
fn a_host_that_is_back_says_whether_it_runs() {
    let mut world = World::new(2);
    let (db, node) = single(&mut world);
    cut_off(&mut world, &node);
    world.come_up(&node.to_string());
    world.settle();
    let running = world.running(&db);
    assert_eq!((running.len(), world.containers()), (1, 1), "stopped there, and started here, at once");
    assert_ne!(running[0].node_id, Some(node_id(&node.to_string())));
}
