//! Constraints and placement, as small tables.

use proptest::prelude::*;
use skep_model::generic::GenericResource;
use skep_model::node::Availability;
use skep_model::node::NodeDescription;
use skep_model::service::{EndpointSpec, Mode, PortConfig, PublishMode, ServiceSpec};
use skep_model::task::{Mount, Placement, Platform, ResourceRequirements, Resources, TaskState, VolumeOptions};

use skep_store::Change;

use super::assign;
use crate::tests::{World, node_id, replicas};
use std::time::Duration;

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

#[track_caller]
fn waits(edit: impl Fn(&mut ServiceSpec), prepare: impl Fn(&mut World), expected: &str) {
    let mut world = World::new(3);
    prepare(&mut world);
    let web = world.create("web", |s| edit(s));
    world.settle();
    if expected == "-" {
        assert_eq!(world.running(&web).len(), world.tasks(&web).len());
        return;
    }
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
    let plugin = |s: &mut ServiceSpec| {
        let driver = Some(("nfs".to_owned(), Default::default()));
        let volume = Some(VolumeOptions { driver, ..VolumeOptions::default() });
        s.task.container.mounts = vec![Mount { target: "/d".into(), volume, ..Mount::default() }];
    };
    waits(plugin, |_| {}, "no suitable node (missing plugin on 3 nodes)");
    waits(plugin, |world| describe(world, "n2", |d| d.plugins.push(("Volume".into(), "nfs:latest".into()))), "-");
    waits(reserve(9, &[]), |_| {}, "no suitable node (insufficient resources on 3 nodes)");
    waits(reserve(0, &[discrete("GPU", 1)]), |_| {}, "no suitable node (insufficient resources on 3 nodes)");
    waits(
        |s| {
            reserve(3, &[])(s);
            s.task.placement = Some(constraint("node.hostname == n1"));
            replicas(s, 2);
        },
        |world| world.availability("n3", Availability::Pause),
        "no suitable node (1 node not available for new tasks; insufficient resources on 1 node; scheduling constraints not satisfied on 1 node)",
    );
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

fn describe(world: &mut World, node: &str, edit: impl FnOnce(&mut NodeDescription)) {
    let id = node_id(node);
    let mut description = world.view().node(&id).unwrap().description.clone();
    edit(&mut description);
    world.apply(vec![skep_store::Change::SetNodeDescription { node_id: id, description: Box::new(description) }]);
}

fn discrete(kind: &str, value: i64) -> GenericResource {
    GenericResource::Discrete { kind: kind.into(), value }
}

/// So many CPUs (a node of these tests has four), and generic resources.
fn reserve(cpus: i64, generic: &[GenericResource]) -> impl Fn(&mut ServiceSpec) + use<> {
    let generic = generic.to_vec();
    move |s| {
        let reservations = Some(Resources { nano_cpus: cpus * 1_000_000_000, ..Resources::default() });
        s.task.resources =
            Some(ResourceRequirements { reservations, generic: generic.clone(), ..ResourceRequirements::default() });
    }
}

#[test]
fn preferences_within_preferences_spread_at_every_level() {
    let mut world = World::new(6);
    for (node, zone, rack) in
        [("n1", "a", "1"), ("n2", "a", "1"), ("n3", "a", "2"), ("n4", "b", "1"), ("n5", "b", "2"), ("n6", "b", "2")]
    {
        label(&mut world, node, "zone", zone);
        label(&mut world, node, "rack", rack);
    }
    // Not for the service, and counted all the same.
    let spread = |s: &mut ServiceSpec| {
        let preferences = vec!["node.labels.zone".into(), "NODE.LABELS.rack".into(), "no.such.thing".into()];
        s.task.placement = Some(Placement { preferences, ..Placement::default() });
    };
    let web = world.create("web", |s| {
        replicas(s, 8);
        spread(s);
    });
    world.settle();
    assert_eq!(world.spread(&web), "n1:1 n2:1 n3:2 n4:2 n5:1 n6:1");
    // A branch where nothing fits still has its weight: what is there is not balanced against it.
    world.availability("n3", Availability::Pause);
    world.update(&web, |s| replicas(s, 10));
    world.settle();
    assert_eq!(world.spread(&web), "n1:2 n2:1 n3:2 n4:3 n5:1 n6:1");
}

#[test]
fn generic_resources_are_given_once_and_come_back() {
    let mut world = World::new(2);
    let named = |value: &str| GenericResource::Named { kind: "GPU".into(), value: value.into() };
    describe(&mut world, "n1", |d| d.generic = vec![named("a"), named("b"), discrete("SSD", 1)]);
    describe(&mut world, "n2", |d| d.generic = vec![discrete("GPU", 1), discrete("SSD", 9)]);
    let web = world.create("web", |s| {
        replicas(s, 4);
        reserve(0, &[discrete("GPU", 1)])(s);
    });
    world.settle();
    let mut given: Vec<_> =
        world.running(&web).iter().map(|t| (t.node_id.clone().unwrap().to_string(), t.generic.clone())).collect();
    given.sort();
    let on = |node: &str, piece: GenericResource| (node.to_owned(), vec![piece]);
    assert_eq!(given, [on("n1", named("a")), on("n1", named("b")), on("n2", discrete("GPU", 1))]);
    let first = world.running(&web).into_iter().find(|t| t.generic == [named("a")]).unwrap();
    world.exit(&first.id, 1);
    world.pass(Duration::from_secs(6));
    assert!(world.running(&web).iter().any(|t| t.generic == [named("a")] && t.id != first.id));
}

#[test]
fn tasks_leave_a_node_that_no_longer_fits() {
    let place = |s: &mut ServiceSpec| {
        replicas(s, 2);
        let constraints = vec!["node.labels.zone == a".into()];
        s.task.placement = Some(Placement { constraints, ..Placement::default() });
    };
    let mut world = World::new(3);
    label(&mut world, "n1", "zone", "a");
    label(&mut world, "n2", "zone", "a");
    let web = world.create("web", place);
    let free = world.create("free", |s| replicas(s, 3));
    world.settle();
    assert_eq!(world.spread(&web), "n1:1 n2:1");
    let before = world.running(&free);
    label(&mut world, "n2", "zone", "b");
    world.settle();
    let gone = world.tasks(&web).into_iter().find(|t| t.status.state == TaskState::Rejected).expect("one is rejected");
    assert_eq!(gone.status.message, "task rejected by constraint enforcer");
    assert_eq!(gone.status.error, "assigned node no longer meets constraints");
    assert_eq!((gone.desired_state, gone.node_id), (TaskState::Shutdown, Some(node_id("n2"))));
    world.pass(Duration::from_secs(6));
    assert_eq!(world.spread(&web), "n1:2");
    assert_eq!(world.running(&free), before);
    assert_eq!(world.containers(), 5);
}

#[test]
fn tasks_leave_a_node_that_has_less_than_they_reserved() {
    let mut world = World::new(2);
    let web = world.create("web", |s| {
        replicas(s, 4);
        reserve(2, &[])(s);
    });
    world.settle();
    assert_eq!(world.spread(&web), "n1:2 n2:2");
    describe(&mut world, "n1", |d| d.nano_cpus = 3_000_000_000);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.spread(&web), "n1:1 n2:2");
    assert_eq!(world.tasks(&web).iter().filter(|t| t.status.state == TaskState::Pending).count(), 1);
}

