//! Networks of the swarm that every node makes for itself: macvlan and bridge with `--scope swarm`.

use std::collections::BTreeSet;

use skep_e2e::{Lab, SOON, eventually};

/// The last task's state and error, which the table would cut off.
fn error_of(lab: &Lab, service: &str) -> String {
    let format = "{{.CurrentState}} {{.Error}}";
    lab.docker_words(1, &["service", "ps", "--no-trunc", "--format", format, service]).ok()
}

const CREATE: &str = "service create --detach --no-resolve-image --restart-condition none --stop-grace-period 1s";

#[test]
fn services_and_containers_are_on_each_nodes_own_macvlan_network() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    let net = "-d macvlan --scope swarm --config-from cfg --attachable net";
    for (node, range) in [(1, "10.46.0.32/27"), (2, "10.46.0.64/27")] {
        let addresses = format!("--subnet 10.46.0.0/24 --gateway 10.46.0.1 --ip-range {range}");
        lab.docker(node, &format!("network create --config-only {addresses} -o parent=eth0 cfg")).ok();
    }
    lab.docker(2, &format!("network create {net}"))
        .fails("Cannot create a multi-host network from a worker node. Please create the network from a manager node.");
    // conformance: works | docker network create --scope swarm --driver macvlan --config-from … --attachable
    let id = lab.docker(1, &format!("network create {net}")).ok();
    lab.docker(1, &format!("network create {net}")).fails("network with name net already exists");
    let shown = "{{.ID}} {{.Driver}} {{.Scope}} {{.Attachable}} [{{.ConfigFrom.Network}}] {{json .IPAM}}";
    let inspect = |node| lab.docker_words(node, &["network", "inspect", "-f", shown, "net"]).ok();
    assert_eq!(inspect(1), format!(r#"{id} macvlan swarm true [cfg] {{"Driver":"","Options":null,"Config":[]}}"#));

    // conformance: works | docker service create --network of scope swarm and driver macvlan: addresses of each node's own
    lab.docker(1, &format!("{CREATE} --mode global --name web --network net busybox httpd -f -h /etc")).ok();
    lab.await_running("web", 2);
    for (node, range) in [(1, "10.46.0.32/27"), (2, "10.46.0.64/27")] {
        let ipam = format!(r#""Config":[{{"Subnet":"10.46.0.0/24","IPRange":"{range}","Gateway":"10.46.0.1"}}]"#);
        assert!(inspect(node).contains(&ipam), "{}", inspect(node));
        assert_eq!(lab.docker(node, "network ls -q --filter name=net --filter driver=macvlan").ok().lines().count(), 1);
    }
    // The swarm has no address to give there.
    let endpoint = |service: &str| lab.docker_words(1, &["service", "inspect", "-f", "{{json .Endpoint}}", service]);
    assert_eq!(endpoint("web").ok(), format!(r#"{{"Spec":{{"Mode":"vip"}},"VirtualIPs":[{{"NetworkID":"{id}"}}]}}"#));
    // The mesh's VIP is the first, as scripts have it.
    lab.docker(1, "network create -d overlay over").ok();
    let published = "--replicas 0 --name all --network net --network over --publish 8080:80";
    lab.docker(1, &format!("{CREATE} {published} busybox true")).ok();
    let mut networks = vec![id.clone(), lab.docker_words(1, &["network", "inspect", "-f", "{{.Id}}", "over"]).ok()];
    networks.sort(); // by the CLI
    networks.insert(0, lab.docker_words(1, &["network", "inspect", "-f", "{{.Id}}", "ingress"]).ok());
    eventually(SOON, "its VIPs are listed", || {
        let shown: serde_json::Value = serde_json::from_str(&endpoint("all").ok()).expect("JSON");
        let vips = shown["VirtualIPs"].as_array().cloned().unwrap_or_default();
        vips.iter().map(|vip| vip["NetworkID"].as_str().unwrap_or_default()).eq(networks.iter().map(String::as_str))
            && vips.iter().all(|vip| vip.get("Addr").is_none() == (vip["NetworkID"] == *id))
    });
    lab.docker(1, "service rm all").ok();
    lab.docker(1, "network rm over").ok();
    // conformance: works | docker run --network of scope swarm and driver macvlan, on any node
    lab.docker(2, "run -d --name box --network net --network-alias boxy busybox sleep 1000").ok();
    let format = "{{.NetworkSettings.Networks.net.IPAddress}} {{.NetworkSettings.Networks.net.NetworkID}}";
    assert_eq!(lab.docker_words(2, &["inspect", "-f", format, "box"]).ok(), format!("10.46.0.65 {id}"));
    let routes = lab.docker(2, "exec box ip route").ok();
    assert!(routes.contains("default via 10.46.0.1 dev eth0"), "{routes}");
    // conformance: works | names of services on macvlan networks of scope swarm: tasks of all nodes
    let expected: BTreeSet<&str> = ["10.46.0.32", "10.46.0.64"].into();
    for name in ["web", "tasks.web"] {
        eventually(SOON, &format!("{name} leads to the tasks of both nodes"), || {
            let answer = lab.docker(2, &format!("exec box nslookup {name}")).stdout;
            let found = answer.lines().filter_map(|line| line.strip_prefix("Address: "));
            found.collect::<BTreeSet<_>>() == expected
        });
    }
    for address in expected {
        let ask = || lab.docker(2, &format!("exec box timeout 2 wget -qO- http://{address}/hostname"));
        eventually(SOON, "a task answers over the wire", || ask().code == 0);
    }

    lab.docker(1, "network rm net").fails("is in use by service");
    lab.docker(1, "service rm web").ok();
    eventually(SOON, "the tasks are gone", || lab.docker(1, "ps -aq").ok().is_empty());
    lab.docker(1, "network rm net").fails("is in use by");
    lab.docker(2, "network rm net").fails("This node is not a swarm manager");
    lab.docker(2, "rm -f box").ok();
    eventually(SOON, "the network goes once nothing is on it", || lab.docker(1, "network rm net").code == 0);
    if !lab.is_dockerd() {
        // dockerd leaves it on the worker.
        eventually(SOON, "nothing of it is left", || {
            [1, 2].iter().all(|node| {
                lab.docker(*node, "network ls -q --filter name=net --filter driver=macvlan").ok().is_empty()
            })
        });
    }
    lab.docker(1, "network rm cfg").ok();
}

#[test]
fn what_a_node_lacks_is_told_and_predefined_networks_are_dockers() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    let service = |options: &str| lab.docker(1, &format!("{CREATE} {options} busybox sleep 1000"));
    // conformance: works | a task on a node without the configuration network that --config-from names: rejected, and why
    lab.docker(1, "network create -d macvlan --scope swarm --config-from nope later").ok();
    service("--name lost --network later").ok();
    let told = "configuration network \"nope\" does not exist";
    eventually(SOON, "the task is rejected", || error_of(&lab, "lost").starts_with("Rejected"));
    assert!(error_of(&lab, "lost").contains(told), "{}", error_of(&lab, "lost"));

    // conformance: works | docker network create --scope swarm --driver bridge
    lab.docker(1, "network create -d bridge --scope swarm --attachable near").ok();
    service("--mode global --name here --network near --publish mode=host,published=8090,target=80").ok();
    lab.await_running("here", 2);
    lab.docker(2, "run -d --name box --network near busybox sleep 1000").ok();
    let ping = || lab.docker(2, "exec box ping -c 1 -w 5 tasks.here");

    // conformance: works | docker service create --network host, bridge, none: with others too, as Docker's
    service("--name alone --network host").ok();
    service("--name mesh --network host --publish 8083:80").ok();
    service("--name both --network host --network near").ok();
    service("--name out --network bridge --publish 8085:80").ok();
    lab.await_running("alone", 1);
    lab.await_running("out", 1);
    for (name, words) in [
        ("mesh", "container cannot be disconnected from host network or connected to host network"),
        (
            "both",
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ),
    ] {
        eventually(SOON, "the task is rejected", || error_of(&lab, name).starts_with("Rejected"));
        assert!(error_of(&lab, name).contains(words), "{}", error_of(&lab, name));
    }
    let label = "label=com.docker.swarm.service.name=out";
    let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    let ids: Vec<_> = [1, 2].iter().map(|n| (*n, lab.docker(*n, &format!("ps -q --filter {label}")).ok())).collect();
    let (node, container) = ids.iter().find(|(_, id)| !id.is_empty()).unwrap();
    assert_eq!(lab.docker_words(*node, &["inspect", "-f", format, container]).ok(), "bridge ingress");
    service("--name x --network none").fails("network none not found");

    for (line, words) in [
        ("-d overlay --scope local x", "cannot downgrade network scope for overlay networks"),
        ("-d bridge --ingress x", "Ingress network can only be global scope network"),
        (
            "-d macvlan --scope swarm --config-from cfg -o parent=eth0 x",
            "network driver options are not supported if the network depends on a configuration network",
        ),
    ] {
        lab.docker(1, &format!("network create {line}")).fails(words);
    }
    if lab.is_dockerd() {
        return;
    }
    // conformance: differs | docker network create --scope swarm --driver macvlan, bridge, with options or a subnet | refused; Docker's nodes never hear of them
    for line in ["-d macvlan --scope swarm -o parent=eth0 x", "-d bridge --scope swarm --subnet 10.48.0.0/24 x"] {
        lab.docker(1, &format!("network create {line}")).fails("create a network with --config-only on every node");
    }
    lab.docker(1, "network create --scope global x").fails("invalid network scope \"global\": it is swarm or local");
    // conformance: differs | names of services on bridge networks of scope swarm | tasks of the same node; Docker's lead to other nodes' too, which nobody reaches
    eventually(SOON, "the task of this node answers", || ping().code == 0);
    // The daemon is killed, and what is there goes on and goes away.
    let daemon = lab.on(2, &["cat", "/run/skep.pid"]).ok();
    lab.on(2, &["kill", "-9", &daemon]).ok();
    eventually(SOON, "the daemon is back", || lab.docker(2, "ps").code == 0);
    eventually(SOON, "and the task still answers", || ping().code == 0);
    lab.docker(1, "service rm here").ok();
    lab.docker(2, "rm -f box").ok();
    eventually(SOON, "the bridge goes", || !lab.docker(2, "network ls").ok().contains("near"));
}
