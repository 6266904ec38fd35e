//! Managers whose keys are locked with the swarm's unlock key.

use skep_model::cluster::ClusterSpec;
use skep_model::node::{NodeSpec, Reachability, Role};

use super::cluster::{Host, cluster, eventually, running, service};
use crate::{InitRequest, Kind, LocalState, Node, RootRequest, RotateTokens};

async fn update(node: &Node, auto_lock_managers: bool, unlock_key: bool) {
    loop {
        let now = node.swarm_inspect().unwrap();
        let spec = ClusterSpec { auto_lock_managers, ..now.spec };
        let rotate = RotateTokens { unlock_key, ..RotateTokens::default() };
        match node.swarm_update(now.meta.version, spec, rotate, RootRequest::default()).await {
            Err(error) if error.to_string().contains("update out of sequence") => {}
            done => return done.unwrap(),
        }
    }
}

fn is_locked_on_disk(host: &Host) -> bool {
    let read = |name: &str| std::fs::read(host.certificates().join(name)).unwrap();
    let clear_key = b"-----BEGIN PRIVATE KEY-----";
    read("raft.key").len() != 32 && !read("swarm-node.key").windows(clear_key.len()).any(|window| window == clear_key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_waits_for_its_key_and_its_containers_go_on() {
    let mut host = Host::new("node1").await;
    let spec = ClusterSpec { auto_lock_managers: true, ..ClusterSpec::default() };
    host.node
        .swarm_init(InitRequest { listen_addr: host.address.clone(), spec, ..InitRequest::default() })
        .await
        .unwrap();
    let key = host.node.swarm_unlock_key().unwrap();
    assert!(is_locked_on_disk(&host));
    host.node.service_create(service("web", 2)).await.unwrap();
    eventually("2 tasks run", 10, || running(&host.node).len() == 2).await;
    let running_before = host.fake.running();
    let not_locked = host.node.swarm_unlock(&key).await.unwrap_err();
    assert_eq!((not_locked.to_string().as_str(), not_locked.kind()), ("swarm is not locked", Kind::Conflict));
    // Assignments are saved a moment after they came.
    let assignments = host.certificates().with_file_name("worker").join("assignments");
    eventually("the assignments are on disk", 5, || assignments.exists()).await;

    host.restart().await;
    assert_eq!(host.node.local_state(), LocalState::Locked);
    let text = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";
    let error = host.node.node_list().unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), (text, Kind::Unavailable));
    assert_eq!(host.node.swarm_unlock_key().unwrap_err().to_string(), text);
    let error = host.node.swarm_leave(false).await.unwrap_err();
    assert!(error.to_string().starts_with("Swarm is encrypted and locked."), "{error}");
    let forced = InitRequest { listen_addr: host.address.clone(), force_new_cluster: true, ..InitRequest::default() };
    assert_eq!(host.node.swarm_init(forced).await.unwrap_err().to_string(), text);
    assert_eq!(host.fake.running(), running_before);

    let malformed = host.node.swarm_unlock("SWMKEY-1-?").await.unwrap_err();
    assert_eq!((malformed.to_string().as_str(), malformed.kind()), ("invalid key string", Kind::Invalid));
    let wrong = format!("SWMKEY-1-{}", "A".repeat(43));
    let wrong = host.node.swarm_unlock(&wrong).await.unwrap_err();
    assert_eq!(wrong.to_string(), "swarm could not be unlocked: invalid key provided");
    assert_eq!((wrong.kind(), host.node.local_state()), (Kind::Unauthorized, LocalState::Locked));

    host.node.swarm_unlock(&key).await.unwrap();
    eventually("2 tasks run, the same", 10, || running(&host.node).len() == 2).await;
    assert_eq!(host.fake.running(), running_before);

    // Not locked any more: a restart asks for nothing.
    update(&host.node, false, false).await;
    assert_eq!(host.node.swarm_unlock_key().unwrap(), "");
    eventually("the keys are clear", 5, || !is_locked_on_disk(&host)).await;
    host.restart().await;
    eventually("2 tasks run", 10, || running(&host.node).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manager_follows_the_lock_also_one_that_was_away() {
    let mut hosts = cluster(1).await;
    let joined = Host::new("node3").await;
    joined.join_as_manager(&hosts[0]).await;
    hosts.push(joined);
    update(&hosts[0].node, true, false).await;
    let first = hosts[0].node.swarm_unlock_key().unwrap();
    eventually("both managers are locked", 10, || is_locked_on_disk(&hosts[0]) && is_locked_on_disk(&hosts[2])).await;

    // A worker that is promoted never has a clear key of the log; demoted, it has no lock.
    let leader = hosts[0].node.clone();
    let set_role = async |role| loop {
        let node = leader.node_inspect("node2").unwrap();
        match leader.node_update("node2", node.meta.version, NodeSpec { role, ..node.spec }).await {
            Err(error) if error.to_string().contains("update out of sequence") => {}
            done => return done.unwrap(),
        }
    };
    set_role(Role::Manager).await;
    eventually("node2 is a manager", 15, || hosts[1].node.info().control_available).await;
    assert!(is_locked_on_disk(&hosts[1]));

    // node3 is away while the key is replaced: its disk still opens with the old one, then follows.
    hosts[2].node.shutdown().await;
    update(&hosts[0].node, true, true).await;
    let second = hosts[0].node.swarm_unlock_key().unwrap();
    assert_ne!(first, second);
    hosts[2].restart().await;
    assert_eq!(hosts[2].node.local_state(), LocalState::Locked);
    assert_eq!(hosts[2].node.swarm_unlock(&second).await.unwrap_err().kind(), Kind::Unauthorized);
    hosts[2].node.swarm_unlock(&first).await.unwrap();
    eventually("it knows the new key", 10, || hosts[2].node.swarm_unlock_key().is_ok_and(|key| key == second)).await;
    let lock = hosts[2].certificates().join("swarm-lock.json");
    let version = |host: &Host| host.node.swarm_inspect().unwrap().meta.version;
    eventually("and follows it", 10, || {
        std::fs::read_to_string(&lock).unwrap().contains(&format!("\"version\":{}", version(&hosts[0])))
    })
    .await;
    hosts[2].restart().await;
    assert_eq!(hosts[2].node.swarm_unlock(&first).await.unwrap_err().kind(), Kind::Unauthorized);
    hosts[2].node.swarm_unlock(&second).await.unwrap();

    let manager = &hosts[2].node;
    eventually("there is a leader", 10, || manager.managers().leader.is_some()).await;
    // Else node2 is the one the leader cannot spare.
    let reached = || leader.managers().reachability(&leader.node_inspect("node3").unwrap()) == Reachability::Reachable;
    eventually("node3 is reached", 5, reached).await;
    set_role(Role::Worker).await;
    eventually("node2 is a worker without a lock", 15, || {
        !hosts[1].node.info().control_available && !hosts[1].certificates().join("swarm-lock.json").exists()
    })
    .await;
    hosts[1].restart().await;
    assert_ne!(hosts[1].node.local_state(), LocalState::Locked);

    // A locked manager may go by force, and takes its containers along.
    hosts[2].restart().await;
    assert_eq!(hosts[2].node.local_state(), LocalState::Locked);
    hosts[2].node.swarm_leave(true).await.unwrap();
    assert_eq!(hosts[2].node.local_state(), LocalState::Inactive);
    assert!(hosts[2].fake.running().is_empty() && !hosts[2].certificates().exists());
}
