//! What people do with several managers, and what is refused, as by Docker.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use skep_e2e::{LATER, Lab, SOON, eventually};

#[test]
fn what_may_not_be_done_to_members_is_refused_and_changes_nothing() {
    let lab = Lab::swarm(1, 1);
    let members = || {
        let format = "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}";
        lab.docker_words(1, &["node", "ls", "--format", format]).ok()
    };
    eventually(LATER, "both are ready", || members() == "node1 Ready Active Leader\nnode2 Ready Active");
    // conformance: works | docker node demote of the last manager is refused
    lab.docker(1, "node demote node1")
        .fails("rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm");
    lab.docker(1, "node update --role worker node1").fails("attempting to demote the last manager of the swarm");
    // conformance: works | docker node rm of a node that is up, or a manager, is refused
    lab.docker(1, "node rm node2").fails("is not down and can't be removed");
    for line in ["node rm node1", "node rm --force node1"] {
        lab.docker(1, line).fails(
            "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
        );
    }
    lab.docker(1, "swarm leave").fails("Removing the last manager erases all current state of the swarm.");
    // conformance: works | joining twice is refused
    let token = lab.docker(1, "swarm join-token -q manager").ok();
    let remote = format!("{}:2377", lab.address(1));
    for node in [1, 2] {
        lab.docker(node, &format!("swarm join --token {token} {remote}"))
            .fails("This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.");
        lab.docker(node, "swarm init").fails("This node is already part of a swarm.");
    }
    for line in ["node inspect nobody", "node rm nobody", "node promote nobody", "node demote nobody", "node ps nobody"]
    {
        lab.docker(1, line).fails("nobody");
    }
    lab.docker(2, "node promote node2").fails(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this \
         command on a manager node or promote the current node to a manager.",
    );
    assert_eq!(members(), "node1 Ready Active Leader\nnode2 Ready Active");
    // conformance: works | docker node promote, demote
    assert_eq!(lab.docker(1, "node promote node2").ok(), "Node node2 promoted to a manager in the swarm.");
    assert_eq!(lab.docker(1, "node promote node2").ok().split_once(' ').expect("words").0, "Node");
    eventually(LATER, "the second manager is reached", || {
        members() == "node1 Ready Active Leader\nnode2 Ready Active Reachable"
    });
    assert_eq!(lab.docker(2, "node demote node2").ok(), "Manager node2 demoted in the swarm.");
    eventually(LATER, "it is a worker again", || members() == "node1 Ready Active Leader\nnode2 Ready Active");
}

/// The tutorial's cluster: three managers, of which any is asked, and two workers; an api on the workers with its secret, a port
/// of the mesh, scaled, rolled back; and its leader is lost while clients go on asking.
#[test]
fn three_managers_and_two_workers_lose_their_leader_under_load() {
    let lab = Lab::swarm(3, 2);
    if lab.is_dockerd() {
        return; // Its mesh needs IPVS.
    }
    // Who has just joined has yet to ask the others.
    eventually(SOON, "a follower knows who leads and who is reached", || {
        let listed = lab.docker_words(2, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).ok();
        listed == "node1 Leader\nnode2 Reachable\nnode3 Reachable\nnode4 \nnode5"
    });
    // A command given to a follower is carried out by the leader.
    lab.docker_with_input(2, &["secret", "create", "POSTGRES_PASSWORD", "-"], b"hidden").ok();
    // conformance: differs | docker on a manager that does not lead: what was written at another | is there some milliseconds later; Docker asks the leader for every read
    eventually(SOON, "the third manager knows it", || lab.docker(3, "secret inspect POSTGRES_PASSWORD").code == 0);
    lab.docker(
        3,
        "service create --detach --name api --replicas 2 --constraint node.role==worker --secret POSTGRES_PASSWORD \
         --publish 8080:80 --limit-cpu 0.5 --reserve-memory 15M --restart-condition on-failure --restart-max-attempts 10 \
         --update-parallelism 1 --update-monitor 100ms skep/whoami",
    )
    .ok();
    lab.await_exact(2, &[("api", 2)]);
    let leader = lab.await_leader(2);
    let through = leader % 3 + 1;
    let hosts: Vec<usize> = (1..=5).filter(|node| *node != leader).collect();
    for node in &hosts {
        eventually(SOON, "every host answers", || lab.curl(&format!("http://{}:8080", lab.address(*node))).code == 0);
    }
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = hosts
            .iter()
            .map(|node| {
                let url = format!("http://{}:8080", lab.address(*node));
                let (lab, stop, asked) = (&lab, &stop, &asked);
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let ran = lab.curl(&url);
                        asked.fetch_add(1, Ordering::Relaxed);
                        if ran.code != 0 {
                            failed.push(ran.stderr);
                        }
                    }
                    failed
                })
            })
            .collect();
        let more = || {
            let before = asked.load(Ordering::Relaxed);
            eventually(SOON, "clients go on asking", || asked.load(Ordering::Relaxed) > before + 20);
        };
        more();
        lab.lab(&["kill", &format!("node{leader}")]).ok();
        // The first write waits for the next leader and is then carried out.
        lab.scale(through, "api", 5);
        more();
        lab.await_exact(through, &[("api", 5)]);
        more();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            // conformance: works | a leader is lost under load: no request fails
            let failed = client.join().expect("a client ends");
            assert!(
                failed.is_empty(),
                "of {} requests {} failed: {failed:?}",
                asked.load(Ordering::Relaxed),
                failed.len()
            );
        }
    });
    assert_ne!(lab.await_leader(through), leader);
    lab.lab(&["start", &format!("node{leader}")]).ok();
    // The managers are drained: nothing of it ran there.
    for node in 1..=3 {
        lab.change(through, &format!("node update --availability drain node{node}"));
    }
    lab.change(leader, "service update --detach --env-add LEVEL=debug api");
    let state = || lab.docker_words(leader, &["service", "inspect", "-f", "{{.UpdateStatus.State}}", "api"]).stdout;
    eventually(LATER * 2, "updated", || state().trim() == "completed");
    lab.change(leader, "service rollback --detach api");
    eventually(LATER * 2, "rolled back", || state().trim() == "rollback_completed");
    // A rollback restores the replicas of the previous specification, which had five as well.
    lab.await_exact(leader, &[("api", 5)]);
    lab.docker(through, "service rm api").ok();
    lab.docker(through, "secret rm POSTGRES_PASSWORD").ok();
    lab.await_exact(leader, &[]);
}
