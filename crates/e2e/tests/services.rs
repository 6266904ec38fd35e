//! Services: create, ls, ps, scale, update, logs, rm, and what is refused.

use skep_e2e::{LATER, Lab, SOON, eventually};

fn header(table: &str) -> Vec<&str> {
    table.lines().next().unwrap_or_default().split("  ").map(str::trim).filter(|w| !w.is_empty()).collect()
}

#[test]
fn a_service_is_created_listed_scaled_updated_and_removed() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    // conformance: works | docker service create (with progress)
    let said = lab.docker(1, "service create --stop-grace-period 100ms --name echo --replicas 2 --env A=1 --limit-memory 32m --reserve-memory 16m busybox sleep 1000").ok();
    assert!(said.contains("overall progress: 2 out of 2 tasks") && said.contains("verify: Service"), "{said}");
    // conformance: works | docker service ls
    let table = lab.docker(1, "service ls").ok();
    assert_eq!(header(&table), ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    assert_eq!(
        lab.docker_words(1, &["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}"]).ok(),
        "echo replicated 2/2 busybox:latest"
    );
    // conformance: works | docker service ps
    let table = lab.docker(1, "service ps echo").ok();
    assert_eq!(header(&table), ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"]);
    let row = table.lines().nth(1).expect("a task");
    assert!(row.contains("echo.1") && row.contains("Running") && row.contains(" seconds ago"), "{row}");
    // conformance: works | docker service scale
    let said = lab.docker(1, "service scale echo=6").ok();
    assert!(said.contains("echo scaled to 6") && said.contains("overall progress: 6 out of 6 tasks"), "{said}");
    let running = lab.running("echo");
    for node in ["node1", "node2", "node3"] {
        assert_eq!(running.iter().filter(|(n, _)| n == node).count(), 2, "spread: {running:?}");
    }
    // The container is what was asked for, and named after its task.
    let (node, task) = running.first().expect("a task").clone();
    let node: usize = node.trim_start_matches("node").parse().expect("node1…");
    let container = lab.docker_words(node, &["ps", "-q", "--filter", &format!("name={task}")]).ok();
    let container = container.lines().next().expect("its container").to_owned();
    assert_eq!(
        lab.docker_words(
            node,
            &[
                "inspect",
                "-f",
                "{{.HostConfig.Memory}} {{index .Config.Labels \"com.docker.swarm.service.name\"}}",
                &container
            ]
        )
        .ok(),
        "33554432 echo"
    );
    assert_eq!(lab.docker_words(node, &["exec", &container, "sh", "-c", "echo $A"]).ok(), "1");
    // conformance: works | docker service update
    lab.docker(1, "service update --env-add B=2 --update-parallelism 2 --update-monitor 100ms --detach=false echo")
        .ok();
    lab.await_running("echo", 6);
    eventually(SOON, "the update is completed", || {
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Env}} {{.UpdateStatus.State}}";
        let told = lab.docker_words(1, &["service", "inspect", "-f", format, "echo"]).ok();
        // The CLI sends them in any order.
        ["[A=1 B=2] completed", "[B=2 A=1] completed"].contains(&told.as_str())
    });
    // conformance: works | docker service inspect --pretty
    let pretty = lab.docker(1, "service inspect --pretty echo").ok();
    assert!(pretty.contains("Service Mode:\tReplicated") && pretty.contains("Replicas:\t6"), "{pretty}");
    lab.docker(1, "service scale --detach echo=0").ok();
    eventually(LATER, "no container is left", || {
        (1..=3).all(|node| lab.docker_words(node, &["ps", "-q"]).ok().is_empty())
    });
    // conformance: works | docker service rm
    assert_eq!(lab.docker(1, "service rm echo").ok(), "echo");
    lab.docker(1, "service inspect echo").fails("no such service: echo");
    lab.docker(1, "service ps echo").fails("no such service: echo");
    eventually(LATER, "the containers are removed", || {
        (1..=3).all(|node| lab.docker_words(node, &["ps", "-aq"]).ok().is_empty())
    });
}

#[test]
fn a_task_that_ends_is_restarted_by_its_policy() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    // conformance: works | docker service create --restart-condition --restart-delay --restart-max-attempts
    lab.docker_words(
        1,
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "always",
            "--restart-delay",
            "100ms",
            "busybox",
            "sh",
            "-c",
            "sleep 0.2; exit 3",
        ],
    )
    .ok();
    lab.docker_words(
        1,
        &["service", "create", "--detach", "--name", "never", "--restart-condition", "none", "busybox", "true"],
    )
    .ok();
    lab.docker_words(
        1,
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "twice",
            "--restart-max-attempts",
            "2",
            "--restart-delay",
            "10ms",
            "busybox",
            "false",
        ],
    )
    .ok();
    let tasks = |service: &str| {
        lab.docker_words(1, &["service", "ps", "--no-trunc", "--format", "{{.CurrentState}}|{{.Error}}", service])
            .stdout
    };
    eventually(LATER, "three failures, each with its exit code", || {
        tasks("always").lines().filter(|l| l.starts_with("Failed") && l.contains("task: non-zero exit (3)")).count()
            >= 3
    });
    eventually(SOON, "complete", || tasks("never").starts_with("Complete"));
    assert_eq!(tasks("never").lines().count(), 1);
    eventually(LATER, "the first attempt and two more", || {
        tasks("twice").lines().filter(|l| l.starts_with("Failed")).count() == 3
    });
    // History is limited to five a slot.
    eventually(LATER, "a limited history", || (5..=6).contains(&tasks("always").lines().count()));
}

