//! Who is told what, and who is given up.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use skep_model::network::{Attachment, Network, NetworkSpec};
use skep_model::node::NodeState;
use skep_model::secret::{Secret, SecretBytes};
use skep_model::service::{EndpointSpec, Mode, NetworkAttachmentConfig, PortConfig, ServiceSpec};
use skep_model::task::{FileTarget, Placement, SecretReference, TaskState, TaskStatus};
use skep_model::{Labels, Meta, NetworkId, NodeId, Timestamp};
use skep_store::{Batch, Change, Store};

use super::{Affected, Balancers, Gossip, Knock, Liveness, Patience, assignments};
use crate::tests::{World, node_id, replicas};

fn publish(s: &mut ServiceSpec) {
    let port = PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() };
    s.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
}

#[test]
fn a_node_is_told_of_its_own_tasks_and_secrets_and_of_everybodys_endpoints() {
    let mut world = World::new(2);
    let secret = Secret {
        id: "sec".parse().unwrap(),
        meta: Meta::default(),
        name: "key".into(),
        labels: Labels::new(),
        data: SecretBytes(vec![1]),
        templating: None,
    };
    world.apply(vec![Change::CreateSecret(Box::new(secret))]);
    world.create("web", |s| {
        publish(s);
        let (secret_id, file) = ("sec".parse().unwrap(), FileTarget::default());
        s.task.container.secrets.push(SecretReference { secret_id, secret_name: "key".into(), file });
        s.task.placement = Some(Placement { constraints: vec!["node.hostname == n1".into()], ..Placement::default() });
    });
    world.create("quiet", |s| replicas(s, 2));
    world.settle();
    let view = world.view();
    let (one, two) = (assignments(view, &node_id("n1")), assignments(view, &node_id("n2")));
    assert_eq!((one.secrets.len(), two.secrets.len()), (1, 0));
    assert_eq!((one.endpoints.len(), two.endpoints.len()), (1, 1));
    assert_eq!((one.services.len(), two.services.len()), (1, 1), "what is not published is not their business");
    assert_eq!((one.networks.len(), two.nodes.len()), (1, 2));
    assert_eq!(one.tasks.len() + two.tasks.len(), 3);
    let mut patched = two.clone();
    patched.apply(two.diff(&one));
    assert_eq!(patched, one);
}

#[test]
fn a_node_is_told_of_the_networks_its_attached_containers_are_on() {
    let mut world = World::new(2);
    world.apply(vec![crate::tests::overlay("back", "back", "10.9.0.0/24")]);
    world.settle();
    let attachment =
        Attachment { node_id: node_id("n1"), address: Some([10, 9, 0, 7].into()), names: vec!["a".into()] };
    let (network_id, container_id): (NetworkId, _) = ("back".parse().unwrap(), "aa".parse().unwrap());
    world.apply(vec![Change::AttachContainer { network_id: network_id.clone(), container_id, attachment }]);
    let told = |node: &str| assignments(world.view(), &node_id(node)).networks.get(&network_id).cloned();
    assert_eq!(told("n1").unwrap().attachments.len(), 1);
    assert_eq!(told("n2"), None);
}

#[test]
fn a_network_the_nodes_make_for_themselves_has_no_vip_and_the_addresses_they_report() {
    let mut world = World::new(2);
    let id: NetworkId = "wire".parse().unwrap();
    let spec = NetworkSpec { name: "wire".into(), driver: "macvlan".into(), ..NetworkSpec::default() };
    world.apply(vec![Change::CreateNetwork(Box::new(Network::new(id.clone(), spec)))]);
    let web = world.create("web", |s| {
        s.mode = Mode::Global;
        let target = "wire".to_owned();
        s.task.networks.push(NetworkAttachmentConfig { target, aliases: Vec::new(), driver_options: BTreeMap::new() });
    });
    world.lead();
    assert_eq!(world.view().network(&id).unwrap().allocation, None);
    let none = world.view().service(&web).unwrap().endpoint.iter().flat_map(|e| &e.virtual_ips).next().cloned();
    assert_eq!(none, None);
    // Two nodes may well give the same address, each on its own part.
    for task in world.tasks(&web) {
        let addresses = [(id.clone(), [10, 46, 0, 2].into())].into();
        let status = TaskStatus { state: TaskState::Running, addresses, ..TaskStatus::default() };
        world.apply(vec![Change::SetTaskState { task_id: task.id.clone(), status }]);
    }
    for node in ["n1", "n2"] {
        let told = assignments(world.view(), &node_id(node));
        assert!(told.networks.contains_key(&id), "{node}");
        let there: Vec<_> = told.endpoints.iter().filter(|((on, _), _)| *on == id).map(|(_, e)| e).collect();
        assert_eq!(there.len(), 2, "{node}");
        assert!(there.iter().all(|e| e.serving && e.address == Ipv4Addr::new(10, 46, 0, 2)), "{there:?}");
    }
}

