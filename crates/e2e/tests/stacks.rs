//! The stack files of the tutorials people learn Swarm from (`stacks/`, as they are printed there), deployed by the stock CLI.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use skep_e2e::{LATER, Lab, SOON, busybox_tar, eventually};

/// What stands in for the images: it answers with its host's name and leaves when asked to.
const SERVER: &str =
    "hostname > /tmp/index.html; trap 'exit 0' TERM; httpd -p PORT -h /tmp; while :; do sleep 1 & wait; done";

fn stack_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("stacks").join(name)
}

fn give(lab: &Lab, port: u16, tags: &[&str]) {
    let tar = busybox_tar();
    let script = SERVER.replace("PORT", &port.to_string());
    let cmd = format!("CMD {}", serde_json::json!(["sh", "-c", script]));
    for node in 1..=lab.size() {
        for tag in tags {
            lab.docker_with_input(node, &["import", "--change", &cmd, "-", tag], &tar).ok();
        }
    }
}

/// A service's name, or its tasks' where this kernel lacks what dockerd's virtual addresses need.
fn by_name(lab: &Lab, service: &str) -> String {
    if lab.is_dockerd() { format!("tasks.{service}") } else { service.to_owned() }
}

fn deploy(lab: &Lab, file: &Path, stack: &str) -> String {
    lab.docker_words(1, &["stack", "deploy", "--compose-file", &file.to_string_lossy(), stack]).ok()
}

/// `name -> replicas`, as `docker stack services` shows them.
fn services(lab: &Lab, stack: &str) -> BTreeMap<String, String> {
    let rows = lab.docker_words(1, &["stack", "services", "--format", "{{.Name}} {{.Replicas}}", stack]).ok();
    rows.lines().filter_map(|row| row.split_once(' ')).map(|(name, n)| (name.to_owned(), n.to_owned())).collect()
}

#[track_caller]
fn await_services(lab: &Lab, stack: &str, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> = wanted.iter().map(|(n, r)| ((*n).to_owned(), (*r).to_owned())).collect();
    eventually(LATER * 2, &format!("{wanted:?}"), || services(lab, stack) == wanted);
}

/// The ids of a stack's tasks, those that ended included.
fn tasks(lab: &Lab, stack: &str) -> Vec<String> {
    let mut ids: Vec<String> =
        lab.docker(1, &format!("stack ps -q --no-trunc {stack}")).ok().lines().map(str::to_owned).collect();
    ids.sort();
    ids
}

