//! No request is lost while a service is updated, scaled down or moved off a node: a task has its stop signal only when no
//! host gives it new connections any more. Not run against dockerd where the kernel lacks IPVS: its mesh passes no traffic.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use skep_e2e::load::{Load, get};
use skep_e2e::{LATER, Lab, SOON, eventually};

/// Clients, each with a request every [`PACE`]: 400 requests a second.
const CLIENTS: usize = 4;
const PACE: Duration = Duration::from_millis(10);
/// Goes on for a while; then nothing must have been lost since the beginning.
#[track_caller]
fn check(load: &Load, what: &str) {
    let (seen, _) = load.so_far();
    eventually(LATER, "requests are answered", || load.so_far().0 > seen + 50);
    let (answered, lost) = load.so_far();
    assert!(lost.is_empty(), "{what}: {} requests lost, {answered} answered: {lost:#?}", lost.len());
}

/// A datagram may be lost, and so may its answer: a client asks again, and is not to ask a task that is gone.
fn ask(host: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(host)?;
    let mut answer = Ok(0);
    for _ in 0..3 {
        socket.send(b"ping")?;
        answer = socket.recv(&mut [0; 512]);
        if answer.is_ok() {
            break;
        }
    }
    answer.map(drop)
}

fn hosts(lab: &Lab, port: u16) -> Vec<SocketAddr> {
    (1..=lab.size()).map(|node| format!("{}:{port}", lab.address(node)).parse().expect("an address")).collect()
}

/// `service update … web` through host `node`, and whatever `meanwhile` does once it has begun; until it is completed.
fn update(lab: &Lab, node: usize, flags: &str, meanwhile: impl FnOnce()) {
    let format = "{{with .UpdateStatus}}{{.StartedAt}} {{.State}}{{end}}";
    let status = || lab.docker_words(node, &["service", "inspect", "web", "--format", format]).stdout.trim().to_owned();
    let before = status();
    lab.docker(node, &format!("service update --detach --update-monitor 100ms {flags} web")).ok();
    eventually(LATER, "the update begins", || !status().is_empty() && status() != before);
    meanwhile();
    eventually(2 * LATER, "the update is completed", || status() != before && status().ends_with(" completed"));
}

/// What clients in containers do, through the service's virtual address; they note what fails.
const EAST_WEST: &str = "while true; do \
    if timeout 5 wget -qO /dev/null http://web; then echo; else date >> /tmp/lost; fi >> /tmp/answered; done";

fn east_west(lab: &Lab, what: &str) {
    for node in 1..=lab.size() {
        let client = lab.docker(node, "ps -q --filter name=client").ok();
        let run = |command: &str| lab.docker_words(node, &["exec", &client, "sh", "-c", command]).ok();
        let count = || run("wc -l < /tmp/answered").trim().parse::<usize>().unwrap_or(0);
        let seen = count();
        eventually(LATER, "requests in the overlay are answered", || count() > seen + 5);
        assert_eq!(run("cat /tmp/lost 2>/dev/null || true"), "", "{what}: lost in the overlay by node{node}");
    }
}

#[test]
fn no_request_is_lost_in_updates_scaling_down_and_drain() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker(1, "network create --driver overlay back").ok();
    lab.docker(
        1,
        "service create --detach --name web --replicas 6 --network back --publish 8080:80 --publish 8081:80/udp \
         --update-parallelism 2 skep/whoami",
    )
    .ok();
    lab.await_running("web", 6);
    for host in hosts(&lab, 8080) {
        eventually(SOON, "every host answers", || get(host).is_ok());
    }
    lab.docker_words(
        1,
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "client",
            "--mode",
            "global",
            "--network",
            "back",
            "busybox",
            "sh",
        ]
        .iter()
        .copied()
        .chain(["-c", EAST_WEST])
        .collect::<Vec<_>>(),
    )
    .ok();
    lab.await_running("client", 3);
    let load = Load::start(CLIENTS, PACE, &hosts(&lab, 8080), get);
    let datagrams = Load::start(1, PACE, &hosts(&lab, 8081), ask);
    let everything = |what: &str| {
        check(&load, what);
        check(&datagrams, what);
        east_west(&lab, what);
    };
    everything("before anything");

    // conformance: works | no request is lost in a rolling update, stop-first
    update(&lab, 1, "--env-add V=2", || ());
    everything("update, stop-first");
    // conformance: works | no request is lost in a rolling update, start-first
    update(&lab, 1, "--update-order start-first --env-add V=3", || ());
    everything("update, start-first");
    // conformance: works | no request is lost when a service is scaled down
    lab.docker(1, "service scale --detach web=3").ok();
    lab.await_running("web", 3);
    everything("scale down");
    // conformance: works | no request is lost when a node is drained
    lab.docker(1, "node update --availability drain node3").ok();
    eventually(LATER, "nothing runs on node3", || lab.docker(3, "ps -q --filter name=web").ok().is_empty());
    lab.await_running("web", 3);
    check(&load, "drain");
    check(&datagrams, "drain");
}

