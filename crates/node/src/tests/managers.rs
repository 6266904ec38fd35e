//! Several managers: roles change, managers come, crash, leave and are cut off, and writes have one outcome each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use skep_consensus::MemberRole;
use skep_model::node::{NodeSpec, NodeState, Reachability, Role};
use skep_store::{Batch, Change};

use super::cluster::{Host, cluster, eventually, managers, running, service};
use crate::{Kind, LocalState, Node, NodeError, ServiceUpdate};

/// As the CLI does it: reads the node, changes its role, and again if the node moved meanwhile.
async fn set_role(through: &Node, node: &str, role: Role) -> Result<(), NodeError> {
    loop {
        let object = through.node_inspect(node)?;
        let spec = NodeSpec { role, ..object.spec };
        match through.node_update(object.id.as_str(), object.meta.version, spec).await {
            Err(error) if error.to_string().contains("update out of sequence") => {}
            done => return done,
        }
    }
}

/// The leader's place among the hosts, once one of them leads.
async fn leader_of(hosts: &[Host]) -> usize {
    let leads =
        || hosts.iter().position(|h| h.node.managers().leader.is_some_and(|id| Some(id) == h.node.info().node_id));
    eventually("one leads", 10, || leads().is_some()).await;
    leads().unwrap()
}

async fn all_reached(hosts: &[Host]) {
    eventually("every manager reaches every other", 10, || {
        hosts.iter().all(|h| {
            let (known, nodes) = (h.node.managers(), h.node.node_list().unwrap());
            let managing: Vec<_> = nodes.iter().filter(|n| n.manager.is_some()).collect();
            managing.len() == hosts.len() && managing.iter().all(|n| known.reachability(n) == Reachability::Reachable)
        })
    })
    .await;
}

