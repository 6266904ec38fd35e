//! Services on several hosts: they run, follow their spec, and survive what happens to hosts and daemons.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skep_model::Timestamp;
use skep_model::node::{Availability, NodeState, Role};
use skep_model::service::Mode;

use super::cluster::{Host, cluster, eventually, running, service};
use crate::{EventAction, EventKind, LogRequest, ServiceUpdate};

#[tokio::test(flavor = "multi_thread")]
async fn replicas_run_spread_over_all_hosts() {
    let hosts = cluster(2).await;
    let manager = &hosts[0].node;
    let mut events = manager.events(crate::EventsFrom::Now).unwrap().1;
    manager.service_create(service("web", 6)).await.unwrap();
    eventually("6 tasks run", 10, || running(manager).len() == 6).await;
    let mut per_node: BTreeMap<_, usize> = BTreeMap::new();
    for task in running(manager) {
        *per_node.entry(task.node_id.unwrap()).or_default() += 1;
    }
    assert_eq!(per_node.values().copied().collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(hosts[1].fake.running().len(), 2);
    let mut seen = events.recv().await.unwrap().unwrap();
    while seen.kind != EventKind::Service {
        seen = events.recv().await.unwrap().unwrap();
    }
    assert_eq!((seen.action, seen.attributes["name"].as_str()), (EventAction::Create, "web"));

    let taken = manager.service_create(service("web", 1)).await.unwrap_err();
    assert_eq!(
        taken.to_string(),
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"
    );

    // Scale down, then away.
    let web = manager.service_inspect("web").unwrap();
    let mut spec = web.spec.clone();
    spec.mode = Mode::Replicated { replicas: 3 };
    let update = ServiceUpdate::Spec(Box::new(spec), Default::default());
    manager.service_update("web", web.meta.version, update.clone()).await.unwrap();
    eventually("3 containers are left", 10, || hosts.iter().map(|h| h.fake.running().len()).sum::<usize>() == 3).await;
    let stale = manager.service_update("web", web.meta.version, update).await.unwrap_err();
    assert_eq!(stale.to_string(), "rpc error: code = Unknown desc = update out of sequence");
    manager.service_remove("web").await.unwrap();
    eventually("nothing is left", 10, || hosts.iter().all(|h| h.fake.running().is_empty())).await;
    assert_eq!(manager.service_inspect("web").unwrap_err().to_string(), "service web not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_hosts_tasks_run_elsewhere_soon() {
    let mut hosts = cluster(2).await;
    hosts[0].node.service_create(service("web", 9)).await.unwrap();
    eventually("9 tasks run", 10, || running(&hosts[0].node).len() == 9).await;
    let dead = hosts.pop().unwrap();
    let dead_id = dead.node.info().node_id.unwrap();
    drop_hard(dead);
    let manager = &hosts[0].node;
    eventually("9 tasks run on the living", 10, || {
        let tasks = running(manager);
        tasks.len() == 9 && tasks.iter().all(|t| t.node_id.as_ref() != Some(&dead_id))
    })
    .await;
    assert_eq!(manager.node_inspect(dead_id.as_str()).unwrap().status.state, NodeState::Down);
}

/// Its tasks are dropped where they are: nobody says goodbye.
fn drop_hard(host: Host) {
    host.node.inner.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_is_restarted_by_policy() {
    let hosts = cluster(0).await;
    let manager = &hosts[0].node;
    let mut spec = service("web", 1);
    spec.task.restart =
        Some(skep_model::task::RestartPolicy { delay: Some(Duration::from_millis(100)), ..Default::default() });
    manager.service_create(spec).await.unwrap();
    eventually("it runs", 10, || running(manager).len() == 1).await;
    let first = running(manager)[0].id.clone();
    hosts[0].fake.crash(&first);
    eventually("another runs", 10, || running(manager).iter().any(|t| t.id != first)).await;
    let error = manager.task_inspect(first.as_str()).unwrap().status.error;
    assert_eq!(error, "task: non-zero exit (1)");
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_come_back_as_the_same_members_and_adopt() {
    let mut hosts = cluster(1).await;
    hosts[0].node.service_create(service("web", 4)).await.unwrap();
    eventually("4 tasks run", 10, || running(&hosts[0].node).len() == 4).await;
    let before: Vec<_> = hosts.iter().map(|h| h.fake.running()).collect();
    let ids: Vec<_> = hosts.iter().map(|h| h.node.info().node_id).collect();
    hosts[0].restart().await;
    hosts[1].restart().await;
    assert_eq!(hosts.iter().map(|h| h.node.info().node_id).collect::<Vec<_>>(), ids);
    eventually("both nodes are ready", 10, || {
        hosts[0].node.node_list().is_ok_and(|l| l.iter().all(|n| n.status.state == NodeState::Ready))
    })
    .await;
    eventually("4 tasks run", 10, || running(&hosts[0].node).len() == 4).await;
    assert_eq!(hosts.iter().map(|h| h.fake.running()).collect::<Vec<_>>(), before, "nothing was started anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_is_emptied() {
    let hosts = cluster(1).await;
    let manager = &hosts[0].node;
    manager.service_create(service("web", 4)).await.unwrap();
    eventually("4 tasks run", 10, || running(manager).len() == 4).await;
    loop {
        let node = manager.node_inspect("node2").unwrap();
        let spec = skep_model::node::NodeSpec { availability: Availability::Drain, ..node.spec };
        if manager.node_update("node2", node.meta.version, spec).await.is_ok() {
            break;
        }
    }
    eventually("all on the other", 10, || hosts[1].fake.running().is_empty() && hosts[0].fake.running().len() == 4)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_every_host() {
    let hosts = cluster(1).await;
    let manager = &hosts[0].node;
    manager.service_create(service("web", 2)).await.unwrap();
    eventually("2 tasks run", 10, || running(manager).len() == 2).await;
    let request = LogRequest { stdout: true, stderr: true, follow: false, since: Timestamp::ZERO, tail: None };
    let mut lines = manager.service_logs("web", request).await.unwrap();
    let mut texts = Vec::new();
    while let Some(line) = lines.recv().await {
        texts.push(String::from_utf8(line.unwrap().data.to_vec()).unwrap());
    }
    texts.sort();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("hello from web.1."), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_forwards_writes_and_takes_over() {
    let mut hosts = cluster(0).await;
    for name in ["node2", "node3"] {
        let host = Host::new(name).await;
        host.join_as_manager(&hosts[0]).await;
        hosts.push(host);
    }
    let leader_id = hosts[0].node.info().node_id;
    eventually("who has just joined knows who leads", 5, || hosts[1].node.managers().leader == leader_id).await;
    // Written at a follower, and seen there at once.
    hosts[1].node.service_create(service("web", 3)).await.unwrap();
    assert_eq!(hosts[1].node.service_inspect("web").unwrap().spec.name, "web");
    eventually("3 tasks run", 10, || running(&hosts[1].node).len() == 3).await;

    drop_hard(hosts.remove(0));
    eventually("another leads", 10, || hosts[0].node.managers().leader.is_some_and(|id| Some(id) != leader_id)).await;
    hosts[0].node.service_create(service("more", 2)).await.unwrap();
    eventually("5 tasks run on the living", 15, || {
        let tasks = running(&hosts[1].node);
        tasks.len() == 5 && tasks.iter().all(|t| t.node_id != leader_id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_promoted_and_demoted() {
    let hosts = cluster(1).await;
    let manager = &hosts[0].node;
    let set_role = async |role| loop {
        let node = manager.node_inspect("node2").unwrap();
        let spec = skep_model::node::NodeSpec { role, ..node.spec };
        // The node's own news move its version, too; clients try again.
        match manager.node_update("node2", node.meta.version, spec).await {
            Err(error) if error.to_string().contains("update out of sequence") => {}
            done => return done.unwrap(),
        }
    };
    set_role(Role::Manager).await;
    eventually("node2 is a manager", 15, || {
        hosts[1].node.info().control_available && manager.node_inspect("node2").unwrap().manager.is_some()
    })
    .await;
    assert_eq!(hosts[1].node.node_list().unwrap().len(), 2);
    set_role(Role::Worker).await;
    eventually("node2 is a worker", 15, || !hosts[1].node.info().control_available).await;
    eventually("and known as one", 5, || {
        let node = manager.node_inspect("node2").unwrap();
        node.manager.is_none() && node.role == Role::Worker && node.status.state == NodeState::Ready
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_replicas_take_a_fraction_of_a_second() {
    let hosts = cluster(2).await;
    let manager = &hosts[0].node;
    eventually("all nodes are ready", 5, || {
        manager.node_list().unwrap().iter().all(|n| n.status.state == NodeState::Ready)
    })
    .await;
    let asked = Instant::now();
    manager.service_create(service("web", 50)).await.unwrap();
    eventually("50 tasks run", 10, || running(manager).len() == 50).await;
    println!("50 replicas after {:?}", asked.elapsed());
    // Swarm's own delays alone are longer; a loaded machine gets some slack.
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_may_leave_by_force() {
    let mut hosts = cluster(0).await;
    for name in ["node2", "node3"] {
        let host = Host::new(name).await;
        host.join_as_manager(&hosts[0]).await;
        hosts.push(host);
    }
    let gone = hosts[0].node.info().node_id.unwrap();
    hosts[0].node.swarm_leave(true).await.unwrap();
    let left = &hosts[1].node;
    eventually("the others have a leader", 5, || left.managers().leader.is_some_and(|id| id != gone)).await;
    eventually("and know it is gone", 5, || {
        let node = left.node_inspect(gone.as_str()).unwrap();
        node.status.state == NodeState::Down && node.manager.is_none()
    })
    .await;
    left.service_create(service("web", 2)).await.unwrap();
    eventually("2 tasks run", 10, || running(left).len() == 2).await;
}
