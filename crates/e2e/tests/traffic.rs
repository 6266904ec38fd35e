//! Labels of services and nodes that say who takes a connection, what is seen of its client, and who may open one. Docker
//! has none of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use skep_e2e::load::{Load, get};
use skep_e2e::service::words;
use skep_e2e::{LATER, Lab, SOON, eventually};

fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    answer.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default()
}

fn create(lab: &Lab, name: &str, line: &str) {
    let mut all = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
    all.extend(words(line));
    lab.docker_words(1, &all).ok();
}

/// Nobody takes the connection, and says so at once.
fn refused(lab: &Lab, url: &str) -> bool {
    let begun = Instant::now();
    lab.curl(url).code == 7 && begun.elapsed() < Duration::from_secs(1)
}

/// The first connections after a change may still be given as before it.
#[track_caller]
fn await_answer(lab: &Lab, url: &str) {
    eventually(SOON, url, || lab.curl(url).code == 0);
}

#[test]
fn labels_decide_who_takes_a_connection_and_what_it_sees() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    for (label, text) in [
        ("skep.mesh.source=nat", "label skep.mesh.source=nat: must be client or snat"),
        ("skep.mesh.police=local", "label skep.mesh.police is not known: on a service there are"),
    ] {
        lab.docker(1, &format!("service create --detach --label {label} skep/whoami")).fails(text);
    }
    lab.docker(1, "node update --label-add skep.balance.weight=11 node2")
        .fails("label skep.balance.weight=11: must be a whole number from 1 to 10");

    let url = |node: usize, port: u16| format!("http://{}:{port}", lab.address(node));
    create(&lab, "hidden", "--publish 8081:80 --label skep.mesh.source=snat skep/whoami");
    create(
        &lab,
        "near",
        "--publish 8082:80 --label skep.mesh.policy=local --constraint node.hostname==node2 skep/whoami",
    );
    create(&lab, "sticky", "--replicas 3 --publish 8083:80 --label skep.balance.affinity=client skep/whoami");
    create(&lab, "heavy", "--mode global --publish 8084:80 --constraint node.hostname!=node3 skep/whoami");
    lab.docker(1, "node update --label-add skep.balance.weight=3 node2").ok();
    for (service, count) in [("hidden", 1), ("near", 1), ("sticky", 3), ("heavy", 2)] {
        lab.await_running(service, count);
    }
    // conformance: works | --label skep.mesh.source=snat | what Swarm does always; the client's address is the default
    for node in 1..=3 {
        await_answer(&lab, &url(node, 8081));
        let answer = lab.curl(&url(node, 8081)).ok();
        assert!(field(&answer, "RemoteAddr:").starts_with("10.0.0."), "{answer}");
    }
    lab.docker(1, "service update --detach --label-rm skep.mesh.source hidden").ok();
    let machine = lab.address(1).rsplit_once('.').map(|(net, _)| format!("{net}.254:")).expect("an address");
    eventually(SOON, "the client's address again", || {
        field(&lab.curl(&url(3, 8081)).stdout, "RemoteAddr:").starts_with(&machine)
    });

    // conformance: works | --label skep.mesh.policy=local | a host without a task refuses at once
    await_answer(&lab, &url(2, 8082));
    for node in [1, 3] {
        assert!(refused(&lab, &url(node, 8082)), "node{node} has no task of it");
    }

    // conformance: works | --label skep.balance.affinity=client
    eventually(SOON, "one task answers, by whichever host", || {
        let answers = [1, 2, 3, 1, 2, 3].map(|node| lab.curl(&url(node, 8083)).stdout);
        let names = answers.each_ref().map(|answer| field(answer, "Hostname:"));
        !names[0].is_empty() && names.iter().all(|name| *name == names[0])
    });

    // conformance: works | docker node update --label-add skep.balance.weight=3
    for node in [1, 3] {
        let shares = || {
            let mut shares = BTreeMap::new();
            for _ in 0..8 {
                *shares.entry(field(&lab.curl(&url(node, 8084)).stdout, "Hostname:").to_owned()).or_insert(0) += 1;
            }
            let mut shares: Vec<i32> = shares.into_values().collect();
            shares.sort_unstable();
            shares
        };
        eventually(SOON, "the task on node2 takes three of four", || shares() == [2, 6]);
    }
}

