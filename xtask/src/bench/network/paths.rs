//! Requests and streams by one way and by another.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::load::{Namespace, Server, requests, stream};
use crate::bench::api::Api;
use crate::bench::lab::Lab;
use crate::bench::services::{IMAGE, ImageTar, give_image};
use crate::bench::{Figures, Options};

const NETWORK: &str = "plain";
/// The server and the client, or what stands for Docker's ingress, on the VXLAN made by hand; and the latter's link to its host.
const BY_HAND: &str = "10.250.0.10";
const BY_HAND_FROM: &str = "10.250.0.11";
const BY_HAND_WAY_IN: &str = "172.31.250.2";
/// Of the server, for requests by the service's address alone: a connection by it and a direct one between the same two ports
/// are one to the client's kernel, which then looks for another port.
const BY_VIP: u16 = 81;
/// Published by the mesh, by the server's host alone, by haproxy, and in Docker's way.
const MESH: u16 = 8080;
const HOST_MODE: u16 = 8081;
const HAPROXY: u16 = 8090;
const DOCKER: u16 = 8070;
/// Hosts by their place in the lab: where requests arrive, where they are answered.
const ENTRY: usize = 2;
const SERVER: usize = 1;

/// A container of one task that sleeps, on the overlay.
struct Task {
    service: String,
    namespace: Namespace,
    address: String,
}

fn task(lab: &Lab, api: &mut Api, name: &str, host: usize, ports: &Value) -> anyhow::Result<Task> {
    let service = api.create(&json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": { "Image": IMAGE, "Command": ["/bin/sleep", "100000"], "StopGracePeriod": 0 },
            "Placement": { "Constraints": [format!("node.hostname=={}", lab.hosts[host].name)] },
            "Networks": [{ "Target": NETWORK }],
        },
        "EndpointSpec": { "Ports": ports },
    }))?;
    api.await_running(&service, 1, |_| true)?;
    let task = api.tasks(&service)?.pop().context("no task")?;
    let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str().context("no container")?;
    let attachments = task["NetworksAttachments"].as_array().into_iter().flatten();
    let on_network = |a: &&Value| a["Network"]["Spec"]["Name"] == NETWORK;
    let address =
        attachments.clone().find(on_network).and_then(|a| a["Addresses"][0].as_str()).context("no address")?;
    let address = address.split('/').next().unwrap_or(address).to_owned();
    Ok(Task { service, namespace: Namespace::of_container(lab, host, container)?, address })
}

fn host_address(lab: &Lab, api: &mut Api, host: usize) -> anyhow::Result<String> {
    let nodes = api.call("GET", "/nodes", None)?;
    let is_it = |n: &&Value| n["Description"]["Hostname"] == lab.hosts[host].name.as_str();
    let node = nodes.as_array().into_iter().flatten().find(is_it);
    Ok(node.and_then(|n| n["Status"]["Addr"].as_str()).context("no address")?.to_owned())
}

/// What Docker's rules do with a packet, with nft in the place of IPVS: from a port of the host into its ingress namespace, and
/// on, translated twice, to the task by a VXLAN.
fn docker_way(entry: &Namespace) -> anyhow::Result<()> {
    let nat = |chain: &str, hook: &str, rule: String| {
        format!("add chain ip skep-bench {chain} {{ type nat hook {hook}; }}; add rule ip skep-bench {chain} {rule}; ")
    };
    let apply =
        |namespace: &Namespace, rules: String| namespace.shell(&format!("nft 'add table ip skep-bench; {rules}'"));
    apply(entry, nat("in", "prerouting priority -100", format!("tcp dport {DOCKER} dnat to {BY_HAND_WAY_IN}")))?;
    let ingress = HandMade::inside(1);
    ingress.shell("echo 1 >/proc/sys/net/ipv4/ip_forward")?;
    let to_task = format!("tcp dport {DOCKER} dnat to numgen inc mod 1 map {{ 0 : {BY_HAND} }}");
    let from_here = format!("ct status dnat ip daddr {BY_HAND} snat to {BY_HAND_FROM}");
    let rules = nat("in", "prerouting priority -100", to_task) + &nat("out", "postrouting priority 100", from_here);
    apply(&ingress, rules)?;
    apply(&HandMade::inside(0), nat("in", "prerouting priority -100", format!("tcp dport {DOCKER} redirect to :80")))
}

