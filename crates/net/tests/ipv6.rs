//! Networks of one host with IPv6, as `setup_sandbox` makes them in the kernel. Needs root.

#![allow(clippy::unwrap_used, reason = "the lint's exception knows test functions only, not what they call")]

mod host;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use hickory_proto::rr::RecordType;
use host::*;
use skep_model::network::Ipv6Pool;
use skep_model::plan::{Backend, HostPlan, IngressPlan, MeshPort, OverlayPlan};
use skep_model::sandbox::{LocalNetworkSpec, Sandbox};
use skep_model::service::Protocol;
use skep_net::ErrorKind;

fn six(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn network(name: &str, subnet: Option<&str>) -> LocalNetworkSpec {
    let pool6 = subnet.map(|subnet| Ipv6Pool {
        subnet: subnet.parse().unwrap(),
        gateway: None,
        ip_range: None,
        auxiliary: Default::default(),
    });
    LocalNetworkSpec { name: name.to_owned(), ipv6: true, pool6, ..LocalNetworkSpec::default() }
}

/// The world outside has IPv6, and takes the host for its neighbour.
fn dual_stack(host: &Host) {
    for (namespace, name, address) in
        [(&host.namespace, "wan", "2001:db8::1/64"), (&host.outside, "lan", "2001:db8::2/64")]
    {
        let links = namespace.links();
        links.add_address6(links.index(name).unwrap(), address.parse().unwrap()).unwrap();
    }
}

fn address(sandbox: &Sandbox) -> Ipv6Addr {
    sandbox.endpoints[0].address6.unwrap().addr()
}

#[test]
fn containers_with_ipv6_reach_each_other_and_the_world() {
    Host::run("six", async |host| {
        dual_stack(&host);
        let net = host.net().await;
        net.create_network(network("app", Some("fd00:a::/64"))).await.unwrap();
        let overlaps = net.create_network(network("same", Some("fd00:a::/80"))).await.unwrap_err();
        assert!(overlaps.to_string().ends_with("Pool overlaps with other one on this address space"));
        let chosen = net.create_network(network("chosen", None)).await.unwrap().gateway6.unwrap();
        assert!(chosen.addr().segments()[0] >> 8 == 0xfd && chosen.prefix_len() == 64, "{chosen}");

        let web = net.setup_sandbox(&request(1, "web", &["app"])).await.unwrap();
        let mut fixed = request(2, "db", &["app"]);
        fixed.endpoints[0].address6 = Some(six("fd00:a::9"));
        let db = net.setup_sandbox(&fixed).await.unwrap();
        assert_eq!(web.endpoints[0].address6, "fd00:a::2/64".parse().ok());
        assert_eq!(web.endpoints[0].gateway6, Some(six("fd00:a::1")));
        assert_eq!(address(&db), six("fd00:a::9"));
        assert!(db.hosts_file.ends_with("172.18.0.3\th2\nfd00:a::9\th2\n"), "{}", db.hosts_file);
        let (inside_web, inside_db) = (netns(&web), netns(&db));
        assert_eq!(lookup_text(&inside_db, "web", RecordType::AAAA), ["fd00:a::2"]);
        assert_eq!(lookup_text(&inside_db, "web.app", RecordType::A), ["172.18.0.2"]);
        let reverse = format!("2{}.a.0.0.0.0.0.d.f.ip6.arpa", ".0".repeat(23));
        assert_eq!(lookup_text(&inside_db, &reverse, RecordType::PTR), ["web.app."]);

        let (_web, _db) = (Server::tcp6(&inside_web, 80), Server::tcp6(&inside_db, 80));
        assert_eq!(tcp(&inside_db, address(&web), 80).as_deref(), Some("fd00:a::9"));
        assert_eq!(tcp(&inside_web, address(&db), 80).as_deref(), Some("fd00:a::2"));
        assert_eq!(tcp(&host.namespace, address(&web), 80).as_deref(), Some("fd00:a::1"));
        let _host = Server::tcp6(&host.namespace, 8001);
        assert_eq!(tcp(&inside_web, six("fd00:a::1"), 8001).as_deref(), Some("fd00:a::2"), "to the gateway");
        let _world = Server::tcp6(&host.outside, 8000);
        assert_eq!(tcp(&inside_web, six("2001:db8::2"), 8000).as_deref(), Some("2001:db8::1"), "masqueraded");

        let other = net.setup_sandbox(&request(3, "other", &["chosen"])).await.unwrap();
        assert_eq!(tcp(&netns(&other), six("2001:db8::2"), 8000).as_deref(), Some("2001:db8::1"));
        assert_eq!(tcp_glance(&netns(&other), address(&web), 80), None, "networks are apart");
        let plain = net.setup_sandbox(&request(4, "plain", &["bridge"])).await.unwrap();
        assert_eq!(plain.endpoints[0].address6, None);
        let own = netns(&plain).links().addresses6().unwrap();
        assert_eq!(own.len(), 1, "nothing but loopback: {own:?}");

        net.create_network(LocalNetworkSpec { internal: true, ..network("inner", Some("fd00:b::/64")) }).await.unwrap();
        let inner = net.setup_sandbox(&request(5, "inner", &["inner"])).await.unwrap();
        assert_eq!(inner.endpoints[0].gateway6, None);
        assert_eq!(tcp_glance(&netns(&inner), six("2001:db8::2"), 8000), None, "no way out");
        // The container's own address does not let it out by the gateway either.
        let links = netns(&inner).links().index("eth0").unwrap();
        netns(&inner).links().set_default_route6(Some((six("fd00:b::1"), links))).unwrap();
        assert_eq!(tcp_glance(&netns(&inner), six("2001:db8::2"), 8000), None, "no way out by a route of its own");

        let mut taken = request(6, "taken", &["app"]);
        taken.endpoints[0].address6 = Some(six("fd00:a::9"));
        assert_eq!(net.setup_sandbox(&taken).await.unwrap_err().to_string(), "Address already in use");
        taken.endpoints[0].network = "inner".to_owned();
        assert_eq!(net.setup_sandbox(&taken).await.unwrap_err().kind(), ErrorKind::Invalid);
        net.close().await;
    });
}

#[test]
fn ports_are_published_on_ipv6_for_containers_of_either_kind() {
    Host::run("six-publish", async |host| {
        dual_stack(&host);
        let net = host.net().await;
        net.create_network(network("app", Some("fd00:a::/64"))).await.unwrap();
        let mut sandboxes = Vec::new();
        for (n, network, base) in [(1, "app", 8000), (2, "bridge", 9000)] {
            let mut asked = request(n, network, &[network]);
            asked.publish = vec![
                port(80, Protocol::Tcp, None, base),
                port(80, Protocol::Tcp, Some("::1"), base + 1),
                port(53, Protocol::Udp, None, base + 2),
            ];
            sandboxes.push(net.setup_sandbox(&asked).await.unwrap());
        }
        let hosts: Vec<String> = sandboxes[0].published.iter().map(|port| port.host_ip.to_string()).collect();
        assert_eq!(hosts, ["0.0.0.0", "::", "::1", "0.0.0.0", "::"]);
        let inside: Vec<_> = sandboxes.iter().map(netns).collect();
        let _servers: Vec<_> =
            inside.iter().map(|inside| (Server::tcp6(inside, 80), Server::udp(inside, 53))).collect();
        let public = six("2001:db8::1");
        assert_eq!(tcp(&host.outside, public, 8000).as_deref(), Some("2001:db8::2"), "the client's address is kept");
        assert_eq!(tcp(&host.outside, public, 9000).as_deref(), Some("172.17.0.1"), "carried to a container without");
        for (base, gateway) in [(8000, "172.18.0.1"), (9000, "172.17.0.1")] {
            assert_eq!(tcp(&host.namespace, Ipv6Addr::LOCALHOST, base).as_deref(), Some(gateway));
            assert_eq!(tcp(&host.namespace, public, base).as_deref(), Some(gateway));
            assert_eq!(tcp(&host.namespace, Ipv6Addr::LOCALHOST, base + 1).as_deref(), Some(gateway));
            assert_eq!(tcp_glance(&host.outside, public, base + 1), None, "only for the host itself");
            assert_eq!(tcp(&host.outside, HOST, base).as_deref(), Some("203.0.113.2"));
        }
        assert_eq!(tcp(&inside[0], public, 8000).as_deref(), Some("fd00:a::1"), "from the container itself");
        net.close().await;

        let again = host.net().await;
        assert_eq!(again.sandbox(&id(1)).unwrap().published, sandboxes[0].published);
        assert_eq!(tcp(&host.outside, public, 8000).as_deref(), Some("2001:db8::2"), "after a restart of the daemon");
        assert_eq!(tcp(&host.namespace, Ipv6Addr::LOCALHOST, 9000).as_deref(), Some("172.17.0.1"));
        again.teardown_sandbox(&id(1)).await.unwrap();
        assert_eq!(tcp_glance(&host.outside, public, 8000), None);
        again.close().await;
    });
}

#[test]
fn datagrams_by_ipv6_are_carried_and_answered_from_the_address_they_were_sent_to() {
    Host::run("six-udp", async |host| {
        dual_stack(&host);
        let wan = host.namespace.links().index("wan").unwrap();
        host.namespace.links().add_address6(wan, "2001:db8::5/64".parse().unwrap()).unwrap();
        let net = host.net().await;
        let mut asked = request(9, "bridged", &["bridge"]);
        asked.publish = vec![port(53, Protocol::Udp, None, 9053)];
        let bridged = netns(&net.setup_sandbox(&asked).await.unwrap());
        let _bridged = Server::udp(&bridged, 53);

        // Of the mesh: the host's place on the ingress network is 240.
        let id = skep_model::NetworkId::from_bits(7);
        let place = |last| Ipv4Addr::new(10, 0, 1, last);
        let plan = |backends: &[u8]| {
            let overlay = OverlayPlan {
                name: "ingress".to_owned(),
                vni: 4096,
                subnet: "10.0.1.0/24".parse().ok(),
                gateway: Some(place(1)),
                mtu: 1450,
                local: [place(21), place(22)].into(),
                ..OverlayPlan::default()
            };
            let backends: Vec<_> = backends.iter().map(|last| Backend { address: place(*last), port: 53 }).collect();
            let taken = MeshPort { ring: backends.into(), ..MeshPort::default() };
            let ingress = IngressPlan {
                network_id: Some(id.clone()),
                address: "10.0.1.240/24".parse().ok(),
                mesh_index: 0,
                node_macs: [].into(),
                ports: [((Protocol::Udp, 8053), taken)].into(),
            };
            let overlays = [(id.clone(), overlay)].into();
            HostPlan { vtep: Some(HOST), vxlan_port: 4789, overlays, ingress: Some(ingress), ..HostPlan::default() }
        };
        let apply = async |backends: &[u8]| {
            let report = net.apply(&Arc::new(plan(backends))).await;
            assert_eq!(report.failures, Vec::<String>::new());
            report.changes
        };
        apply(&[21, 22]).await;
        let mut tasks = Vec::new();
        for last in [21, 22] {
            let mut task = request(last, &format!("web.{last}"), &[id.as_str()]);
            task.endpoints[0].address = Some(place(last));
            let inside = netns(&net.setup_sandbox(&task).await.unwrap());
            tasks.push((Server::udp_named(&inside, 53, &last.to_string()), inside));
        }
        assert_eq!(apply(&[21, 22]).await, 0, "in place already");
        for (client, address) in
            [(&host.outside, "2001:db8::1"), (&host.outside, "2001:db8::5"), (&host.namespace, "::1")]
        {
            let answers: BTreeSet<_> = (0..4).map(|_| ask_udp(client, six(address), 8053).unwrap()).collect();
            let from_leg = ["21 10.0.1.240", "22 10.0.1.240"].map(str::to_owned);
            assert_eq!(answers, from_leg.into(), "{address}: each client is given to the next");
            assert_eq!(udp(client, six(address), 9053).as_deref(), Some("172.17.0.1"), "{address}");
        }

        // A client stays with its task, and goes elsewhere as soon as that takes nothing.
        let client = host.outside.run(|| UdpSocket::bind("[::]:0").unwrap()).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        client.connect((six("2001:db8::5"), 8053)).unwrap();
        let ask = || {
            let mut buffer = [0; 64];
            client.send(b"?")?;
            client.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let mine = ask().unwrap();
        assert_eq!((ask().unwrap(), ask().unwrap()), (mine.clone(), mine.clone()));
        let other = if mine.starts_with("21") { 22 } else { 21 };
        apply(&[other]).await;
        assert!(ask().unwrap().starts_with(&other.to_string()));
        for _ in 0..2 {
            apply(&[]).await;
            assert_eq!(
                ask().unwrap_err().kind(),
                std::io::ErrorKind::ConnectionRefused,
                "at once, as long as nobody is"
            );
            let stranger = host.namespace.run(|| UdpSocket::bind("[::]:8053")).unwrap();
            assert_eq!(stranger.unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "the port is held");
            apply(&[21]).await;
            assert_eq!(ask().unwrap(), "21 10.0.1.240");
        }
        assert_eq!(udp(&host.outside, HOST, 8053).as_deref(), Some("21 203.0.113.2"), "by IPv4 the kernel does it");
        net.close().await;
    });
}

#[test]
fn the_way_out_moves_to_another_network_with_ipv6() {
    Host::run("six-moves", async |host| {
        dual_stack(&host);
        let net = host.net().await;
        net.create_network(network("one", Some("fd00:1::/64"))).await.unwrap();
        net.create_network(network("two", Some("fd00:2::/64"))).await.unwrap();
        let _world = Server::tcp6(&host.outside, 8000);
        let reach = |sandbox: &Sandbox| tcp(&netns(sandbox), six("2001:db8::2"), 8000);
        let sandbox = net.setup_sandbox(&request(1, "web", &["bridge"])).await.unwrap();
        assert_eq!(tcp_glance(&netns(&sandbox), six("2001:db8::2"), 8000), None);
        net.connect(&id(1), &endpoint("one")).await.unwrap();
        assert!(reach(&sandbox).is_some(), "the only network with IPv6, though not the first");
        net.connect(&id(1), &endpoint("two")).await.unwrap();
        net.disconnect(&id(1), "one", false).await.unwrap();
        assert!(reach(&sandbox).is_some());
        net.disconnect(&id(1), "two", false).await.unwrap();
        assert_eq!(tcp_glance(&netns(&sandbox), six("2001:db8::2"), 8000), None);
        net.close().await;
    });
}
