//! Sandboxes on bridge networks, against the real kernel. Needs root.

#![allow(clippy::unwrap_used, reason = "the lint's exception knows test functions only, not what they call")]

mod host;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use host::*;
use skep_model::dns::Zone;
use skep_model::plan::{HostPlan, OverlayPlan};
use skep_model::sandbox::{LocalNetworkSpec, NetworkMode};
use skep_model::service::Protocol;
use skep_net::ErrorKind;
use skep_net::dataplane::ApplyReport;
use skep_net::nft::{Chain, ChainType, Family, Hook, HookPoint, NftSocket, Ownership, Rule, Table, Verdict, removal};

fn user_network(name: &str) -> LocalNetworkSpec {
    LocalNetworkSpec { name: name.to_owned(), ..LocalNetworkSpec::default() }
}

#[test]
fn containers_find_and_reach_each_other_and_the_world() {
    Host::run("reach", async |host| {
        let net = host.net().await;
        let names: Vec<String> = net.networks().into_iter().map(|network| network.spec.name).collect();
        assert_eq!(names, ["bridge", "host", "none"]);
        net.create_network(user_network("app")).await.unwrap();
        let mut web = request(1, "web", &["app"]);
        web.endpoints[0].aliases = vec!["www".to_owned()];
        let started = std::time::Instant::now();
        let web = net.setup_sandbox(&web).await.unwrap();
        eprintln!("setup: {:?}", started.elapsed());
        let started = std::time::Instant::now();
        let db = net.setup_sandbox(&request(2, "db", &["app"])).await.unwrap();
        eprintln!("second setup: {:?}", started.elapsed());
        let (inside_web, inside_db) = (netns(&web), netns(&db));
        let address = web.endpoints[0].address.addr();
        assert_eq!(address.to_string(), "172.18.0.2");
        assert!(web.hosts_file.ends_with("172.18.0.2\th1\n"), "{}", web.hosts_file);
        assert!(web.resolv_conf.contains("nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n"));

        for name in ["web", "WWW", "web.app", "h1", id(1).short()] {
            assert_eq!(lookup(&inside_db, name), (ResponseCode::NoError, vec![address]), "{name}");
        }
        assert_eq!(lookup_tcp(&inside_db, "web"), 1);
        let _server = Server::tcp(&inside_web, 80);
        assert_eq!(tcp(&inside_db, address, 80).as_deref(), Some("172.18.0.3"));

        let _world = Server::tcp(&host.outside, 8000);
        assert_eq!(tcp(&inside_db, OUTSIDE, 8000).as_deref(), Some("203.0.113.1"), "masqueraded");
        let _dns = Server::dns(&host.outside);
        assert_eq!(lookup(&inside_db, "example.com"), (ResponseCode::NoError, vec![[192, 0, 2, 7].into()]));
        assert_eq!(lookup(&inside_db, "nobody.example"), (ResponseCode::NXDomain, vec![]));

        let again = net.setup_sandbox(&request(1, "web", &["app"])).await.unwrap();
        assert_eq!(again, web);
        let plain = net.setup_sandbox(&request(3, "plain", &["bridge"])).await.unwrap();
        assert!(plain.resolv_conf.contains("nameserver 203.0.113.2\n"));
        assert_eq!(plain.endpoints[0].address.to_string(), "172.17.0.2/16");
        assert_eq!(tcp_glance(&netns(&plain), address, 80), None, "networks are apart");
        assert_eq!(tcp(&netns(&plain), OUTSIDE, 8000).as_deref(), Some("203.0.113.1"));
        net.close().await;
    });
}