// conformance: works | docker stack deploy
// conformance: works | docker stack deploy again: nothing changes
// conformance: works | docker stack ls, ps, services
// conformance: works | docker stack rm
#[test]
fn a_proxy_an_api_and_a_visualizer_are_deployed_again_without_a_change_and_go() {
    let lab = Lab::swarm(1, 2);
    give(
        &lab,
        8080,
        &[
            "gihyodocker/nginx-proxy:latest",
            "registry:5000/example/echo:latest",
            "dockersamples/visualizer:latest",
            "dockercloud/haproxy:latest",
        ],
    );
    lab.docker(1, "network create --driver=overlay --attachable ch03").ok();
    let said = deploy(&lab, &stack_file("webapi.yml"), "echo");
    assert!(said.contains("Creating service echo_nginx") && said.contains("Creating service echo_api"), "{said}");
    let said = deploy(&lab, &stack_file("visualizer.yml"), "visualizer");
    assert!(said.contains("Creating network visualizer_default"), "{said}");
    deploy(&lab, &stack_file("haproxy.yml"), "front");
    await_services(&lab, "echo", &[("echo_api", "3/3"), ("echo_nginx", "3/3")]);
    await_services(&lab, "visualizer", &[("visualizer_app", "1/1")]);
    await_services(&lab, "front", &[("front_haproxy", "1/1")]);
    let stacks = lab.docker_words(1, &["stack", "ls", "--format", "{{.Name}} {{.Services}}"]).ok();
    assert_eq!(stacks, "echo 2\nfront 1\nvisualizer 1");
    let nodes = lab.docker_words(1, &["stack", "ps", "--format", "{{.Node}} {{.Name}}", "echo"]).ok();
    assert!(nodes.lines().count() == 6 && nodes.lines().all(|row| !row.starts_with("node1 ")), "{nodes}");
    let ports = lab.docker_words(1, &["stack", "services", "--format", "{{.Ports}}", "front"]).ok();
    assert!(ports.contains("*:80->80/tcp") && ports.contains("*:1936->1936/tcp"), "{ports}");
    if !lab.is_dockerd() {
        eventually(SOON, "the visualizer's port answers on a host without it", || {
            lab.curl(&format!("http://{}:9000/index.html", lab.address(3))).code == 0
        });
    }
    // The api by the name its proxy is given.
    let inside = lab.docker(2, "container ls -q --filter label=com.docker.swarm.service.name=echo_nginx").ok();
    let inside = inside.lines().next().expect("a proxy on node2").to_owned();
    eventually(SOON, "the proxy reaches the api", || {
        let url = format!("http://{}:8080/index.html", by_name(&lab, "echo_api"));
        lab.docker(2, &format!("exec {inside} wget -qO- {url}")).code == 0
    });

    let before: Vec<_> = ["echo", "visualizer", "front"].map(|stack| tasks(&lab, stack)).to_vec();
    for (file, stack) in [("webapi.yml", "echo"), ("visualizer.yml", "visualizer"), ("haproxy.yml", "front")] {
        assert!(deploy(&lab, &stack_file(file), stack).contains("Updating service"));
    }
    // What follows in the log shows that what would have been changed has been.
    lab.docker(
        1,
        "service create --detach --name after --restart-condition none registry:5000/example/echo:latest true",
    )
    .ok();
    eventually(LATER, "a service made afterwards has its task", || {
        !lab.docker(1, "service ps -q after").stdout.trim().is_empty()
    });
    assert_eq!(["echo", "visualizer", "front"].map(|stack| tasks(&lab, stack)).to_vec(), before);
    lab.docker(1, "service rm after").ok();

    // A variable more for the proxy alone: its tasks are replaced, the api's stay.
    let text = std::fs::read_to_string(stack_file("webapi.yml")).expect("it is there");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let changed = folder.path().join("webapi.yml");
    std::fs::write(&changed, text.replace("environment:\n", "environment:\n      SERVICE_PORT: 80\n")).expect("a file");
    let of = |service: &str| lab.docker(1, &format!("service ps -q --no-trunc {service}")).ok();
    let (api, proxy) = (of("echo_api"), of("echo_nginx"));
    deploy(&lab, &changed, "echo");
    eventually(LATER * 2, "three proxies with the variable", || {
        let state = lab.docker_words(1, &["service", "inspect", "--format", "{{.UpdateStatus.State}}", "echo_nginx"]);
        state.stdout.trim() == "completed" && of("echo_nginx").lines().filter(|id| !proxy.contains(id)).count() == 3
    });
    assert_eq!(of("echo_api"), api);

    let said = lab.docker(1, "stack rm echo visualizer front").ok();
    assert!(said.contains("Removing network visualizer_default"), "{said}");
    assert_eq!(lab.docker_words(1, &["stack", "ls", "--format", "{{.Name}}"]).ok(), "");
    let networks = || lab.docker_words(1, &["network", "ls", "--format", "{{.Name}}"]).ok();
    eventually(LATER, "only the network the user made is left", || {
        networks().contains("ch03") && !networks().contains("visualizer")
    });
    eventually(LATER, "no container is left", || (1..=3).all(|n| lab.docker(n, "container ls -q").ok().is_empty()));
}

