//! Looking at tasks from any manager: logs merged from every node, a terminal in a container elsewhere, events that a client
//! can take up again.

use skep_e2e::{Following, LATER, Lab, SOON, eventually};

const TALK: &str = "i=0; while true; do echo hello $i from $(hostname); i=$((i+1)); sleep 0.2; done";

fn talk(lab: &Lab, name: &str, replicas: &str, more: &[&str]) {
    let mut words = vec!["service", "create", "--detach", "--name", name, "--replicas", replicas];
    words.extend(["--stop-grace-period", "100ms"]);
    words.extend(more);
    words.extend(["busybox", "sh", "-c", TALK]);
    lab.docker_words(1, &words).ok();
}

/// Task ids by the host they run on.
fn tasks_on(lab: &Lab, service: &str, host: &str) -> Vec<String> {
    let listed = lab.docker_words(
        1,
        &["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", "{{.ID}} {{.Node}}", service],
    );
    listed
        .ok()
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, node)| *node == host)
        .map(|(id, _)| id.into())
        .collect()
}

#[test]
fn logs_are_merged_cut_and_followed_and_a_dead_node_is_told_of() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    talk(&lab, "talk", "3", &[]);
    lab.await_running("talk", 3);
    let from = |logs: &str, host: &str| logs.lines().filter(|l| l.contains(&format!("@{host} "))).count();
    eventually(LATER, "lines of all three", || {
        let logs = lab.docker(1, "service logs talk").stdout;
        ["node1", "node2", "node3"].iter().all(|host| from(&logs, host) > 3)
    });
    // conformance: works | docker service logs --tail
    let logs = lab.docker(1, "service logs --tail 2 talk").ok();
    assert_eq!(logs.lines().count(), 6, "two of each task: {logs}");
    // conformance: works | docker service logs --since
    assert_eq!(lab.docker(1, "service logs --since 2035-01-01T00:00:00Z talk").ok(), "");
    assert!(lab.docker(1, "service logs --since 1h talk").ok().lines().count() > 9);
    // conformance: works | docker service logs --timestamps
    let logs = lab.docker(1, "service logs --tail 1 -t talk").ok();
    assert!(logs.lines().all(|l| l.starts_with("20") && l.contains("Z talk.")), "{logs}");
    // conformance: works | docker service logs --details
    let logs = lab.docker(1, "service logs --tail 1 --details talk").ok();
    assert!(logs.lines().count() == 3 && logs.lines().all(|l| l.starts_with("talk.")), "{logs}");
    // conformance: works | docker service logs --raw
    assert!(lab.docker(1, "service logs --tail 1 --raw talk").ok().lines().all(|l| l.starts_with("hello ")));
    // conformance: works | docker service logs --no-task-ids --no-trunc --no-resolve
    assert!(lab.docker(1, "service logs --tail 1 --no-task-ids talk").ok().lines().all(|l| l.starts_with("talk.")
        && !l.split('@').next().unwrap_or_default().trim().trim_start_matches("talk.").contains('.')));
    let task = &tasks_on(&lab, "talk", "node2")[0];
    assert!(lab.docker(1, "service logs --tail 1 --no-trunc talk").ok().contains(task.as_str()));
    let node = lab.docker_words(1, &["node", "inspect", "node2", "--format", "{{.ID}}"]).ok();
    assert!(lab.docker(1, "service logs --tail 1 --no-resolve talk").ok().contains(&node));
    // conformance: works | docker service logs TASK
    let logs = lab.docker(1, &format!("service logs --tail 3 {task}")).ok();
    assert!(logs.lines().count() == 3 && from(&logs, "node2") == 3, "{logs}");

    // conformance: works | docker service logs --follow, with tasks that join
    let follower = Following::start(lab.docker_command(1, &["service", "logs", "--follow", "--tail", "0", "talk"]));
    eventually(SOON, "three speak", || ["node1", "node2", "node3"].iter().all(|host| from(&follower.seen(), host) > 1));
    lab.docker(1, "service scale --detach talk=5").ok();
    eventually(LATER, "a fourth and a fifth", || {
        ["talk.4.", "talk.5."].iter().all(|task| follower.seen().contains(task))
    });
    drop(follower);
    lab.docker(1, "service scale --detach talk=3").ok();
    lab.await_running("talk", 3);

    // conformance: works | docker service logs, with a node that is down | what there is, and a note at the end
    if lab.is_dockerd() {
        // Its own takes a quarter of a minute to be called down, and the tasks move meanwhile.
        return;
    }
    talk(&lab, "pinned", "1", &["--constraint", "node.hostname==node3"]);
    talk(&lab, "near", "1", &["--constraint", "node.hostname==node1"]);
    lab.await_running("pinned", 1);
    lab.lab(&["kill", "node3"]).ok();
    eventually(LATER, "node3 is down", || {
        lab.docker_words(1, &["node", "inspect", "node3", "--format", "{{.Status.State}}"]).ok() == "down"
    });
    lab.await_running("talk", 3);
    let ran = lab.docker(1, "service logs talk");
    assert!(from(&ran.stdout, "node1") > 3 && from(&ran.stdout, "node2") > 3, "{}", ran.stdout);
    let gone = lab.docker_words(1, &["node", "inspect", "node3", "--format", "{{.ID}}"]).ok();
    ran.fails(&format!(
        "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node {gone} is not available"
    ));
}