#[test]
fn news_of_a_task_concern_others_only_if_its_endpoint_shows_them() {
    let mut world = World::new(2);
    let quiet = world.create("quiet", |_| {});
    let web = world.create("web", publish);
    world.lead();
    let affected = |world: &World, service, state| {
        let task = &world.tasks(service)[0];
        let status = TaskStatus { state, ..TaskStatus::default() };
        let change = Change::SetTaskState { task_id: task.id.clone(), status };
        let mut store = Store::from(world.view().clone());
        let mut affected = Affected::default();
        let events = store.apply(999, 1, &Batch::new(world.now, vec![change])).unwrap();
        events.iter().for_each(|event| affected.note(event));
        (affected, task.node_id.clone().unwrap())
    };
    for state in [TaskState::Ready, TaskState::Running] {
        let (affected, node) = affected(&world, &quiet, state);
        assert_eq!(affected, Affected::Nodes([node].into()));
    }
    assert!(matches!(affected(&world, &web, TaskState::Ready).0, Affected::Nodes(_)));
    assert_eq!(affected(&world, &web, TaskState::Running).0, Affected::Everybody);
}

#[test]
fn what_labels_ask_for_connections_is_told_to_everybody() {
    let mut world = World::new(2);
    let web = world.create("web", |s| {
        publish(s);
        s.labels.insert("com.docker.stack.namespace".into(), "shop".into());
        s.labels.insert("skep.network.allow-from".into(), "api".into());
    });
    world.settle();
    let told = |view: &skep_store::View| assignments(view, &node_id("n1")).services[&web].traffic.clone();
    let names = ["api".to_owned(), "shop_api".to_owned()];
    assert_eq!(told(world.view()).allow_from, Some(names.into()), "as in the stack's file, too");

    let mut spec = world.view().service(&web).unwrap().spec.clone();
    spec.labels.insert("skep.mesh.policy".into(), "local".into());
    let mut labels = Labels::new();
    labels.insert("skep.balance.weight".into(), "3".into());
    let node = world.view().node(&node_id("n2")).unwrap().spec.clone();
    let node = skep_model::node::NodeSpec { labels, ..node };
    for change in [
        Change::SetServiceSpec { service_id: web.clone(), spec: Box::new(spec) },
        Change::SetNodeSpec { node_id: node_id("n2"), spec: node },
    ] {
        let mut store = Store::from(world.view().clone());
        let mut affected = Affected::default();
        let events = store.apply(999, 1, &Batch::new(world.now, vec![change.clone()])).unwrap();
        events.iter().for_each(|event| affected.note(event));
        assert_eq!(affected, Affected::Everybody, "{change:?}");
        world.apply(vec![change]);
    }
    assert!(told(world.view()).local);
    assert_eq!(assignments(world.view(), &node_id("n1")).nodes[&node_id("n2")].weight, 3);
}

#[test]
fn silence_is_long_enough_after_the_timeout_and_longer_for_a_new_leader() {
    let mut world = World::new(2);
    world.create("web", |s| replicas(s, 2));
    world.settle();
    let (timeout, grace) = (Duration::from_millis(500), Duration::from_secs(2));
    let mut liveness = Liveness::new(world.now, timeout, grace);
    let start = world.now;
    liveness.heard(&node_id("n1"), start);
    let (changes, next) = liveness.expire(world.view(), start);
    assert_eq!((changes.len(), next), (0, Some(start.plus(timeout))));
    let (changes, next) = liveness.expire(world.view(), start.plus(timeout));
    assert_eq!(next, Some(start.plus(grace)), "n2 has not found the new leader yet");
    assert!(matches!(&changes[..], [Change::SetNodeStatus { node_id: n1, status }]
        if *n1 == node_id("n1") && status.state == NodeState::Down && status.message == "heartbeat failure"));
    let (changes, _) = liveness.expire(world.view(), start.plus(grace));
    assert_eq!(changes.len(), 2);
}

const MS: fn(u64) -> Duration = Duration::from_millis;

fn patience() -> Patience {
    Patience { dead: MS(700), alone: MS(1000), late: MS(3000), slow: MS(10_000), grace: MS(5000) }
}

/// Three nodes that have been punctual until now; n2 and n3 go on being heard.
struct Watch {
    world: World,
    liveness: Liveness,
    silent_since: Timestamp,
}

impl Watch {
    fn new() -> Self {
        let world = World::new(3);
        let mut liveness = Liveness::with(world.now, patience());
        let mut at = world.now;
        for _ in 0..50 {
            at = at.plus(MS(100));
            ["n1", "n2", "n3"].iter().for_each(|n| liveness.heard(&node_id(n), at));
        }
        Self { world, liveness, silent_since: at }
    }

