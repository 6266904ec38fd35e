//! A manager whose quorum is gone for good goes on alone.

use skep_model::node::{NodeState, Role};

use super::cluster::{Host, cluster, eventually, running, service};
use crate::{InitRequest, Kind, LocalState};

fn force(host: &Host) -> InitRequest {
    InitRequest { listen_addr: host.address.clone(), force_new_cluster: true, ..InitRequest::default() }
}

/// Three managers and a worker, six replicas on them.
async fn swarm() -> Vec<Host> {
    let mut hosts = cluster(1).await;
    for name in ["node3", "node4"] {
        let host = Host::new(name).await;
        host.join_as_manager(&hosts[0]).await;
        hosts.push(host);
    }
    hosts[0].node.service_create(service("web", 6)).await.unwrap();
    eventually("6 tasks run", 10, || running(&hosts[0].node).len() == 6).await;
    hosts
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_manager_goes_on_alone_with_everything() {
    let mut hosts = swarm().await;
    let lost: Vec<_> = hosts.drain(2..).collect();
    let lost_ids: Vec<_> = lost.iter().map(|host| host.node.info().node_id.unwrap()).collect();
    for host in &lost {
        host.node.inner.abandon();
    }
    let survivor = &hosts[0].node;
    eventually("it does not lead", 10, || survivor.inner.manager().unwrap().dispatcher().is_none()).await;
    assert!(survivor.service_create(service("refused", 1)).await.is_err());
    let before = survivor.swarm_inspect().unwrap();
    let id = survivor.info().node_id.unwrap();

    let begun = std::time::Instant::now();
    assert_eq!(survivor.swarm_init(force(&hosts[0])).await.unwrap(), id);
    println!("alone after {:?}", begun.elapsed());
    let after = survivor.swarm_inspect().unwrap();
    assert_eq!((after.id, after.join_tokens), (before.id, before.join_tokens));
    let nodes = survivor.node_list().unwrap();
    assert_eq!(nodes.len(), 4);
    for node in &nodes {
        assert_eq!(node.manager.is_some(), node.id == id);
    }
    eventually("the lost are down, and only they", 10, || {
        survivor.node_list().unwrap().iter().all(|node| {
            let wanted = if lost_ids.contains(&node.id) { NodeState::Down } else { NodeState::Ready };
            node.status.state == wanted
        })
    })
    .await;
    eventually("6 tasks run on the living", 20, || {
        let tasks = running(survivor);
        tasks.len() == 6 && tasks.iter().all(|task| !lost_ids.contains(task.node_id.as_ref().unwrap()))
    })
    .await;
    survivor.service_create(service("more", 2)).await.unwrap();

    // Others may join again, as managers too.
    let fresh = Host::new("node5").await;
    fresh.join_as_manager(&hosts[0]).await;
    assert_eq!(fresh.node.service_inspect("more").unwrap().spec.name, "more");

    // A lost one that comes back gives up its old log and is a worker.
    let mut back = lost.into_iter().next().unwrap();
    back.restart().await;
    eventually("it is a worker", 20, || back.node.info().role == Role::Worker && !back.node.info().control_available)
        .await;
    eventually("and ready", 10, || {
        survivor.node_inspect(lost_ids[0].as_str()).unwrap().status.state == NodeState::Ready
    })
    .await;
    assert_eq!(back.node.local_state(), LocalState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_that_a_crash_cut_short_is_finished_by_the_next() {
    let mut hosts = swarm().await;
    for host in &hosts[2..] {
        host.node.inner.abandon();
    }
    // As if the daemon had died right after it noted what it was to do.
    hosts[0].node.shutdown().await;
    let path = hosts[0].certificates().with_file_name("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["alone_from"] = state["raft_id"].take();
    state["raft_id"] = 77.into();
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    hosts[0].restart().await;
    let node = &hosts[0].node;
    assert_eq!(node.info().managers, Some(1));
    assert_eq!(node.service_inspect("web").unwrap().spec.name, "web");
    node.service_create(service("more", 2)).await.unwrap();
    // Once is enough.
    hosts[0].restart().await;
    eventually("it leads", 10, || hosts[0].node.managers().leader.is_some()).await;
    assert_eq!(hosts[0].node.service_inspect("more").unwrap().spec.name, "more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_is_for_managers() {
    let hosts = cluster(1).await;
    let error = hosts[1].node.swarm_init(force(&hosts[1])).await.unwrap_err();
    assert!(error.to_string().contains("Worker nodes can't be used to view or modify cluster state"), "{error}");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(hosts[1].node.local_state(), LocalState::Active);

    // Refused before anything stops.
    let bad = InitRequest { advertise_addr: "nowhere0".into(), ..force(&hosts[0]) };
    assert!(hosts[0].node.swarm_init(bad).await.is_err());
    hosts[0].node.service_create(service("web", 1)).await.unwrap();

    // Outside a swarm there is nothing to go on from: it is an ordinary init, as in Docker.
    let fresh = Host::new("fresh").await;
    fresh.node.swarm_init(force(&fresh)).await.unwrap();
    assert_eq!(fresh.node.node_list().unwrap().len(), 1);
}
