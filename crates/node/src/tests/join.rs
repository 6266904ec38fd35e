//! Becoming a member, and being refused.

use skep_model::node::{NodeState, Role};

use super::cluster::{Host, cluster, eventually};
use crate::{InitRequest, Kind, LocalState, RootRequest, RotateTokens};

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_join_by_token() {
    let hosts = cluster(2).await;
    let nodes = hosts[0].node.node_list().unwrap();
    assert_eq!(nodes.len(), 3);
    eventually("all nodes are ready", 5, || {
        hosts[0].node.node_list().unwrap().iter().all(|n| n.status.state == NodeState::Ready)
    })
    .await;
    let own = |host: &Host| host.address.split(':').next().unwrap().to_owned();
    for host in &hosts {
        let node = hosts[0].node.node_inspect(host.node.info().node_id.unwrap().as_str()).unwrap();
        assert_eq!(node.status.address.map(|a| a.to_string()), Some(own(host)), "others find it there");
    }
    let mut names: Vec<_> = hosts[0].node.node_list().unwrap().into_iter().map(|n| n.description.hostname).collect();
    names.sort();
    assert_eq!(names, ["node1", "node2", "node3"]);
    let info = hosts[1].node.info();
    assert_eq!((info.state, info.role, info.control_available), (LocalState::Active, Role::Worker, false));
    assert_eq!(hosts[0].node.info().nodes, Some(3));
    assert_eq!(hosts[0].node.managers().leader, hosts[0].node.info().node_id);
    let error = hosts[1].node.node_list().unwrap_err();
    assert!(error.to_string().starts_with("This node is not a swarm manager. Worker nodes can't"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_use_dockers_words() {
    let hosts = cluster(0).await;
    let stranger = Host::new("stranger").await;
    let error = stranger.node.node_list().unwrap_err();
    assert!(error.to_string().contains("docker swarm init"), "{error}");
    assert_eq!(error.kind(), Kind::Unavailable);

    let join = |token: &str| stranger.join_request(&hosts[0], token);
    let error = stranger.node.swarm_join(join("SWMTKN-1-nonsense")).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), ("invalid join token", Kind::Invalid));

    // Well formed, of the right root, and wrong.
    let token = hosts[0].node.swarm_inspect().unwrap().join_tokens.worker;
    let wrong = format!("{}{}", &token[..token.len() - 25], "0".repeat(25));
    let error = stranger.node.swarm_join(join(&wrong)).await.unwrap_err();
    assert!(error.to_string().contains("A valid join token is necessary to join this cluster"), "{error}");
    assert_eq!(stranger.node.info().state, LocalState::Inactive);
    assert!(!stranger.certificates().exists(), "nothing half-made is left");

    // Of another root.
    let other = cluster(0).await;
    let foreign = other[0].node.swarm_inspect().unwrap().join_tokens.worker;
    let error = stranger.node.swarm_join(join(&foreign)).await.unwrap_err();
    assert!(error.to_string().contains("remote CA does not match fingerprint"), "{error}");

    // Nobody there.
    let nobody = Host::new("nobody").await;
    let error = stranger.node.swarm_join(stranger.join_request(&nobody, &token)).await.unwrap_err();
    assert!(error.to_string().contains("rpc error: code = Unavailable desc = connection error"), "{error}");
    assert!(error.to_string().ends_with(": connect: connection refused\""), "{error}");

    let error = hosts[0].node.swarm_init(InitRequest::default()).await.unwrap_err();
    assert!(error.to_string().starts_with("This node is already part of a swarm."), "{error}");
    let error = hosts[0].node.swarm_leave(false).await.unwrap_err();
    assert!(error.to_string().contains("Removing the last manager erases all current state of the swarm"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_no_longer_opens_the_door() {
    let hosts = cluster(0).await;
    let before = hosts[0].node.swarm_inspect().unwrap();
    let rotate = RotateTokens { worker: true, ..RotateTokens::default() };
    hosts[0].node.swarm_update(before.meta.version, before.spec.clone(), rotate, RootRequest::default()).await.unwrap();
    let after = hosts[0].node.swarm_inspect().unwrap();
    assert_ne!(after.join_tokens.worker, before.join_tokens.worker);
    assert_eq!(after.join_tokens.manager, before.join_tokens.manager);
    let late = Host::new("late").await;
    assert!(late.node.swarm_join(late.join_request(&hosts[0], &before.join_tokens.worker)).await.is_err());
    late.join_as_worker(&hosts[0]).await;
    let stale =
        hosts[0].node.swarm_update(before.meta.version, before.spec, rotate, RootRequest::default()).await.unwrap_err();
    assert_eq!(stale.to_string(), "rpc error: code = Unknown desc = update out of sequence");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_and_may_be_removed() {
    let hosts = cluster(1).await;
    let id = hosts[1].node.info().node_id.unwrap();
    eventually("the node is ready", 3, || {
        hosts[0].node.node_inspect(id.as_str()).unwrap().status.state == NodeState::Ready
    })
    .await;
    let busy = hosts[0].node.node_remove(id.as_str(), false).await.unwrap_err();
    assert!(busy.to_string().contains("is not down and can't be removed"), "{busy}");
    hosts[1].node.swarm_leave(false).await.unwrap();
    assert_eq!(hosts[1].node.info().state, LocalState::Inactive);
    eventually("the node is down", 3, || {
        hosts[0].node.node_inspect(id.as_str()).unwrap().status.state == NodeState::Down
    })
    .await;
    hosts[0].node.node_remove("node2", false).await.unwrap();
    assert_eq!(hosts[0].node.node_list().unwrap().len(), 1);
    // And back again, as another node.
    hosts[1].join_as_worker(&hosts[0]).await;
    assert_ne!(hosts[1].node.info().node_id.unwrap(), id);
}
