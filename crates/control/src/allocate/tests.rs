//! Subnets, addresses and ports, as small tables.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use skep_model::NetworkId;
use skep_model::network::{Ipv6Pool, Network, NetworkSpec, VXLAN_ID_OPTION};
use skep_model::service::{EndpointSpec, NetworkAttachmentConfig, PortConfig, Protocol, ServiceSpec};
use skep_store::Change;

use super::{AttachmentRequest, Unattachable, attach, reserved_port};
use crate::tests::{World, replicas};

fn network(world: &mut World, name: &str, edit: impl FnOnce(&mut NetworkSpec)) -> Option<(String, u32)> {
    let mut spec = NetworkSpec { name: name.into(), driver: "overlay".into(), ..NetworkSpec::default() };
    edit(&mut spec);
    let id: NetworkId = name.parse().unwrap();
    let network = Network::new(id.clone(), spec);
    world.apply(vec![Change::CreateNetwork(Box::new(network))]);
    world.settle();
    let allocation = world.view().network(&id).unwrap().allocation.clone()?;
    Some((format!("{} {}", allocation.subnet, allocation.gateway), allocation.vni))
}

fn subnet(text: &str) -> Option<Ipv4Net> {
    Some(text.parse().unwrap())
}

#[test]
fn networks_get_the_next_free_subnet_and_number() {
    let mut world = World::new(1);
    assert_eq!(network(&mut world, "a", |_| {}), Some(("10.0.1.0/24 10.0.1.1".into(), 4097)));
    assert_eq!(
        network(&mut world, "b", |s| s.subnet = subnet("10.0.2.0/23")),
        Some(("10.0.2.0/23 10.0.2.1".into(), 4098))
    );
    assert_eq!(network(&mut world, "c", |_| {}), Some(("10.0.4.0/24 10.0.4.1".into(), 4099)));
    let gateway = |s: &mut NetworkSpec| {
        s.subnet = subnet("172.20.0.0/16");
        s.gateway = Some([172, 20, 9, 9].into());
    };
    assert_eq!(network(&mut world, "d", gateway), Some(("172.20.0.0/16 172.20.9.9".into(), 4100)));
    assert_eq!(network(&mut world, "e", |s| s.subnet = subnet("172.20.3.0/24")), None, "it overlaps");
}

#[test]
fn a_network_gets_the_vxlan_id_it_asks_for_or_a_reason() {
    let asks = |list: &str| {
        let list = list.to_owned();
        move |s: &mut NetworkSpec| drop(s.driver_options.insert(VXLAN_ID_OPTION.into(), list))
    };
    let mut world = World::new(1);
    let vni = |given: Option<(String, u32)>| given.map(|(_, vni)| vni);
    assert_eq!(vni(network(&mut world, "a", asks("5000"))), Some(5000));
    assert_eq!(vni(network(&mut world, "b", asks("4097,4098"))), Some(4097));
    assert_eq!(vni(network(&mut world, "c", |_| {})), Some(4098));
    let attachable = |s: &mut NetworkSpec| s.attachable = true;
    let twice = network(&mut world, "d", |s| {
        attachable(s);
        asks("5000")(s);
    });
    let overlapping = network(&mut world, "e", |s| {
        attachable(s);
        s.subnet = subnet("10.0.1.0/25");
    });
    assert_eq!((twice, overlapping), (None, None));
    let container_id = "c".repeat(64).parse().unwrap();
    let node_id = crate::tests::node_id("n1");
    for (network, why) in [
        ("d", "network d cannot be used: VXLAN id 5000 is that of network a"),
        ("e", "network e cannot be used: its subnet 10.0.1.0/25 overlaps with 10.0.1.0/24 of network a"),
    ] {
        let request = AttachmentRequest {
            network,
            container_id: &container_id,
            node_id: &node_id,
            names: &[],
            address: None,
            address6: None,
        };
        assert_eq!(attach(world.view(), &request).unwrap_err(), Unattachable::NoAddress(why.to_owned()));
        let service = world.create(&format!("on-{network}"), |s| crate::tests::join(s, network));
        world.settle();
        assert_eq!(world.tasks(&service)[0].status.error, why, "and its tasks say so");
    }
}

