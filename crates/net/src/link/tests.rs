//! Against the real kernel, in namespaces that only these tests know.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::*;

/// A namespace at a path of its own, deleted with its directory at the end.
struct Scratch {
    path: PathBuf,
    namespace: Namespace,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("skep-link-{name}-{}", std::process::id()));
        let namespace = Namespace::create(&path).unwrap();
        Self { path, namespace }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        Namespace::delete(&self.path).unwrap();
    }
}

#[test]
fn a_veth_pair_is_made_where_its_ends_belong() {
    let host = Scratch::new("veth-a");
    let inside = Scratch::new("veth-b");
    let links = host.namespace.links();
    let bridge = links.add_bridge("br0", [2, 0x42, 1, 2, 3, 4], Some(1400)).unwrap();
    let started = std::time::Instant::now();
    links
        .add_veth(&Veth {
            near: VethEnd { name: "v0", namespace: None, mac: None, master: Some(bridge), up: true },
            far: VethEnd {
                name: "eth0",
                namespace: Some(inside.namespace.fd().as_fd()),
                mac: Some([2, 0x42, 172, 17, 0, 2]),
                master: None,
                up: true,
            },
            mtu: Some(1400),
        })
        .unwrap();
    let index = inside.namespace.links().index("eth0").unwrap();
    inside.namespace.links().set_up(index).unwrap();
    inside.namespace.links().add_address(index, "172.17.0.2/16".parse().unwrap()).unwrap();
    inside.namespace.links().add_route(&Route::default_via("172.17.0.1".parse().unwrap(), index)).unwrap();
    eprintln!("attach: {:?}", started.elapsed());
    let near = links.find("v0").unwrap().unwrap();
    assert_eq!((near.master, near.up, near.mtu, near.kind.as_str()), (Some(bridge), true, 1400, "veth"));
    links.set_bridge_port(near.index, true, true).unwrap();
    let far = inside.namespace.links().find("eth0").unwrap().unwrap();
    assert_eq!((far.mac, far.up), (Some([2, 0x42, 172, 17, 0, 2]), true));
    let routes = inside.namespace.links().routes().unwrap();
    assert!(routes.iter().any(|route| route.destination.prefix_len() == 0 && route.link == Some(index)), "{routes:?}");
    assert!(links.delete("v0").unwrap());
    assert!(!links.delete("v0").unwrap());
    assert_eq!(inside.namespace.links().find("eth0").unwrap(), None);
}

#[test]
fn vxlan_is_moved_and_takes_fixed_entries() {
    let host = Scratch::new("vx-a");
    let inside = Scratch::new("vx-b");
    let vxlan = Vxlan {
        name: "vx0",
        vni: 4097,
        port: 4789,
        local: None,
        mtu: 1450,
        proxy: true,
        namespace: Some(inside.namespace.fd().as_fd()),
    };
    host.namespace.links().add_vxlan(&vxlan).unwrap();
    let links = inside.namespace.links();
    let index = links.index("vx0").unwrap();
    let entries: Vec<Entry> = (0..200u8)
        .flat_map(|n| {
            let mac = [2, 0x42, 10, 0, 1, n];
            [
                Entry::Neighbour { link: index, address: std::net::IpAddr::from([10, 0, 1, n]), mac },
                Entry::Forward { link: index, mac, vtep: [192, 168, 50, 2].into() },
            ]
        })
        .collect();
    assert!(links.set_entries(&entries).unwrap().iter().all(Result::is_ok));
    let mut found = links.entries(index).unwrap();
    found.sort();
    let mut expected = entries.clone();
    expected.sort();
    assert_eq!(found, expected);
    assert!(links.delete_entries(&entries).unwrap().iter().all(Result::is_ok));
    assert!(links.delete_entries(&entries).unwrap().iter().all(Result::is_ok));
    assert_eq!(links.entries(index).unwrap(), []);
}

#[test]
fn rules_and_sysctls_are_idempotent() {
    let host = Scratch::new("rule");
    let links = host.namespace.links();
    for _ in 0..2 {
        links.add_mark_rule(0x100, 0x100, 100, 1000).unwrap();
        host.namespace.write_sysctls(&[("ipv4/ip_forward", "1"), ("ipv4/no_such_thing", "1")]).unwrap();
    }
    for _ in 0..2 {
        links.delete_mark_rule(0x100, 0x100, 100, 1000).unwrap();
    }
    let read = host.namespace.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap().unwrap();
    assert_eq!(read.trim(), "1");
}
