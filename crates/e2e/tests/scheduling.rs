//! Where tasks run, and why not: constraints, preferences, reservations, generic resources.

use skep_e2e::{LATER, Lab, SOON, eventually};

/// The `(state, error)` of a service's tasks that are wanted.
fn states(lab: &Lab, service: &str) -> String {
    let format = "{{.CurrentState}}|{{.Error}}";
    lab.docker_words(
        1,
        &["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", format, service],
    )
    .stdout
}

#[track_caller]
fn waits_with(lab: &Lab, service: &str, reason: &str) {
    let mut seen = String::new();
    eventually(SOON, &format!("{service} waits with {reason:?}"), || {
        let now = states(lab, service);
        if now != seen {
            eprintln!("{now}");
            seen = now;
        }
        seen.contains(reason)
    });
}

/// How many tasks run on each of the nodes.
fn spread(lab: &Lab, service: &str) -> [usize; 3] {
    let running = lab.running(service);
    ["node1", "node2", "node3"].map(|node| running.iter().filter(|(n, _)| n == node).count())
}

fn create(lab: &Lab, name: &str, flags: &str) {
    lab.docker(
        1,
        &format!("service create --stop-grace-period 100ms --detach --name {name} {flags} busybox sleep 1000"),
    )
    .ok();
}

#[test]
fn tasks_go_where_they_may_and_say_why_they_cannot() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    // conformance: works | docker node update --label-add, and constraints on labels
    lab.docker(1, "node update --label-add zone=East --label-add rack=1 node1").ok();
    lab.docker(1, "node update --label-add zone=east --label-add rack=2 node2").ok();
    lab.docker(1, "node update --label-add zone=west --label-add rack=1 node3").ok();
    // conformance: works | docker service create --constraint: node.id, node.hostname, node.ip (also CIDR), node.role, node.platform.os, node.labels; == and !=
    let id = lab.docker(1, "node inspect -f {{.ID}} node2").ok();
    let address = lab.address(3).to_owned();
    for (number, (constraints, on)) in [
        (vec!["node.labels.zone==east".to_owned()], [1, 1, 0]),
        (vec!["node.labels.zone!=east".to_owned()], [0, 0, 1]),
        (vec!["NODE.HOSTNAME==Node2".to_owned()], [0, 1, 0]),
        (vec![format!("node.id=={id}")], [0, 1, 0]),
        (vec!["node.role==worker".to_owned()], [0, 1, 1]),
        (vec!["node.role!=worker".to_owned()], [1, 0, 0]),
        (vec![format!("node.ip=={address}")], [0, 0, 1]),
        (vec![format!("node.ip!={address}/32"), "node.labels.rack==1".to_owned()], [1, 0, 0]),
        (vec!["node.platform.os==linux".to_owned()], [1, 1, 1]),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("where{number}");
        let flags: String = constraints.iter().map(|c| format!(" --constraint {c}")).collect();
        create(&lab, &name, &format!("--mode global{flags}"));
        lab.await_running(&name, on.iter().sum());
        assert_eq!(spread(&lab, &name), on, "{constraints:?}");
    }
    // conformance: works | docker service create --constraint that cannot be read is refused in Docker's words
    for (bad, said) in [
        ("zone", "constraint expected one operator from ==, !="),
        ("node.id=x", "constraint expected one operator from ==, !="),
        ("==x", "key '' is invalid"),
        ("a==x", "key 'a' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.labels.a==b!c", "value 'b!c' is invalid"),
    ] {
        lab.docker_words(1, &["service", "create", "--detach", "--name", "bad", "--constraint", bad, "busybox"])
            .fails(&format!("rpc error: code = Unknown desc = {said}"));
        lab.docker_words(1, &["service", "update", "--detach", "--constraint-add", bad, "where0"])
            .fails(&format!("rpc error: code = Unknown desc = {said}"));
    }
    lab.docker(1, "service inspect bad").fails("no such service: bad");
    assert_eq!(
        lab.docker_words(1, &["service", "inspect", "-f", "{{.Spec.TaskTemplate.Placement.Constraints}}", "where0"])
            .ok(),
        "[node.labels.zone==east]"
    );

    // conformance: works | a task that cannot be placed says why, counting nodes by reason
    create(&lab, "nowhere", "--constraint node.labels.zone==north");
    waits_with(&lab, "nowhere", "no suitable node (scheduling constraints not satisfied on 3 nodes)");
    create(&lab, "big", "--reserve-memory 900g");
    waits_with(&lab, "big", "no suitable node (insufficient resources on 3 nodes)");
    // conformance: works | docker service create --replicas-max-per-node
    create(&lab, "few", "--replicas 4 --replicas-max-per-node 1");
    lab.await_running("few", 3);
    waits_with(&lab, "few", "no suitable node (max replicas per node limit exceed)");
    create(&lab, "host", "--replicas 4 --publish mode=host,published=8099,target=80");
    lab.await_running("host", 3);
    waits_with(&lab, "host", "no suitable node (host-mode port already in use on 3 nodes)");
    // conformance: works | docker node update --availability pause
    lab.docker(1, "node update --availability pause node3").ok();
    create(&lab, "mixed", "--constraint node.labels.zone==north");
    waits_with(
        &lab,
        "mixed",
        "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)",
    );
    lab.docker(1, "node update --availability active node3").ok();
    lab.docker(1, "service rm nowhere big few host mixed").ok();

    // conformance: works | docker service create --placement-pref, nested
    create(
        &lab,
        "even",
        "--replicas 6 --placement-pref spread=node.labels.rack --placement-pref spread=node.labels.zone",
    );
    lab.await_running("even", 6);
    assert_eq!(spread(&lab, "even").iter().sum::<usize>(), 6);
    assert_eq!(spread(&lab, "even")[1], 3, "half on rack 2: {:?}", spread(&lab, "even"));

    // conformance: works | tasks leave a node that no longer satisfies their constraints
    create(&lab, "moved", "--replicas 2 --restart-delay 100ms --constraint node.labels.zone!=west");
    lab.await_running("moved", 2);
    assert_eq!(spread(&lab, "moved"), [1, 1, 0]);
    lab.docker(1, "node update --label-add zone=west node2").ok();
    eventually(LATER, "both run on node1", || spread(&lab, "moved") == [2, 0, 0]);
    let past = lab
        .docker_words(
            1,
            &[
                "service",
                "ps",
                "--no-trunc",
                "--filter",
                "desired-state=shutdown",
                "--format",
                "{{.CurrentState}}|{{.Error}}",
                "moved",
            ],
        )
        .ok();
    assert!(past.starts_with("Rejected ") && past.contains("assigned node no longer meets constraints"), "{past}");
    eventually(LATER, "its container is gone", || {
        lab.docker_words(2, &["ps", "-q", "--filter", "name=moved"]).ok().is_empty()
    });
}

