//! What the hosts of a swarm are to try with one another, and what it means: for `skep network doctor`.
//!
//! Decides which packets have to get through, what is wrong where they do not, and what to do. Sends none.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use skep_model::NodeId;
use skep_model::cluster::{DEFAULT_DATA_PATH_PORT, GOSSIP_PORT};
use skep_model::doctor::{Ailment, Diagnosis, Feature, HostChecks, PairChecks, ProbeReport, ProbeRequest};
use skep_model::node::{Node, NodeState};
use skep_store::View;

/// Sizes that are tried besides what the networks need: between the least and the most that Ethernet links carry.
const SIZES: [(std::ops::RangeInclusive<u16>, usize); 3] = [(600..=1100, 100), (1200..=1500, 20), (2000..=9000, 500)];
/// Clocks further apart than this are told.
const CLOCK_MS: i64 = 1000;
/// Names in one sentence.
const NAMES: usize = 6;

/// A host that is looked at, with what it found once it was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub node_id: NodeId,
    name: String,
    address: Ipv4Addr,
    manager: Option<SocketAddr>,
    /// And how far its clock is ahead of the asking manager's, in milliseconds.
    pub answer: Result<(ProbeReport, i64), String>,
}

/// All hosts that can be asked, each with its request.
pub fn requests(view: &View, token: u64) -> Vec<(Asked, ProbeRequest)> {
    let mut asked: Vec<Asked> = view.nodes().filter_map(|node| asked(node)).collect();
    asked.sort_by(|a, b| a.name.cmp(&b.name));
    let hosts: Vec<Ipv4Addr> = asked.iter().map(|host| host.address).collect();
    let tcp = |own: usize| {
        let others = asked.iter().enumerate().filter(move |(place, _)| *place != own);
        others
            .flat_map(|(place, host)| {
                let gossip = SocketAddr::from((host.address, GOSSIP_PORT));
                let place = u16::try_from(place).unwrap_or(u16::MAX);
                host.manager.into_iter().chain([gossip]).map(move |address| (place, address))
            })
            .collect()
    };
    let needs = Needs::of(view);
    let sizes: BTreeSet<u16> = SIZES
        .into_iter()
        .flat_map(|(sizes, step)| sizes.step_by(step))
        .filter(|size| *size <= needs.packet)
        .chain(needs.networks.keys().copied())
        .collect();
    let request = |own: usize| ProbeRequest {
        token,
        own: u16::try_from(own).unwrap_or(u16::MAX),
        hosts: hosts.clone(),
        tcp: tcp(own),
        udp: needs.udp.clone(),
        sizes: sizes.iter().copied().collect(),
    };
    asked.iter().cloned().enumerate().map(|(own, host)| (host, request(own))).collect()
}

fn asked(node: &Node) -> Option<Asked> {
    Some(Asked {
        node_id: node.id.clone(),
        name: node.description.hostname.clone(),
        address: node.status.vtep().filter(|_| node.status.state != NodeState::Down)?,
        manager: node.manager.as_ref().map(|manager| manager.address),
        answer: Err("it was not asked".into()),
    })
}

/// What the overlay networks there are need of the way between two hosts.
struct Needs {
    /// VXLAN's first.
    udp: Vec<u16>,
    /// The largest packet.
    packet: u16,
    /// Size of a packet between hosts -> networks that send such, each with its MTU.
    networks: BTreeMap<u16, Vec<(String, u32)>>,
    sealed: bool,
}

impl Needs {
    fn of(view: &View) -> Self {
        let vxlan = view.cluster().map_or(DEFAULT_DATA_PATH_PORT, |cluster| cluster.data_path_port);
        let sealed = view.networks().any(|network| network.spec.is_encrypted());
        let mut udp = vec![vxlan, GOSSIP_PORT];
        udp.extend(sealed.then(|| vxlan.saturating_add(1)));
        let narrowest = view.nodes().filter_map(|node| node.description.link_mtu).min();
        let mut networks: BTreeMap<u16, Vec<(String, u32)>> = BTreeMap::new();
        for spec in view.networks().map(|network| &network.spec) {
            let mtu = spec.mtu(narrowest);
            let packet = u16::try_from(mtu.saturating_add(spec.overhead())).unwrap_or(u16::MAX);
            networks.entry(packet).or_default().push((spec.name.clone(), mtu));
        }
        Self { udp, packet: networks.keys().next_back().copied().unwrap_or(0), networks, sealed }
    }
}