#[test]
fn the_swarms_own_ports_are_not_published() {
    let world = World::new(1);
    let said = |world: &World, protocol, port| {
        let mut spec = ServiceSpec::default();
        published(protocol, &[port])(&mut spec);
        reserved_port(world.view(), &spec)
    };
    for (protocol, port) in [(Protocol::Udp, 4789), (Protocol::Udp, 4790), (Protocol::Udp, 7946), (Protocol::Tcp, 7946)]
    {
        let text = said(&world, protocol, port).unwrap();
        assert!(text.starts_with(&format!("port '{port}/{protocol}' is one of the swarm's own: ")), "{text}");
    }
    assert_eq!(said(&world, Protocol::Tcp, 4789), None);
}

#[test]
fn a_network_with_ipv6_gets_a_gateway_in_either_subnet() {
    let mut world = World::new(1);
    let mut six = |id: &str, pool: Option<&str>, gateway: Option<&str>| {
        network(&mut world, id, |s| {
            s.ipv6 = true;
            let (ip_range, auxiliary) = (None, Default::default());
            let pool = pool.map(|subnet| subnet.parse().unwrap());
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            s.pool6 = pool.map(|subnet| Ipv6Pool { subnet, gateway, ip_range, auxiliary });
        })?;
        let allocation = world.view().network(&id.parse().unwrap()).unwrap().allocation.clone().unwrap();
        allocation.gateway6.map(|gateway| gateway.to_string())
    };
    assert_eq!(six("a", Some("fd00:a::/64"), None).as_deref(), Some("fd00:a::1/64"));
    assert_eq!(six("b", Some("fd00:b::/48"), Some("fd00:b::ffff")).as_deref(), Some("fd00:b::ffff/48"));
    assert_eq!(six("c", Some("fd00:b::/64"), None), None, "it overlaps");
    let chosen = skep_model::network::unique_local_subnet(&"d".parse().unwrap());
    assert_eq!(six("d", None, None), Some(format!("{}1/64", chosen.addr())));
}

#[test]
fn auxiliary_addresses_are_given_to_nobody() {
    let mut world = World::new(1);
    let others = |s: &mut NetworkSpec| {
        let name = |last: u8| (format!("other{last}"), [10, 9, 0, last].into());
        (s.subnet, s.auxiliary) = (subnet("10.9.0.0/28"), [1, 3, 4].map(name).into());
    };
    assert_eq!(network(&mut world, "a", others).unwrap().0, "10.9.0.0/28 10.9.0.2");
    let web = world.create("web", |s| {
        replicas(s, 3);
        let (target, aliases, driver_options) = ("a".into(), Vec::new(), Default::default());
        s.networks = vec![NetworkAttachmentConfig { target, aliases, driver_options }];
    });
    world.settle();
    let network = world.view().find_network("a").unwrap().id.clone();
    let given = (0..16).filter(|last| {
        let address = Ipv4Addr::new(10, 9, 0, *last);
        world.view().addresses(&network).is_some_and(|a| a.owner(address).is_some())
    });
    assert_eq!(given.collect::<Vec<_>>(), [5, 6, 7, 8], "the service's and its tasks'");
    assert_eq!(world.running(&web).len(), 3);
}

