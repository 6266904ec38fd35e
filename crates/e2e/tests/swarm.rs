//! Hosts form a swarm: init, join, tokens, node ls, leave; and what is refused.

use skep_e2e::{LATER, Lab, eventually};

#[test]
fn hosts_join_with_tokens_and_are_listed() {
    let lab = Lab::hosts(3);
    // conformance: works | docker swarm init
    let said = lab.docker(1, &format!("swarm init --advertise-addr {}", lab.address(1))).ok();
    assert!(said.starts_with("Swarm initialized: current node ("), "{said}");
    let line = said
        .lines()
        .map(str::trim)
        .find(|l| l.starts_with("docker swarm join --token SWMTKN-1-"))
        .expect("the join line");
    let token = line.split_whitespace().nth(4).expect("a token").to_owned();
    assert!(line.ends_with(&format!(" {}:2377", lab.address(1))), "{line}");
    // conformance: works | docker swarm join-token
    assert_eq!(lab.docker(1, "swarm join-token -q worker").ok(), token);
    assert!(
        lab.docker(1, "swarm join-token manager")
            .ok()
            .contains("To add a manager to this swarm, run the following command:")
    );
    // conformance: works | docker swarm join
    let join = line.trim_start_matches("docker ");
    assert_eq!(lab.docker(2, join).ok(), "This node joined a swarm as a worker.");
    // A host's name serves as well as its address.
    assert_eq!(
        lab.docker(3, &format!("swarm join --token {token} node1:2377")).ok(),
        "This node joined a swarm as a worker."
    );
    // conformance: works | docker node ls
    eventually(LATER, "three ready nodes", || {
        lab.docker_words(
            1,
            &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"],
        )
        .stdout
        .lines()
        .collect::<Vec<_>>()
            == ["node1 Ready Active Leader", "node2 Ready Active ", "node3 Ready Active "]
    });
    let table = lab.docker(1, "node ls").ok();
    let header: Vec<&str> =
        table.lines().next().expect("a header").split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
    assert_eq!(header, ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"]);
    let own = table.lines().nth(1).expect("node1");
    assert!(own.split_whitespace().nth(1) == Some("*"), "the asked node is marked: {own}");
    assert_eq!(own.split_whitespace().next().map(str::len), Some(25));
    // conformance: works | docker info (Swarm)
    let format = "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.Nodes}} {{.Swarm.Managers}}";
    assert_eq!(lab.docker_words(1, &["info", "--format", format]).ok(), "active true 3 1");
    assert_eq!(lab.docker_words(2, &["info", "--format", format]).ok(), "active false 0 0");
    // conformance: works | docker node inspect, update, rm
    assert_eq!(
        lab.docker_words(
            1,
            &["node", "inspect", "--format", "{{.Description.Hostname}} {{.Spec.Role}} {{.Status.Addr}}", "node2"]
        )
        .ok(),
        format!("node2 worker {}", lab.address(2))
    );
    assert!(lab.docker(1, "node inspect --pretty self").ok().contains("Leader:\t\tYes"));
    lab.docker(1, "node update --label-add zone=a node2").ok();
    assert_eq!(lab.docker_words(1, &["node", "inspect", "-f", "{{.Spec.Labels.zone}}", "node2"]).ok(), "a");
    lab.docker(1, "node rm node3").fails("is not down and can't be removed");
    // conformance: works | docker swarm leave
    assert_eq!(lab.docker(3, "swarm leave").ok(), "Node left the swarm.");
    eventually(LATER, "the node that left is down", || {
        lab.docker_words(1, &["node", "ls", "--filter", "name=node3", "--format", "{{.Status}}"]).stdout.trim()
            == "Down"
    });
    assert_eq!(lab.docker(1, "node rm node3").ok(), "node3");
    lab.docker(1, "node inspect node3").fails("node node3 not found");
    lab.docker(1, "swarm leave").fails(
        "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager \
         erases all current state of the swarm. Use `--force` to ignore this message.",
    );
    // conformance: works | docker swarm update
    assert_eq!(lab.docker(1, "swarm update --task-history-limit 3").ok(), "Swarm updated.");
    assert_eq!(
        lab.docker_words(1, &["info", "-f", "{{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}}"]).ok(),
        "3"
    );
}

#[test]
fn what_cannot_join_is_told_why_and_stays_outside() {
    let lab = Lab::hosts(2);
    lab.docker(1, "service ls").fails("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.");
    lab.docker(1, "node ls").fails("This node is not a swarm manager.");
    lab.docker(1, "swarm leave").fails("This node is not part of a swarm");
    lab.docker(1, &format!("swarm init --advertise-addr {}", lab.address(1))).ok();
    lab.docker(1, "swarm init").fails("This node is already part of a swarm.");
    let remote = format!("{}:2377", lab.address(1));
    let token = lab.docker(1, "swarm join-token -q worker").ok();
    // conformance: works | docker swarm join with a wrong token
    lab.docker(2, &format!("swarm join --token nonsense {remote}")).fails("invalid join token");
    let mut wrong = token.clone();
    wrong.replace_range(wrong.len() - 4.., "zzzz");
    lab.docker(2, &format!("swarm join --token {wrong} {remote}"))
        .fails("A valid join token is necessary to join this cluster");
    // The digest of the CA in the token pins the cluster.
    let (head, secret) = token.rsplit_once('-').expect("a token has parts");
    let (version, digest) = head.rsplit_once('-').expect("a token has parts");
    // Another digest of the same size: one digit in the middle is another.
    let flipped: String =
        digest.chars().enumerate().map(|(i, c)| if i == 25 { if c == '0' { '1' } else { '0' } } else { c }).collect();
    lab.docker(2, &format!("swarm join --token {version}-{flipped}-{secret} {remote}"))
        .fails("remote CA does not match fingerprint");
    // conformance: works | docker swarm join with a manager that is not there
    lab.docker(2, &format!("swarm join --token {token} {}:2999", lab.address(1)))
        .fails("rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing");
    let outside = |node| lab.docker_words(node, &["info", "-f", "{{.Swarm.LocalNodeState}}"]).ok();
    eventually(LATER, "no half-made membership", || {
        outside(2) == "inactive" || {
            lab.docker(2, "swarm leave --force");
            false
        }
    });
    // conformance: works | docker swarm join-token --rotate
    let fresh = lab.docker(1, "swarm join-token --rotate -q worker").ok();
    assert_ne!(fresh, token);
    lab.docker(2, &format!("swarm join --token {token} {remote}"))
        .fails("A valid join token is necessary to join this cluster");
    lab.docker(2, &format!("swarm join --token {fresh} {remote}")).ok();
    lab.docker(2, &format!("swarm join --token {fresh} {remote}")).fails("This node is already part of a swarm.");
    lab.docker(2, "node ls").fails("Worker nodes can't be used to view or modify cluster state.");
}
