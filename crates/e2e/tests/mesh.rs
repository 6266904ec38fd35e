//! Published ports on every host, balanced over tasks wherever they run; names in the containers. Not run against dockerd
//! where the kernel lacks IPVS: its mesh passes no traffic there.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use skep_e2e::{LATER, Lab, Ran, SOON, eventually};

fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    answer.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default()
}

/// How many tasks answer so many requests; 0 if one of them fails.
fn answering(requests: usize, ask: impl Fn() -> Ran) -> usize {
    let answers: Vec<Ran> = (0..requests).map(|_| ask()).collect();
    let names: BTreeSet<&str> = answers.iter().map(|answer| field(&answer.stdout, "Hostname:")).collect();
    if names.contains("") { 0 } else { names.len() }
}

#[test]
fn every_host_answers_for_every_task() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, "service create --detach --name web --replicas 2 --publish 8080:80 skep/whoami").ok();
    lab.await_running("web", 2);
    // conformance: works | docker service create --publish (mesh on every host)
    for node in 1..=3 {
        let url = format!("http://{}:8080", lab.address(node));
        eventually(SOON, "this host balances over both tasks", || answering(8, || lab.curl(&url)) == 2);
        // On the host itself, by 127.0.0.1.
        let seen: BTreeSet<String> = (0..8)
            .map(|_| {
                field(&lab.on(node, &["curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080"]).ok(), "Hostname:")
                    .to_owned()
            })
            .collect();
        assert_eq!(seen.len(), 2, "127.0.0.1 on host {node}: {seen:?}");
        // conformance: works | published ports by IPv6 | TCP and UDP; tasks see the host's address in the mesh
        let seen: BTreeSet<String> = (0..8)
            .map(|_| {
                field(&lab.on(node, &["curl", "-gsS", "--max-time", "5", "http://[::1]:8080"]).ok(), "Hostname:")
                    .to_owned()
            })
            .collect();
        assert_eq!(seen.len(), 2, "::1 on host {node}: {seen:?}");
    }
    // The client's address is what the task sees.
    // conformance: works | client address in the mesh | Docker shows the ingress host's address instead
    let machine = lab.address(1).rsplit_once('.').map(|(net, _)| format!("{net}.254")).expect("an address");
    for node in 1..=3 {
        for _ in 0..4 {
            let answer = lab.curl(&format!("http://{}:8080", lab.address(node))).ok();
            assert!(field(&answer, "RemoteAddr:").starts_with(&machine), "{answer}");
        }
    }
    // conformance: works | idle connections through the mesh and to services | kept for days; Docker cuts them at 900 s
    let timeout = ["cat", "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"];
    let seconds: u64 = lab.on(1, &timeout).ok().parse().expect("seconds");
    assert!(seconds >= 24 * 3600, "{seconds}");
    // No task: refused at once, on every host.
    lab.docker(1, "service scale --detach web=0").ok();
    for node in 1..=3 {
        let url = format!("http://{}:8080", lab.address(node));
        eventually(LATER, "refused without tasks", || {
            let begun = std::time::Instant::now();
            lab.curl(&url).code == 7 && begun.elapsed() < Duration::from_secs(1)
        });
        assert_eq!(lab.on(node, &["curl", "-gsS", "--max-time", "5", "http://[::1]:8080"]).code, 7);
    }
    lab.docker(1, "service scale --detach web=3").ok();
    for node in 1..=3 {
        eventually(LATER, "answers again", || lab.curl(&format!("http://{}:8080", lab.address(node))).code == 0);
    }
    // Removed: the port is free again.
    lab.docker(1, "service rm web").ok();
    for node in 1..=3 {
        eventually(LATER, "closed", || lab.curl(&format!("http://{}:8080", lab.address(node))).code == 7);
    }
}