#[test]
fn logs_come_from_every_node() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    lab.docker_words(
        1,
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "talk",
            "--replicas",
            "3",
            "busybox",
            "sh",
            "-c",
            "echo hello from $(hostname); sleep 1000",
        ],
    )
    .ok();
    lab.await_running("talk", 3);
    // conformance: works | docker service logs
    eventually(LATER, "a line of each task", || {
        let logs = lab.docker(1, "service logs talk").stdout;
        ["node1", "node2", "node3"].iter().all(|n| {
            logs.lines().any(|l| l.starts_with("talk.") && l.contains(&format!("@{n} ")) && l.contains("| hello from "))
        })
    });
    assert_eq!(
        lab.docker(1, "service logs --raw talk").ok().lines().filter(|l| l.starts_with("hello from ")).count(),
        3
    );
    let task = lab.docker_words(1, &["service", "ps", "-q", "--filter", "node=node3", "talk"]).ok();
    assert_eq!(lab.docker_words(1, &["service", "logs", "--raw", &task]).ok().lines().count(), 1);
}

#[test]
fn mounts_constraints_and_host_ports_of_services() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    lab.give_whoami();
    // conformance: works | docker service create --mount --constraint
    let line = [
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--mode",
        "global",
        "--stop-grace-period",
        "100ms",
        "--publish",
        "mode=host,published=8088,target=80",
        "--mount",
        "type=bind,source=/etc/hostname,target=/web/index.html,ro",
        "--mount",
        "type=volume,source=data,target=/data",
        "--mount",
        "type=tmpfs,target=/scratch",
        "busybox",
        "httpd",
        "-f",
        "-h",
        "/web",
    ];
    lab.docker_words(1, &line).ok();
    lab.await_running("web", 3);
    // conformance: works | docker service create --publish mode=host
    for node in 1..=3 {
        let url = format!("http://{}:8088/", lab.address(node));
        eventually(SOON, "the host's own task answers", || lab.curl(&url).stdout.trim() == format!("node{node}"));
    }
    assert_eq!(lab.docker(2, "volume ls -q").ok(), "data");
    lab.docker(
        1,
        "service create --stop-grace-period 100ms --detach --name one --constraint node.hostname==node2 --replicas 2 busybox sleep 1000",
    )
    .ok();
    lab.await_running("one", 2);
    assert!(lab.running("one").iter().all(|(node, _)| node == "node2"));
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name none --constraint node.labels.zone==nowhere busybox sleep 1000").ok();
    eventually(SOON, "the reason is told", || {
        lab.docker(1, "service ps --no-trunc none")
            .stdout
            .contains("no suitable node (scheduling constraints not satisfied on 3 nodes)")
    });
    lab.docker(
        1,
        "service create --stop-grace-period 100ms --detach --name big --reserve-memory 900g busybox sleep 1000",
    )
    .ok();
    eventually(SOON, "the reason is told", || {
        lab.docker(1, "service ps --no-trunc big")
            .stdout
            .contains("no suitable node (insufficient resources on 3 nodes)")
    });
    // conformance: works | docker node update --availability drain
    lab.docker(1, "node update --availability drain node3").ok();
    eventually(LATER, "nothing runs on the drained node", || lab.docker(3, "ps -q").ok().is_empty());
    lab.docker(1, "node update --availability active node3").ok();
    lab.await_running("web", 3);
}

#[test]
fn bad_services_are_refused_in_dockers_words_and_leave_nothing() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name web --publish 8080:80 busybox sleep 1000")
        .ok();
    lab.docker(1, "service create --detach --name web busybox sleep 1")
        .fails("name conflicts with an existing object: service web already exists");
    lab.docker(1, "service create --detach --name other --publish 8080:80 busybox sleep 1")
        .fails("port '8080' is already in use by service 'web'");
    lab.docker(1, "service create --detach --name Bad/Name busybox")
        .fails("name must be valid as a DNS name component");
    lab.docker(1, "service create --detach --limit-memory 1m busybox").fails("Must be at least 4MiB");
    lab.docker(1, "service create --detach --network nowhere busybox").fails("network nowhere not found");
    lab.docker(1, "service update --detach nobody").fails("service nobody not found");
    lab.docker(1, "service scale nobody=3").fails("service nobody not found");
    lab.docker(1, "service rm nobody").fails("service nobody not found");
    assert_eq!(lab.docker_words(1, &["service", "ls", "--format", "{{.Name}}"]).ok(), "web");
    // A spec with no image, as no CLI would send it.
    let post = |body: &str| {
        let output = std::process::Command::new("curl")
            .args([
                "-sS",
                "--unix-socket",
                lab.socket(1),
                "-w",
                " %{http_code}",
                "-H",
                "Content-Type: application/json",
                "-d",
                body,
                "http://d/v1.41/services/create",
            ])
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = post(r#"{"Name":"empty","TaskTemplate":{"ContainerSpec":{}}}"#);
    assert!(said.contains("ContainerSpec: image reference must be provided") && said.ends_with(" 400"), "{said}");
    assert!(post("{").ends_with(" 400"));
    // An image that no one has: the task says so, and the service waits.
    lab.docker(1, "service create --detach --name ghost --no-resolve-image --restart-delay 1s node1:5999/ghost:1").ok();
    eventually(LATER, "the task is rejected and says why", || {
        let tasks = lab.docker(1, "service ps --no-trunc ghost").stdout;
        tasks.contains("Rejected") && tasks.contains("No such image: node1:5999/ghost:1")
    });
}
