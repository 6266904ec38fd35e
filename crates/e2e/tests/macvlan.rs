//! Networks on the wire of a host's interface, and configurations that networks are made from.

use skep_e2e::{Lab, SOON, eventually};

#[test]
fn configuration_networks_are_what_others_are_made_from() {
    let lab = Lab::hosts(1);
    lab.give_busybox();
    // conformance: works | docker network create --config-only, --config-from
    lab.docker(1, "network create --config-only --subnet 10.44.0.0/24 --gateway 10.44.0.9 --label a=b plan").ok();
    let show = |name: &str| {
        let format =
            "{{.Driver}} {{.Scope}} {{.ConfigOnly}} [{{.ConfigFrom.Network}}] {{json .IPAM.Config}} {{json .Labels}}";
        lab.docker_words(1, &["network", "inspect", "-f", format, name]).ok()
    };
    let config = r#"[{"Subnet":"10.44.0.0/24","Gateway":"10.44.0.9"}] {"a":"b"}"#;
    assert_eq!(show("plan"), format!("null local true [] {config}"));
    lab.docker(1, "network create --config-from plan lan").ok();
    assert_eq!(show("lan"), format!("bridge local false [plan] {config}"));
    let routes = lab.docker(1, "run --rm --network lan busybox ip route").ok();
    assert!(routes.contains("default via 10.44.0.9"), "{routes}");
    for (line, words) in [
        (
            "network create --config-only --internal x",
            "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal \
             | attachable | scope ] are not supported.",
        ),
        (
            "network create --config-only --config-from plan x",
            "a configuration network cannot depend on another configuration network",
        ),
        ("network create --config-from nope x", "configuration network \"nope\" does not exist"),
        // A network, but no configuration.
        ("network create --config-from lan x", "configuration network \"lan\" does not exist"),
        (
            "network create --config-from plan --subnet 10.45.0.0/24 x",
            "user specified configurations are not supported if the network depends on a configuration network",
        ),
        (
            "network create --config-from plan --label a=c x",
            "user specified configurations are not supported if the network depends on a configuration network",
        ),
        (
            "network create --config-from plan -o parent=eth0 x",
            "network driver options are not supported if the network depends on a configuration network",
        ),
        ("network rm plan", "error while removing network: configuration network \"plan\" is in use"),
        ("run --rm --network plan busybox true", "cannot create endpoint on configuration-only network"),
    ] {
        lab.docker(1, line).fails(words);
    }
    // Unused, and kept.
    lab.docker(1, "network rm lan").ok();
    lab.docker(1, "network prune --force").ok();
    lab.docker(1, "network rm plan").ok();
}

#[test]
fn parents_that_cannot_be_are_refused() {
    let lab = Lab::hosts(1);
    // conformance: works | docker network create --driver macvlan -o parent=… of an interface that is not there
    let missing = "invalid subinterface vlan name nope0, example formatting is eth0.10";
    lab.docker(1, "network create -d macvlan -o parent=nope0 lan").fails(missing);
    let mode = "requested macvlan mode 'foo' is not valid, 'bridge' mode is the macvlan driver default";
    lab.docker(1, "network create -d macvlan -o parent=eth0 -o macvlan_mode=foo lan").fails(mode);
    let own = "loopback interface is not a valid macvlan parent link";
    lab.docker(1, "network create -d macvlan -o parent=lo lan").fails(own);
    assert_eq!(lab.docker(1, "network ls -q --filter name=lan").ok(), "", "nothing is left of them");
}