#[test]
fn udp_is_published_too() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, "service create --detach --name dat --replicas 1 --publish 5353:80/udp skep/whoami").ok();
    lab.await_running("dat", 1);
    // conformance: works | docker service create --publish …/udp
    for node in 1..=3 {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        eventually(SOON, "a datagram comes back", || {
            let mut buffer = [0; 256];
            socket.send_to(b"ping", format!("{}:5353", lab.address(node))).is_ok()
                && socket
                    .recv(&mut buffer)
                    .is_ok_and(|n| String::from_utf8_lossy(&buffer[..n]).contains("Received: ping"))
        });
    }
    // From a host itself, by IPv6. A datagram is read whole, at once.
    let by_six = |node: usize| {
        let line = "exec 3<>/dev/udp/::1/5353; printf ping >&3; timeout 2 dd bs=512 count=1 status=none <&3";
        lab.on(node, &["bash", "-c", line])
    };
    for node in 1..=3 {
        eventually(SOON, "a datagram comes back by IPv6", || by_six(node).stdout.contains("Received: ping"));
    }
    lab.docker(1, "service scale --detach dat=0").ok();
    for node in 1..=3 {
        eventually(LATER, "refused at once without tasks", || by_six(node).stderr.contains("Connection refused"));
    }
    lab.docker(1, "service scale --detach dat=1").ok();
    for node in 1..=3 {
        eventually(LATER, "answers again", || by_six(node).stdout.contains("Received: ping"));
    }
}

#[test]
fn services_and_tasks_resolve_on_an_overlay() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    if lab.is_dockerd() {
        return;
    }
    // conformance: works | docker network create --driver overlay
    lab.docker(1, "network create --driver overlay --attachable back").ok();
    lab.docker(1, "service create --detach --name api --replicas 3 --network back skep/whoami").ok();
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name client --mode global --network back busybox sleep 1000").ok();
    lab.await_running("api", 3);
    lab.await_running("client", 3);
    for node in 1..=3 {
        let container = lab.docker(node, "ps -q --filter name=client").ok();
        let run = |command: &str| lab.docker_words(node, &["exec", &container, "sh", "-c", command]);
        // The service's name is one address, which balances over all tasks.
        eventually(SOON, "all tasks answer by the service's name", || {
            answering(9, || run("timeout 5 wget -qO- http://api")) == 3
        });
        // Its tasks have a name each, and one together.
        eventually(SOON, "three addresses of tasks.api", || {
            run("nslookup tasks.api 127.0.0.11")
                .stdout
                .lines()
                .filter(|l| l.starts_with("Address") && l.contains("10."))
                .count()
                == 3
        });
        let ids = lab.docker(1, "service ps -q --no-trunc api").ok();
        let names = lab.docker_words(1, &["service", "ps", "--format", "{{.Name}}", "api"]).ok();
        for (id, name) in ids.lines().zip(names.lines()) {
            run(&format!("timeout 5 wget -qO- http://{name}.{id}")).ok();
        }
        run("timeout 5 wget -qO- http://nobody.invalid").fails("bad address 'nobody.invalid'");
        let timeout = run("cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").ok();
        assert!(timeout.parse::<u64>().is_ok_and(|seconds| seconds >= 24 * 3600), "{timeout}");
        // A way out of the overlay, to the host's own network.
        run(&format!("nc -w 2 {} 2377 </dev/null", lab.address(1))).ok();
    }
    // conformance: differs | service create --endpoint-mode dnsrr --publish (ingress) | works; Docker refuses it
    lab.docker(1, "service create --detach --name dns --replicas 2 --network back --endpoint-mode dnsrr --publish 8087:80 skep/whoami").ok();
    lab.await_running("dns", 2);
    for node in 1..=3 {
        let url = format!("http://{}:8087", lab.address(node));
        eventually(SOON, "this host balances over both tasks", || answering(6, || lab.curl(&url)) == 2);
        let container = lab.docker(node, "ps -q --filter name=client").ok();
        eventually(SOON, "two addresses of dns", || {
            let answer = lab.docker_words(node, &["exec", &container, "nslookup", "dns", "127.0.0.11"]).stdout;
            answer.lines().filter(|l| l.starts_with("Address") && l.contains("10.")).count() == 2
        });
    }
    lab.docker(1, "service rm dns").ok();
    lab.docker(1, "network rm back").fails("in use by");
    lab.docker(1, "service rm api client").ok();
    eventually(LATER, "the network can be removed", || lab.docker(1, "network rm back").code == 0);
}