fn votes(host: &Host) -> usize {
    host.node.inner.manager().unwrap().consensus().members().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_worker_answers_as_a_manager_and_writes_through_it_take_effect() {
    let hosts = cluster(1).await;
    let asked = Instant::now();
    set_role(&hosts[0].node, "node2", Role::Manager).await.unwrap();
    eventually("node2 manages", 10, || hosts[1].node.info().control_available).await;
    println!("promoted in {:?}", asked.elapsed());
    hosts[1].node.service_create(service("web", 2)).await.unwrap();
    assert_eq!(hosts[1].node.service_inspect("web").unwrap().spec.name, "web");
    eventually("2 tasks run", 10, || running(&hosts[1].node).len() == 2).await;
    all_reached(&hosts).await;
    assert_eq!((hosts[1].node.info().managers, hosts[1].node.info().nodes), (Some(2), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_demoted_through_itself_and_through_another() {
    let hosts = managers(3).await;
    all_reached(&hosts).await;
    hosts[0].node.service_create(service("web", 3)).await.unwrap();
    for by_itself in [true, false] {
        let leader = leader_of(&hosts).await;
        let other = (leader + 1) % 3;
        let through = &hosts[if by_itself { leader } else { other }].node;
        let name = format!("node{}", leader + 1);
        set_role(through, &name, Role::Worker).await.unwrap();
        eventually("it manages no more", 10, || !hosts[leader].node.info().control_available).await;
        let left = &hosts[other].node;
        eventually("it is known as a worker", 5, || {
            let node = left.node_inspect(&name).unwrap();
            node.manager.is_none() && node.role == Role::Worker && node.status.state == NodeState::Ready
        })
        .await;
        assert_eq!(votes(&hosts[other]), 2);
        eventually("another leads", 5, || left.managers().leader.is_some()).await;
        set_role(left, &name, Role::Manager).await.unwrap();
        eventually("it manages again", 10, || hosts[leader].node.info().control_available).await;
        eventually("three vote", 5, || votes(&hosts[other]) == 3).await;
        all_reached(&hosts).await;
    }
    eventually("3 tasks run", 10, || running(&hosts[0].node).len() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promoting_and_demoting_in_haste_ends_with_what_was_asked_last() {
    let hosts = cluster(1).await;
    for _ in 0..4 {
        set_role(&hosts[0].node, "node2", Role::Manager).await.unwrap();
        set_role(&hosts[0].node, "node2", Role::Worker).await.unwrap();
    }
    set_role(&hosts[0].node, "node2", Role::Manager).await.unwrap();
    eventually("node2 manages", 20, || hosts[1].node.info().control_available && votes(&hosts[0]) == 2).await;
    set_role(&hosts[0].node, "node2", Role::Worker).await.unwrap();
    set_role(&hosts[0].node, "node2", Role::Manager).await.unwrap();
    set_role(&hosts[0].node, "node2", Role::Worker).await.unwrap();
    eventually("node2 works", 20, || !hosts[1].node.info().control_available && votes(&hosts[0]) == 1).await;
    hosts[0].node.service_create(service("web", 2)).await.unwrap();
    eventually("2 tasks run", 10, || running(&hosts[0].node).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_cost_the_quorum_is_refused_in_swarmkits_words() {
    let mut hosts = managers(3).await;
    all_reached(&hosts).await;
    let removal = hosts[0].node.node_remove("node2", true).await.unwrap_err();
    let id = hosts[1].node.info().node_id.unwrap();
    assert_eq!(
        removal.to_string(),
        format!(
            "rpc error: code = FailedPrecondition desc = node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        )
    );
    let warning = hosts[0].node.swarm_leave(false).await.unwrap_err();
    assert_eq!(
        (warning.to_string().as_str(), warning.kind()),
        (
            "You are attempting to leave the swarm on a node that is participating as a manager. The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.",
            Kind::Unavailable
        )
    );

    // One of three is gone: none of the other two may go.
    hosts.pop().unwrap().node.inner.abandon();
    let gone = |h: &Host| h.node.managers().reachability(&h.node.node_inspect("node3").unwrap());
    for host in &hosts {
        eventually("node3 is not reached", 5, || gone(host) == Reachability::Unreachable).await;
    }
    let demotion = set_role(&hosts[0].node, "node2", Role::Worker).await.unwrap_err();
    assert_eq!(
        demotion.to_string(),
        "rpc error: code = FailedPrecondition desc = can't remove member from the raft: this would result in a loss of quorum"
    );
    let warning = hosts[1].node.swarm_leave(false).await.unwrap_err().to_string();
    assert!(
        warning.contains(
            "Removing this node leaves 1 managers out of 3. Without a Raft quorum your swarm will be inaccessible. "
        ),
        "{warning}"
    );
    // But the one that is gone may.
    set_role(&hosts[1].node, "node3", Role::Worker).await.unwrap();
    eventually("two vote", 5, || votes(&hosts[0]) == 2).await;
    eventually("it is down", 10, || hosts[1].node.node_inspect("node3").unwrap().status.state == NodeState::Down).await;
    hosts[1].node.node_remove("node3", false).await.unwrap();

    set_role(&hosts[0].node, "node2", Role::Worker).await.unwrap();
    eventually("one votes", 10, || !hosts[1].node.info().control_available).await;
    let last = set_role(&hosts[0].node, "node1", Role::Worker).await.unwrap_err();
    assert_eq!(
        last.to_string(),
        "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm"
    );
    let ready = hosts[0].node.node_remove("node2", false).await.unwrap_err().to_string();
    assert!(ready.ends_with("is not down and can't be removed"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_removed_by_force_ends_its_tasks_and_says_so() {
    let hosts = cluster(1).await;
    hosts[0].node.service_create(service("web", 4)).await.unwrap();
    eventually("4 tasks run", 10, || running(&hosts[0].node).len() == 4).await;
    hosts[0].node.node_remove("node2", true).await.unwrap();
    eventually("none runs on it", 10, || hosts[1].fake.running().is_empty()).await;
    eventually("4 run on the other", 10, || hosts[0].fake.running().len() == 4).await;
    let info = hosts[1].node.info();
    assert_eq!(info.state, LocalState::Error);
    assert!(info.error.starts_with("this node was removed from the swarm: run \"docker swarm leave"), "{}", info.error);
    hosts[1].node.swarm_leave(true).await.unwrap();
    hosts[1].join_as_worker(&hosts[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_reads_answer_and_writes_name_who_is_missing() {
    let mut hosts = managers(3).await;
    let worker = Host::new("node4").await;
    worker.join_as_worker(&hosts[0]).await;
    all_reached(&hosts).await;
    hosts[0].node.service_create(service("web", 4)).await.unwrap();
    eventually("4 tasks run", 10, || running(&hosts[0].node).len() == 4).await;
    let before = worker.fake.running();
    for host in &hosts[1..] {
        host.node.inner.abandon();
    }
    eventually("nobody leads", 5, || hosts[0].node.managers().leader.is_none()).await;
    eventually("both are not reached", 5, || {
        let known = hosts[0].node.managers();
        let lost = hosts[0].node.node_list().unwrap();
        lost.iter().filter(|n| known.reachability(n) == Reachability::Unreachable).count() == 2
    })
    .await;
    assert_eq!(hosts[0].node.service_inspect("web").unwrap().spec.name, "web");
    let asked = Instant::now();
    let refused = hosts[0].node.service_create(service("more", 1)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(refused.kind(), Kind::Unavailable);
    // Nodes are in the order of their ids.
    let mut missing: Vec<_> = hosts[1..].iter().map(|h| (h.node.info().node_id.unwrap(), h)).collect();
    missing.sort_by_key(|(id, _)| id.clone());
    let named = |n: usize| {
        let (id, host) = &missing[n];
        format!("{} ({})", hosts[0].node.node_inspect(id.as_str()).unwrap().description.hostname, host.address)
    };
    let expected = format!(
        "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online. Not reached from node1: {}, {}. Start them again or mend the network; if they are lost for good, run \"docker swarm init --force-new-cluster\" on one manager that is left.",
        named(0),
        named(1)
    );
    assert_eq!(refused.to_string(), expected);
    assert_eq!(worker.fake.running(), before, "what runs goes on");

    // One is back: everything goes on by itself.
    hosts[1].restart_after_crash().await;
    eventually("somebody leads", 10, || hosts[0].node.managers().leader.is_some()).await;
    hosts[0].node.service_create(service("more", 1)).await.unwrap();
    eventually("5 tasks run", 10, || running(&hosts[0].node).len() == 5).await;
    assert_eq!(
        worker.fake.running().iter().filter(|id| before.contains(id)).count(),
        before.len(),
        "none was restarted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_lost_its_log_comes_back_under_another_raft_id() {
    let mut hosts = managers(3).await;
    hosts[0].node.service_create(service("web", 1)).await.unwrap();
    let id = hosts[2].node.info().node_id.unwrap();
    let raft_id = |host: &Host| host.node.node_inspect(id.as_str()).unwrap().manager.map(|m| m.raft_id);
    let before = raft_id(&hosts[0]).unwrap();
    hosts[2].node.shutdown().await;
    std::fs::remove_dir_all(hosts[2].swarm_dir().join("raft")).unwrap();
    hosts[2].start().await;
    eventually("it manages again", 15, || hosts[2].node.info().control_available).await;
    assert_eq!(hosts[2].node.info().node_id, Some(id.clone()));
    eventually("it has another raft id", 5, || raft_id(&hosts[0]).is_some_and(|id| id != before)).await;
    eventually("three vote", 5, || votes(&hosts[0]) == 3).await;
    assert_eq!(hosts[2].node.service_inspect("web").unwrap().spec.name, "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_crashed_while_it_joined_counts_for_nothing() {
    let hosts = managers(1).await;
    let consensus = hosts[0].node.inner.manager().unwrap().consensus().clone();
    // It was taken in as a learner and never heard of again.
    let peer = skep_consensus::Peer { raft_id: 77, address: "127.0.0.1:9".into() };
    consensus.add_learner(peer).await.unwrap();
    eventually("nobody but the founder is a member", 10, || votes(&hosts[0]) == 1).await;
    let late = Host::new("node2").await;
    late.join_as_manager(&hosts[0]).await;
    assert_eq!(votes(&hosts[0]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_cut_short_is_finished_by_the_daemon_that_comes_after() {
    let mut hosts = cluster(1).await;
    let id = hosts[1].node.info().node_id.unwrap();
    set_role(&hosts[0].node, id.as_str(), Role::Manager).await.unwrap();
    // It votes, and is not yet known to be a manager: from here on there is no quorum without it. That lasts a moment.
    let consensus = hosts[0].node.inner.manager().unwrap().consensus().clone();
    let voting = || consensus.members().iter().filter(|m| m.role == MemberRole::Voter).count();
    let promoted = async {
        while voting() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), promoted).await.unwrap();
    hosts[1].node.inner.abandon();
    hosts[1].restart_after_crash().await;
    eventually("both manage", 15, || {
        let listed = |of: &Host| hosts[0].node.node_inspect(of.node.info().node_id.unwrap().as_str());
        hosts.iter().all(|h| h.node.info().control_available && listed(h).is_ok_and(|n| n.manager.is_some()))
    })
    .await;
    hosts[1].node.service_create(service("web", 1)).await.unwrap();
    assert_eq!(votes(&hosts[0]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_cut_short_is_finished_by_the_daemon_that_comes_after() {
    let hosts = managers(1).await;
    let mut late = Host::new("node2").await;
    let token = hosts[0].node.swarm_inspect().unwrap().join_tokens.manager;
    let request = late.join_request(&hosts[0], &token);
    let counted = eventually("consensus has two members", 10, || votes(&hosts[0]) == 2);
    tokio::select! {
        joined = late.node.swarm_join(request) => joined.unwrap(),
        () = counted => {}
    }
    late.node.inner.abandon();
    late.restart_after_crash().await;
    eventually("it manages", 15, || late.node.info().control_available).await;
    late.node.service_create(service("web", 1)).await.unwrap();
    assert_eq!(votes(&hosts[0]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_taken_out_while_it_was_away_and_wanted_again_comes_back() {
    let mut hosts = managers(3).await;
    all_reached(&hosts).await;
    let id = hosts[2].node.info().node_id.unwrap();
    let issued = hosts[2].node.inner.member().unwrap().tls().current().identity.issued_at();
    hosts[2].node.shutdown().await;
    // Whoever is demoted later has a certificate that nobody in consensus takes any more: it must ask for another.
    eventually("the second after", 5, || crate::clock::now().0 / 1_000_000_000 > issued).await;
    set_role(&hosts[0].node, id.as_str(), Role::Worker).await.unwrap();
    eventually("it counts no more", 15, || votes(&hosts[0]) == 2).await;
    set_role(&hosts[0].node, id.as_str(), Role::Manager).await.unwrap();
    hosts[2].start().await;
    eventually("three vote", 15, || votes(&hosts[0]) == 3).await;
    all_reached(&hosts).await;
    hosts[2].node.service_create(service("web", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_died_with_the_leader_is_answered_with_what_became_of_it() {
    let mut hosts = managers(3).await;
    let secret = skep_model::secret::Secret {
        id: skep_model::SecretId::from_bits(7),
        meta: Default::default(),
        name: "once".into(),
        labels: Default::default(),
        data: skep_model::secret::SecretBytes(b"x".to_vec()),
        templating: None,
    };
    let batch = Batch::new(crate::clock::now(), vec![Change::CreateSecret(Box::new(secret))])
        .named(skep_store::Request { id: 1, since: hosts[0].node.view().unwrap().index() });
    let leader = hosts.remove(0);
    let committed = leader.node.inner.manager().unwrap().consensus().propose(batch.clone()).await.unwrap();
    leader.node.inner.abandon();
    let again = hosts[0].node.inner.manager().unwrap().settle(batch.clone()).await.unwrap();
    assert_eq!(again, committed.index, "not that the name is taken");
    let others = batch.named(skep_store::Request { id: 2, since: again });
    let taken = hosts[1].node.inner.manager().unwrap().settle(others).await.unwrap_err();
    assert!(taken.to_string().contains("secret once already exists"), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_while_leaders_change_take_effect_once_and_are_answered_truthfully() {
    let hosts = managers(3).await;
    all_reached(&hosts).await;
    let (mut updated, written) = (0, AtomicUsize::new(0));
    let writes = async {
        for n in 0..60 {
            hosts[n % 3].node.service_create(service(&format!("s{n}"), 0)).await.unwrap();
            // The version is read through another manager, which may be behind.
            let other = &hosts[(n + 1) % 3].node;
            let name = format!("s{n}");
            eventually("it is seen everywhere", 5, || other.service_inspect(&name).is_ok()).await;
            let service = other.service_inspect(&name).unwrap();
            let mut spec = service.spec.clone();
            spec.labels.insert("touched".into(), "once".into());
            let update = ServiceUpdate::Spec(Box::new(spec), Default::default());
            match other.service_update(service.id.as_str(), service.meta.version, update).await {
                Ok(()) => updated += 1,
                // The leader gave it an endpoint meanwhile.
                Err(error) => assert!(error.to_string().ends_with("update out of sequence"), "{error}"),
            }
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    let changes = async {
        for turn in 1.. {
            eventually("some more are written", 20, || written.load(Ordering::Relaxed) >= turn * 5).await;
            let leader = leader_of(&hosts).await;
            hosts[leader].node.inner.manager().unwrap().hand_over().await;
        }
    };
    tokio::select! { () = writes => {}, () = changes => {} }
    eventually("each exists once", 5, || hosts[0].node.view().unwrap().services().count() == 60).await;
    let touched = hosts[0].node.view().unwrap().services().filter(|s| !s.spec.labels.is_empty()).count();
    assert_eq!(touched, updated, "an update was carried out if and only if it was answered so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_finds_the_next_leader_and_keeps_its_tasks() {
    let mut hosts = managers(3).await;
    let mut worker = Host::new("node4").await;
    worker.join_as_worker(&hosts[0]).await;
    eventually("all nodes are ready", 10, || {
        hosts[0].node.node_list().unwrap().iter().all(|n| n.status.state == NodeState::Ready)
    })
    .await;
    hosts[0].node.service_create(service("web", 8)).await.unwrap();
    eventually("8 tasks run", 10, || running(&hosts[0].node).len() == 8).await;
    let before = worker.fake.running();
    assert_eq!(before.len(), 2);
    let leader = hosts.remove(0);
    let killed = Instant::now();
    leader.node.inner.abandon();
    let id = worker.node.info().node_id.unwrap();
    let old = leader.node.info().node_id;
    eventually("another leads", 10, || hosts[0].node.managers().leader.is_some_and(|id| Some(id) != old)).await;
    println!("another leads after {:?}", killed.elapsed());
    eventually("the worker has a session", 5, || worker.node.inner.member().unwrap().is_connected()).await;
    println!("the worker's session after {:?}", killed.elapsed());
    eventually("6 are made up for", 10, || running(&hosts[0].node).len() == 8).await;
    // Unknown to the new leader until it is heard.
    eventually("it is ready", 5, || hosts[0].node.node_inspect(id.as_str()).unwrap().status.state == NodeState::Ready)
        .await;
    let now = worker.fake.running();
    assert!(before.iter().all(|task| now.contains(task)), "its tasks are the same ones");

    // The managers it knows are on its disk: the first of them is gone for good.
    worker.restart().await;
    eventually("it has a session again", 5, || worker.node.inner.member().unwrap().is_connected()).await;
    assert!(before.iter().all(|task| worker.fake.running().contains(task)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_with_another_address_is_found_there() {
    let mut hosts = managers(3).await;
    let worker = Host::new("node4").await;
    worker.join_as_worker(&hosts[0]).await;
    for moved in [2, 0] {
        hosts[moved].node.shutdown().await;
        hosts[moved].move_to_another_address();
        hosts[moved].start().await;
        all_reached(&hosts).await;
        let id = hosts[moved].node.info().node_id.unwrap();
        eventually("its address is known everywhere", 10, || {
            let known = worker.node.info().remote_managers.iter().any(|m| m.addr == hosts[moved].address);
            let shown = |h: &Host| h.node.node_inspect(id.as_str()).unwrap().manager.map(|m| m.address.to_string());
            known && hosts.iter().all(|h| shown(h).as_ref() == Some(&hosts[moved].address))
        })
        .await;
    }
    hosts[1].node.service_create(service("web", 1)).await.unwrap();
}
