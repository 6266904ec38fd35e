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
/// The server on the VXLAN made by hand.
const BY_HAND: &str = "10.250.0.10";
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

/// What Docker's rules do with a packet, with nft in the place of IPVS. `ingress` stands for its ingress namespace, to which
/// the port of its host leads already.
fn docker_way(ingress: &Task, server: &Task) -> anyhow::Result<()> {
    let (to, own) = (&server.address, &ingress.address);
    ingress.namespace.shell(&format!(
        "echo 1 >/proc/sys/net/ipv4/ip_forward; nft -f - <<'END'
table ip bench {{
  chain in {{
    type nat hook prerouting priority -100
    tcp dport {DOCKER} dnat to numgen inc mod 1 map {{ 0 : {to} }}
  }}
  chain out {{
    type nat hook postrouting priority 100
    ct status dnat ip daddr {to} snat to {own}
  }}
}}
END"
    ))?;
    server.namespace.shell(&format!(
        "nft -f - <<'END'
table ip bench {{
  chain in {{
    type nat hook prerouting priority -100
    tcp dport {DOCKER} redirect to :80
  }}
}}
END"
    ))
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
                 bridge -n {bridge} fdb replace 02:42:0a:fa:00:0{other} dev vxb self dst {there}"
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
    let web_of_docker = task(&lab, &mut api, "web-of-docker", SERVER, &json!([]))?;
    let ingress = task(&lab, &mut api, "ingress-of-docker", ENTRY, &json!([port(DOCKER, DOCKER, "host")]))?;
    let client = task(&lab, &mut api, "client", ENTRY, &json!([]))?;
    let (entry, server) = (host_address(&lab, &mut api, ENTRY)?, host_address(&lab, &mut api, SERVER)?);
    docker_way(&ingress, &web_of_docker)?;
    let network = api.call("GET", &format!("/networks/{NETWORK}"), None)?["Id"].clone();
    let service = api.call("GET", &format!("/services/{}", web.service), None)?;
    let mut vips = service["Endpoint"]["VirtualIPs"].as_array().into_iter().flatten();
    let vip = vips.find(|v| v["NetworkID"] == network).and_then(|v| v["Addr"].as_str()).context("no VIP")?;
    let vip = vip.split('/').next().unwrap_or(vip);

    let nginx = Server::nginx(&web.namespace).context("nginx is needed")?;
    let nginx_of_docker = Server::nginx(&web_of_docker.namespace)?;
    let entry_namespace = Namespace::of_host(&lab, ENTRY)?;
    let haproxy =
        Server::haproxy(&entry_namespace, HAPROXY, &format!("{server}:{HOST_MODE}")).context("haproxy is needed")?;
    let way = |name, from, url: String, servers| Way { name, from, url, servers };
    let inside = Some(&client.namespace);
    let on = |host: &str, port: u16| format!("http://{host}:{port}/");
    let east =
        [way("overlay", inside, on(&web.address, 80), vec![&nginx]), way("vip", inside, on(vip, 80), vec![&nginx])];
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

    let _by_hand = HandMade::make(&lab, &[(SERVER, server), (ENTRY, entry)])?;
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
        put("network_overlay_gbit_per_cpu_s".into(), overlay);
        put("network_vxlan_by_hand_gbit_per_cpu_s".into(), by_hand);
        put("network_overlay_of_vxlan_by_hand".into(), overlay / by_hand);
    }
    Ok(())
}
