//! Bridge networks of one host: names, isolation, publishing.

use std::net::UdpSocket;
use std::time::Duration;

use skep_e2e::{Lab, SOON, eventually};

fn host() -> Lab {
    let lab = Lab::hosts(1);
    lab.give_busybox();
    lab
}

#[test]
fn containers_find_one_another_by_name_and_networks_are_apart() {
    let lab = host();
    // conformance: works | docker network ls
    let listed = lab.docker_words(1, &["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]).ok();
    assert_eq!(listed, "bridge bridge local\nhost host local\nnone null local");
    // conformance: works | docker network create, inspect, rm
    lab.docker(1, "network create --subnet 10.33.0.0/24 --gateway 10.33.0.1 --label a=b front").ok();
    lab.docker(1, "network create back").ok();
    let format = "{{(index .IPAM.Config 0).Subnet}} {{.Driver}} {{.Labels.a}}";
    assert_eq!(lab.docker_words(1, &["network", "inspect", "-f", format, "front"]).ok(), "10.33.0.0/24 bridge b");
    lab.docker(1, "run -d --name web --network front --network-alias www busybox httpd -f -h /etc").ok();
    // conformance: works | docker run --network --network-alias
    for name in ["web", "www", "web.front"] {
        let got = lab.docker_words(
            1,
            &["run", "--rm", "--network", "front", "busybox", "wget", "-qO-", &format!("http://{name}/hostname")],
        );
        assert!(!got.ok().is_empty());
    }
    lab.docker(1, "run --rm --network back busybox wget -qO- http://web").fails("bad address 'web'");
    // conformance: works | docker network connect, disconnect
    lab.docker(1, "network connect --alias site back web").ok();
    lab.docker(1, "run --rm --network back busybox wget -qO- http://site/hostname").ok();
    lab.docker(1, "network disconnect back web").ok();
    lab.docker(1, "run --rm --network back busybox wget -qO- http://site/hostname").fails("bad address 'site'");
    lab.docker(1, "network rm front").fails("has active endpoints");
    lab.docker(1, "rm -f web").ok();
    assert_eq!(lab.docker(1, "network rm front back").ok(), "front\nback");
    lab.docker(1, "network inspect front").fails("network front not found");
    lab.docker(1, "network rm bridge").fails("bridge is a pre-defined network and cannot be removed");
    lab.docker(1, "network create bridge").fails("operation is not permitted on predefined bridge network");
    // conformance: works | docker run --network none, host, container:NAME
    assert_eq!(
        lab.docker_words(1, &["run", "--rm", "--network", "none", "busybox", "sh", "-c", "ls /sys/class/net"]).ok(),
        "lo"
    );
    assert!(
        lab.docker_words(1, &["run", "--rm", "--network", "host", "busybox", "ip", "addr"])
            .ok()
            .contains(lab.address(1))
    );
    lab.docker(1, "run -d --name base busybox sleep 1000").ok();
    let address = |line: &str| {
        lab.docker(1, line).ok().lines().find(|l| l.contains("inet 172.")).map(str::trim).map(str::to_owned)
    };
    assert_eq!(address("run --rm --network container:base busybox ip addr"), address("exec base ip addr"));
}

#[test]
fn auxiliary_addresses_are_given_to_nobody() {
    let lab = host();
    // conformance: works | docker network create --aux-address, --ip-range
    lab.docker(
        1,
        "network create --subnet 10.34.0.0/24 --gateway 10.34.0.1 --ip-range 10.34.0.4/30 \
         --aux-address router=10.34.0.4 --aux-address nas=10.34.0.6 lan",
    )
    .ok();
    let format = "{{range .IPAM.Config}}{{.IPRange}} {{json .AuxiliaryAddresses}}{{end}}";
    let shown = lab.docker_words(1, &["network", "inspect", "-f", format, "lan"]).ok();
    assert_eq!(shown, r#"10.34.0.4/30 {"nas":"10.34.0.6","router":"10.34.0.4"}"#);
    for (name, address) in [("first", "10.34.0.5"), ("second", "10.34.0.7")] {
        lab.docker(1, &format!("run -d --name {name} --network lan busybox sleep 1000")).ok();
        let format = "{{.NetworkSettings.Networks.lan.IPAddress}}";
        assert_eq!(lab.docker_words(1, &["inspect", "-f", format, name]).ok(), address);
    }
    lab.docker(1, "run --rm --network lan --ip 10.34.0.6 busybox true").fails("Address already in use");
}

#[test]
fn published_ports_answer_from_outside_and_on_the_host() {
    let lab = host();
    // conformance: works | docker run -p
    lab.docker(1, "run -d --name web -p 8080:80 busybox httpd -f -h /etc").ok();
    let url = format!("http://{}:8080/hostname", lab.address(1));
    eventually(SOON, "the port answers", || lab.curl(&url).code == 0);
    lab.on(1, &["curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080/hostname"]).ok();
    assert_eq!(lab.docker(1, "port web").ok().lines().next(), Some("80/tcp -> 0.0.0.0:8080"));
    lab.docker(1, "run -d --name second -p 8080:80 busybox true").fails("port is already allocated");
    lab.docker(1, "rm -f web second").ok();
    let closed = lab.curl(&url);
    assert!(closed.code == 7, "refused at once, not timed out: {closed:?}");
    // conformance: works | docker run -p …/udp
    lab.give_whoami();
    lab.docker(1, "run -d --name dat -p 9999:80/udp skep/whoami").ok();
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    eventually(SOON, "a datagram comes back", || {
        let mut buffer = [0; 256];
        socket.send_to(b"ping", format!("{}:9999", lab.address(1))).is_ok()
            && socket.recv(&mut buffer).is_ok_and(|n| String::from_utf8_lossy(&buffer[..n]).contains("Received: ping"))
    });
    // conformance: works | docker run -P
    lab.docker(1, "run -d --name any --expose 80 -P busybox httpd -f -h /etc").ok();
    let port = lab.docker(1, "port any 80/tcp").ok();
    let port = port.lines().next().and_then(|l| l.rsplit(':').next()).expect("a port").to_owned();
    eventually(SOON, "the chosen port answers", || {
        lab.curl(&format!("http://{}:{port}/hostname", lab.address(1))).code == 0
    });
}

#[test]
fn options_of_networks_are_served_or_refused() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    // conformance: works | docker network create --opt com.docker.network.bridge.…, bad values
    for (option, why) in [
        (
            "bridge.enable_icc=maybe",
            "failed to parse com.docker.network.bridge.enable_icc value: maybe (strconv.ParseBool: ",
        ),
        (
            "bridge.enable_ip_masquerade=",
            "failed to parse com.docker.network.bridge.enable_ip_masquerade value:  (strconv.",
        ),
        (
            "bridge.host_binding_ipv4=here",
            "failed to parse com.docker.network.bridge.host_binding_ipv4 value: here (nil ip)",
        ),
        (
            "driver.mtu=x",
            "failed to parse com.docker.network.driver.mtu value: x (strconv.Atoi: parsing \"x\": invalid syntax)",
        ),
    ] {
        lab.docker(1, &format!("network create --opt com.docker.network.{option} bad")).fails(why);
    }
    // conformance: works | docker network create --opt com.docker.network.container_iface_prefix
    lab.docker(1, "network create --opt com.docker.network.container_iface_prefix=lan named").ok();
    let links = lab.docker(1, "run --rm --network named busybox ip -o link").ok();
    assert!(links.contains(": lan0@"), "{links}");
    // conformance: works | docker network create --opt com.docker.network.bridge.inhibit_ipv4
    let bare = "--opt com.docker.network.bridge.inhibit_ipv4=true --opt com.docker.network.bridge.name=bare0";
    lab.docker(1, &format!("network create {bare} bare")).ok();
    assert_eq!(lab.on(1, &["ip", "-4", "-o", "address", "show", "dev", "bare0"]).ok(), "");

    // conformance: works | docker run --network host -p …: the ports are discarded, with a warning
    let warning = "Published ports are discarded when using host network mode";
    assert!(lab.docker(1, "run --rm --network host -p 8088:80 busybox true").stderr.contains(warning));
    lab.docker(1, "run --rm --network host --ip 10.1.2.3 busybox true")
        .fails("user specified IP address is supported on user defined networks only");

    // conformance: works | docker network create --driver overlay --opt com.docker.network.driver.overlay.vxlanid_list
    let list = "com.docker.network.driver.overlay.vxlanid_list";
    lab.docker(1, &format!("network create -d overlay --opt {list}=5000 chosen")).ok();
    let shown = format!("{{{{index .Options \"{list}\"}}}}");
    eventually(SOON, "it has the number", || {
        lab.docker_words(1, &["network", "inspect", "-f", &shown, "chosen"]).ok() == "5000"
    });
    if lab.is_dockerd() {
        return;
    }
    // conformance: differs | docker network create --driver overlay, with an MTU or VXLAN ids that cannot be | refused; Docker's tasks fail or wait
    for (option, why) in [
        ("driver.mtu=abc", "failed to parse com.docker.network.driver.mtu value: abc"),
        ("driver.mtu=60", "it is a number from 68 to 65535"),
        ("driver.overlay.vxlanid_list=5001,x", "invalid vxlan id value \"x\" passed"),
        ("driver.overlay.vxlanid_list=300", "vxlan id 300 is not in the range from 4096 to 16777215"),
    ] {
        lab.docker(1, &format!("network create -d overlay --opt com.docker.network.{option} bad")).fails(why);
    }
    // conformance: absent | docker network create --opt com.docker.network.bridge.gateway_mode_ipv4=routed, isolated | 501
    lab.docker(1, "network create --opt com.docker.network.bridge.gateway_mode_ipv4=isolated bad")
        .fails("is not served yet");

    // conformance: differs | docker service create --publish of a port by which hosts reach one another (2377, 7946, 4789) | refused: no host would hear of another again
    for port in ["2377:80", "7946:80/udp", "4789:80/udp"] {
        let create = format!("service create --detach --no-resolve-image --publish {port} busybox true");
        lab.docker(1, &create).fails("is one of the swarm's own");
    }
    // conformance: differs | docker run --ip on a network without --subnet | given; Docker refuses it
    lab.docker(1, "network create free").ok();
    let gateway = lab.docker_words(1, &["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "free"]).ok();
    let asked = gateway.strip_suffix(".1").map(|start| format!("{start}.77")).expect("the first address");
    let shown = lab.docker(1, &format!("run --rm --network free --ip {asked} busybox ip -o -4 address")).ok();
    assert!(shown.contains(&asked), "{shown}");
    // A task makes the bridge that leads out, if somebody has removed it.
    lab.docker(1, "network rm docker_gwbridge").ok();
    lab.docker(1, "service create --detach --no-resolve-image --name web --network chosen busybox sleep 1000").ok();
    lab.await_running("web", 1);
}
