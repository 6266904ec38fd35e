//! Networks of one host with IPv6, as `setup_sandbox` makes them in the kernel. Needs root.

#![allow(clippy::unwrap_used, reason = "the lint's exception knows test functions only, not what they call")]

mod host;

use std::net::Ipv6Addr;

use hickory_proto::rr::RecordType;
use host::*;
use skep_model::network::Ipv6Pool;
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