/// Whose process has ended by then: the kernel sends again what was lost, as long as there is a way.
#[test]
fn what_a_container_sent_before_it_ended_arrives() {
    Host::run("last", async |host| {
        let net = host.net().await;
        let id_of_front: skep_model::NetworkId = "w1miys4j65ljo4zuasmvsww89".parse().unwrap();
        let front = OverlayPlan {
            name: "front".to_owned(),
            vni: 4097,
            subnet: Some("10.0.1.0/24".parse().unwrap()),
            mtu: 1450,
            local: [3, 4].map(|last| Ipv4Addr::new(10, 0, 1, last)).into(),
            ..OverlayPlan::default()
        };
        let overlays = [(id_of_front.clone(), front)].into();
        net.apply(&Arc::new(HostPlan { vtep: Some(HOST), vxlan_port: 4789, overlays, ..HostPlan::default() })).await;
        let (mut web, mut asker) =
            (request(1, "web", &[id_of_front.as_str()]), request(2, "asker", &[id_of_front.as_str()]));
        web.endpoints[0].address = Some(Ipv4Addr::new(10, 0, 1, 3));
        asker.endpoints[0].address = Some(Ipv4Addr::new(10, 0, 1, 4));
        let web = netns(&net.setup_sandbox(&web).await.unwrap());
        let asker = netns(&net.setup_sandbox(&asker).await.unwrap());
        let listener = web.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
        drop(web);
        let mut client = asker.run(|| TcpStream::connect((Ipv4Addr::new(10, 0, 1, 3), 80)).unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut server, _) = listener.accept().unwrap();

        let mut deaf = Table::new(Family::Ip, "deaf", Ownership::Shared);
        let input = Hook::new(ChainType::Filter, HookPoint::Input, 0);
        deaf.chain("input", Chain::base(input, vec![Rule::new().l4proto(6).verdict(Verdict::Drop)]));
        let mut nft = NftSocket::open(asker.fd()).unwrap();
        nft.apply(None, &deaf).unwrap();
        server.write_all(b"parting words").unwrap();
        drop((server, listener));
        tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                nft.send(&removal(Family::Ip, "deaf")).unwrap();
            },
            async { net.teardown_sandbox(&id(1)).await.unwrap() }
        );
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "parting words");
        assert!(!host.path("exec/netns").join(id(1).as_str()).exists());
        net.close().await;
    });
}

#[test]
fn published_ports_lead_in_from_everywhere() {
    Host::run("publish", async |host| {
        let net = host.net().await;
        let mut web = request(1, "web", &["bridge"]);
        web.publish = vec![
            port(80, Protocol::Tcp, None, 8080),
            port(53, Protocol::Udp, None, 5353),
            port(80, Protocol::Tcp, Some("127.0.0.1"), 9090),
            port(80, Protocol::Tcp, None, 0),
        ];
        let sandbox = net.setup_sandbox(&web).await.unwrap();
        let random = sandbox.published.last().unwrap().host_port;
        let inside = netns(&sandbox);
        let (_tcp, _udp) = (Server::tcp(&inside, 80), Server::udp(&inside, 53));

        assert_eq!(tcp(&host.outside, HOST, 8080).as_deref(), Some("203.0.113.2"), "the client's address is kept");
        assert_eq!(tcp(&host.outside, HOST, random).as_deref(), Some("203.0.113.2"));
        assert_eq!(tcp(&host.namespace, [127, 0, 0, 1], 8080).as_deref(), Some("172.17.0.1"));
        assert!(tcp(&host.namespace, HOST, 8080).is_some());
        assert_eq!(tcp(&host.namespace, [127, 0, 0, 1], 9090).as_deref(), Some("172.17.0.1"));
        assert_eq!(tcp_glance(&host.outside, HOST, 9090), None, "only for the host itself");
        assert_eq!(udp(&host.outside, HOST, 5353).as_deref(), Some("203.0.113.2"));
        assert_eq!(udp(&host.namespace, [127, 0, 0, 1], 5353).as_deref(), Some("172.17.0.1"));
        assert_eq!(tcp(&inside, HOST, 8080).as_deref(), Some("172.17.0.1"), "from the container itself");

        net.create_network(user_network("other")).await.unwrap();
        let mut second = request(2, "second", &["other"]);
        let sandbox = net.setup_sandbox(&second).await.unwrap();
        assert!(tcp(&netns(&sandbox), HOST, 8080).is_some(), "from another network by the published port");
        assert_eq!(tcp_glance(&netns(&sandbox), [172, 17, 0, 2], 80), None);
        net.teardown_sandbox(&id(2)).await.unwrap();

        second.publish = vec![port(80, Protocol::Tcp, None, 8080)];
        let error = net.setup_sandbox(&second).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("driver failed programming external connectivity on endpoint second ("), "{text}");
        assert!(text.ends_with("): Bind for 0.0.0.0:8080 failed: port is already allocated"), "{text}");
        assert!(net.network("other").unwrap().endpoints.is_empty(), "what failed left nothing");
        assert!(!host.path("exec/netns").join(id(2).as_str()).exists());

        net.teardown_sandbox(&id(1)).await.unwrap();
        assert_eq!(tcp_glance(&host.outside, HOST, 8080), None);

        // A client that keeps sending from one port while the container is away finds its successor.
        let sender = host.outside.run(|| UdpSocket::bind("0.0.0.0:4444").unwrap()).unwrap();
        sender.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        sender.send_to(b"too early", (HOST, 7777)).unwrap();
        second.publish.push(port(53, Protocol::Udp, None, 7777));
        let sandbox = net.setup_sandbox(&second).await.unwrap();
        let _udp = Server::udp(&netns(&sandbox), 53);
        eventually("a reply", || {
            sender.send_to(b"again", (HOST, 7777)).unwrap();
            let mut buffer = [0; 64];
            // The port unreachable of before may come first.
            sender.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"203.0.113.2")
        });
        net.close().await;
    });
}