#[test]
fn the_only_task_of_a_drained_node_is_replaced_before_it_stops() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(
        1,
        "service create --detach --name web --update-order start-first --publish 8080:80 --constraint node.role==worker \
         skep/whoami",
    )
    .ok();
    lab.await_running("web", 1);
    for host in hosts(&lab, 8080) {
        eventually(SOON, "every host answers", || get(host).is_ok());
    }
    let load = Load::start(CLIENTS, PACE, &hosts(&lab, 8080), get);
    check(&load, "before anything");
    let (home, _) = lab.running("web").remove(0);
    // conformance: differs | docker node update --availability drain, with --update-order start-first | the replacement runs before the task stops; Docker's starts after
    lab.docker(1, &format!("node update --availability drain {home}")).ok();
    let node = if home == "node2" { 2 } else { 3 };
    eventually(LATER, "nothing runs on the drained node", || lab.docker(node, "ps -q").ok().is_empty());
    let moved = || lab.running("web").iter().filter(|(node, _)| *node != home).count();
    eventually(LATER, "it runs elsewhere, once", || moved() == 1 && lab.running("web").len() == 1);
    let tasks = lab.docker(1, "service ps -q --no-trunc web").ok();
    let moments = |state: &str| -> Vec<String> {
        let of = |task| {
            lab.docker_words(1, &["inspect", "--format", "{{.Status.State}} {{json .Status.Timestamp}}", task]).ok()
        };
        let told: Vec<String> = tasks.lines().map(of).collect();
        // RFC 3339 of one zone sorts as text, but for the mark of the zone.
        told.iter().filter_map(|t| Some(t.strip_prefix(state)?.trim().trim_matches(['"', 'Z']).to_owned())).collect()
    };
    let (mut running, mut stopped) = (Vec::new(), Vec::new());
    eventually(SOON, "both moments are told", || {
        (running, stopped) = (moments("running"), moments("shutdown"));
        running.len() == 1 && stopped.len() == 1
    });
    assert!(running < stopped, "{running:?} {stopped:?}: stopped first");
    check(&load, "drain");
}

#[test]
fn a_task_that_publishes_a_port_runs_when_it_listens() {
    let lab = Lab::swarm(1, 0);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    // conformance: differs | docker service ps, of a task that publishes a TCP port and has no health check | Running when it listens, or after 2 s; Docker's at once, and connections are refused meanwhile
    let late = "sleep 1; mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";
    lab.docker_words(
        1,
        &["service", "create", "--detach", "--name", "late", "--publish", "8080:80", "busybox", "sh", "-c", late],
    )
    .ok();
    lab.await_running("late", 1);
    // It listens by then; this host may yet have to be told.
    let pid = lab.docker_words(1, &["inspect", "-f", "{{.State.Pid}}", &lab.docker(1, "ps -q").ok()]).ok();
    let sockets = lab.on(1, &["cat", &format!("/proc/{pid}/net/tcp"), &format!("/proc/{pid}/net/tcp6")]).ok();
    assert!(sockets.contains(":0050 "), "{sockets}");
    let url = format!("http://{}:8080", lab.address(1));
    eventually(SOON, "it answers", || lab.curl(&url).stdout.trim() == "hello");
}

#[test]
fn a_host_that_says_nothing_holds_a_stop_up_only_so_long() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, "service create --detach --name web --replicas 4 --publish 8080:80 --constraint node.hostname!=node3 skep/whoami").ok();
    lab.await_running("web", 4);
    let others: Vec<SocketAddr> = hosts(&lab, 8080)[..2].to_vec();
    for host in &others {
        eventually(SOON, "the host answers", || get(*host).is_ok());
    }
    let load = Load::start(CLIENTS, PACE, &others, get);
    // Its kernel still balances, but its daemon takes no orders; and then the whole host is gone.
    for fault in ["pause", "kill"] {
        lab.lab(&[fault, "node3"]).ok();
        update(&lab, 1, "--force", || ());
        check(&load, fault);
        lab.lab(&[if fault == "pause" { "resume" } else { "start" }, "node3"]).ok();
        eventually(LATER, "node3 is ready", || {
            lab.docker_words(1, &["node", "inspect", "node3", "--format", "{{.Status.State}}"]).ok() == "ready"
        });
    }
}

#[test]
fn no_request_is_lost_when_the_leader_changes_in_the_middle_of_an_update() {
    let lab = Lab::swarm(3, 1);
    if lab.is_dockerd() {
        return;
    }
    // On the worker and the managers that live on; clients ask these.
    lab.docker(2, "service create --detach --name web --replicas 4 --publish 8080:80 --constraint node.hostname!=node1 skep/whoami").ok();
    lab.await_running("web", 4);
    let others: Vec<SocketAddr> = hosts(&lab, 8080)[1..].to_vec();
    for host in &others {
        eventually(SOON, "the host answers", || get(*host).is_ok());
    }
    let load = Load::start(CLIENTS, PACE, &others, get);
    update(&lab, 2, "--env-add V=2", || drop(lab.lab(&["kill", "node1"]).ok()));
    check(&load, "leader killed");
}