#[test]
fn a_container_is_given_what_is_free_and_keeps_it() {
    let mut world = World::new(2);
    let small = |s: &mut NetworkSpec| {
        (s.attachable, s.subnet) = (true, subnet("10.9.0.0/29"));
        s.auxiliary = [("nas".to_owned(), [10, 9, 0, 6].into())].into();
    };
    network(&mut world, "small", small).unwrap();
    network(&mut world, "closed", |_| {}).unwrap();
    let ask = |world: &mut World, network: &str, container: &str, address: Option<[u8; 4]>| {
        let (container_id, node_id) = (container.parse().unwrap(), crate::tests::node_id("n1"));
        let (names, address) = ([container.to_owned()], address.map(Ipv4Addr::from));
        let (container_id, node_id, address6) = (&container_id, &node_id, None);
        let request = AttachmentRequest { network, container_id, node_id, names: &names, address, address6 };
        let (_, address, change) = attach(world.view(), &request).map_err(|error| error.to_string())?;
        world.apply(vec![change]);
        Ok::<_, String>(address.unwrap().octets()[3])
    };
    assert_eq!(ask(&mut world, "small", "a", None), Ok(2));
    assert_eq!(ask(&mut world, "small", "a", None), Ok(2), "asked again");
    assert_eq!(ask(&mut world, "small", "b", Some([10, 9, 0, 4])), Ok(4));
    for (wanted, why) in [(4, "is already in use"), (1, "is not for containers"), (6, "is not for containers")] {
        let refused = ask(&mut world, "small", "c", Some([10, 9, 0, wanted])).unwrap_err();
        assert_eq!(refused, format!("10.9.0.{wanted} on network small {why}"));
    }
    let far = ask(&mut world, "small", "c", Some([10, 8, 0, 1])).unwrap_err();
    assert_eq!(far, "10.8.0.1 on network small is not in its subnet 10.9.0.0/29");
    assert_eq!(ask(&mut world, "small", "c", None), Ok(5), "after the last one given");
    assert_eq!(ask(&mut world, "small", "d", None), Ok(3));
    let full = ask(&mut world, "small", "e", None).unwrap_err();
    assert_eq!(full, "could not find an available IP on network small");
    assert_eq!(ask(&mut world, "closed", "a", None).unwrap_err(), "network closed not manually attachable");
    assert_eq!(ask(&mut world, "nowhere", "a", None).unwrap_err(), "network nowhere not found");
}

#[test]
fn an_ipv6_address_is_given_with_the_ipv4_address_it_goes_with() {
    let mut world = World::new(1);
    let dual = |s: &mut NetworkSpec| {
        (s.attachable, s.ipv6, s.subnet) = (true, true, subnet("10.9.0.0/24"));
        let (gateway, ip_range, auxiliary) = (None, None, [("nas".to_owned(), "fd00:a::9".parse().unwrap())].into());
        s.pool6 = Some(Ipv6Pool { subnet: "fd00:a::/64".parse().unwrap(), gateway, ip_range, auxiliary });
    };
    network(&mut world, "dual", dual).unwrap();
    network(&mut world, "four", |s| s.attachable = true).unwrap();
    let ask = |world: &mut World, network: &str, container: &str, six: &str, four: Option<[u8; 4]>| {
        let (container_id, node_id) = (&container.parse().unwrap(), &crate::tests::node_id("n1"));
        let (address, address6) = (four.map(Ipv4Addr::from), Some(six.parse().unwrap()));
        let request = AttachmentRequest { network, container_id, node_id, names: &[], address, address6 };
        let (_, address, change) = attach(world.view(), &request).map_err(|error| error.to_string())?;
        world.apply(vec![change]);
        Ok::<_, String>(address.unwrap().octets())
    };
    assert_eq!(ask(&mut world, "dual", "a", "fd00:a::63", None), Ok([10, 9, 0, 0x63]));
    assert_eq!(ask(&mut world, "dual", "a", "fd00:a::63", None), Ok([10, 9, 0, 0x63]), "asked again");
    assert_eq!(ask(&mut world, "dual", "b", "fd00:a::64", Some([10, 9, 0, 0x64])), Ok([10, 9, 0, 0x64]));
    for (network, six, four, why) in [
        ("dual", "fd00:a::63", None, "is already in use"),
        ("dual", "fd00:a::1", None, "is not for containers"),
        ("dual", "fd00:a::9", None, "is not for containers"),
        ("dual", "fd00:a::ff", None, "is not for containers"),
        ("dual", "fd00:a::65", Some([10, 9, 0, 7]), "goes with 10.9.0.101, not with 10.9.0.7"),
        ("dual", "fd00:b::7", None, "is not in its subnet fd00:a::/64"),
        (
            "dual",
            "fd00:a::1:7",
            None,
            "goes with no IPv4 address of 10.9.0.0/24: ask for one of fd00:a:: to fd00:a::ff",
        ),
        ("four", "fd00:a::7", None, "is not to be had: it has no IPv6"),
    ] {
        let refused = ask(&mut world, network, "c", six, four).unwrap_err();
        assert_eq!(refused, format!("{six} on network {network} {why}"));
    }
}