/// What `systemctl restart nftables` and a careless `ip link delete` do.
#[test]
fn what_somebody_else_has_changed_is_mended() {
    Host::run("mended", async |host| {
        let net = host.net().await;
        let mut web = request(1, "web", &["bridge"]);
        web.publish = vec![port(80, Protocol::Tcp, None, 8080)];
        let sandbox = net.setup_sandbox(&web).await.unwrap();
        let _server = Server::tcp(&netns(&sandbox), 80);
        let works = || tcp(&host.outside, HOST, 8080).as_deref() == Some("203.0.113.2");
        let flush = || {
            let mut nft = NftSocket::open(host.namespace.fd()).unwrap();
            nft.send(&removal(Family::Ip, "skep-bridge-ab12")).unwrap();
        };
        assert!(works());
        assert_eq!(net.repair().await, ApplyReport::default());

        flush();
        assert_eq!(tcp_glance(&host.outside, HOST, 8080), None);
        assert_eq!(net.repair().await, ApplyReport { changes: 1, ..ApplyReport::default() });
        assert!(works());

        // Before it was noticed: a container that starts puts the rules of all in place.
        flush();
        let mut second = request(2, "second", &["bridge"]);
        second.publish = vec![port(80, Protocol::Tcp, None, 8081)];
        net.setup_sandbox(&second).await.unwrap();
        assert!(works());
        assert_eq!(net.repair().await, ApplyReport::default());

        host.namespace.links().delete("docker0").unwrap();
        assert_eq!(
            net.repair().await,
            ApplyReport { changes: 3, ..ApplyReport::default() },
            "the bridge and two ports"
        );
        assert!(works());
        assert_eq!(net.repair().await, ApplyReport::default());
        net.close().await;
    });
}

#[test]
fn names_are_found_again_after_a_flush_in_the_container() {
    Host::run("renamed", async |host| {
        let net = host.net().await;
        net.create_network(user_network("front")).await.unwrap();
        let sandbox = net.setup_sandbox(&request(1, "web", &["front"])).await.unwrap();
        let inside = netns(&sandbox);
        let own = lookup(&inside, "web").1;
        assert_eq!(own, [sandbox.endpoints[0].address.addr()]);
        assert_eq!(net.repair().await, ApplyReport::default());
        NftSocket::open(inside.fd()).unwrap().send(&removal(Family::Ip, "skep-dns")).unwrap();
        assert_eq!(net.repair().await, ApplyReport { changes: 1, ..ApplyReport::default() });
        assert_eq!(lookup(&inside, "web").1, own);
        assert_eq!(net.repair().await, ApplyReport::default());
        net.close().await;
    });
}