/// What is wrong, by what the asked hosts found.
pub fn diagnose(view: &View, asked: &[Asked]) -> Diagnosis {
    let needs = Needs::of(view);
    let mut findings = Vec::new();
    unasked(view, asked, &mut findings);
    let pairs = pairs(&needs, asked);
    closed(asked, &pairs, &mut findings);
    narrow(&needs, &pairs, &mut findings);
    for host in asked {
        if let Ok((report, clock_ms)) = &host.answer {
            of_host(host, report, *clock_ms, &needs, &mut findings);
        }
    }
    let healthy = !findings.iter().any(|finding| finding.wrong);
    Diagnosis { healthy, hosts: asked.iter().map(checks).collect(), pairs, findings }
}

fn finding(wrong: bool, says: impl Into<String>, advice: impl Into<String>) -> Ailment {
    Ailment { wrong, says: says.into(), advice: advice.into() }
}

fn checks(host: &Asked) -> HostChecks {
    let (report, clock_ms) = host.answer.clone().unwrap_or_default();
    HostChecks {
        host: host.name.clone(),
        address: host.address.to_string(),
        answered: host.answer.is_ok(),
        clock_ms,
        link: report.link,
        link_mtu: report.link_mtu,
        kernel: report.kernel,
        cgroup: report.cgroup,
        lacks: report.lacks,
    }
}

fn unasked(view: &View, asked: &[Asked], findings: &mut Vec<Ailment>) {
    for node in view.nodes().filter(|node| !asked.iter().any(|host| host.node_id == node.id)) {
        let name = &node.description.hostname;
        if node.status.state == NodeState::Down {
            let says = format!("Host {name} is down and was not looked at: {}.", node.status.message);
            findings.push(finding(true, says, "Start its daemon or the host, or remove it with `docker node rm`."));
        } else {
            let says = format!("Host {name} has no IPv4 address in the swarm: overlay networks do not reach it.");
            findings.push(finding(true, says, "Let it join again with --advertise-addr and an IPv4 address."));
        }
    }
    for host in asked {
        if let Err(error) = &host.answer {
            let says =
                format!("Host {} could not be asked, so nothing is known of what reaches it: {error}.", host.name);
            let advice = format!(
                "See whether the daemon of {} runs a version that knows `skep network doctor`, and its log.",
                host.name
            );
            findings.push(finding(true, says, advice));
        } else if let Ok((ProbeReport { blind: Some(why), .. }, _)) = &host.answer {
            findings.push(finding(true, format!("On host {} {why}.", host.name), "The daemon has to run as root."));
        }
    }
}

/// Every two hosts that both answered, both ways.
fn pairs(needs: &Needs, asked: &[Asked]) -> Vec<PairChecks> {
    let answered = || {
        let places = asked.iter().enumerate();
        places.filter_map(|(place, host)| {
            let (report, _) = host.answer.as_ref().ok()?;
            report.blind.is_none().then_some((u16::try_from(place).ok()?, host, report))
        })
    };
    let mut pairs = Vec::new();
    for (place, from, sender) in answered() {
        for (_, to, receiver) in answered().filter(|(other, ..)| *other != place) {
            let mut ports = BTreeMap::new();
            for address in to.manager.into_iter().chain([(to.address, GOSSIP_PORT).into()]) {
                let refused = sender.refused.get(&address).cloned().unwrap_or_default();
                ports.insert(format!("{}/tcp", address.port()), refused);
            }
            let heard = || receiver.heard.iter().filter(|(sender, ..)| *sender == place);
            for port in &needs.udp {
                let there = heard().any(|(_, at, _)| at == port);
                ports.insert(format!("{port}/udp"), if there { String::new() } else { "no packet arrives".into() });
            }
            let largest = heard().filter(|(_, at, _)| needs.udp.first() == Some(at)).map(|(_, _, size)| *size).max();
            let (from, to) = (from.name.clone(), to.name.clone());
            pairs.push(PairChecks { from, to, ports, packet_bytes: largest, needed_bytes: needs.packet });
        }
    }
    pairs
}

/// Names in a sentence.
fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    match &names[..] {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= NAMES => format!("{} and {last}", first.join(", ")),
        _ => format!("{} and {} more", names[..NAMES].join(", "), names.len() - NAMES),
    }
}

