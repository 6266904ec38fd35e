//! Who is taken for dead, and what becomes of one that comes back.

use std::time::{Duration, Instant};

use skep_control::dispatch::Gossip as Word;
use skep_model::NodeId;
use skep_model::node::NodeState;
use skep_model::service::ServiceSpec;
use skep_model::task::Placement;

use super::cluster::{Host, cluster, eventually, running, service};

fn id(host: &Host) -> NodeId {
    host.node.info().node_id.unwrap()
}

fn state(at: &Host, of: &NodeId) -> (NodeState, String) {
    let status = at.node.node_inspect(of.as_str()).unwrap().status;
    (status.state, status.message)
}

fn reaches(host: &Host, other: &NodeId) -> bool {
    host.node.inner.gossip().says().get(other) == Some(&Word::Reached)
}

async fn all_gossip(hosts: &[Host]) {
    eventually("all reach one another", 20, || {
        hosts.iter().all(|h| hosts.iter().all(|other| id(h) == id(other) || reaches(h, &id(other))))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_gossip_and_a_removed_one_is_shut_out() {
    let mut hosts = cluster(3).await;
    all_gossip(&hosts).await;
    let key = |h: &Host| h.node.swarm_inspect().unwrap().gossip_key.unwrap();
    let first = key(&hosts[0]);
    let removed = hosts.remove(2);
    hosts[0].node.node_remove(id(&removed).as_str(), true).await.unwrap();
    eventually("another key", 5, || hosts[0].node.swarm_inspect().unwrap().gossip_key.is_some_and(|k| k != first))
        .await;
    let gone = id(&removed);
    eventually("nobody reaches the removed one", 20, || hosts.iter().all(|h| !reaches(h, &gone))).await;
    // It has the old key, and hears nobody with it.
    eventually("the removed one reaches nobody", 20, || hosts.iter().all(|h| !reaches(&removed, &id(h)))).await;
    all_gossip(&hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_shown_as_docker_does() {
    let hosts = cluster(2).await;
    let worker = id(&hosts[1]);
    eventually("ready", 10, || state(&hosts[0], &worker).0 == NodeState::Ready).await;
    hosts[1].node.inner.abandon();
    let said = "node is currently trying to find new manager".to_owned();
    eventually("disconnected", 10, || state(&hosts[0], &worker) == (NodeState::Disconnected, said.clone())).await;
    let said = "heartbeat failure".to_owned();
    eventually("down", 10, || state(&hosts[0], &worker) == (NodeState::Down, said.clone())).await;
    let silent = hosts[0].node.node_inspect(worker.as_str()).unwrap().status.address;
    assert!(silent.is_some(), "where it was is still known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_calls_nodes_unknown_until_it_hears_of_them() {
    let mut hosts = cluster(1).await;
    for name in ["node3", "node4"] {
        let host = Host::new(name).await;
        host.join_as_manager(&hosts[0]).await;
        hosts.push(host);
    }
    let old = id(&hosts[0]);
    let mut events = hosts[2].node.events(crate::EventsFrom::Now).unwrap().1;
    hosts[0].node.inner.abandon();
    let mut seen = Vec::new();
    eventually("the others are ready under another leader, the old one down", 30, || {
        while let Ok(event) = events.try_recv() {
            let Some(event) = event else { continue };
            let word = |key: &str| event.attributes.get(key).cloned();
            seen.extend(word("name").zip(word("state.new")));
        }
        state(&hosts[2], &old).0 == NodeState::Down
            && [1, 2, 3].iter().all(|n| state(&hosts[2], &id(&hosts[*n])).0 == NodeState::Ready)
    })
    .await;
    assert!(seen.iter().any(|(_, state)| state == "unknown"), "{seen:?}");
    let down: Vec<_> = seen.iter().filter(|(_, state)| state == "down").collect();
    assert_eq!(down.len(), 1, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_back_soon_loses_no_task() {
    let mut hosts = cluster(2).await;
    hosts[0].node.service_create(service("web", 6)).await.unwrap();
    eventually("6 tasks run", 10, || running(&hosts[0].node).len() == 6).await;
    let before: Vec<_> = running(&hosts[0].node).into_iter().map(|t| t.id).collect();
    hosts[2].restart().await;
    let back = id(&hosts[2]);
    eventually("ready", 10, || state(&hosts[0], &back).0 == NodeState::Ready).await;
    assert_eq!(running(&hosts[0].node).into_iter().map(|t| t.id).collect::<Vec<_>>(), before);
}

fn on_workers(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = service(name, replicas);
    let constraints = vec!["node.role == worker".to_owned()];
    spec.task.placement = Some(Placement { constraints, ..Placement::default() });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_instance_never_runs_twice() {
    let hosts = cluster(2).await;
    let mut spec = on_workers("db", 1);
    spec.labels.insert("skep.stop-after".into(), "soon".into());
    let refused = hosts[0].node.service_create(spec.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("label skep.stop-after=soon: must be a duration from 3s to 24h"), "{refused}");
    spec.labels.insert("skep.stop-after".into(), "3s".into());
    hosts[0].node.service_create(spec).await.unwrap();
    eventually("it runs", 10, || running(&hosts[0].node).len() == 1).await;
    let lost = hosts.iter().position(|h| !h.fake.running().is_empty()).unwrap();
    // Long enough that it would have been stopped, were its lease not extended.
    let began = Instant::now();
    eventually("it goes on", 10, || {
        assert_eq!(hosts[lost].fake.running().len(), 1);
        began.elapsed() > Duration::from_secs(4)
    })
    .await;
    hosts[lost].node.inner.abandon();
    eventually("it runs elsewhere", 30, || {
        let runs: usize = hosts.iter().map(|h| h.fake.running().len()).sum();
        assert!(runs <= 1, "two run");
        runs == 1 && hosts[lost].fake.running().is_empty()
    })
    .await;
}

/// One worker of two goes, its tasks are replaced; `meanwhile` something is done; it comes back with what it remembers.
async fn returns(meanwhile: impl AsyncFn(&Host, &NodeId)) -> Vec<Host> {
    let mut hosts = cluster(2).await;
    hosts[0].node.service_create(on_workers("web", 4)).await.unwrap();
    eventually("4 tasks run", 10, || running(&hosts[0].node).len() == 4).await;
    assert_eq!(hosts[2].fake.running().len(), 2);
    let lost = id(&hosts[2]);
    // Written a while after they changed.
    let assignments = hosts[2].assignments();
    eventually("its assignments are on its disk", 5, || assignments.exists()).await;
    hosts[2].node.inner.abandon();
    eventually("the other has them all", 20, || hosts[1].fake.running().len() == 4).await;
    assert_eq!(hosts[2].fake.running().len(), 2, "nobody told it");
    meanwhile(&hosts[0], &lost).await;
    hosts[2].restart().await;
    hosts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_keeps_nothing_that_was_replaced() {
    let hosts = returns(async |_, _| {}).await;
    eventually("it runs nothing", 10, || hosts[2].fake.running().is_empty()).await;
    assert_eq!(running(&hosts[0].node).len(), 4);
    assert_eq!(hosts[1].fake.running().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_keeps_nothing_of_a_service_that_is_gone() {
    let hosts = returns(async |manager, _| manager.node.service_remove("web").await.unwrap()).await;
    eventually("nothing is left anywhere", 10, || hosts.iter().all(|h| h.fake.is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_meanwhile_keeps_nothing_at_all() {
    let hosts = returns(async |manager, lost| manager.node.node_remove(lost.as_str(), false).await.unwrap()).await;
    eventually("nothing is left there", 10, || hosts[2].fake.is_empty()).await;
    eventually("nor in its kernel", 10, || {
        let plan = hosts[2].fake.plan.lock().unwrap();
        plan.overlays.is_empty() && plan.ingress.is_none()
    })
    .await;
    assert_eq!(hosts[1].fake.running().len(), 4);
}