#[test]
fn no_subnet_is_laid_over_a_hosts_own_address() {
    let mut world = World::new(1);
    world.settle();
    // The second host lives where the next subnet would be.
    let id = crate::tests::node_id("n2");
    let admitted = crate::membership::admit(
        world.view(),
        &id,
        skep_model::node::Role::Worker,
        skep_model::node::Availability::Active,
        "n2",
        world.now,
    );
    world.apply(admitted.into_iter().collect());
    let description = Default::default();
    let ready = crate::membership::ready(world.view(), &id, &description, Some([10, 0, 1, 7].into()), world.now);
    world.apply(ready);
    assert_eq!(network(&mut world, "a", |_| {}).unwrap().0, "10.0.2.0/24 10.0.2.1");
}

fn published(protocol: Protocol, ports: &[u16]) -> impl Fn(&mut ServiceSpec) {
    let port = move |n: &u16| PortConfig { target_port: 80, published_port: *n, protocol, ..PortConfig::default() };
    let ports: Vec<_> = ports.iter().map(port).collect();
    move |s| s.endpoint = Some(EndpointSpec { ports: ports.clone(), ..EndpointSpec::default() })
}

#[test]
fn ports_are_chosen_from_the_range_and_kept() {
    let mut world = World::new(1);
    let given = |world: &World, id| -> Vec<u16> {
        let service = world.view().service(id).unwrap();
        service.endpoint.iter().flat_map(|e| &e.ports).map(|p| p.published_port).collect()
    };
    let a = world.create("a", published(Protocol::Tcp, &[30001]));
    let b = world.create("b", published(Protocol::Tcp, &[0, 0]));
    let c = world.create("c", published(Protocol::Udp, &[0]));
    world.settle();
    assert_eq!((given(&world, &a), given(&world, &b)), (vec![30001], vec![30000, 30002]));
    assert_eq!(given(&world, &c), [30000], "another protocol is another port");
    world.update(&b, |s| {
        published(Protocol::Tcp, &[0, 0, 0])(s);
    });
    world.settle();
    assert_eq!(given(&world, &b), [30000, 30002, 30003]);
}

#[test]
fn a_vip_goes_with_its_service_and_changes_hands_late() {
    let mut world = World::new(1);
    let vip = |world: &World, id: &skep_model::ServiceId| {
        world.view().service(id).unwrap().endpoint.as_ref().unwrap().virtual_ips[0].ip()
    };
    let a = world.create("a", published(Protocol::Tcp, &[0]));
    world.settle();
    let first = vip(&world, &a);
    world.apply(vec![Change::RemoveService { service_id: a.clone() }]);
    world.settle();
    let b = world.create("b", published(Protocol::Tcp, &[0]));
    world.settle();
    assert!(vip(&world, &b) > first, "not the one just freed");
    world.update(&b, |s| s.endpoint = None);
    world.settle();
    let endpoint = world.view().service(&b).unwrap().endpoint.clone().unwrap();
    assert!(endpoint.virtual_ips.is_empty() && endpoint.ports.is_empty());
}
