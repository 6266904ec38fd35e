use skep_model::Timestamp;
use skep_model::assignment::NodeRecord;
use skep_model::network::{
    Attachment, ENCRYPTED_OVERLAY_MTU, MTU_OPTION, NetworkAllocation, NetworkKeys, NetworkSpec, OVERLAY_MTU,
};
use skep_model::secret::SecretBytes;
use skep_model::service::{PortConfig, Protocol};
use skep_model::traffic::Traffic;

use super::*;

fn network(id: &str, name: &str, subnet: &str) -> (NetworkId, Network) {
    let subnet: Ipv4Net = subnet.parse().unwrap();
    let allocation = NetworkAllocation { vni: 4096, subnet, gateway: subnet.hosts().next().unwrap(), gateway6: None };
    let spec = NetworkSpec { name: name.into(), ingress: name == "ingress", ..NetworkSpec::default() };
    let network = Network { allocation: Some(allocation), ..Network::new(id.parse().unwrap(), spec) };
    (network.id.clone(), network)
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn node(number: u8) -> (NodeId, NodeRecord) {
    let record = NodeRecord {
        vtep: Ipv4Addr::new(192, 168, 0, number),
        ingress_address: Some(Ipv4Addr::new(10, 0, 0, number)),
        mesh_index: Some(u16::from(number) - 1),
        weight: 1,
        link_mtu: None,
    };
    (format!("n{number}").parse().unwrap(), record)
}

/// `web` (VIP, published) on `back` and the mesh, `dns` (round robin) on `back`; a task of each on two nodes.
fn set() -> AssignmentSet {
    let mut set = AssignmentSet {
        networks: [network("ing", "ingress", "10.0.0.0/24"), network("back", "back", "10.0.1.0/24")].into(),
        nodes: [node(1), node(2)].into(),
        ..AssignmentSet::default()
    };
    let ports = vec![PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() }];
    let vips = [("ing", "10.0.0.10"), ("back", "10.0.1.10")].map(|(n, a)| (n.parse().unwrap(), address(a)));
    set.services.insert(
        "web".parse().unwrap(),
        ServiceRecord { name: "Web".into(), virtual_ips: vips.into(), ports, traffic: Traffic::default() },
    );
    set.services.insert(
        "dns".parse().unwrap(),
        ServiceRecord {
            name: "dns".into(),
            virtual_ips: BTreeMap::new(),
            ports: Vec::new(),
            traffic: Traffic::default(),
        },
    );
    for (service, task, node, on, text, serving) in [
        ("web", "w1", "n1", "back", "10.0.1.21", true),
        ("web", "w2", "n2", "back", "10.0.1.22", true),
        ("web", "w3", "n2", "back", "10.0.1.23", false),
        ("web", "w1", "n1", "ing", "10.0.0.21", true),
        ("web", "w2", "n2", "ing", "10.0.0.22", true),
        ("dns", "d1", "n1", "back", "10.0.1.31", true),
        ("dns", "d2", "n2", "back", "10.0.1.32", true),
    ] {
        let record = EndpointRecord {
            service_id: service.parse().unwrap(),
            node_id: node.parse().unwrap(),
            address: address(text),
            task_name: format!("{service}.1.{task}"),
            aliases: if service == "web" { vec!["front".into()] } else { Vec::new() },
            serving,
        };
        set.endpoints.insert((on.parse().unwrap(), task.parse().unwrap()), record);
    }
    set
}

fn of(node: &str) -> HostPlan {
    plan(&set(), &node.parse().unwrap(), 4789)
}

#[test]
fn attached_containers_are_reached_where_they_are_by_their_names() {
    let mut set = set();
    let id: NetworkId = "back".parse().unwrap();
    let attachment = Attachment {
        node_id: "n2".parse().unwrap(),
        address: Some(address("10.0.1.41")),
        names: vec!["Box".into(), "db".into()],
    };
    set.networks.get_mut(&id).unwrap().attachments.insert("aa".parse().unwrap(), attachment);
    let [one, two] = ["n1", "n2"].map(|node| plan(&set, &node.parse().unwrap(), 4789).overlays.remove(&id).unwrap());
    assert_eq!(one.remote[&address("10.0.1.41")], Ipv4Addr::new(192, 168, 0, 2));
    assert!(!one.local.contains(&address("10.0.1.41")) && two.local.contains(&address("10.0.1.41")));
    assert!(two.local.contains(&address("10.0.1.22")), "a task of its own");
    for zone in [&one.zone, &two.zone] {
        assert_eq!([&zone.names["box"], &zone.names["db"]], [&[address("10.0.1.41")], &[address("10.0.1.41")]]);
        assert_eq!(zone.addresses[&address("10.0.1.41")], ["Box"]);
    }
}

