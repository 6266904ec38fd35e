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
