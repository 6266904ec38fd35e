//! What really gets from host to host, and what this kernel can do: for `skep network doctor`.
//!
//! A datagram counts as arrived when it has passed this host's firewall: a raw socket is given what the kernel is about to
//! deliver, whoever has the port. To a VXLAN port goes a packet of a VXLAN nobody has, which the kernel then drops.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use skep_model::doctor::{Feature, ProbeReport, ProbeRequest};

use crate::balance::Balancers;
use crate::link::{Namespace, Vxlan};
use crate::nft::{Family, NftSocket, Ownership, Table};
use crate::sandbox::blocking;

/// From being asked: when it is sent, again and again, while others may still be about to listen.
const SENDING: [Duration; 3] = [Duration::from_millis(400), Duration::from_millis(800), Duration::from_millis(1200)];
/// And until when it is listened.
const LISTENING: Duration = Duration::from_millis(1800);
const CONNECTING: Duration = Duration::from_millis(1500);
const BUFFER: usize = 4 << 20;
/// A header of VXLAN with an id that no network is given.
const VXLAN: [u8; 8] = [8, 0, 0, 0, 0xff, 0xff, 0xff, 0];
const MAGIC: u32 = 0x736b_6470;
const IP_AND_UDP: u16 = 28;
/// What is said in each: magic, token, sender, size.
const SAID: usize = VXLAN.len() + 4 + 8 + 2 + 2;

/// The interface that holds this address, and its MTU.
pub(crate) fn underlay(host: &Namespace, address: IpAddr) -> io::Result<Option<(String, u32)>> {
    let IpAddr::V4(address) = address else { return Ok(None) };
    let holder = host.links().addresses()?.into_iter().find(|(_, net)| net.addr() == address);
    let Some((index, _)) = holder else { return Ok(None) };
    Ok(host.links().list()?.into_iter().find(|link| link.index == index).map(|link| (link.name, link.mtu)))
}

/// Tries what is asked for. Takes about two seconds.
pub(crate) async fn run(host: Namespace, scratch: std::path::PathBuf, request: ProbeRequest) -> ProbeReport {
    let begun = Instant::now();
    let connections = connect_all(&request.tcp);
    let own = request.hosts.get(usize::from(request.own)).copied();
    let asked = request.clone();
    let listened = blocking(move || listen(&asked, begun));
    let asked = request.clone();
    let sent = blocking(move || own.map_or(Ok(()), |own| send(&asked, own, begun)));
    let looked = blocking(move || {
        let link = own.and_then(|own| underlay(&host, own.into()).ok().flatten());
        (link, lacks(&scratch))
    });
    let (refused, heard, sent, (link, lacks)) = tokio::join!(connections, listened, sent, looked);
    let (heard, blind) = match heard.and_then(|heard| sent.map(|()| heard)) {
        Ok(heard) => (heard, None),
        Err(error) => (BTreeSet::new(), Some(format!("packets could not be sent or seen: {error}"))),
    };
    let (link, link_mtu) = link.map_or((String::new(), None), |(name, mtu)| (name, Some(mtu)));
    ProbeReport { link, link_mtu, lacks, refused, heard, blind, ..ProbeReport::default() }
}