#[test]
fn only_what_serves_is_balanced_to_and_every_host_has_the_same_ring() {
    let id: NetworkId = "back".parse().unwrap();
    for node in ["n1", "n2"] {
        let mut backends = of(node).overlays[&id].balancers[&address("10.0.1.10")].backends.clone();
        backends.sort_unstable();
        assert_eq!(backends, [address("10.0.1.21"), address("10.0.1.22")], "{node}");
    }
}

#[test]
fn endpoints_and_legs_elsewhere_are_reached_through_their_host() {
    let plan = of("n1");
    let back = &plan.overlays[&"back".parse().unwrap()];
    let there = Ipv4Addr::new(192, 168, 0, 2);
    let remote: Vec<_> = back.remote.iter().map(|(a, v)| (a.to_string(), *v)).collect();
    assert_eq!(
        remote,
        [("10.0.1.22".to_owned(), there), ("10.0.1.23".to_owned(), there), ("10.0.1.32".to_owned(), there)]
    );
    let ingress = &plan.overlays[&"ing".parse().unwrap()];
    assert_eq!(ingress.remote.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2", "10.0.0.22"]);
    assert_eq!((plan.vtep, plan.members.clone()), (Some(Ipv4Addr::new(192, 168, 0, 1)), vec![there]));
}

#[test]
fn names_stand_for_vips_or_tasks() {
    let plan = of("n1");
    let zone = &plan.overlays[&"back".parse().unwrap()].zone;
    let name = |name: &str| zone.names[name].iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(name("web"), ["10.0.1.10"]);
    assert_eq!(name("front"), ["10.0.1.10"]);
    assert_eq!(name("tasks.web"), ["10.0.1.21", "10.0.1.22"]);
    assert_eq!(name("tasks.front"), ["10.0.1.21", "10.0.1.22"]);
    assert_eq!(name("dns"), ["10.0.1.31", "10.0.1.32"]);
    assert_eq!(name("web.1.w3"), ["10.0.1.23"], "a task is found by its own name even while it stops");
    assert_eq!(zone.addresses[&address("10.0.1.10")], ["Web"]);
    assert_eq!(zone.addresses[&address("10.0.1.21")], ["web.1.w1"]);
    assert!(plan.overlays[&"ing".parse().unwrap()].zone.names.is_empty());
}

#[test]
fn a_published_port_is_held_on_every_host_also_without_a_backend() {
    let mut set = set();
    let ingress = plan(&set, &"n2".parse().unwrap(), 4789).ingress.unwrap();
    let mut backends = ingress.ports[&(Protocol::Tcp, 8080)].ring.backends.clone();
    backends.sort();
    assert_eq!(
        backends.iter().map(|b| (b.address.to_string(), b.port)).collect::<Vec<_>>(),
        [("10.0.0.21".to_owned(), 80), ("10.0.0.22".to_owned(), 80)]
    );
    assert_eq!(ingress.mesh_index, 1);
    assert_eq!(ingress.address.unwrap().to_string(), "10.0.0.2/24");
    assert_eq!(ingress.node_macs[&0], [2, 0x42, 10, 0, 0, 1]);
    set.endpoints.clear();
    let ingress = plan(&set, &"n2".parse().unwrap(), 4789).ingress.unwrap();
    assert_eq!(ingress.ports[&(Protocol::Tcp, 8080)].ring.backends, []);
}

/// What a host does with port 8080, after a change to what `web` asks for.
fn port_at(node: &str, ask: impl Fn(&mut Traffic)) -> MeshPort {
    let mut set = set();
    ask(&mut set.services.get_mut(&"web".parse::<ServiceId>().unwrap()).unwrap().traffic);
    plan(&set, &node.parse().unwrap(), 4789).ingress.unwrap().ports.remove(&(Protocol::Tcp, 8080)).unwrap()
}

#[test]
fn labels_say_who_takes_a_connection_and_what_is_seen_of_its_client() {
    assert!(port_at("n1", |traffic| traffic.masquerade = true).masquerade);
    let takes = |port: &MeshPort| port.ring.backends.iter().map(|b| b.address.to_string()).collect::<Vec<_>>();
    assert_eq!(takes(&port_at("n1", |traffic| traffic.local = true)), ["10.0.0.21"]);
    assert_eq!(takes(&port_at("n2", |traffic| traffic.local = true)), ["10.0.0.22"]);
    let [one, other] = ["n1", "n2"].map(|node| port_at(node, |traffic| traffic.by_client = true));
    assert!(one.ring.by_client && one == other, "the same on every host");

    let mut set = set();
    set.nodes.get_mut(&"n2".parse::<NodeId>().unwrap()).unwrap().weight = 3;
    let back: NetworkId = "back".parse().unwrap();
    let plan = plan(&set, &"n1".parse().unwrap(), 4789);
    let ring = &plan.overlays[&back].balancers[&address("10.0.1.10")].backends;
    let times = |backend: &str| ring.iter().filter(|one| **one == address(backend)).count();
    assert_eq!((times("10.0.1.21"), times("10.0.1.22")), (1, 3));
}

#[test]
fn a_service_that_names_its_clients_is_guarded_on_every_network() {
    let mut set = set();
    let allow = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
    let guards = |set: &AssignmentSet, network: &str| {
        let plan = plan(set, &"n1".parse().unwrap(), 4789);
        plan.overlays[&network.parse::<NetworkId>().unwrap()].guards.clone()
    };
    assert_eq!(guards(&set, "back"), []);
    let web = set.services.get_mut(&"web".parse::<ServiceId>().unwrap()).unwrap();
    web.traffic.allow_from = allow(&["dns", "nobody-yet"]);
    let addresses = |list: &[&str]| list.iter().map(|text| address(text)).collect();
    let tasks = ["10.0.1.21", "10.0.1.22", "10.0.1.23"];
    let expected = Guard { tasks: addresses(&tasks), clients: addresses(&["10.0.1.31", "10.0.1.32"]), outside: false };
    assert_eq!(
        guards(&set, "back").as_slice(),
        std::slice::from_ref(&expected),
        "also of a task that does not serve yet"
    );
    let mesh = Guard {
        tasks: addresses(&["10.0.0.21", "10.0.0.22"]),
        clients: addresses(&["10.0.0.1", "10.0.0.2"]),
        outside: true,
    };
    assert_eq!(guards(&set, "ing"), [mesh]);

    set.endpoints.remove(&("back".parse().unwrap(), "d2".parse().unwrap()));
    assert_eq!(guards(&set, "back"), [Guard { clients: addresses(&["10.0.1.31"]), ..expected }]);
    set.services.get_mut(&"web".parse::<ServiceId>().unwrap()).unwrap().traffic.allow_from = allow(&[]);
    assert_eq!(guards(&set, "back"), [Guard { tasks: addresses(&tasks), ..Guard::default() }]);
}

#[test]
fn the_same_set_gives_the_same_plan() {
    assert_eq!(of("n1"), of("n1"));
}

#[test]
fn an_encrypted_network_is_one_with_and_without_its_keys() {
    let mut set = set();
    let back: NetworkId = "back".parse().unwrap();
    let told = |set: &AssignmentSet| {
        let plan = plan(set, &"n1".parse().unwrap(), 4789);
        (plan.overlays[&back].keys.clone(), plan.overlays[&back].mtu)
    };
    assert_eq!(told(&set), (None, OVERLAY_MTU));
    // As wide as the narrowest host's link has room for; a wide link says nothing of the way.
    for (link, mtu) in [(1400, 1350), (9000, OVERLAY_MTU)] {
        set.nodes.values_mut().next_back().unwrap().link_mtu = Some(link);
        assert_eq!(told(&set), (None, mtu));
    }
    let network = set.networks.get_mut(&back).unwrap();
    // Docker looks at whether the option is there, not at what it says.
    network.spec.driver_options.insert("encrypted".into(), "false".into());
    assert_eq!(told(&set), (Some(NetworkKeys::default()), ENCRYPTED_OVERLAY_MTU));
    let network = set.networks.get_mut(&back).unwrap();
    let secret = SecretBytes(vec![1; 32]);
    network.keys = Some(NetworkKeys::new(secret.clone(), secret, Timestamp::ZERO));
    network.spec.driver_options.insert(MTU_OPTION.into(), "8000".into());
    let keys = network.keys.clone();
    assert_eq!(told(&set), (keys, 8000));
}

#[test]
fn on_a_network_with_ipv6_every_address_has_another() {
    let mut set = set();
    let back = set.networks.get_mut(&"back".parse().unwrap()).unwrap();
    back.allocation.as_mut().unwrap().gateway6 = Some("fd00:b::1/64".parse().unwrap());
    let plan = plan(&set, &"n1".parse().unwrap(), 4789);
    let overlay = &plan.overlays[&"back".parse().unwrap()];
    assert_eq!(overlay.dual_stack.unwrap().six(address("10.0.1.21")).to_string(), "fd00:b::15");
    let six = |text: &str| overlay.zone.six.get(&address(text)).map(ToString::to_string);
    assert_eq!(six("10.0.1.10").as_deref(), Some("fd00:b::a"), "the service's");
    assert_eq!(six("10.0.1.22").as_deref(), Some("fd00:b::16"), "a task's");
    let mesh = &plan.overlays[&"ing".parse().unwrap()];
    assert!(mesh.dual_stack.is_none() && mesh.zone.six.is_empty());
}
