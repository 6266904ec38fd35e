//! Networks with IPv6.

use skep_e2e::{Lab, SOON, eventually};

fn host() -> Lab {
    let lab = Lab::hosts(1);
    lab.give_busybox();
    lab
}

/// One member of what `docker inspect` tells of a container's place on a network.
fn place(lab: &Lab, container: &str, member: &str) -> String {
    let format = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{member}}}}}{{{{end}}}}");
    lab.docker_words(1, &["inspect", "-f", &format, container]).ok()
}

#[test]
fn containers_of_a_bridge_network_speak_ipv6() {
    let lab = host();
    // conformance: works | docker network create --ipv6 | bridge networks; both subnets in IPAM.Config
    lab.docker(
        1,
        "network create --ipv6 --subnet fd00:a::/64 --gateway fd00:a::1 --subnet 10.35.0.0/24 --gateway 10.35.0.1 \
         --aux-address nas=fd00:a::2 six",
    )
    .ok();
    let format = "{{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}} {{.Gateway}}{{end}}";
    let shown = lab.docker_words(1, &["network", "inspect", "-f", format, "six"]).ok();
    assert_eq!(shown, "true 10.35.0.0/24 10.35.0.1 fd00:a::/64 fd00:a::1");
    lab.docker(1, "run -d --name web --network six --network-alias www busybox httpd -f -h /etc").ok();
    let own = place(&lab, "web", "GlobalIPv6Address");
    assert!(own.starts_with("fd00:a::") && own != "fd00:a::2", "{own}");
    assert_eq!(place(&lab, "web", "GlobalIPv6PrefixLen"), "64");
    assert_eq!(place(&lab, "web", "IPv6Gateway"), "fd00:a::1");
    let format = "{{range .Containers}}{{.IPv6Address}}{{end}}";
    assert_eq!(lab.docker_words(1, &["network", "inspect", "-f", format, "six"]).ok(), format!("{own}/64"));
    let hosts = lab.docker(1, "exec web cat /etc/hosts").ok();
    assert!(hosts.lines().any(|line| line.starts_with(&format!("{own}\t"))), "{hosts}");

    // conformance: works | docker run --ip6
    let line = "run -d --name fixed --network six --ip6 fd00:a::99 --network-alias fixed busybox httpd -f -h /etc";
    lab.docker(1, line).ok();
    assert_eq!(place(&lab, "fixed", "GlobalIPv6Address"), "fd00:a::99");
    lab.docker(1, "run --rm --network six --ip6 fd00:a::99 busybox true").fails("Address already in use");
    let inside = |words: &[&str]| lab.docker_words(1, &[&["exec", "web"], words].concat());
    // conformance: works | names of networks with IPv6: AAAA, and PTR of ip6.arpa
    inside(&["ping", "-6", "-c", "1", "-W", "2", "fixed"]).ok();
    assert!(inside(&["nslookup", "-type=aaaa", "fixed", "127.0.0.11"]).ok().contains("fd00:a::99"));
    assert!(inside(&["nslookup", "fd00:a::99", "127.0.0.11"]).ok().contains("name = fixed.six"));
    let url = "http://[fd00:a::99]/hostname";
    eventually(SOON, url, || lab.on(1, &["curl", "-gsS", "--max-time", "5", url]).code == 0);
    inside(&["ping", "-6", "-c", "1", "-W", "2", "fd00:a::1"]).ok();

    lab.docker(1, "network create --ipv6 --subnet fd00:b::/64 other").ok();
    let ping =
        |network: &str| lab.docker(1, &format!("run --rm --network {network} busybox ping -6 -c 1 -W 2 fd00:a::99"));
    ping("six").ok();
    // Released dockerd of before 27 leaves isolation of IPv6 to the user, and its networks chosen subnets.
    if !lab.is_dockerd() {
        assert!(ping("other").code != 0, "networks are apart");
        // conformance: differs | docker network create --ipv6 without a subnet | as Docker 27 and later: a /64 of unique local addresses; it follows from the network's id
        lab.docker(1, "network create --ipv6 chosen").ok();
        lab.docker(1, "run -d --name ula --network chosen busybox sleep 1000").ok();
        let own = place(&lab, "ula", "GlobalIPv6Address");
        assert!(own.starts_with("fd") && own.ends_with("::2"), "{own}");
    }
    lab.docker(1, "run -d --name four busybox sleep 1000").ok();
    assert_eq!(place(&lab, "four", "GlobalIPv6Address"), "");
    let addresses = lab.docker(1, "exec four ip -6 addr show dev eth0").ok();
    assert_eq!(addresses, "", "no IPv6 on a network without it");
    lab.docker(1, "run --rm --network six --ip6 fd00:c::1 busybox true").fails("");
    lab.docker(1, "network create --ipv6 --subnet fd00:a::/80 same").fails("Pool overlaps with other one");
}