/// Two namespaces on two hosts, and a VXLAN between them as a person would make it. Goes with its value.
struct HandMade(Vec<String>);

impl Drop for HandMade {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl HandMade {
    fn make(lab: &Lab, addresses: &[(usize, String)]) -> anyhow::Result<Self> {
        let mut made = Self(Vec::new());
        for (number, (host, address)) in addresses.iter().enumerate() {
            let other = 1 - number;
            let there = &addresses[other].1;
            let (bridge, inside) = (format!("skep-bench-br{number}"), format!("skep-bench-in{number}"));
            made.0.extend([bridge.clone(), inside.clone()]);
            let namespace = format!("skep-{}-{}", lab.name, lab.hosts[*host].name);
            let script = format!(
                "ip netns add {bridge}; ip netns add {inside}
                 ip -n {namespace} link add vxb type vxlan id 9999 dstport 4788 local {address} nolearning proxy
                 ip -n {namespace} link set vxb netns {bridge}
                 ip -n {bridge} link add br0 type bridge
                 ip link add port netns {bridge} type veth peer name eth0 address 02:42:0a:fa:00:0{number} netns {inside}
                 for link in vxb port; do ip -n {bridge} link set $link master br0 mtu 1450 up; done
                 ip -n {bridge} link set br0 up
                 ip -n {inside} addr add 10.250.0.1{number}/24 dev eth0
                 ip -n {inside} link set eth0 mtu 1450 up
                 ip netns exec {bridge} sh -c 'echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables'
                 ip -n {bridge} neigh replace 10.250.0.1{other} lladdr 02:42:0a:fa:00:0{other} dev vxb nud permanent
                 bridge -n {bridge} fdb replace 02:42:0a:fa:00:0{other} dev vxb self dst {there}
                 ip -n {namespace} link add skep-bench type veth peer name way-in netns {inside}
                 ip -n {namespace} addr add 172.31.250.1/24 dev skep-bench
                 ip -n {namespace} link set skep-bench up
                 ip -n {inside} addr add {BY_HAND_WAY_IN}/24 dev way-in
                 ip -n {inside} link set way-in up
                 ip -n {inside} route add default via 172.31.250.1"
            );
            let output = Command::new("sh").args(["-ec", &script]).output()?;
            if !output.status.success() {
                bail!("a VXLAN by hand: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(made)
    }

    fn inside(number: usize) -> Namespace {
        Namespace(format!("/run/netns/skep-bench-in{number}").into())
    }
}

/// By the overlay, and by a VXLAN made by hand between namespaces in which nothing else is.
fn streams(options: &Options, api: &mut Api, client: &Task, web: &Task, out: &mut Figures) -> anyhow::Result<()> {
    let (ours, theirs) = (Server::iperf3(&web.namespace)?, Server::iperf3(&HandMade::inside(0))?);
    for (from, to, server) in
        [(&client.namespace, web.address.as_str(), &ours), (&HandMade::inside(1), BY_HAND, &theirs)]
    {
        // Until it listens.
        api.until(|_| Ok(stream(from, to, 1, server).is_ok()))?;
    }
    for _ in 0..options.network_rounds {
        let overlay = stream(&client.namespace, &web.address, options.network_seconds, &ours)?;
        let by_hand = stream(&HandMade::inside(1), BY_HAND, options.network_seconds, &theirs)?;
        let mut put = |name: &str, value: f64| out.entry(format!("network_{name}")).or_default().push(value);
        put("overlay_gbit_per_cpu_s", overlay);
        put("vxlan_by_hand_gbit_per_cpu_s", by_hand);
        put("overlay_of_vxlan_by_hand", overlay / by_hand);
    }
    Ok(())
}

/// A way from a client to the server.
struct Way<'a> {
    name: &'static str,
    /// This machine, where there is none.
    from: Option<&'a Namespace>,
    url: String,
    servers: Vec<&'a Server>,
}

pub(super) fn measure(skep: &Path, options: &Options, tar: &ImageTar, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "network", None, 1, 2)?;
    give_image(&lab, tar)?;
    let mut api = lab.api(0)?;
    api.call("POST", "/networks/create", Some(&json!({ "Name": NETWORK, "Driver": "overlay" })))?;
    let port = |published: u16, target: u16, mode: &str| json!({ "Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": mode });
    let ports = json!([port(MESH, 80, "ingress"), port(HOST_MODE, 80, "host")]);
    let web = task(&lab, &mut api, "web", SERVER, &ports)?;
    let client = task(&lab, &mut api, "client", ENTRY, &json!([]))?;
    let (entry, server) = (host_address(&lab, &mut api, ENTRY)?, host_address(&lab, &mut api, SERVER)?);
    let entry_namespace = Namespace::of_host(&lab, ENTRY)?;
    let _by_hand = HandMade::make(&lab, &[(SERVER, server.clone()), (ENTRY, entry.clone())])?;
    streams(options, &mut api, &client, &web, out)?;
    docker_way(&entry_namespace)?;
    let network = api.call("GET", &format!("/networks/{NETWORK}"), None)?["Id"].clone();
    let service = api.call("GET", &format!("/services/{}", web.service), None)?;
    let mut vips = service["Endpoint"]["VirtualIPs"].as_array().into_iter().flatten();
    let vip = vips.find(|v| v["NetworkID"] == network).and_then(|v| v["Addr"].as_str()).context("no VIP")?;
    let vip = vip.split('/').next().unwrap_or(vip);

    let nginx = Server::nginx(&web.namespace, &[80, BY_VIP]).context("nginx is needed")?;
    let nginx_of_docker = Server::nginx(&HandMade::inside(0), &[80])?;
    let haproxy =
        Server::haproxy(&entry_namespace, HAPROXY, &format!("{server}:{HOST_MODE}")).context("haproxy is needed")?;
    let way = |name, from, url: String, servers| Way { name, from, url, servers };
    let inside = Some(&client.namespace);
    let on = |host: &str, port: u16| format!("http://{host}:{port}/");
    let east =
        [way("overlay", inside, on(&web.address, 80), vec![&nginx]), way("vip", inside, on(vip, BY_VIP), vec![&nginx])];
    let north = [
        way("host_mode", None, on(&server, HOST_MODE), vec![&nginx]),
        way("mesh", None, on(&entry, MESH), vec![&nginx]),
        way("haproxy", None, on(&entry, HAPROXY), vec![&nginx, &haproxy]),
        way("docker_way", None, on(&entry, DOCKER), vec![&nginx_of_docker]),
    ];
    for (host, port) in [(&server, HOST_MODE), (&entry, MESH), (&entry, HAPROXY), (&entry, DOCKER)] {
        let address: SocketAddr = format!("{host}:{port}").parse()?;
        api.until(|_| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))?;
    }

    for way in east.iter().chain(&north) {
        requests(way.from, &way.url, true, 1, &way.servers).context("wrk is needed")?;
    }
    let mut put = |name: String, value: f64| out.entry(name).or_default().push(value);
    for _ in 0..options.network_rounds {
        for (keep, kind) in [(true, "keepalive"), (false, "connect")] {
            let mut of = |ways: &[Way<'_>]| -> anyhow::Result<Vec<f64>> {
                let of_way = |way: &Way<'_>| {
                    requests(way.from, &way.url, keep, options.network_seconds, &way.servers)
                        .inspect(|value| put(format!("network_{kind}_{}_per_cpu_s", way.name), *value))
                };
                ways.iter().map(of_way).collect()
            };
            let (east, north) = (of(&east)?, of(&north)?);
            put(format!("network_{kind}_vip_of_overlay"), east[1] / east[0]);
            put(format!("network_{kind}_mesh_of_host_mode"), north[1] / north[0]);
            put(format!("network_{kind}_mesh_of_haproxy"), north[1] / north[2]);
            put(format!("network_{kind}_mesh_of_docker_way"), north[1] / north[3]);
        }
    }
    Ok(())
}