#[test]
fn containers_of_macvlan_networks_are_on_the_hosts_wire() {
    let lab = Lab::hosts(2);
    lab.give_busybox();
    // conformance: works | docker network create --driver macvlan -o parent=… | Docker needs the kernel's dummy device without parent
    for (node, range) in [(1, "10.46.0.32/27"), (2, "10.46.0.64/27")] {
        lab.docker(
            node,
            &format!("network create -d macvlan --subnet 10.46.0.0/24 --gateway 10.46.0.1 --ip-range {range} -o parent=eth0 wire"),
        )
        .ok();
    }
    let format = "{{.Driver}} {{json .Options}} {{(index .IPAM.Config 0).IPRange}}";
    let shown = lab.docker_words(1, &["network", "inspect", "-f", format, "wire"]).ok();
    assert_eq!(shown, r#"macvlan {"parent":"eth0"} 10.46.0.32/27"#);
    lab.docker(2, "run -d --name web --network wire -p 8080:80 busybox httpd -f -h /etc").ok();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}} {{.MacAddress}}{{end}} {{range .NetworkSettings.Ports}}{{range .}}{{.HostPort}}{{end}}{{end}}";
    // Ports are its own: there is nothing to publish.
    let seen = lab.docker_words(2, &["inspect", "-f", format, "web"]).ok();
    assert_eq!(seen, "10.46.0.64 10.46.0.1 02:42:0a:2e:00:40");
    lab.docker(1, "run -d --name client --network wire busybox sleep 1000").ok();
    let ask = || lab.docker(1, "exec client timeout 2 wget -qO- http://10.46.0.64/hostname");
    eventually(SOON, "a container on another host's wire answers", || ask().code == 0);
    let routes = lab.docker(1, "exec client ip route").ok();
    assert!(routes.contains("default via 10.46.0.1 dev eth0"), "{routes}");
    // Names lead to containers of this host, as on a bridge.
    lab.docker(1, "run --rm --network wire busybox ping -c 1 -w 5 client").ok();
    // A connection more, and less, while it runs.
    lab.docker(1, "network create side").ok();
    lab.docker(1, "network connect side client").ok();
    lab.docker(1, "network disconnect wire client").ok();
    assert!(!lab.docker(1, "exec client ip addr").ok().contains("10.46.0."));
    lab.docker(1, "network connect wire client").ok();
    eventually(SOON, "it is back on the wire", || ask().code == 0);
    for (line, words) in [
        ("network create -d macvlan -o parent=eth0 x", "is already using parent interface eth0"),
        ("network create -d macvlan -o parent=lo x", "loopback interface is not a valid macvlan parent link"),
        (
            "network create -d macvlan -o parent=nope x",
            "invalid subinterface vlan name nope, example formatting is eth0.10",
        ),
        ("network create -d macvlan -o parent=eth0.9999 x", "vlan id must be between 1-4094, received: 9999"),
        (
            "network create -d macvlan -o parent=eth0.x x",
            "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)",
        ),
        ("network create -d macvlan -o parent=nope.5 x", "-o parent interface does was not found on the host: nope"),
        (
            "network create -d macvlan -o macvlan_mode=foo x",
            "requested macvlan mode 'foo' is not valid, 'bridge' mode is the macvlan driver default",
        ),
    ] {
        lab.docker(1, line).fails(words);
    }
    lab.docker(1, "network rm wire").fails("has active endpoints");
    lab.docker(1, "rm -f client").ok();
    lab.docker(1, "network rm wire").ok();
    // A mode of another kind, by a configuration, and on no wire at all.
    lab.docker(1, "network create --config-only --subnet 10.47.0.0/24 -o parent=eth0 -o macvlan_mode=private quiet")
        .ok();
    lab.docker(1, "network create -d macvlan --config-from quiet alone").ok();
    lab.docker(1, "run -d --name first --network alone busybox sleep 1000").ok();
    lab.docker(1, "run --rm --network alone busybox ping -c 1 -w 2 10.47.0.2").fails("");
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, "network create -d macvlan --subnet 10.48.0.0/24 nowhere").ok();
    lab.docker(1, "run -d --name second --network nowhere busybox sleep 1000").ok();
    lab.docker(1, "run --rm --network nowhere busybox ping -c 1 -w 5 second").ok();
    // The daemon is killed, and what is there goes on and goes away.
    let daemon = lab.on(1, &["cat", "/run/skep.pid"]).ok();
    lab.on(1, &["kill", "-9", &daemon]).ok();
    eventually(SOON, "the daemon is back", || lab.docker(1, "ps").code == 0);
    lab.docker(1, "run --rm --network nowhere busybox ping -c 1 -w 5 second").ok();
    lab.docker(1, "rm -f second").ok();
    lab.docker(1, "network rm nowhere").ok();
    let links = lab.on(1, &["ls", "/sys/class/net"]).ok();
    assert!(!links.contains("dm-"), "{links}");
}