#[test]
fn internal_networks_are_sealed_and_gateways_follow_connections() {
    Host::run("internal", async |host| {
        let net = host.net().await;
        net.create_network(LocalNetworkSpec { internal: true, ..user_network("inner") }).await.unwrap();
        net.create_network(user_network("outer")).await.unwrap();
        let _world = Server::tcp(&host.outside, 8000);
        let _dns = Server::dns(&host.outside);
        let sandbox = net.setup_sandbox(&request(1, "c1", &["inner"])).await.unwrap();
        let inside = netns(&sandbox);
        assert_eq!(tcp_glance(&inside, OUTSIDE, 8000), None);
        assert_eq!(lookup(&inside, "example.com"), (ResponseCode::NXDomain, vec![]), "no query leaves the host");

        let info = net.connect(&id(1), &endpoint("outer")).await.unwrap();
        assert_eq!(info.network_name, "outer");
        assert_eq!(tcp(&inside, OUTSIDE, 8000).as_deref(), Some("203.0.113.1"));
        assert_eq!(lookup(&inside, "example.com").1.len(), 1);
        let error = net.connect(&id(1), &endpoint("outer")).await.unwrap_err();
        assert_eq!(error.to_string(), "endpoint with name c1 already exists in network outer");
        assert_eq!(net.sandbox(&id(1)).unwrap().endpoints.len(), 2);

        let error = net.remove_network("outer").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        assert!(error.to_string().contains("network outer has active endpoints (name:\"c1\" id:"), "{error}");
        net.disconnect(&id(1), "outer", false).await.unwrap();
        assert_eq!(tcp_glance(&inside, OUTSIDE, 8000), None);
        assert_eq!(net.disconnect(&id(1), "outer", false).await.unwrap_err().kind(), ErrorKind::NotFound);
        net.disconnect(&id(1), "outer", true).await.unwrap();
        net.remove_network("outer").await.unwrap();
        assert_eq!(net.remove_network("outer").await.unwrap_err().to_string(), "network outer not found");
        net.close().await;
    });
}

#[test]
fn a_restarted_daemon_takes_up_what_is_there_and_removes_what_is_not_wanted() {
    Host::run("adopt", async |host| {
        let net = host.net().await;
        let app = net.create_network(user_network("app")).await.unwrap();
        let mut web = request(1, "web", &["app"]);
        web.publish = vec![port(80, Protocol::Tcp, None, 8080), port(81, Protocol::Tcp, None, 0)];
        let before = net.setup_sandbox(&web).await.unwrap();
        net.setup_sandbox(&request(2, "stale", &["app"])).await.unwrap();
        let _server = Server::tcp(&netns(&before), 80);
        net.close().await;
        drop(net);
        // Half made when the daemon ended.
        skep_net::link::Namespace::create(&host.path("exec/netns").join(id(9).as_str())).unwrap();

        let net = host.net().await;
        assert!(!host.path("exec/netns").join(id(9).as_str()).exists());
        assert_eq!(net.network("app").unwrap().id, app.id);
        net.retain_sandboxes(&[id(1)]).await.unwrap();
        assert_eq!(net.sandbox(&id(1)), Some(before.clone()));
        assert_eq!(net.sandbox(&id(2)), None);
        let endpoints = net.network("app").unwrap().endpoints;
        assert_eq!(endpoints.keys().collect::<Vec<_>>(), [&id(1)]);
        assert_eq!(tcp(&host.outside, HOST, 8080).as_deref(), Some("203.0.113.2"));
        assert_eq!(lookup(&netns(&before), "web").1.len(), 1);
        let mut clash = request(3, "clash", &["app"]);
        clash.publish = vec![port(80, Protocol::Tcp, None, 8080)];
        assert!(net.setup_sandbox(&clash).await.unwrap_err().to_string().ends_with("port is already allocated"));
        net.close().await;
    });
}