// conformance: works | docker stack deploy of an external network that is not there is refused
// conformance: works | docker stack deploy --prune
// conformance: works | placement constraint on node.role that no role is: no task, and the reason
#[test]
fn what_a_stack_lacks_is_told() {
    let lab = Lab::swarm(1, 1);
    give(
        &lab,
        80,
        &["hellodocker-registry:5000/kickscar/nginx:latest", "hellodocker-registry:5000/kickscar/hellodocker:latest"],
    );
    let file = stack_file("hellodocker-stack.yml");
    let words = ["stack", "deploy", "-c", &file.to_string_lossy(), "hellodocker-api"];
    let said = lab
        .docker_words(1, &words)
        .fails("network \"hellodocker-network\" is declared as external, but could not be found");
    assert!(said.contains("docker network create --scope=swarm") || said.contains("swarm-scoped network"), "{said}");
    assert_eq!(lab.docker(1, "service ls -q").ok(), "");
    lab.docker(1, "network create --driver overlay --attachable hellodocker-network").ok();
    deploy(&lab, &file, "hellodocker-api");
    // The tutorial names a host as if it were a role: true of every node.
    await_services(&lab, "hellodocker-api", &[("hellodocker-api_api", "3/3"), ("hellodocker-api_nginx", "3/3")]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let only = folder.path().join("only.yml");
    std::fs::write(
        &only,
        "version: \"3\"\nservices:\n  api:\n    image: hellodocker-registry:5000/kickscar/hellodocker:latest\n    deploy:\n      placement:\n        constraints: [node.role == hellodocker-manager]\n",
    )
    .expect("a file");
    let words = ["stack", "deploy", "--prune", "-c", &only.to_string_lossy(), "hellodocker-api"];
    let said = lab.docker_words(1, &words).ok();
    assert!(said.contains("Removing service hellodocker-api_nginx"), "{said}");
    eventually(LATER, "no node has that role", || {
        let rows = lab.docker(1, "stack ps --no-trunc hellodocker-api").stdout;
        rows.contains("no suitable node (scheduling constraints not satisfied on 2 nodes)")
    });
    lab.docker(1, "stack rm hellodocker-api").ok();
    eventually(LATER, "its tasks are gone, too", || {
        lab.docker(1, "stack ps hellodocker-api").stderr.contains("nothing found in stack: hellodocker-api")
    });
}

/// An api before a database with a secret, on networks of their own, over three managers and two workers; then managers are
/// drained, zones given, and a service on every worker collects what the others say.
// conformance: works | docker stack deploy with secrets, volumes, limits, two encrypted networks
// conformance: works | drain of every manager moves their tasks to workers
// conformance: works | docker service update --constraint-add on a node's label moves tasks
#[test]
fn a_database_and_its_api_over_three_managers_and_two_workers() {
    let lab = Lab::swarm(3, 2);
    give(&lab, 80, &["postgres:9.6.6", "dockerinaction/ch13_multi_tier_app:api", "logger:latest"]);
    lab.docker_with_input(1, &["secret", "create", "ch13_multi_tier_app-POSTGRES_PASSWORD", "-"], b"pa55").ok();
    let file = stack_file("multi-tier-app.yml");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plain = folder.path().join("plain.yml");
    let text = std::fs::read_to_string(&file).expect("it is there");
    // This kernel has no ESP: dockerd takes such a network and then runs no task on it.
    std::fs::write(&plain, text.replace("encrypted: 'true'", "com.docker.network.driver.mtu: '1400'")).expect("a file");
    deploy(&lab, if lab.is_dockerd() { &plain } else { &file }, "app");
    await_services(&lab, "app", &[("app_api", "2/2"), ("app_postgres", "1/1")]);

    let place = |service: &str| {
        let running = lab.running(service);
        running
            .into_iter()
            .map(|(node, _)| node.trim_start_matches("node").parse().expect("nodeN"))
            .collect::<Vec<usize>>()
    };
    let exec = |node: usize, service: &str, command: &[&str]| {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let id = lab.docker_words(node, &["container", "ls", "-q", "--filter", &filter]).ok();
        let id = id.lines().next().expect("a container of the service").to_owned();
        lab.docker_words(node, &[&["exec", &id], command].concat())
    };
    let home = place("app_postgres")[0];
    let owner = exec(home, "app_postgres", &["stat", "-c", "%u %g %a", "/run/secrets/POSTGRES_PASSWORD"]).ok();
    assert_eq!(owner, "999 999 400");
    assert_eq!(exec(home, "app_postgres", &["cat", "/run/secrets/POSTGRES_PASSWORD"]).ok(), "pa55");
    let api = place("app_api")[0];
    assert_eq!(exec(api, "app_api", &["cat", "/run/secrets/POSTGRES_PASSWORD"]).ok(), "pa55");
    assert_eq!(exec(api, "app_api", &["sh", "-c", "echo $POSTGRES_HOST:$POSTGRES_PORT"]).ok(), "postgres:5432");
    eventually(SOON, "the api reaches the database by its name", || {
        let url = format!("http://{}/index.html", by_name(&lab, "postgres"));
        exec(api, "app_api", &["wget", "-qO-", &url]).code == 0
    });
    // Only by its published port from outside, and not at all the database.
    lab.docker(5, "run -d --name outside logger:latest").ok();
    assert_ne!(lab.docker(5, "exec outside nslookup postgres").code, 0);
    if !lab.is_dockerd() {
        let mut seen = std::collections::BTreeSet::new();
        eventually(SOON, "both tasks of the api answer through a host", || {
            seen.insert(lab.curl(&format!("http://{}:8080/index.html", lab.address(1))).stdout);
            seen.remove("");
            seen.len() == 2
        });
    }

    for manager in 1..=3 {
        lab.change(1, &format!("node update --availability drain node{manager}"));
    }
    eventually(LATER * 2, "every task is on a worker", || {
        let places: Vec<usize> = [place("app_api"), place("app_postgres")].concat();
        places.len() == 3 && places.iter().all(|node| *node > 3)
    });
    lab.change(1, "node update --label-add zone=private node4");
    lab.change(1, "node update --label-add zone=public node5");
    lab.change(1, "service update --detach --update-delay 0s --constraint-add node.labels.zone==public app_api");
    lab.change(1, "service update --detach --constraint-add node.labels.zone==private app_postgres");
    eventually(LATER * 2, "each in its zone", || place("app_api") == [5, 5] && place("app_postgres") == [4]);

    lab.docker(1, "service create --detach --mode global --name logging --publish 8000:80 --constraint node.role==worker logger:latest").ok();
    eventually(LATER, "one logger on each worker", || {
        let mut at = place("logging");
        at.sort_unstable();
        at == [4, 5]
    });
    lab.docker(1, "stack rm app").ok();
    eventually(LATER, "the data stays where it was", || {
        lab.docker(4, "volume ls -q").ok().lines().any(|name| name == "app_db-data")
    });
}
