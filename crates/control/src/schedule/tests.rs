//! Constraints and placement, as small tables.

use skep_model::node::Availability;
use skep_model::service::{EndpointSpec, Mode, PortConfig, PublishMode, ServiceSpec};
use skep_model::task::{Placement, Platform};

use super::constraint;
use crate::tests::{World, node_id, replicas};

fn label(world: &mut World, node: &str, key: &str, value: &str) {
    let id = node_id(node);
    let mut spec = world.view().node(&id).unwrap().spec.clone();
    spec.labels.insert(key.into(), value.into());
    world.apply(vec![skep_store::Change::SetNodeSpec { node_id: id, spec }]);
}

#[track_caller]
fn check(constraint: &str, expected: &str) {
    let mut world = World::new(3);
    label(&mut world, "n1", "zone", "East");
    let all = world.create("all", |s| {
        s.mode = Mode::Global;
        s.task.placement = Some(Placement { constraints: vec![constraint.into()], ..Placement::default() });
    });
    world.settle();
    let nodes: Vec<_> = world.running(&all).iter().map(|t| t.node_id.clone().unwrap().to_string()).collect();
    assert_eq!(nodes.join(" "), expected, "{constraint}");
}

#[test]
fn constraints() {
    check("node.id==n2", "n2");
    check("node.hostname != n2", "n1 n3");
    check("NODE.HOSTNAME == N3", "n3");
    check("node.role == worker", "n1 n2 n3");
    check("node.role==manager", "");
    check("node.ip == 192.168.0.2", "n2");
    check("node.ip == 192.168.0.0/31", "n1");
    check("node.ip != 192.168.0.0/31", "n2 n3");
    check("node.ip == nonsense", "");
    check("node.platform.os == linux", "n1 n2 n3");
    check("node.platform.arch == amd64", "n1 n2 n3");
    check("node.labels.zone == east", "n1");
    check("node.labels.zone != east", "n2 n3");
    check("node.labels.Zone == east", "");
    check("engine.labels.zone == east", "");
    check("node.nothing == x", "");
}

#[test]
fn what_is_no_constraint_is_refused() {
    for bad in ["", "node.id", "node.id = x", "== x", "node.id ==", "no de == x"] {
        assert!(constraint::parse(bad).is_err(), "{bad:?}");
    }
}

#[track_caller]
fn waits(edit: impl Fn(&mut ServiceSpec), prepare: impl Fn(&mut World), expected: &str) {
    let mut world = World::new(3);
    prepare(&mut world);
    let web = world.create("web", |s| edit(s));
    world.settle();
    let waiting = world.tasks(&web).into_iter().find(|t| t.node_id.is_none()).expect("one waits");
    assert_eq!((waiting.status.message.as_str(), waiting.status.error.as_str()), ("pending task scheduling", expected));
}

#[test]
fn why_there_is_no_node_is_said_in_swarmkits_words() {
    let place = |placement: Placement| move |s: &mut ServiceSpec| s.task.placement = Some(placement.clone());
    let constraint = |text: &str| Placement { constraints: vec![text.into()], ..Placement::default() };
    waits(
        place(constraint("node.labels.gpu == yes")),
        |_| {},
        "no suitable node (scheduling constraints not satisfied on 3 nodes)",
    );
    waits(
        place(constraint("node.labels.gpu == yes")),
        |world| world.availability("n1", Availability::Drain),
        "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)",
    );
    let platform = Platform { os: "windows".into(), architecture: String::new() };
    waits(
        place(Placement { platforms: vec![platform], ..Placement::default() }),
        |_| {},
        "no suitable node (unsupported platform on 3 nodes)",
    );
    waits(
        |s| {
            replicas(s, 4);
            s.task.placement = Some(Placement { max_replicas: 1, ..Placement::default() });
        },
        |_| {},
        "no suitable node (max replicas per node limit exceed)",
    );
    let host_port = |s: &mut ServiceSpec| {
        replicas(s, 4);
        let port = PortConfig { target_port: 80, published_port: 80, mode: PublishMode::Host, ..PortConfig::default() };
        s.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
    };
    waits(host_port, |_| {}, "no suitable node (host-mode port already in use on 3 nodes)");
}

#[test]
fn without_a_node_there_is_little_to_say() {
    let mut world = World::new(0);
    let web = world.create("web", |_| {});
    world.settle();
    assert_eq!(world.tasks(&web)[0].status.error, "no suitable node");
}

#[test]
fn tasks_are_spread_by_service_then_by_total() {
    let mut world = World::new(3);
    let one = world.create("one", |_| {});
    world.settle();
    assert_eq!(world.spread(&one), "n1:1");
    let two = world.create("two", |s| replicas(s, 2));
    world.settle();
    assert_eq!(world.spread(&two), "n2:1 n3:1");
    let three = world.create("three", |s| replicas(s, 7));
    world.settle();
    assert_eq!(world.spread(&three), "n1:3 n2:2 n3:2");
}

#[test]
fn preferences_spread_over_the_values_of_a_label() {
    let mut world = World::new(4);
    for (node, zone) in [("n1", "a"), ("n2", "a"), ("n3", "a"), ("n4", "b")] {
        label(&mut world, node, "zone", zone);
    }
    let web = world.create("web", |s| {
        replicas(s, 6);
        s.task.placement = Some(Placement { preferences: vec!["node.labels.zone".into()], ..Placement::default() });
    });
    world.settle();
    assert_eq!(world.spread(&web), "n1:1 n2:1 n3:1 n4:3");
}