#[test]
fn a_follower_of_logs_survives_a_new_leader() {
    let lab = Lab::swarm(3, 0);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    talk(&lab, "talk", "1", &["--constraint", "node.hostname==node3"]);
    lab.await_running("talk", 1);
    let follower = Following::start(lab.docker_command(2, &["service", "logs", "--follow", "--raw", "talk"]));
    follower.await_text("hello 3 ");
    // conformance: works | docker service logs --follow, across a change of leaders | Docker's ends there
    lab.lab(&["kill", "node1"]).ok();
    let before = follower.seen().lines().count();
    eventually(LATER, "more lines", || follower.seen().lines().count() > before + 20);
    let seen = follower.seen();
    let numbers: Vec<usize> = seen.lines().filter_map(|l| l.split(' ').nth(1)?.parse().ok()).collect();
    let expected: Vec<usize> = (0..numbers.len()).collect();
    assert_eq!(numbers, expected, "each line once, none missing");
}

#[test]
fn containers_of_tasks_are_reached_from_any_manager() {
    let lab = Lab::swarm(2, 1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    talk(&lab, "far", "1", &["--constraint", "node.hostname==node3"]);
    lab.await_running("far", 1);
    let task = tasks_on(&lab, "far", "node3")[0].clone();
    let name = format!("far.1.{task}");
    let container = lab.docker(3, "ps -q --no-trunc").ok();
    for manager in [1, 2] {
        // conformance: works | docker inspect CONTAINER, of a task on another node | Docker knows containers of its own host only
        for reference in [&container, &container[..12], &name, "far.1"] {
            let id = lab.docker_words(manager, &["container", "inspect", "--format", "{{.Id}}", reference]).ok();
            assert_eq!(id, container, "{reference} at node{manager}");
        }
        // A task's id means the task, as always.
        let kind = lab.docker_words(manager, &["inspect", "--format", "{{.ServiceID}}", &task]);
        kind.ok();
        // conformance: works | docker logs, of a task on another node
        eventually(SOON, "its lines", || lab.docker_words(manager, &["logs", &name]).ok().lines().count() > 2);
        let logs = lab.docker_words(manager, &["logs", "--tail", "2", &name]).ok();
        assert!(logs.lines().count() == 2 && logs.starts_with("hello "), "{logs}");
        // conformance: works | docker exec, of a task on another node
        let ran = lab.docker_words(manager, &["exec", "far.1", "sh", "-c", "hostname; echo oops >&2; exit 7"]);
        assert_eq!((ran.code, ran.stdout.trim(), ran.stderr.trim()), (7, &container[..12], "oops"));
        // conformance: works | docker exec -i, of a task on another node
        assert_eq!(
            lab.docker_with_input(manager, &["exec", "-i", &container, "cat"], b"to and fro").ok(),
            "to and fro"
        );
        // conformance: works | docker top, of a task on another node
        assert!(lab.docker_words(manager, &["top", &name]).ok().contains("sleep"));
        // conformance: works | docker stats, of a task on another node
        let stats = lab.docker_words(manager, &["stats", "--no-stream", "--format", "{{.Name}}", &name]).ok();
        assert_eq!(stats, name);
    }
    // conformance: works | docker exec -it, of a task on another node | with the terminal's size
    let mut terminal = std::process::Command::new("script");
    let line = format!(
        "stty rows 33 cols 77; docker -H unix://{} exec -it far.1 sh -c 'for i in $(seq 50); do stty size | grep -q \"33 77\" && echo sized && exit; sleep 0.1; done'",
        lab.socket(2)
    );
    terminal.args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null());
    let said = String::from_utf8_lossy(&terminal.output().expect("script is installed").stdout).into_owned();
    assert!(said.contains("sized"), "{said}");
    let follower = Following::start(lab.docker_command(2, &["logs", "-f", "--tail", "0", "far.1"]));
    follower.await_text("hello ");
    // What cannot be told to a manager directly goes over the leader.
    let second = lab.docker(2, "info --format {{.Swarm.NodeAddr}}").ok();
    lab.on(3, &["ip", "route", "add", "blackhole", &second]).ok();
    assert_eq!(lab.docker_with_input(2, &["exec", "-i", "far.1", "cat"], b"round about").ok(), "round about");
    lab.on(3, &["ip", "route", "del", "blackhole", &second]).ok();
    // A worker asks nobody, and what nobody knows is said as ever.
    talk(&lab, "near", "1", &["--constraint", "node.hostname==node1"]);
    lab.await_running("near", 1);
    lab.docker(3, "exec near.1 true").fails("No such container: near.1");
    lab.docker(1, "exec nobody true").fails("No such container: nobody");
    // conformance: works | docker exec, of a task on a node that is down | the error names the node
    lab.lab(&["kill", "node3"]).ok();
    eventually(LATER, "node3 is down", || {
        lab.docker_words(1, &["node", "inspect", "node3", "--format", "{{.Status.State}}"]).ok() == "down"
    });
    let said = lab.docker_words(1, &["exec", &container, "true"]).fails("node node3 (");
    assert!(said.contains("is down"), "{said}");
}