#[test]
fn nothing_is_left_behind() {
    Host::run("clean", async |host| {
        let net = host.net().await;
        net.create_network(user_network("app")).await.unwrap();
        let links = |host: &Host| {
            let mut names: Vec<String> =
                host.namespace.links().list().unwrap().into_iter().map(|link| link.name).collect();
            names.sort();
            names
        };
        let before = links(&host);
        for round in 0..3 {
            for n in 1..=4 {
                let mut request = request(n, &format!("c{n}"), &["app", "bridge"]);
                request.publish = vec![port(80, Protocol::Tcp, None, 8000 + u16::from(n))];
                net.setup_sandbox(&request).await.unwrap();
            }
            let started = std::time::Instant::now();
            for n in 1..=4 {
                net.teardown_sandbox(&id(n)).await.unwrap();
                net.teardown_sandbox(&id(n)).await.unwrap();
            }
            eprintln!("round {round}: four torn down in {:?}", started.elapsed());
        }
        eventually("links are swept up", || links(&host) == before);
        assert_eq!(std::fs::read_dir(host.path("exec/netns")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(host.path("exec/net")).unwrap().count(), 0);
        net.remove_network("app").await.unwrap();
        assert_eq!(links(&host), ["docker0", "lo", "wan"]);
        net.close().await;
    });
}

#[test]
fn an_address_is_reached_at_once_where_it_is_now() {
    Host::run("reuse", async |host| {
        let net = host.net().await;
        net.create_network(user_network("app")).await.unwrap();
        let client = netns(&net.setup_sandbox(&request(100, "client", &["app"])).await.unwrap());
        for n in 1..=8 {
            let web = net.setup_sandbox(&request(n, "web", &["app"])).await.unwrap();
            assert_eq!(web.endpoints[0].address.to_string(), "172.18.0.3/16");
            let inside = netns(&web);
            let _server = Server::tcp(&inside, 80);
            let started = std::time::Instant::now();
            assert!(tcp(&client, [172, 18, 0, 3], 80).is_some());
            assert!(started.elapsed() < Duration::from_millis(500), "no frame went to where the address was");
            net.teardown_sandbox(&id(n)).await.unwrap();
        }
        net.close().await;
    });
}

#[test]
fn many_at_once() {
    Host::run("many", async |host| {
        let net = host.net().await;
        net.create_network(user_network("app")).await.unwrap();
        let started = std::time::Instant::now();
        let all = (1..=40).map(|n| {
            let net = net.clone();
            async move {
                let mut request = request(n, &format!("c{n}"), &["app"]);
                request.publish = vec![port(80, Protocol::Tcp, None, 0)];
                net.setup_sandbox(&request).await.unwrap()
            }
        });
        let all = futures_util::future::join_all(all).await;
        eprintln!("40 at once: {:?}", started.elapsed());
        let addresses: BTreeSet<_> = all.iter().map(|sandbox| sandbox.endpoints[0].address).collect();
        let ports: BTreeSet<_> = all.iter().map(|sandbox| sandbox.published[0].host_port).collect();
        assert_eq!((addresses.len(), ports.len()), (40, 40));
        assert_eq!(lookup(&netns(&all[0]), "c40").1, [all[39].endpoints[0].address.addr()]);
        let started = std::time::Instant::now();
        futures_util::future::join_all((1..=40).map(|n| {
            let net = net.clone();
            async move { net.teardown_sandbox(&id(n)).await.unwrap() }
        }))
        .await;
        eprintln!("40 torn down: {:?}", started.elapsed());
        assert!(net.network("app").unwrap().endpoints.is_empty());
        net.close().await;
    });
}

/// One that starts just after the last container on the network ended: the plan without that one takes the network away, and
/// only the next brings it back.
#[test]
fn a_container_waits_for_the_plan_that_knows_its_address() {
    Host::run("waiting", async |host| {
        let net = host.net().await;
        let id: skep_model::NetworkId = "w1miys4j65ljo4zuasmvsww89".parse().unwrap();
        let with = |last: u8| {
            let front = OverlayPlan {
                name: "front".to_owned(),
                vni: 4097,
                subnet: Some("10.0.1.0/24".parse().unwrap()),
                mtu: 1450,
                local: [Ipv4Addr::new(10, 0, 1, last)].into(),
                ..OverlayPlan::default()
            };
            let overlays = [(id.clone(), front)].into();
            HostPlan { vtep: Some(HOST), vxlan_port: 4789, overlays, ..HostPlan::default() }
        };
        let without = HostPlan { vtep: Some(HOST), vxlan_port: 4789, ..HostPlan::default() };
        net.apply(&Arc::new(with(3))).await;
        let mut second = request(1, "second", &[id.as_str()]);
        second.endpoints[0].address = Some(Ipv4Addr::new(10, 0, 1, 4));
        let (sandbox, ()) = tokio::join!(net.setup_sandbox(&second), async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            net.apply(&Arc::new(without.clone())).await;
            net.apply(&Arc::new(with(4))).await;
        });
        assert_eq!(sandbox.unwrap().endpoints[0].address.to_string(), "10.0.1.4/24");
    });
}