async fn connect_all(addresses: &[(u16, SocketAddr)]) -> BTreeMap<SocketAddr, String> {
    let connect = async |address: SocketAddr| {
        let refused = match tokio::time::timeout(CONNECTING, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        Some((address, refused))
    };
    let all = addresses.iter().map(|(_, address)| connect(*address));
    futures_util::future::join_all(all).await.into_iter().flatten().collect()
}

fn datagram(request: &ProbeRequest, size: u16) -> Vec<u8> {
    let mut bytes = VXLAN.to_vec();
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(request.token.to_be_bytes());
    bytes.extend(request.own.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.resize(usize::from(size.saturating_sub(IP_AND_UDP)).max(SAID), 0);
    bytes
}

/// The smallest that is sent.
const SMALL: u16 = 100;

fn send(request: &ProbeRequest, own: Ipv4Addr, begun: Instant) -> io::Result<()> {
    let socket = UdpSocket::bind((own, 0))?;
    crate::sys::forbid_fragments(&socket)?;
    for at in SENDING {
        std::thread::sleep((begun + at).saturating_duration_since(Instant::now()));
        let others = request.hosts.iter().enumerate().filter(|(place, _)| *place != usize::from(request.own));
        for (_, host) in others {
            for (index, port) in request.udp.iter().enumerate() {
                let sizes = if index == 0 { &request.sizes[..] } else { &[] };
                for size in std::iter::once(&SMALL).chain(sizes) {
                    // What does not even leave does not arrive: it will be missed there.
                    let _ = socket.send_to(&datagram(request, *size), (*host, *port));
                }
            }
        }
    }
    Ok(())
}

fn listen(request: &ProbeRequest, begun: Instant) -> io::Result<BTreeSet<(u16, u16, u16)>> {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
    crate::sys::only_udp_with(&raw, VXLAN.len(), MAGIC)?;
    let _ = setsockopt(&raw, sockopt::RcvBufForce, &BUFFER);
    // Reading is the same for every kind of datagram.
    let socket = UdpSocket::from(raw);
    let mut heard = BTreeSet::new();
    let mut packet = vec![0; usize::from(u16::MAX)];
    loop {
        let left = (begun + LISTENING).saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(heard);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut packet) {
            Ok(length) => heard.extend(of_packet(request, &packet[..length])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Who sent it, to which port, and how large it was.
fn of_packet(request: &ProbeRequest, packet: &[u8]) -> Option<(u16, u16, u16)> {
    let udp = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
    let said = udp.get(8 + VXLAN.len()..)?;
    let number = |at: usize| Some(u16::from_be_bytes(said.get(at..at + 2)?.try_into().ok()?));
    let ours = said.get(..4)? == MAGIC.to_be_bytes() && said.get(4..12)? == request.token.to_be_bytes();
    let port = u16::from_be_bytes(udp.get(2..4)?.try_into().ok()?);
    ours.then_some(())?;
    Some((number(12)?, port, number(14)?))
}

/// Tried in a namespace that is thrown away.
fn lacks(scratch: &Path) -> BTreeSet<Feature> {
    let mut lacks = BTreeSet::new();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        lacks.insert(Feature::Overlayfs);
    }
    if std::fs::File::open("/dev/net/tun").is_err() {
        lacks.insert(Feature::Tap);
    }
    let Ok(namespace) = Namespace::create(scratch) else { return lacks };
    let _ = Namespace::delete(scratch);
    let vxlan = Vxlan { name: "vx-probe", vni: 1, port: 4789, local: None, mtu: 1450, proxy: true, namespace: None };
    if namespace.links().add_vxlan(&vxlan).is_err() {
        lacks.insert(Feature::Vxlan);
    }
    let mut table = Table::new(Family::Ip, "probe", Ownership::Shared);
    Balancers::<Ipv4Addr>::prepare(&mut table);
    let ring = vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)].into();
    Balancers::new(0).update(&mut table, &[(Ipv4Addr::LOCALHOST, &ring)].into());
    let made = NftSocket::open(namespace.fd()).and_then(|mut socket| socket.apply(None, &table));
    if made.is_err() {
        lacks.insert(Feature::Nftables);
    }
    if crate::ingress::task::probe(&namespace, "lo").is_err() {
        lacks.insert(Feature::WayBack);
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Chain, ChainType, Hook, HookPoint, Rule};

    #[test]
    fn a_packet_is_told_from_those_of_another_look() {
        let request = ProbeRequest { token: 7, own: 3, ..ProbeRequest::default() };
        let mut packet = vec![0x45];
        packet.resize(20, 0);
        packet.extend([0x30, 0x39, 0x12, 0xb5, 0, 0, 0, 0]);
        packet.extend(datagram(&request, 1400));
        assert_eq!((packet.len(), of_packet(&request, &packet)), (1400, Some((3, 4789, 1400))));
        let other = ProbeRequest { token: 8, ..request };
        assert_eq!(of_packet(&other, &packet), None);
        assert_eq!(of_packet(&other, &packet[..30]), None);
    }

    #[tokio::test]
    async fn what_is_sent_is_heard_and_what_the_firewall_drops_is_not() {
        let folder = std::env::temp_dir().join(format!("skep-probe-{}", std::process::id()));
        let namespace = Namespace::create(&folder.join("host")).unwrap();
        let run_there = |request: ProbeRequest| {
            let (namespace, scratch) = (namespace.clone(), folder.join("scratch"));
            // To oneself is as good as to another: all ends of this namespace are one host.
            blocking(move || {
                namespace
                    .clone()
                    .run(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        // Threads for what blocks are this one's children, in the same namespace.
                        runtime.block_on(run(namespace, scratch, request))
                    })
                    .unwrap()
            })
        };
        let own = Ipv4Addr::LOCALHOST;
        let request = ProbeRequest {
            token: 9,
            own: 0,
            hosts: vec![own, Ipv4Addr::new(127, 0, 0, 2)],
            tcp: vec![(1, "127.0.0.2:2377".parse().unwrap())],
            udp: vec![4789, 4790],
            sizes: vec![1500],
        };
        let report = run_there(request.clone()).await;
        assert_eq!(report.heard, [(0, 4789, 100), (0, 4789, 1500), (0, 4790, 100)].into());
        assert_eq!(report.refused.into_values().collect::<Vec<_>>(), ["refused"]);
        assert_eq!((report.link.as_str(), report.blind), ("lo", None));
        let mut table = Table::new(Family::Ip, "closed", Ownership::Shared);
        let drop = Rule::new().l4proto(17).destination_port(4789).verdict(crate::nft::Verdict::Drop);
        table.chain("in", Chain::base(Hook::new(ChainType::Filter, HookPoint::Input, 0), vec![drop]));
        NftSocket::open(namespace.fd()).unwrap().apply(None, &table).unwrap();
        let report = run_there(request).await;
        assert_eq!(report.heard, [(0, 4790, 100)].into());
        Namespace::delete(&folder.join("host")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