#[test]
fn a_conversation_with_a_container_elsewhere_survives_the_leader_that_arranged_it() {
    let lab = Lab::swarm(3, 1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    talk(&lab, "far", "1", &["--constraint", "node.hostname==node4"]);
    lab.await_running("far", 1);
    let logs = Following::start(lab.docker_command(2, &["logs", "-f", "far.1"]));
    // A word goes there and comes back ten times a second.
    let mut talking = std::process::Command::new("sh");
    let line = format!(
        "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.1; done | \
         docker -H unix://{} exec -i far.1 sh -c 'while read n; do echo got $n; done; exit 7'",
        lab.socket(2)
    );
    talking.args(["-c", &line]);
    let mut talking = Following::start(talking);
    talking.await_text("got 5");
    logs.await_text("hello 3 ");
    lab.lab(&["kill", "node1"]).ok();
    eventually(LATER, "another leads", || {
        let members = lab.docker(2, "node ls --format {{.Hostname}}={{.ManagerStatus}}={{.Status}}").stdout;
        members.lines().any(|l| l.contains("=Leader=")) && members.contains("node1=Unreachable=Down")
    });
    // A new one is arranged by the new leader, and by the asked one itself if it leads now.
    for manager in [2, 3] {
        // The worker may have found the new leader only just now; who asks is kept waiting.
        assert_eq!(lab.docker_with_input(manager, &["exec", "-i", "far.1", "cat"], b"again").ok(), "again");
    }
    // conformance: works | docker exec, of a task on another node, across a change of leaders | every byte once
    eventually(LATER, "the last word", || talking.seen().contains("got 149"));
    assert_eq!(talking.await_end(), 7);
    let expected: String = (0..150).map(|i| format!("got {i}\n")).collect();
    assert_eq!(talking.seen(), expected);
    // conformance: works | docker logs -f, of a task on another node, across a change of leaders
    let seen = logs.seen();
    let numbers: Vec<usize> = seen.lines().filter_map(|l| l.split(' ').nth(1)?.parse().ok()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    let before = numbers.len();
    eventually(SOON, "more lines", || logs.seen().lines().count() > before + 5);
}

/// `/events` as it is, with these queries, until `until` (from now, in seconds).
fn events(lab: &Lab, node: usize, query: &str) -> std::process::Command {
    let mut curl = std::process::Command::new("curl");
    let url = format!("http://d/v1.41/events?filters=%7B%22scope%22%3A%5B%22swarm%22%5D%7D&{query}");
    curl.args(["-sSN", "--max-time", "120", "--unix-socket", lab.socket(node), &url]);
    curl
}

fn parsed(lines: &str) -> Vec<serde_json::Value> {
    lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

#[test]
fn events_tell_what_moved_and_can_be_taken_up_at_another_manager() {
    let lab = Lab::swarm(3, 0);
    lab.give_busybox();
    // Whatever came before curl did is told as well.
    let follower = Following::start(events(&lab, 1, "since=1"));
    let told = |kind: &str, action: &str, attributes: &[(&str, &str)]| {
        eventually(LATER, &format!("{kind} {action} {attributes:?}"), || {
            parsed(&follower.seen()).iter().any(|e| {
                e["Type"] == kind
                    && e["Action"] == action
                    && attributes.iter().all(|(key, value)| e["Actor"]["Attributes"][key] == *value)
            })
        });
    };
    // conformance: works | docker events, of services | name, replicas, image, updatestate
    lab.docker(
        1,
        "service create --detach --no-resolve-image --name web --stop-grace-period 100ms --update-monitor 100ms busybox sleep 1000",
    )
    .ok();
    told("service", "create", &[("name", "web")]);
    lab.docker(1, "service scale --detach web=2").ok();
    told("service", "update", &[("name", "web"), ("replicas.old", "1"), ("replicas.new", "2")]);
    lab.await_running("web", 2);
    lab.docker(1, "service update --detach --no-resolve-image --image busybox:other --env-add A=1 web").ok();
    told("service", "update", &[("image.old", "busybox:latest"), ("image.new", "busybox:other")]);
    told("service", "update", &[("updatestate.new", "updating")]);
    // conformance: works | docker events, of nodes | availability; who leads and who is reached, as this manager sees it
    lab.docker(1, "node update --availability pause node3").ok();
    told("node", "update", &[("name", "node3"), ("availability.old", "active"), ("availability.new", "pause")]);
    // conformance: works | docker events, of secrets and configs
    lab.docker_with_input(1, &["secret", "create", "key", "-"], b"x").ok();
    told("secret", "create", &[("name", "key")]);
    lab.docker_with_input(1, &["config", "create", "conf", "-"], b"x").ok();
    told("config", "create", &[("name", "conf")]);
    // conformance: works | docker events, of overlay networks
    lab.docker(1, "network create --driver overlay back").ok();
    told("network", "create", &[("name", "back")]);
    // conformance: works | docker events --since --until, of the swarm
    let words = ["events", "--since", "10m", "--until", "0s", "--filter", "type=secret", "--filter", "scope=swarm"];
    // The CLI sends the second that has begun, and the secret is younger.
    eventually(SOON, "the secret's event, and no other", || {
        let listed = lab.docker_words(1, &words).ok();
        listed.contains("secret create") && listed.contains("name=key") && listed.lines().count() == 1
    });
    lab.docker(1, "service rm web").ok();
    told("service", "remove", &[("name", "web")]);
    if lab.is_dockerd() {
        return;
    }
    // conformance: works | GET /events?cursor= | ours: takes up at any manager after the event that had this cursor
    let seen = parsed(&follower.seen());
    let at = seen.iter().position(|e| e["Type"] == "secret").expect("the secret's event");
    let cursor = seen[at]["cursor"].as_str().expect("a cursor").to_owned();
    drop(follower);
    lab.lab(&["kill", "node1"]).ok();
    let logged = |events: &[serde_json::Value]| -> Vec<String> {
        let of_the_log = |e: &&serde_json::Value| e["Type"] != "node";
        events
            .iter()
            .filter(of_the_log)
            .map(|e| format!("{} {} {}", e["Type"], e["Action"], e["Actor"]["ID"]))
            .collect()
    };
    for node in [2, 3] {
        let again = Following::start(events(&lab, node, &format!("cursor={cursor}")));
        let expected = logged(&seen[at + 1..]);
        eventually(LATER, "all that came after it", || logged(&parsed(&again.seen())).len() >= expected.len());
        assert_eq!(logged(&parsed(&again.seen()))[..expected.len()], expected[..]);
        eventually(LATER, "a new leader", || lab.leader(node).is_some_and(|leader| leader != 1));
        lab.docker_with_input(node, &["config", "create", &format!("more{node}"), "-"], b"x").ok();
        again.await_text(&format!("more{node}"));
        let moved = Following::start(events(&lab, node, "since=1"));
        eventually(LATER, "who led and who is not reached", || {
            let seen = moved.seen();
            seen.contains(r#""leader.new":"true""#) && seen.contains(r#""reachability.new":"unreachable""#)
        });
    }
    let refused = events(&lab, 2, "cursor=x").output().expect("curl runs").stdout;
    assert!(String::from_utf8_lossy(&refused).contains("invalid cursor"), "{}", String::from_utf8_lossy(&refused));
}