#[test]
fn generic_resources_are_reserved_and_given() {
    let lab = Lab::up(&[
        "--managers",
        "1",
        "--workers",
        "1",
        "--",
        "--node-generic-resource",
        "GPU=UUID1",
        "--node-generic-resource",
        "GPU=UUID2",
        "--node-generic-resource",
        "SSD=3",
    ]);
    lab.give_busybox();
    // conformance: works | dockerd --node-generic-resource, in docker info and docker node inspect
    for line in
        ["node inspect self -f {{json .Description.Resources.GenericResources}}", "info -f {{json .GenericResources}}"]
    {
        let (line, format) = line.split_once(" -f ").expect("a format");
        let mut words: Vec<&str> = line.split(' ').collect();
        words.extend(["-f", format]);
        let said = lab.docker_words(1, &words).ok();
        for piece in [
            r#"{"NamedResourceSpec":{"Kind":"GPU","Value":"UUID1"}}"#,
            r#"{"NamedResourceSpec":{"Kind":"GPU","Value":"UUID2"}}"#,
            r#"{"DiscreteResourceSpec":{"Kind":"SSD","Value":3}}"#,
        ] {
            assert!(said.contains(piece), "{line}: {said}");
        }
    }
    // conformance: works | docker service create --generic-resource
    let words =
        "service create --detach --name gpu --replicas 3 --generic-resource GPU=1 --generic-resource SSD=2 busybox";
    let mut words: Vec<&str> = words.split(' ').collect();
    words.extend(["sh", "-c", "env | grep DOCKER_RESOURCE | sort; sleep 1000"]);
    lab.docker_words(1, &words).ok();
    lab.await_running("gpu", 2);
    waits_with(&lab, "gpu", "no suitable node (insufficient resources on 2 nodes)");
    let format = "{{json .Spec.TaskTemplate.Resources.Reservations.GenericResources}}";
    let reserved = lab.docker_words(1, &["service", "inspect", "-f", format, "gpu"]).ok();
    for (kind, count) in [("GPU", 1), ("SSD", 2)] {
        let piece = format!(r#"{{"DiscreteResourceSpec":{{"Kind":"{kind}","Value":{count}}}}}"#);
        assert!(reserved.contains(&piece), "{reserved}");
    }
    let ids = lab.docker(1, "service ps -q --no-trunc --filter node=node1 gpu").ok();
    let id = ids.lines().next().expect("a task on node1").to_owned();
    let given = lab.docker_words(1, &["inspect", "--type", "task", "-f", "{{json .GenericResources}}", &id]).ok();
    for piece in [
        r#"{"NamedResourceSpec":{"Kind":"GPU","Value":"UUID1"}}"#,
        r#"{"DiscreteResourceSpec":{"Kind":"SSD","Value":2}}"#,
    ] {
        assert!(given.contains(piece), "{given}");
    }
    eventually(SOON, "each task is told what it has", || {
        let logs = lab.docker(1, "service logs --raw gpu").stdout;
        logs.matches("DOCKER_RESOURCE_GPU=UUID1").count() == 2 && logs.matches("DOCKER_RESOURCE_SSD=2").count() == 2
    });
    // What is freed is given again.
    lab.docker(1, "service update --detach --generic-resource-rm SSD gpu").ok();
    lab.await_running("gpu", 3);
    lab.docker(1, "service create --detach --generic-resource GPU=abc busybox")
        .fails("Named Generic Resources is not supported for service create or update");
    lab.docker(1, "service create --detach --generic-resource GPU busybox").fails("invalid generic-resource format");
}