    fn gossiped(&mut self, words: &[(&str, Gossip)]) -> &mut Self {
        let said = words.iter().map(|(n, word)| (node_id(n), *word)).collect();
        self.liveness.gossiped(&said, self.silent_since.plus(MS(600)));
        self
    }

    fn knocked(&mut self, times: usize, knock: Knock) -> &mut Self {
        (0..times).for_each(|_| self.liveness.knocked(&node_id("n1"), knock));
        self
    }

    /// After how much silence n1 is given up.
    #[track_caller]
    fn down_after(&mut self, expected: Duration) -> &mut Self {
        let mut down = |silent: Duration| {
            let now = self.silent_since.plus(silent);
            ["n2", "n3"].iter().for_each(|n| self.liveness.heard(&node_id(n), now));
            let (changes, _) = self.liveness.expire(self.world.view(), now);
            assert!(changes.len() <= 1, "{changes:?}");
            changes.iter().any(|c| matches!(c, Change::SetNodeStatus { node_id: n, .. } if *n == node_id("n1")))
        };
        assert!(!down(expected - MS(1)), "too early");
        assert!(down(expected), "not after {expected:?}");
        self
    }
}

const LOST: Gossip = Gossip::Lost { lasting: Duration::from_millis(100) };

#[test]
fn a_host_that_is_silent_to_all_is_down_soon() {
    let said = [("n1", LOST), ("n2", Gossip::Reached), ("n3", Gossip::Reached)];
    Watch::new().gossiped(&said).knocked(4, Knock::Unanswered).down_after(MS(700));
    // One lost packet is no witness.
    Watch::new().gossiped(&said).knocked(3, Knock::Unanswered).down_after(MS(1000));
    Watch::new().gossiped(&said).knocked(3, Knock::Unanswered).knocked(1, Knock::Open).down_after(MS(10_000));
}

#[test]
fn a_host_that_somebody_hears_is_slow() {
    // Its link to the leader is gone, but peers reach it.
    let reached = [("n1", Gossip::Reached), ("n2", Gossip::Reached)];
    Watch::new().gossiped(&reached).knocked(9, Knock::Unanswered).down_after(MS(10_000));
    // Its daemon is paused: nobody reaches that, but the kernel is there.
    let lost = [("n1", LOST), ("n2", Gossip::Reached)];
    Watch::new().gossiped(&lost).knocked(9, Knock::Open).down_after(MS(10_000));
    // And is switched off after that.
    Watch::new().gossiped(&lost).knocked(9, Knock::Open).knocked(4, Knock::Unanswered).down_after(MS(700));
    // Its daemon is gone; it is perhaps started again.
    Watch::new().gossiped(&lost).knocked(9, Knock::Refused).down_after(MS(3000));
}

#[test]
fn without_gossip_the_heartbeat_decides_alone_and_more_slowly() {
    Watch::new().down_after(MS(1000));
    Watch::new().knocked(9, Knock::Unanswered).down_after(MS(1000));
    // The leader reaches nobody: it is the leader that is cut off, or gossip that is blocked.
    let nobody = [("n1", LOST), ("n2", LOST), ("n3", LOST)];
    Watch::new().gossiped(&nobody).knocked(9, Knock::Unanswered).down_after(MS(1000));
    // Gossip that lost it while it was heard all the time is wrong about it.
    let wrong = [("n1", Gossip::Lost { lasting: MS(3000) }), ("n2", Gossip::Reached)];
    Watch::new().gossiped(&wrong).knocked(9, Knock::Unanswered).down_after(MS(1000));
    // Who was late before is given more time, within bounds.
    for (late, allowed) in [(600, 1800), (2000, 3000)] {
        let mut watch = Watch::new();
        watch.silent_since = watch.silent_since.plus(MS(late));
        watch.liveness.heard(&node_id("n1"), watch.silent_since);
        watch.down_after(MS(allowed));
    }
}

#[test]
fn a_new_leader_gives_up_at_once_only_whom_its_peers_have_lost() {
    let mut world = World::new(3);
    world.create("web", |s| replicas(s, 3));
    world.settle();
    let start = world.now;
    let down = |liveness: &Liveness, after| {
        let (changes, _) = liveness.expire(world.view(), start.plus(after));
        changes
            .iter()
            .filter_map(|c| if let Change::SetNodeStatus { node_id, .. } = c { Some(node_id.clone()) } else { None })
            .collect::<Vec<NodeId>>()
    };
    let mut liveness = Liveness::with(start, patience());
    // n1 led before, and died; n2 is on its way here; of n3 nothing is known.
    let said = [("n1", Gossip::Lost { lasting: MS(900) }), ("n2", Gossip::Reached)];
    liveness.gossiped(&said.map(|(n, word)| (node_id(n), word)).into(), start);
    (0..4).for_each(|_| liveness.knocked(&node_id("n1"), Knock::Unanswered));
    assert_eq!(down(&liveness, MS(699)), []);
    assert_eq!(down(&liveness, MS(700)), [node_id("n1")]);
    assert_eq!(down(&liveness, MS(4999)), [node_id("n1")]);
    assert_eq!(down(&liveness, MS(5000)), [node_id("n1"), node_id("n3")]);
}