fn ip(lab: &Lab, node: usize) -> IpAddr {
    lab.address(node).parse().expect("an address")
}

/// What haproxy makes of a connection's beginning: client and destination.
fn told(lab: &Lab, node: usize, port: u16) -> Option<(String, String)> {
    let mut stream = TcpStream::connect((lab.address(node), port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let (client, destination) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (seen, name) = answer.lines().last()?.rsplit_once(' ')?;
    assert_eq!(seen, format!("{client} {destination}"), "{answer}");
    Some((seen.to_owned(), name.to_owned()))
}

#[test]
fn proxy_protocol_tells_haproxy_who_came_and_where_to() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_program("haproxy:test", "/usr/sbin/haproxy");
    let program = "printf \"defaults\\n mode http\\n timeout client 30s\\nfrontend web\\n bind :80 accept-proxy\\n \
                   http-request return content-type text/plain hdr it-is \\\"Host: web\\\" lf-string \\\"%%[src]:%%[src_port] %%[dst]:%%[dst_port] $SLOT\\\"\\n\" \
                   >/haproxy.cfg; exec haproxy -db -f /haproxy.cfg";
    let create = format!(
        "--replicas 2 --stop-signal SIGUSR1 --publish 8080:80 --env PATH=/bin:/usr/sbin --label skep.mesh.proxy-protocol=v2 \
         --env SLOT={{{{.Task.Slot}}}} haproxy:test sh -c '{program}'"
    );
    self::create(&lab, "web", &create);
    lab.await_running("web", 2);
    // conformance: works | --label skep.mesh.proxy-protocol=v2 | read by haproxy's accept-proxy
    for node in 1..=3 {
        eventually(SOON, "haproxy understands, one task after the other", || {
            let mut tasks = BTreeMap::new();
            for (_, name) in (0..6).filter_map(|_| told(&lab, node, 8080)) {
                *tasks.entry(name).or_insert(0) += 1;
            }
            tasks.into_values().eq([3, 3])
        });
    }
    // By the host's own address of either IP version.
    for (url, client) in [("http://127.0.0.1:8080", "127.0.0.1:"), ("http://[::1]:8080", "::1:")] {
        let answer = lab.on(1, &["curl", "-gsS", "--max-time", "5", url]).ok();
        assert!(answer.starts_with(client) && answer.contains(":8080 "), "{url}: {answer}");
    }

    // Backends follow; without one it is refused at once, and the port is still nobody else's.
    lab.docker(1, "service scale --detach web=0").ok();
    for node in 1..=3 {
        eventually(LATER, "refused without tasks", || refused(&lab, &format!("http://{}:8080", lab.address(node))));
    }
    lab.docker(1, "service scale --detach web=2").ok();
    lab.await_running("web", 2);
    (1..=3).for_each(|node| eventually(SOON, "it answers again", || told(&lab, node, 8080).is_some()));

    // As through the kernel, nothing is lost while tasks are replaced.
    let hosts: Vec<_> = (1..=3).map(|node| SocketAddr::from((ip(&lab, node), 8080))).collect();
    let load = Load::start(4, Duration::from_millis(20), &hosts, get);
    let check = |what: &str| {
        let seen = load.so_far().0;
        eventually(LATER, "requests are answered", || load.so_far().0 > seen + 50);
        let (answered, lost) = load.so_far();
        assert!(lost.is_empty(), "{what}: {} requests lost, {answered} answered: {lost:#?}", lost.len());
    };
    lab.docker(1, "service update --detach=false --quiet --force --update-monitor 100ms web").ok();
    check("an update");
    for replicas in [4, 2] {
        lab.docker(1, &format!("service scale --detach web={replicas}")).ok();
        lab.await_running("web", replicas);
    }
    check("scaling");
    drop(load);

    // A connection under way ends with the daemon; the next one is taken when there is a daemon again.
    let mut open = TcpStream::connect((lab.address(1), 8080)).expect("connected");
    open.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let daemon = lab.on(1, &["cat", "/run/skep.pid"]).ok();
    lab.on(1, &["kill", "-9", &daemon]).ok();
    assert!(open.read(&mut [0]).map_or(true, |length| length == 0));
    eventually(LATER, "the daemon is back", || told(&lab, 1, 8080).is_some());

    // Without the label it is the kernel's again: haproxy waits in vain for a header.
    lab.docker(1, "service update --detach --label-rm skep.mesh.proxy-protocol web").ok();
    eventually(SOON, "no header any more", || lab.curl(&format!("http://{}:8080", lab.address(2))).code != 0);
}

#[test]
fn who_may_connect_is_said_by_the_service_that_is_asked() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker(1, "network create --driver overlay --attachable back").ok();
    let server = "busybox sh -c 'echo hello >/tmp/index.html; exec httpd -f -h /tmp'";
    let on_back = "--stop-grace-period 100ms --network back";
    create(&lab, "web", &format!("{on_back} --constraint node.hostname==node1 {server}"));
    create(&lab, "other", &format!("{on_back} --publish 8086:80 --mode global {server}"));
    create(
        &lab,
        "db",
        &format!("{on_back} --publish 8085:80 --replicas 2 --label skep.network.allow-from=web,later {server}"),
    );
    for (service, count) in [("web", 1), ("other", 3), ("db", 2)] {
        lab.await_running(service, count);
    }
    let container = |node: usize, service: &str| {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        lab.docker(node, &format!("ps -q --filter {filter}")).ok().lines().next().unwrap_or_default().to_owned()
    };
    let run = |(node, service): (usize, &str), command: &str| {
        lab.docker_words(node, &["exec", &container(node, service), "sh", "-c", command])
    };
    let asks = |from, url: &str| run(from, &format!("timeout 5 wget -qO- {url}"));
    // conformance: works | --label skep.network.allow-from=web | enforced on both hosts; names still resolve
    eventually(SOON, "web reaches db", || asks((1, "web"), "http://db").stdout.trim() == "hello");
    asks((1, "web"), "http://tasks.db").ok();
    for node in 1..=3 {
        eventually(SOON, "this host knows db, and passes on what is published", || {
            asks((node, "other"), "http://tasks.db").stderr.contains("Connection refused")
                && lab.curl(&format!("http://{}:8085", lab.address(node))).code == 0
        });
        asks((node, "other"), "http://web").ok();
        for url in ["http://db", "http://tasks.db"] {
            let begun = Instant::now();
            asks((node, "other"), url).fails("Connection refused");
            assert!(begun.elapsed() < Duration::from_secs(2), "at once");
        }
        // What is published is for everybody, by any host.
        assert_eq!(lab.curl(&format!("http://{}:8085", lab.address(node))).ok(), "hello");
        asks((node, "other"), &format!("http://{}:8085", lab.address(1))).ok();
    }
    // The addresses that tasks have in the mesh are no way around.
    let db = (1..=3).find(|node| !container(*node, "db").is_empty()).expect("a task of db");
    let listed = run((db, "db"), "ip -4 -o addr").ok();
    let in_mesh = listed.split_whitespace().find(|word| word.starts_with("10.0.0.")).expect("an address in the mesh");
    let in_mesh = in_mesh.split('/').next().expect("an address");
    for node in 1..=3 {
        asks((node, "other"), &format!("http://{in_mesh}")).fails("Connection refused");
    }
    // A container of no service is on nobody's list.
    let by_hand = |node, url: &str| lab.docker(node, &format!("run --rm --network back busybox wget -qO- {url}"));
    for node in [1, 3] {
        assert_eq!(by_hand(node, "http://web").ok(), "hello");
        by_hand(node, "http://db").fails("Connection refused");
    }
    // Who may not ask may be asked.
    asks((db, "db"), "http://other").ok();

    // Tasks of allowed services are, where they come to run; and services, once there are such.
    create(&lab, "later", &format!("{on_back} --mode global {server}"));
    lab.await_running("later", 3);
    for node in 1..=3 {
        eventually(SOON, "a task of later reaches db", || asks((node, "later"), "http://db").code == 0);
    }
    lab.docker(1, "service update --detach --label-add skep.network.allow-from=none db").ok();
    eventually(SOON, "nobody, by either task", || {
        (0..4).all(|_| asks((1, "web"), "http://db").stderr.contains("Connection refused"))
    });
    assert_eq!(lab.curl(&format!("http://{}:8085", lab.address(1))).ok(), "hello");
    lab.docker(1, "service update --detach --label-rm skep.network.allow-from db").ok();
    eventually(SOON, "everybody", || asks((2, "other"), "http://db").code == 0);
}