#[test]
fn an_internal_network_with_ipv6_leads_nowhere_and_others_do() {
    let lab = host();
    // The lab's own wire has no IPv6 unless it is given some.
    lab.on(1, &["ip", "-6", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"]).ok();
    lab.docker(1, "network create --ipv6 --subnet fd00:a::/64 open").ok();
    lab.docker(1, "network create --ipv6 --subnet fd00:b::/64 --internal inner").ok();
    let route = |network: &str| lab.docker(1, &format!("run --rm --network {network} busybox ip -6 route show")).ok();
    assert!(route("open").contains("default via fd00:a::1 dev eth0"), "{}", route("open"));
    lab.docker(1, "run --rm --network open busybox ping -6 -c 1 -W 2 2001:db8::1").ok();
    // Released dockerd of before 27 seals internal networks for IPv4 alone.
    if !lab.is_dockerd() {
        assert!(!route("inner").contains("default"), "{}", route("inner"));
        assert!(lab.docker(1, "run --rm --network inner busybox ping -6 -c 1 -W 1 2001:db8::1").code != 0);
    }
}

#[test]
fn published_ports_answer_on_ipv6() {
    let lab = host();
    lab.on(1, &["ip", "-6", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"]).ok();
    lab.docker(1, "network create --ipv6 --subnet fd00:a::/64 six").ok();
    // conformance: works | docker run -p on IPv6: [::]:port and [::1]:port, for networks of either kind
    for (name, network, port) in [("four", "bridge", 8080), ("six", "six", 8081)] {
        let line = format!("run -d --name {name} --network {network} -p {port}:80 busybox httpd -f -h /etc");
        lab.docker(1, &line).ok();
        for host in ["[::1]", "[2001:db8::1]", "127.0.0.1"] {
            let url = format!("http://{host}:{port}/hostname");
            let get = || lab.on(1, &["curl", "-gsS", "--max-time", "5", &url]);
            eventually(SOON, &url, || get().code == 0);
        }
        let shown = lab.docker(1, &format!("port {name}")).ok();
        assert!(shown.contains(&format!("80/tcp -> 0.0.0.0:{port}")), "{shown}");
        assert!(shown.contains(&format!("80/tcp -> [::]:{port}")) || shown.contains(&format!(":::{port}")), "{shown}");
    }
    lab.docker(1, "run -d --name only -p [::1]:8082:80 busybox httpd -f -h /etc").ok();
    eventually(SOON, "a port of ::1 alone", || {
        lab.on(1, &["curl", "-gsS", "--max-time", "5", "http://[::1]:8082/hostname"]).code == 0
    });
    assert!(lab.on(1, &["curl", "-gsS", "--max-time", "5", "http://127.0.0.1:8082/"]).code != 0);
    lab.docker(1, "rm -f four six only").ok();
    for port in [8080, 8081, 8082] {
        let closed = lab.on(1, &["curl", "-gsS", "--max-time", "5", &format!("http://[::1]:{port}/")]);
        assert!(closed.code == 7, "refused at once: {closed:?}");
    }
}

/// A request from a container's own namespace, by a program of the host.
fn from_inside(lab: &Lab, node: usize, container: &str, url: &str) -> skep_e2e::Ran {
    let pid = lab.docker_words(node, &["inspect", "-f", "{{.State.Pid}}", container]).ok();
    lab.on(node, &["nsenter", "-t", &pid, "-n", "curl", "-gsS", "--max-time", "5", url])
}

/// Containers of a service on a node.
fn containers(lab: &Lab, node: usize, service: &str) -> Vec<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    lab.docker_words(node, &["ps", "-q", "--filter", &filter]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn services_on_an_overlay_speak_ipv6() {
    let lab = Lab::swarm(1, 1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.give_whoami();
    // conformance: differs | docker network create --driver overlay --ipv6 | services and tasks have IPv6 addresses, which Docker's have not: in the place that their IPv4 ones have in the other subnet
    for (name, subnets, options) in [
        ("dual", "--subnet 10.50.0.0/24 --subnet fd00:d::/64", ""),
        ("sealed", "--subnet 10.51.0.0/24 --subnet fd00:e::/64", "--opt encrypted"),
    ] {
        lab.docker(1, &format!("network create -d overlay --ipv6 {subnets} {options} {name}")).ok();
        let format = "{{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}} {{.Gateway}}{{end}}";
        let net = if name == "dual" { "fd00:d::" } else { "fd00:e::" };
        let (four, web) = (if name == "dual" { "10.50.0" } else { "10.51.0" }, format!("web-{name}"));
        let expected = format!("true {four}.0/24 {four}.1 {net}/64 {net}1");
        eventually(SOON, &expected, || {
            lab.docker_words(1, &["network", "inspect", "-f", format, name]).ok() == expected
        });
        lab.docker(1, &format!("service create --detach --mode global --name {web} --network {name} skep/whoami")).ok();
        lab.docker(
            1,
            &format!("service create --detach --mode global --name {name}-box --network {name} busybox sleep 1000"),
        )
        .ok();
        lab.await_running(&web, 2);
        lab.await_running(&format!("{name}-box"), 2);
        let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}}";
        let vip = lab.docker_words(1, &["service", "inspect", "-f", format, &web]).ok();
        let place: u8 = vip.trim_end_matches("/24").rsplit('.').next().and_then(|n| n.parse().ok()).expect("a VIP");
        let vip = format!("{net}{place:x}");

        let own = place_of(&lab, 2, &containers(&lab, 2, &web)[0], name);
        assert!(own.starts_with(net), "{own}");
        let here = place_of(&lab, 1, &containers(&lab, 1, &web)[0], name);
        let format = "{{range .Containers}}{{.IPv6Address}} {{end}}";
        let listed = lab.docker_words(1, &["network", "inspect", "-f", format, name]).ok();
        assert!(listed.split(' ').any(|a| a == format!("{here}/64")), "{listed}");
        let client = &containers(&lab, 1, &format!("{name}-box"))[0];
        let look = |name: &str| lab.docker(1, &format!("exec {client} nslookup -type=aaaa {name} 127.0.0.11")).ok();
        assert!(look(&web).contains(&format!("Address: {vip}\n")) || look(&web).ends_with(&vip), "{}", look(&web));
        eventually(SOON, "both tasks are there", || look(&format!("tasks.{web}")).matches(net).count() == 2);
        let ping = format!("exec {client} ping -6 -c 1 -W 1 {own}");
        eventually(SOON, "the other host's task answers", || lab.docker(1, &ping).code == 0);

        // By the service's address each new connection takes the next task, which sees the client's address.
        let mine = place_of(&lab, 1, client, name);
        let mut hosts = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let answer = from_inside(&lab, 1, client, &format!("http://[{vip}]/")).ok();
            assert!(answer.contains(&format!("RemoteAddr: [{mine}]:")), "{answer}");
            hosts.extend(answer.lines().find(|line| line.starts_with("Hostname:")).map(str::to_owned));
        }
        assert_eq!(hosts.len(), 2, "{hosts:?}");
        lab.docker(1, &format!("service rm {web}")).ok();
        eventually(SOON, "its name is gone", || {
            lab.docker(1, &format!("exec {client} nslookup -type=aaaa {web} 127.0.0.11")).code != 0
        });
    }
    lab.docker(1, "network create -d overlay --ipv6 --subnet fd00:f::/112 small").fails("too small");
    lab.docker(1, "network create -d overlay --ipv6 --opt com.docker.network.driver.mtu=1200 narrow")
        .fails("too small");
    let range = "network create -d overlay --ipv6 --subnet fd00:f::/64 --ip-range fd00:f::/80 range";
    lab.docker(1, range).fails("not implemented yet");
}

#[test]
fn a_container_is_given_the_ipv6_address_it_asks_for_on_an_overlay() {
    let lab = Lab::swarm(1, 1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    let dual = "--attachable --ipv6 --subnet 10.52.0.0/24 --subnet fd00:c::/64";
    lab.docker(1, &format!("network create -d overlay {dual} dual")).ok();
    // conformance: differs | docker run --ip6, docker network connect --ip6, of an attachable overlay | an address in the place of a free IPv4 one, which goes with it; another one is refused
    lab.docker(1, "run -d --name one --network dual --ip6 fd00:c::63 busybox sleep 1000").ok();
    lab.docker(2, "run -d --name two busybox sleep 1000").ok();
    lab.docker(2, "network connect --ip6 fd00:c::64 dual two").ok();
    for (node, name, six, four) in [(1, "one", "fd00:c::63", "10.52.0.99"), (2, "two", "fd00:c::64", "10.52.0.100")] {
        assert_eq!(place_of(&lab, node, name, "dual"), six);
        let format = "{{(index .NetworkSettings.Networks \"dual\").IPAddress}}";
        assert_eq!(lab.docker_words(node, &["inspect", "-f", format, name]).ok(), four);
    }
    eventually(SOON, "one reaches the other", || lab.docker(1, "exec one ping -6 -c 1 -W 1 fd00:c::64").code == 0);
    // It has the same one when it is started again.
    lab.docker(1, "restart -t 0 one").ok();
    assert_eq!(place_of(&lab, 1, "one", "dual"), "fd00:c::63");
    let run = |node: usize, asked: &str| lab.docker(node, &format!("run --rm --network dual {asked} busybox true"));
    run(2, "--ip6 fd00:c::63").fails("fd00:c::63 on network dual is already in use");
    run(2, "--ip6 fd00:c::1:7").fails("goes with no IPv4 address of 10.52.0.0/24");
    run(2, "--ip 10.52.0.7 --ip6 fd00:c::8").fails("fd00:c::8 on network dual goes with 10.52.0.8, not with 10.52.0.7");
    let connect = |six: &str| lab.docker(1, &format!("network connect --ip6 {six} dual four"));
    lab.docker(1, "run -d --name four busybox sleep 1000").ok();
    connect("fd00:d::7").fails("fd00:d::7 on network dual is not in its subnet fd00:c::/64");
    // conformance: absent | docker run --mac-address on an overlay | a MAC address follows from the IPv4 address there; 501, and nothing is left on the network
    run(2, "--mac-address 02:11:22:33:44:55")
        .fails("a MAC address of a container's own on overlay network dual is not");
    run(2, "--mac-address 02:42:0a:34:00:07 --ip 10.52.0.7").ok();
    // What was refused holds no address.
    lab.docker(1, "rm -f one four").ok();
    lab.docker(2, "rm -f two").ok();
    eventually(SOON, "the network goes once nothing is on it", || lab.docker(1, "network rm dual").code == 0);
}

fn place_of(lab: &Lab, node: usize, container: &str, network: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).GlobalIPv6Address}}}}");
    lab.docker_words(node, &["inspect", "-f", &format, container]).ok()
}
