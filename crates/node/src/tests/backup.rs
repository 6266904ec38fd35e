//! The whole state of a swarm in a file, and back.

use std::path::PathBuf;

use skep_model::cluster::ClusterSpec;
use skep_model::node::{NodeState, Role};

use super::cluster::{Host, cluster, eventually, running, service};
use crate::{BackupKey, InitRequest, Kind, LocalState, Node, RestoreRequest};

async fn backup(node: &Node, key: BackupKey) -> Vec<u8> {
    node.swarm_backup(key).await.unwrap().flatten().collect()
}

fn passphrase(text: &str) -> BackupKey {
    BackupKey { passphrase: text.into(), ..BackupKey::default() }
}

fn onto(host: &Host, force: bool, key: BackupKey) -> RestoreRequest {
    RestoreRequest { listen_addr: host.address.clone(), force, key, ..RestoreRequest::default() }
}

fn swarm_dir(host: &Host) -> PathBuf {
    host.certificates().parent().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_becomes_a_swarm_of_one_manager_elsewhere() {
    let hosts = cluster(1).await;
    let second = Host::new("node3").await;
    second.join_as_manager(&hosts[0]).await;
    hosts[0].node.service_create(service("web", 3)).await.unwrap();
    eventually("3 tasks run", 10, || running(&hosts[0].node).len() == 3).await;
    // Made at one manager, of what was acknowledged at another.
    hosts[0].node.service_create(service("last", 1)).await.unwrap();
    let file = backup(&second.node, passphrase("horse")).await;
    let before = hosts[0].node.swarm_inspect().unwrap();
    for host in hosts.iter().chain([&second]) {
        host.node.inner.abandon();
    }

    let fresh = Host::new("fresh").await;
    let id = fresh.node.swarm_restore(onto(&fresh, false, passphrase("horse")), file).await.unwrap();
    let after = fresh.node.swarm_inspect().unwrap();
    assert_eq!((after.id, after.join_tokens, after.root_ca), (before.id, before.join_tokens, before.root_ca));
    let nodes = fresh.node.node_list().unwrap();
    assert_eq!(nodes.len(), 4);
    for node in nodes {
        let own = node.id == id;
        assert_eq!((node.manager.is_some(), node.spec.role == Role::Manager), (own, own), "{node:?}");
    }
    eventually("the others are down", 20, || {
        let nodes = fresh.node.node_list().unwrap();
        nodes.iter().all(|node| (node.status.state == NodeState::Down) == (node.id != id))
    })
    .await;
    eventually("all runs here", 20, || running(&fresh.node).len() == 4).await;
    let mut names: Vec<_> = running(&fresh.node).into_iter().map(|task| task.service_name).collect();
    names.sort();
    assert_eq!(names, ["last", "web", "web", "web"]);
    let worker = Host::new("node5").await;
    worker.join_as_worker(&fresh).await;
    assert!(!swarm_dir(&fresh).with_extension("replaced").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_backup_is_refused_and_changes_nothing() {
    let hosts = cluster(0).await;
    hosts[0].node.service_create(service("web", 1)).await.unwrap();
    let clear = backup(&hosts[0].node, BackupKey::default()).await;
    let sealed = backup(&hosts[0].node, passphrase("horse")).await;
    let fresh = Host::new("fresh").await;
    let refused = async |file: Vec<u8>, key: BackupKey, words: &str| {
        let error = fresh.node.swarm_restore(onto(&fresh, false, key), file).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot restore: ") && error.to_string().contains(words), "{error}");
        assert_eq!((error.kind(), fresh.node.local_state()), (Kind::Invalid, LocalState::Inactive));
        assert!(!swarm_dir(&fresh).exists() && !swarm_dir(&fresh).with_extension("restoring").exists());
    };
    let none = BackupKey::default();
    let line_end = clear.iter().position(|byte| *byte == b'\n').unwrap();
    for cut in [line_end + 1, line_end + 3, line_end + 40, clear.len() - 1] {
        refused(clear[..cut].to_vec(), none.clone(), "truncated").await;
    }
    for cut in [0, 10, line_end] {
        refused(clear[..cut].to_vec(), none.clone(), "not a backup").await;
    }
    let flip = |at: usize| {
        let mut changed = clear.clone();
        changed[at] ^= 1;
        changed
    };
    for at in [line_end + 5, line_end + 500, clear.len() - 1] {
        refused(flip(at), none.clone(), "altered or damaged").await;
    }
    // Any change of the first line is noticed, too.
    let index = clear.windows(8).position(|window| window == b"\"index\":").unwrap() + 8;
    refused(flip(index), none.clone(), "altered or damaged").await;
    refused([clear.as_slice(), b"more"].concat(), none.clone(), "something follows its end").await;
    let newer = String::from_utf8_lossy(&clear[..line_end]).replace("\"skep_backup\":1", "\"skep_backup\":7");
    refused([newer.as_bytes(), &clear[line_end..]].concat(), none.clone(), "has format 7").await;
    refused(b"hello\n".to_vec(), none.clone(), "not a backup").await;
    refused(sealed.clone(), none.clone(), "give it with --passphrase-file").await;
    refused(sealed, passphrase("pony"), "the passphrase is not the one it was sealed with").await;

    let restored = onto(&fresh, false, none.clone());
    fresh.node.swarm_restore(restored.clone(), clear.clone()).await.unwrap();
    let again = fresh.node.swarm_restore(restored, clear.clone()).await.unwrap_err();
    assert!(again.to_string().contains("use --force") && again.kind() == Kind::Conflict, "{again}");
    let second = Host::new("second").await;
    second.join_as_manager(&fresh).await;
    let error = fresh.node.swarm_restore(onto(&fresh, true, none), clear).await.unwrap_err();
    assert!(error.to_string().contains("this node is one of 2 managers"), "{error}");
    assert_eq!(fresh.node.node_list().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_goes_back_to_its_own_backup_as_the_same_node() {
    let mut hosts = cluster(0).await;
    hosts[0].node.service_create(service("web", 2)).await.unwrap();
    eventually("2 tasks run", 10, || running(&hosts[0].node).len() == 2).await;
    let file = backup(&hosts[0].node, BackupKey::default()).await;
    let containers = hosts[0].fake.running();
    hosts[0].node.service_create(service("later", 1)).await.unwrap();
    eventually("3 containers run", 10, || hosts[0].fake.running().len() == 3).await;
    let id = hosts[0].node.info().node_id.unwrap();
    let request = onto(&hosts[0], true, BackupKey::default());
    assert_eq!(hosts[0].node.swarm_restore(request, file).await.unwrap(), id);
    assert!(hosts[0].node.service_inspect("later").is_err());
    eventually("what came later is gone, the rest was not touched", 10, || hosts[0].fake.running() == containers).await;
    hosts[0].restart().await;
    eventually("2 tasks run", 10, || running(&hosts[0].node).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_swarms_backup_needs_its_unlock_key() {
    let host = Host::new("node1").await;
    let spec = ClusterSpec { auto_lock_managers: true, ..ClusterSpec::default() };
    host.node
        .swarm_init(InitRequest { listen_addr: host.address.clone(), spec, ..InitRequest::default() })
        .await
        .unwrap();
    let unlock_key = host.node.swarm_unlock_key().unwrap();
    let file = backup(&host.node, BackupKey::default()).await;
    host.node.inner.abandon();

    let mut fresh = Host::new("fresh").await;
    let none = fresh.node.swarm_restore(onto(&fresh, false, BackupKey::default()), file.clone()).await.unwrap_err();
    assert!(none.to_string().contains("give it with --unlock-key-file"), "{none}");
    let key = BackupKey { unlock_key: unlock_key.clone(), ..BackupKey::default() };
    fresh.node.swarm_restore(onto(&fresh, false, key), file).await.unwrap();
    assert_ne!(std::fs::read(fresh.certificates().join("raft.key")).unwrap().len(), 32);
    fresh.restart().await;
    assert_eq!(fresh.node.local_state(), LocalState::Locked);
    fresh.node.swarm_unlock(&unlock_key).await.unwrap();
    eventually("it leads", 10, || fresh.node.managers().leader.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_short_or_does_not_start_did_not_happen() {
    let mut hosts = cluster(0).await;
    hosts[0].node.service_create(service("web", 1)).await.unwrap();
    let (current, replaced) = (swarm_dir(&hosts[0]), swarm_dir(&hosts[0]).with_extension("replaced"));
    hosts[0].node.shutdown().await;
    std::fs::rename(&current, &replaced).unwrap();
    std::fs::create_dir(current.with_extension("restoring")).unwrap();
    hosts[0].restart().await;
    assert_eq!(hosts[0].node.service_inspect("web").unwrap().spec.name, "web");
    assert!(!replaced.exists() && !current.with_extension("restoring").exists());

    hosts[0].node.shutdown().await;
    std::fs::rename(&current, &replaced).unwrap();
    std::fs::create_dir(&current).unwrap();
    std::fs::write(current.join("state.json"), "{").unwrap();
    hosts[0].restart().await;
    assert_eq!(hosts[0].node.service_inspect("web").unwrap().spec.name, "web");
    assert!(!replaced.exists());
}
