//! Who is told what, and who is given up.

use std::time::Duration;

use skep_model::node::NodeState;
use skep_model::secret::{Secret, SecretBytes};
use skep_model::service::{EndpointSpec, PortConfig, ServiceSpec};
use skep_model::task::{FileTarget, Placement, SecretReference, TaskState, TaskStatus};
use skep_model::{Labels, Meta};
use skep_store::{Batch, Change, Store};

use super::{Affected, Liveness, assignments};
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