/// Three hosts with a session each, and what they were told last.
struct Told {
    balancers: Balancers,
    sequence: BTreeMap<NodeId, u64>,
}

impl Told {
    fn new(world: &World) -> Self {
        let mut told = Self { balancers: Balancers::default(), sequence: BTreeMap::new() };
        for node in ["n1", "n2", "n3"] {
            told.open(node);
        }
        told.tell(world);
        told
    }

    fn open(&mut self, node: &str) {
        self.balancers.opened(node_id(node));
        self.sequence.insert(node_id(node), 0);
    }

    fn tell(&mut self, world: &World) {
        for (node, sequence) in &mut self.sequence {
            let mut set = assignments(world.view(), node);
            set.left = self.balancers.left(world.view(), &set);
            *sequence += 1;
            self.balancers.told(node, *sequence, &set);
        }
    }

    fn says(&mut self, node: &str) -> &mut Self {
        let sequence = self.sequence[&node_id(node)];
        self.balancers.applied(&node_id(node), sequence);
        self
    }

    /// Tasks of the node that may have their stop signal.
    fn left(&self, world: &World, node: &str) -> usize {
        self.balancers.left(world.view(), &assignments(world.view(), &node_id(node))).len()
    }
}

/// A service of two tasks on n1 and n2, published, and everybody knows; then one of them is to stop.
fn stopping_on_n1() -> (World, Told) {
    let mut world = World::new(3);
    let web = world.create("web", |s| {
        publish(s);
        replicas(s, 3);
    });
    world.settle();
    let mut told = Told::new(&world);
    told.says("n1").says("n2").says("n3");
    let task = world.tasks(&web).into_iter().find(|t| t.node_id == Some(node_id("n1"))).unwrap();
    world.apply(vec![Change::SetTaskDesired { task_id: task.id.clone(), desired_state: TaskState::Shutdown }]);
    (world, told)
}

#[test]
fn a_task_may_stop_when_every_host_said_that_it_gives_it_no_connections() {
    let (world, mut told) = stopping_on_n1();
    assert_eq!(told.left(&world, "n1"), 0, "nobody was told yet");
    told.tell(&world);
    told.says("n1").says("n3");
    assert_eq!((told.left(&world, "n1"), told.balancers.due(world.view()).len()), (0, 0), "n2 has not said so");
    told.says("n2");
    assert_eq!(told.balancers.due(world.view()), [node_id("n1")].into());
    assert_eq!(told.left(&world, "n1"), 1);
    told.tell(&world);
    assert!(told.balancers.due(world.view()).is_empty(), "it knows");
}

#[test]
fn what_was_said_of_earlier_messages_counts_for_nothing_later() {
    let (world, mut told) = stopping_on_n1();
    let before = told.sequence[&node_id("n2")];
    told.tell(&world);
    told.says("n1").says("n3");
    told.balancers.applied(&node_id("n2"), before);
    assert_eq!(told.left(&world, "n1"), 0);
    told.says("n2");
    // A message more changes nothing about it.
    told.tell(&world);
    assert_eq!(told.left(&world, "n1"), 1);
}

#[test]
fn a_host_that_comes_back_is_waited_for_until_it_has_spoken_and_one_that_is_down_is_not() {
    let (mut world, mut told) = stopping_on_n1();
    told.tell(&world);
    told.says("n1").says("n2").says("n3");
    told.open("n2");
    assert_eq!(told.left(&world, "n1"), 0, "what n2 does is not known");
    told.tell(&world);
    assert_eq!(told.left(&world, "n1"), 0);
    told.says("n2");
    assert_eq!(told.left(&world, "n1"), 1);
    // Another leader has heard of nobody.
    let mut next = Told { balancers: Balancers::default(), sequence: BTreeMap::new() };
    next.open("n1");
    next.open("n2");
    next.tell(&world);
    next.says("n1").says("n2");
    assert_eq!(next.left(&world, "n1"), 0, "n3 is silent");
    world.kill("n3");
    assert_eq!(next.left(&world, "n1"), 1);
}

#[test]
fn nobody_waits_for_the_clients_of_a_service_that_is_removed() {
    let (mut world, told) = stopping_on_n1();
    let web = world.view().services().next().unwrap().id.clone();
    world.apply(vec![Change::RemoveService { service_id: web }]);
    assert_eq!(told.left(&world, "n1"), 1);
}
