//! Managers come and go by the docker CLI: promoted, demoted, leaving, lost.

use skep_e2e::{LATER, Lab, eventually};

/// MANAGER STATUS of a node as the manager on `asked` shows it.
fn status(lab: &Lab, asked: usize, node: &str) -> String {
    let filter = format!("name={node}");
    lab.docker_words(asked, &["node", "ls", "--filter", &filter, "--format", "{{.ManagerStatus}}"]).stdout.trim().into()
}

fn await_status(lab: &Lab, asked: usize, node: &str, wanted: &str) {
    eventually(LATER, &format!("node{asked} shows {node} as '{wanted}'"), || status(lab, asked, node) == wanted);
}

#[test]
fn workers_become_managers_and_managers_workers() {
    let lab = Lab::swarm(1, 2);
    lab.give_whoami();
    eventually(LATER, "all are ready", || {
        lab.docker_words(1, &["node", "ls", "--format", "{{.Status}}"]).stdout == "Ready\nReady\nReady\n"
    });
    assert_eq!(
        lab.docker(1, "node promote node2 node3").ok(),
        "Node node2 promoted to a manager in the swarm.\nNode node3 promoted to a manager in the swarm."
    );
    for node in ["node2", "node3"] {
        await_status(&lab, 1, node, "Reachable");
    }
    assert!(lab.docker(1, "node promote node2").ok().ends_with(" is already a manager."));
    // conformance: works | docker on any manager: reads there, writes forwarded to the leader
    eventually(LATER, "the new manager answers", || status(&lab, 2, "node1") == "Leader");
    lab.docker(2, "service create --detach --name web --replicas 3 skep/whoami").ok();
    assert!(lab.docker(2, "service ls").ok().contains("web"));
    lab.await_running("web", 3);
    eventually(LATER, "logs through a follower", || lab.docker(3, "service logs web").code == 0);
    assert_eq!(lab.docker(3, "info --format {{.Swarm.Managers}}/{{.Swarm.Nodes}}").ok(), "3/3");
    let inspected =
        lab.docker(2, "node inspect node1 --format {{.ManagerStatus.Leader}}/{{.ManagerStatus.Reachability}}");
    assert_eq!(inspected.ok(), "true/reachable");

    // The leader, through another.
    assert_eq!(lab.docker(2, "node demote node1").ok(), "Manager node1 demoted in the swarm.");
    eventually(LATER, "node1 is a worker", || {
        lab.docker(1, "info --format {{.Swarm.ControlAvailable}}").ok() == "false"
    });
    lab.docker(1, "node ls").fails("Worker nodes can't be used to view or modify cluster state");
    await_status(&lab, 2, "node1", "");
    // Its new certificate is written down at any moment.
    lab.change(3, "node promote node1");
    await_status(&lab, 2, "node1", "Reachable");
    lab.await_running("web", 3);
    // conformance: works | docker node rm of a manager is refused until it is demoted
    lab.docker(2, "node rm --force node1").fails("must be demoted to worker before removal");
}

#[test]
fn managers_leave_are_lost_and_are_missed() {
    let lab = Lab::swarm(3, 0);
    lab.give_whoami();
    // Also of one that has only just joined.
    lab.docker(3, "swarm leave").fails("The only way to restore a swarm that has lost consensus");
    lab.docker(1, "service create --detach --name web --replicas 3 skep/whoami").ok();
    lab.await_running("web", 3);
    // conformance: works | docker swarm leave on a manager warns, and says when the quorum would go
    lab.docker(3, "swarm leave").fails("The only way to restore a swarm that has lost consensus");
    lab.docker(3, "swarm leave --force").ok();
    if lab.is_dockerd() {
        lab.docker(1, "node demote node3").ok();
    }
    eventually(LATER, "it has left", || status(&lab, 1, "node3").is_empty());
    // conformance: differs | docker swarm leave --force on a manager | takes it out of consensus, where Docker goes on counting it until it is demoted
    eventually(LATER, "it may be removed", || lab.docker(1, "node rm node3").code == 0);
    lab.docker(1, "swarm leave")
        .fails("Removing this node leaves 1 managers out of 2. Without a Raft quorum your swarm will be inaccessible.");

    // conformance: works | docker node ls, ps when a manager is lost: Down, Unreachable
    lab.lab(&["kill", "node2"]).ok();
    await_status(&lab, 1, "node2", "Unreachable");
    if lab.is_dockerd() {
        return;
    }
    // conformance: differs | without a quorum of managers | reads still answer; what is refused names the managers that are missing
    let refused = lab.docker(1, "service create --detach --name more skep/whoami");
    let told = refused.fails("The swarm does not have a leader.");
    assert!(told.contains("Not reached from node1: node2 ("), "{told}");
    assert!(lab.docker(1, "service ls").ok().contains("web"));
    lab.docker(1, "node ps node2").ok();
    lab.lab(&["start", "node2"]).ok();
    eventually(LATER, "writes go on", || lab.docker(1, "service create --detach --name more skep/whoami").code == 0);
    lab.await_running("more", 1);
    lab.await_running("web", 3);
}
