//! The sessions of the tutorials people learn Swarm from, command for command (with images that are here standing in for
//! those of a public registry).

use skep_e2e::{LATER, Lab, Registry, SOON, busybox_tar, eventually};

/// One manager, three workers, a registry without TLS: tag, push, pull on every worker, a service, six replicas, rm.
#[test]
fn a_service_from_a_private_registry() {
    let lab = Lab::up(&["--managers", "1", "--workers", "3", "--no-swarm", "--", "--insecure-registry", "node1:5000"]);
    let _registry = Registry::start(&lab);
    let said = lab.docker(1, "swarm init").ok();
    let join = said.lines().map(str::trim).find(|l| l.starts_with("docker swarm join --token")).expect("the join line");
    for node in 2..=4 {
        assert_eq!(lab.docker(node, join.trim_start_matches("docker ")).ok(), "This node joined a swarm as a worker.");
    }
    assert_eq!(lab.docker(1, "node ls").ok().lines().count(), 5);
    let change = [
        "import",
        "--change",
        "CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/etc\"]",
        "-",
        "example/echo:latest",
    ];
    lab.docker_with_input(1, &change, &busybox_tar()).ok();
    lab.docker(1, "image tag example/echo:latest localhost:5000/example/echo:latest").ok();
    lab.docker(1, "image push localhost:5000/example/echo:latest").ok();
    for node in 2..=4 {
        lab.docker(node, "image pull node1:5000/example/echo:latest").ok();
        assert!(lab.docker(node, "image ls").ok().contains("node1:5000/example/echo"));
    }
    let said = lab
        .docker(1, "service create --replicas 1 --publish 8000:8000 --name echo node1:5000/example/echo:latest")
        .ok();
    assert!(said.contains("overall progress: 1 out of 1 tasks"), "{said}");
    let row = lab.docker(1, "service ls").ok();
    for word in ["echo", "replicated", "1/1", "node1:5000/example/echo:latest", "*:8000->8000/tcp"] {
        assert!(row.contains(word), "{word}: {row}");
    }
    let said = lab.docker(1, "service scale echo=6").ok();
    assert!(said.contains("echo scaled to 6") && said.contains("overall progress: 6 out of 6 tasks"), "{said}");
    let nodes: std::collections::BTreeSet<String> = lab.running("echo").into_iter().map(|(node, _)| node).collect();
    assert_eq!(nodes.len(), 4, "{nodes:?}");
    if !lab.is_dockerd() {
        for node in 1..=4 {
            let url = format!("http://{}:8000/hostname", lab.address(node));
            eventually(SOON, "every host answers", || lab.curl(&url).code == 0);
        }
    }
    assert_eq!(lab.docker(1, "service rm echo").ok(), "echo");
    assert_eq!(lab.docker(1, "service ls -q").ok(), "");
}

/// Three nodes, a web server that shows its host's name by a bind mount, five replicas, aggregated logs, `swarm leave`.
#[test]
fn scaling_the_mesh_and_reconciliation() {
    let lab = Lab::swarm(1, 2);
    let change =
        ["import", "--change", "CMD [\"sh\", \"-c\", \"echo started; exec httpd -f -h /usr/share/nginx/html\"]", "-"];
    for node in 1..=3 {
        for tag in ["nginx:1.12", "nginx:1.13"] {
            lab.docker_with_input(node, &[&change[..], &[tag]].concat(), &busybox_tar()).ok();
        }
    }
    let mount = "--mount source=/etc/hostname,target=/usr/share/nginx/html/index.html,type=bind,ro";
    let id =
        lab.docker(1, &format!("service create --detach=true --name nginx1 --publish 80:80 {mount} nginx:1.12")).ok();
    assert_eq!(id.len(), 25);
    lab.await_running("nginx1", 1);
    assert!(lab.docker(1, "service ls").ok().contains("*:80->80/tcp"));
    assert_eq!(lab.docker(1, "service update --replicas=5 --detach=true nginx1").ok(), "nginx1");
    lab.await_running("nginx1", 5);
    if !lab.is_dockerd() {
        let mut seen = std::collections::BTreeSet::new();
        eventually(SOON, "curl localhost:80 on node2 is answered by all three hosts in turn", || {
            seen.insert(lab.on(2, &["curl", "-sS", "--max-time", "2", "localhost:80"]).stdout.trim().to_owned());
            ["node1", "node2", "node3"].iter().all(|n| seen.contains(*n))
        });
        eventually(LATER, "the lines of all tasks, with their nodes", || {
            let logs = lab.docker(1, "service logs nginx1").stdout;
            logs.lines().filter(|l| l.starts_with("nginx1.") && l.contains("@node")).count() >= 3
        });
    }
    lab.docker(1, "service update --image nginx:1.13 --detach=true --update-monitor 100ms nginx1").ok();
    eventually(LATER * 2, "five tasks of the new image", || {
        let tasks = lab
            .docker_words(
                1,
                &[
                    "service",
                    "ps",
                    "nginx1",
                    "--filter",
                    "desired-state=running",
                    "--format",
                    "{{.Image}} {{.CurrentState}}",
                ],
            )
            .stdout;
        tasks.lines().filter(|l| l.starts_with("nginx:1.13 Running")).count() == 5
    });
    // The history stands below each task.
    let table = lab.docker(1, "service ps nginx1").ok();
    assert!(
        table
            .lines()
            .filter(|l| l.contains("\\_ nginx1.") && l.contains("nginx:1.12") && l.contains("Shutdown"))
            .count()
            == 5,
        "{table}"
    );
    // A second service beside it, and a node that leaves.
    lab.docker(
        1,
        &format!("service create --detach=true --name nginx2 --replicas=5 --publish 81:80 {mount} nginx:1.12"),
    )
    .ok();
    lab.await_running("nginx2", 5);
    assert_eq!(lab.docker(3, "swarm leave").ok(), "Node left the swarm.");
    eventually(LATER * 2, "five tasks on the two nodes that stay", || {
        let running = lab.running("nginx2");
        running.len() == 5 && running.iter().all(|(node, _)| node != "node3")
    });
}
