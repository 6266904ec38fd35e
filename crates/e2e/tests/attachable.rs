//! Containers that are no tasks on the swarm's overlays, from any host.

use std::collections::BTreeSet;

use skep_e2e::{Lab, SOON, eventually};

/// What a container on `node` and `network` gets from `url`.
fn fetched(lab: &Lab, node: usize, network: &str, url: &str) -> Option<String> {
    let got = lab.docker(node, &format!("run --rm --network {network} busybox wget -qO- {url}"));
    (got.code == 0).then(|| got.stdout.trim().to_owned())
}

fn address(lab: &Lab, node: usize, container: &str, network: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    lab.docker_words(node, &["inspect", "-f", &format, container]).ok()
}

#[test]
fn containers_of_any_host_are_on_an_attachable_network() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    // conformance: works | docker run --network, --network-alias, --ip, of an attachable overlay, on any node
    lab.docker(1, "network create --driver overlay --attachable --subnet 10.77.0.0/24 shared").ok();
    lab.docker(1, "network create --driver overlay closed").ok();
    let web = "run -d --name web --network shared --network-alias front --ip 10.77.0.99 busybox sh -c";
    let mut words: Vec<&str> = web.split(' ').collect();
    words.push("echo from-two >/tmp/index.html; exec httpd -f -h /tmp");
    lab.docker_words(2, &words).ok();
    assert_eq!(address(&lab, 2, "web", "shared"), "10.77.0.99");
    for name in ["web", "front", "web.shared"] {
        for node in [1, 3] {
            eventually(SOON, &format!("{name} answers on host {node}"), || {
                fetched(&lab, node, "shared", name).is_some_and(|got| got == "from-two")
            });
        }
    }
    // Services and containers find one another.
    lab.docker_words(
        1,
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "api",
            "--network",
            "shared",
            "busybox",
            "sh",
            "-c",
            "echo from-api >/tmp/index.html; exec httpd -f -h /tmp",
        ],
    )
    .ok();
    lab.await_running("api", 1);
    eventually(SOON, "the service answers a container", || {
        fetched(&lab, 3, "shared", "tasks.api").is_some_and(|got| got == "from-api")
    });
    // The beginning of a local network's id does not hide a name.
    let bridge = lab.docker_words(1, &["network", "inspect", "-f", "{{.Id}}", "bridge"]).ok();
    lab.docker(1, &format!("network create --driver overlay --attachable {}", &bridge[..3])).ok();
    lab.docker(1, &format!("run -d --name hidden --network {} busybox sleep 1000", &bridge[..3])).ok();
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
    assert_eq!(lab.docker_words(1, &["inspect", "-f", networks, "hidden"]).ok(), bridge[..3]);
    lab.docker(1, "rm -f hidden").ok();
    eventually(SOON, "the network goes with it", || lab.docker(1, &format!("network rm {}", &bridge[..3])).code == 0);
    // It leads out, too, and publishes ports where it runs.
    lab.docker(3, "run -d --name open --network shared -p 8099:80 busybox httpd -f -h /etc").ok();
    let url = format!("http://{}:8099/hostname", lab.address(3));
    eventually(SOON, "the published port answers", || lab.curl(&url).code == 0);

    // conformance: works | docker network ls, inspect, of an overlay a worker takes part in
    assert_eq!(lab.docker(2, "network ls -q --filter name=shared").ok().lines().count(), 1);
    let there = lab.docker_words(2, &["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "shared"]);
    assert!(there.ok().split(' ').any(|name| name == "web"));

    // What holds it keeps it; what is gone is forgotten, and its address is free again.
    lab.docker(1, "service rm api").ok();
    lab.docker(1, "network rm shared").fails("is in use by");
    lab.docker(1, "network create --driver overlay spare").ok();
    lab.docker(1, "network create --driver overlay --label keep=yes kept").ok();
    // conformance: works | docker network prune, on a manager overlays too
    let pruned = lab.docker(1, "network prune -f --filter label!=keep=yes").ok();
    assert_eq!(pruned.lines().collect::<BTreeSet<_>>(), ["Deleted Networks:", "closed", "spare"].into());
    lab.docker(1, "network create --driver overlay closed").ok();
    lab.docker(2, "rm -f web").ok();
    lab.docker(3, "rm -f open").ok();
    eventually(SOON, "the network goes once nothing is on it", || lab.docker(1, "network rm shared").code == 0);

    let refused = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not \
                   manually attachable";
    for node in [1, 2] {
        lab.docker(node, "run --rm --network closed busybox true").fails(refused);
        let text = "Could not attach to network nowhere: rpc error: code = NotFound desc = network nowhere not found";
        lab.docker(node, "run --rm --network nowhere busybox true").fails(text);
    }
}

#[test]
fn running_containers_are_connected_to_an_overlay_and_disconnected() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    lab.docker(1, "network create --driver overlay --attachable shared").ok();
    lab.docker(2, "run -d --name web busybox httpd -f -h /etc").ok();
    lab.docker(1, "run -d --name client --network shared busybox sleep 1000").ok();
    let gets = |name: &str| lab.docker(1, &format!("exec client wget -qO- http://{name}/hostname")).code == 0;
    // conformance: works | docker network connect, disconnect, of an attachable overlay
    lab.docker(2, "network connect --alias site shared web").ok();
    eventually(SOON, "the alias answers", || gets("site"));
    assert!(gets("web"));
    lab.docker(2, "network disconnect shared web").ok();
    eventually(SOON, "the name is gone", || {
        lab.docker(1, "exec client nslookup web").stdout.contains("NXDOMAIN") || !gets("web")
    });
    // A container that does not run is connected when it starts.
    lab.docker(2, "stop -t 0 web").ok();
    lab.docker(2, "network connect shared web").ok();
    lab.docker(2, "start web").ok();
    eventually(SOON, "it is back on the network", || gets("web"));
    lab.docker(2, "restart -t 0 web").ok();
    eventually(SOON, "and after a restart", || gets("web"));

    // On internal networks alone it has no way out, whatever it was on before.
    lab.docker(1, "network create --driver overlay --attachable --internal inner").ok();
    let leads_out = || lab.docker(1, "exec client ip route").ok().contains("default");
    lab.docker(1, "network connect inner client").ok();
    assert!(leads_out());
    lab.docker(1, "network disconnect shared client").ok();
    assert!(!leads_out());
    lab.docker(1, "network connect shared client").ok();
    assert!(leads_out());
}

#[test]
fn a_container_is_back_at_its_own_address_however_soon_it_starts_again() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    lab.docker(1, "network create --driver overlay --attachable --subnet 10.78.0.0/24 shared").ok();
    lab.docker(1, "run -d --name other --network shared --ip 10.78.0.10 busybox sleep 1000").ok();
    lab.docker(2, "run -d --name fixed --network shared --ip 10.78.0.77 busybox sleep 1000").ok();
    // The network comes and goes on its host with it.
    for _ in 0..10 {
        lab.docker(2, "restart -t 0 fixed").ok();
        eventually(SOON, "the other is reached", || lab.docker(2, "exec fixed ping -c 1 -W 1 10.78.0.10").code == 0);
    }
}