/// Ports that packets do not get to: what all ports have in common is said once.
fn closed(asked: &[Asked], pairs: &[PairChecks], findings: &mut Vec<Ailment>) {
    for to in asked {
        let into: Vec<&PairChecks> = pairs.iter().filter(|pair| pair.to == to.name).collect();
        let is_cut = |pair: &&&PairChecks| pair.ports.values().all(|why| !why.is_empty());
        let cut: Vec<&str> = into.iter().filter(is_cut).map(|pair| pair.from.as_str()).collect();
        if !cut.is_empty() {
            let from = listed(cut.iter().map(|name| (*name).to_owned()));
            let says = format!("Nothing gets from {from} to {} ({}), at none of the ports.", to.name, to.address);
            let advice = format!(
                "See to the network between them, and whether {} is really the address of {}.",
                to.address, to.name
            );
            findings.push(finding(true, says, advice));
        }
        // (port, why) -> from whom.
        let mut by_port: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for pair in into.iter().filter(|pair| !cut.contains(&pair.from.as_str())) {
            for (port, why) in pair.ports.iter().filter(|(_, why)| !why.is_empty()) {
                by_port.entry((port, why)).or_default().push(pair.from.clone());
            }
        }
        for ((port, why), from) in by_port {
            let from = listed(from.into_iter());
            let says = format!("Port {port} of {} is not reached from {from} ({why}): {}.", to.name, purpose(port));
            let advice = match why {
                "refused" => {
                    format!("Nothing listens there: see whether the daemon of {} runs and what its log says.", to.name)
                }
                _ => format!(
                    "Let {port} from the other hosts through the firewalls of {} and between the hosts (`nft list ruleset` on it \
                     shows its own; clouds have security groups).",
                    to.name
                ),
            };
            findings.push(finding(true, says, advice));
        }
    }
}

fn purpose(port: &str) -> &'static str {
    match port {
        "7946/tcp" | "7946/udp" => "hosts ask one another over it who is alive, so a dead host is noticed late",
        _ if port.ends_with("/tcp") => "a host that does not reach a manager cannot turn to it when the leader dies",
        _ => "containers on overlay networks do not reach one another between these hosts",
    }
}

/// Ways that carry less than the networks send.
fn narrow(needs: &Needs, pairs: &[PairChecks], findings: &mut Vec<Ailment>) {
    // What gets through -> between whom.
    let mut by_size: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for pair in pairs {
        // Where no packet arrives there is nothing to say of its size.
        if let Some(size) = pair.packet_bytes.filter(|size| *size < pair.needed_bytes) {
            by_size.entry(size).or_default().push(format!("{} to {}", pair.from, pair.to));
        }
    }
    for (size, ways) in by_size {
        let too_wide = || needs.networks.range(size.saturating_add(1)..).flat_map(|(_, networks)| networks);
        let mtu = too_wide().map(|(_, mtu)| *mtu).max().unwrap_or_default();
        let overhead = u32::from(needs.packet).saturating_sub(mtu);
        let says = format!(
            "From {} packets of {size} bytes get through whole and larger ones do not; networks with an MTU of {mtu} ({}) send up to \
             {} bytes: large transfers between containers hang or are slow.",
            listed(ways.into_iter()),
            listed(too_wide().map(|(name, _)| name.clone())),
            needs.packet,
        );
        let advice = format!(
            "Raise the MTU of the links between these hosts to {}, or make the networks again with --opt {}={}.",
            needs.packet,
            skep_model::network::MTU_OPTION,
            u32::from(size).saturating_sub(overhead),
        );
        findings.push(finding(true, says, advice));
    }
}

fn of_host(host: &Asked, report: &ProbeReport, clock_ms: i64, needs: &Needs, findings: &mut Vec<Ailment>) {
    let name = &host.name;
    if clock_ms.abs() > CLOCK_MS {
        let (seconds, word) = (clock_ms.unsigned_abs() as f64 / 1e3, if clock_ms > 0 { "ahead of" } else { "behind" });
        let says = format!(
            "The clock of {name} is {seconds:.1} s {word} this manager's: certificates may be refused, and times in logs mislead."
        );
        findings.push(finding(true, says, "Let all hosts keep their time by NTP (chrony, systemd-timesyncd)."));
    }
    for feature in &report.lacks {
        let (wrong, says, advice) = match feature {
            Feature::Vxlan => (
                true,
                "makes no VXLAN links: no overlay network works on it",
                "Load the module vxlan (`modprobe vxlan`).",
            ),
            Feature::Nftables => (
                true,
                "takes no nf_tables rules with translation: no published port or service address works on it",
                "Load the modules nf_tables, nft_chain_nat and nft_numgen, or start a kernel that has them.",
            ),
            Feature::Overlayfs => {
                (true, "has no overlayfs: no container starts on it", "Load the module overlay (`modprobe overlay`).")
            }
            Feature::WayBack => (
                false,
                "takes no rules on what leaves a link: published services see its own address instead of their clients'",
                "A kernel from 5.16 on with NFT_NETDEV and NETFILTER_EGRESS has them.",
            ),
            Feature::Tap => (
                needs.sealed,
                "has no /dev/net/tun: no task of an encrypted network starts on it",
                "Load the module tun (`modprobe tun`).",
            ),
        };
        findings.push(finding(wrong, format!("The kernel of {name} ({}) {says}.", report.kernel), advice));
    }
}