#[test]
fn tasks_on_overlays_have_names_and_a_way_out() {
    Host::run("overlay", async |host| {
        let net = host.net().await;
        let overlay: skep_model::NetworkId = "w1miys4j65ljo4zuasmvsww89".parse().unwrap();
        let mut plan = HostPlan { vtep: Some(HOST), vxlan_port: 4789, ..HostPlan::default() };
        let address = Ipv4Addr::new(10, 0, 1, 3);
        let zone = Zone {
            network_name: "front".to_owned(),
            names: [("web".to_owned(), vec![Ipv4Addr::new(10, 0, 1, 2)])].into(),
            ..Zone::default()
        };
        let front = OverlayPlan {
            name: "front".to_owned(),
            vni: 4097,
            subnet: Some("10.0.1.0/24".parse().unwrap()),
            gateway: Some(Ipv4Addr::new(10, 0, 1, 1)),
            mtu: 1450,
            local: [address].into(),
            balancers: [(Ipv4Addr::new(10, 0, 1, 2), vec![address].into())].into(),
            zone,
            ..OverlayPlan::default()
        };
        plan.overlays.insert(overlay.clone(), front);
        let mut task = request(1, "web.1.abc", &[overlay.as_str()]);
        task.endpoints[0].address = Some(address);
        task.publish = vec![port(80, Protocol::Tcp, None, 8080)];
        // The plan may come after the task.
        let (sandbox, report) = tokio::join!(net.setup_sandbox(&task), async {
            tokio::task::yield_now().await;
            net.apply(&Arc::new(plan.clone())).await
        });
        assert_eq!(report.failures, Vec::<String>::new());
        let sandbox = sandbox.unwrap();
        assert_eq!(sandbox.endpoints.len(), 1, "the way out is not shown");
        assert_eq!(sandbox.endpoints[0].address.to_string(), "10.0.1.3/24");
        assert_eq!(net.network("docker_gwbridge").unwrap().endpoints.len(), 1);
        let inside = netns(&sandbox);
        let _server = Server::tcp(&inside, 80);
        assert_eq!(lookup(&inside, "web.front").1, [Ipv4Addr::new(10, 0, 1, 2)]);
        assert_eq!(tcp(&inside, [10, 0, 1, 2], 80).as_deref(), Some("10.0.1.3"), "by the virtual address");
        assert_eq!(tcp(&host.outside, HOST, 8080).as_deref(), Some("203.0.113.2"), "host-mode port");
        let world = Server::tcp(&host.outside, 8000);
        assert_eq!(tcp(&inside, OUTSIDE, 8000).as_deref(), Some("203.0.113.1"));

        net.close().await;
        drop(net);
        let net = host.net().await;
        net.retain_sandboxes(&[id(1)]).await.unwrap();
        assert_eq!(net.apply(&Arc::new(plan.clone())).await.failures, Vec::<String>::new());
        assert_eq!(net.sandbox(&id(1)), Some(sandbox));
        assert_eq!(lookup(&inside, "web").1, [Ipv4Addr::new(10, 0, 1, 2)]);
        assert_eq!(tcp(&inside, [10, 0, 1, 2], 80).as_deref(), Some("10.0.1.3"));
        assert_eq!(tcp(&inside, OUTSIDE, 8000).as_deref(), Some("203.0.113.1"));
        assert!(tcp(&host.outside, HOST, 8080).is_some());
        drop((inside, world, _server));
        net.teardown_sandbox(&id(1)).await.unwrap();
        assert_eq!(net.apply(&Arc::default()).await.failures, Vec::<String>::new());
        assert_eq!(std::fs::read_dir(host.path("exec/netns")).unwrap().count(), 0);
        net.close().await;
    });
}

#[test]
fn other_modes_have_their_files() {
    Host::run("modes", async |host| {
        let net = host.net().await;
        let with_mode = |n, mode| skep_model::sandbox::SandboxRequest { mode, ..request(n, "c", &[]) };
        let on_host = net.setup_sandbox(&with_mode(1, NetworkMode::Host)).await.unwrap();
        assert_eq!((on_host.netns, on_host.hosts_file.as_str()), (None, "127.0.0.1 localhost\n"));
        let none = net.setup_sandbox(&with_mode(2, NetworkMode::None)).await.unwrap();
        assert_eq!(netns(&none).links().list().unwrap().len(), 1);
        let shared = net.setup_sandbox(&with_mode(3, NetworkMode::Container(id(2)))).await.unwrap();
        assert_eq!(shared.netns, none.netns);
        let missing = net.setup_sandbox(&with_mode(4, NetworkMode::Container(id(8)))).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let error = net.create_network(user_network("host")).await.unwrap_err();
        assert_eq!(error.to_string(), "operation is not permitted on predefined host network ");
        for n in 1..=3 {
            net.teardown_sandbox(&id(n)).await.unwrap();
        }
        net.close().await;
    });
}