#[test]
fn a_node_where_a_service_fails_is_tried_last() {
    let mut world = World::new(2);
    world.create("other", |s| {
        replicas(s, 3);
        s.task.placement = Some(Placement { constraints: vec!["node.id == n2".into()], ..Placement::default() });
    });
    world.settle();
    let web = world.create("web", |s| {
        s.task.restart =
            Some(skep_model::task::RestartPolicy { delay: Some(Duration::from_secs(1)), ..Default::default() })
    });
    world.settle();
    let mut places = Vec::new();
    for _ in 0..7 {
        let task = world.running(&web).remove(0);
        places.push(task.node_id.unwrap().to_string());
        world.exit(&task.id, 1);
        world.forgetful = true;
        world.pass(Duration::from_secs(2));
    }
    // n1 is the emptier one; after five failures it is the last choice, and after five minutes it is forgiven.
    assert_eq!(places.join(" "), "n1 n1 n1 n1 n1 n2 n2");
    world.pass(Duration::from_secs(400));
    let task = world.running(&web).remove(0);
    world.exit(&task.id, 1);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.spread(&web), "n1:1");
}

/// What one of three services asks for.
#[derive(Clone, Debug)]
struct Wish {
    replicas: u64,
    global: bool,
    cpus: i64,
    gpus: i64,
    max_replicas: u64,
    host_port: bool,
    zone: bool,
    spread: bool,
    /// Another template for one of its tasks.
    updated: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let usually_not = || prop::bool::weighted(0.25);
    let switches = (usually_not(), usually_not(), usually_not(), any::<bool>(), any::<bool>());
    (0..9u64, 0..3i64, 0..2i64, 0..4u64, switches).prop_map(
        |(replicas, cpus, gpus, max_replicas, (global, host_port, zone, spread, updated))| Wish {
            max_replicas: max_replicas % 3,
            ..Wish { replicas, global, cpus, gpus, max_replicas, host_port, zone, spread, updated }
        },
    )
}

impl Wish {
    fn create(&self, world: &mut World, name: &str) {
        let service = world.create(name, |s| {
            let gpus: Vec<_> = (self.gpus > 0).then(|| discrete("GPU", self.gpus)).into_iter().collect();
            reserve(self.cpus, &gpus)(s);
            s.mode = if self.global { Mode::Global } else { Mode::Replicated { replicas: self.replicas } };
            let port =
                PortConfig { target_port: 80, published_port: 80, mode: PublishMode::Host, ..PortConfig::default() };
            s.endpoint = self.host_port.then(|| EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
            s.task.placement = Some(Placement {
                constraints: self.zone.then(|| "node.labels.zone == a".into()).into_iter().collect(),
                preferences: self.spread.then(|| "node.labels.zone".into()).into_iter().collect(),
                max_replicas: self.max_replicas,
                ..Placement::default()
            });
        });
        world.lead();
        if self.updated {
            world.update(&service, |s| s.task.container.image = "new".into());
            world.lead();
        }
    }
}

fn placed(changes: Vec<Change>) -> Vec<Change> {
    changes.into_iter().filter(|change| matches!(change, Change::AssignTask { .. })).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What is kept up to date while a batch is placed is what the next look at the store would show.
    #[test]
    fn tasks_placed_together_are_where_each_alone_would_be(before in wish(), wishes in prop::collection::vec(wish(), 1..4)) {
        let nodes = ["n1", "n2", "n3", "n4"];
        let mut world = World::new(nodes.len());
        for (node, zone) in nodes.into_iter().zip(["a", "a", "b", "b"]) {
            label(&mut world, node, "zone", zone);
            describe(&mut world, node, |d| d.generic = vec![discrete("GPU", 3)]);
        }
        before.create(&mut world, "before");
        world.settle();
        nodes.iter().for_each(|node| world.availability(node, Availability::Pause));
        wishes.iter().enumerate().for_each(|(number, wish)| wish.create(&mut world, &format!("web{number}")));
        nodes.iter().for_each(|node| world.availability(node, Availability::Active));

        let together = placed(assign(world.view(), world.now));
        let mut alone = Vec::new();
        let of = |world: &World, change: &Change| {
            let Change::AssignTask { task_id, .. } = change else { unreachable!() };
            let task = world.view().task(task_id).unwrap();
            (task.service_id.clone(), task.spec_version, task.id.clone())
        };
        while let Some(first) = placed(assign(world.view(), world.now)).into_iter().min_by_key(|c| of(&world, c)) {
            world.apply(vec![first.clone()]);
            alone.push(first);
        }
        alone.sort_by_key(|change| of(&world, change).2);
        prop_assert_eq!(together, alone);
    }
}
