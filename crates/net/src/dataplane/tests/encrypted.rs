//! Encrypted overlays, by the packets between the hosts.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use skep_model::Timestamp;
use skep_model::network::{ENCRYPTED_OVERLAY_MTU, NetworkKeys, mac_of};
use skep_model::plan::HostPlan;
use skep_model::secret::SecretBytes;

use super::world::*;
use crate::dataplane::overlay_path;
use crate::ingress::rules::SourceMode;
use crate::link::Namespace;

const SEALED_PORT: u16 = 4790;
/// The first byte of a part of a message.
const A_PART: u8 = 0x10;
const MARKER: &[u8] = b"what nobody between may read";

fn secret(byte: u8) -> SecretBytes {
    SecretBytes(vec![byte; 32])
}

fn keys() -> NetworkKeys {
    NetworkKeys::new(secret(1), secret(2), Timestamp::ZERO)
}

/// Task 11 on the first host, 12 on the second.
fn plans(a: &Host, b: &Host, keys: Option<NetworkKeys>) -> [HostPlan; 2] {
    let mut plans = [plan(&[a, b], 0, false), plan(&[a, b], 1, false)];
    overlay_of(&mut plans[0]).remote = [(on_overlay(12), b.underlay)].into();
    overlay_of(&mut plans[1]).remote = [(on_overlay(11), a.underlay)].into();
    for plan in &mut plans {
        let overlay = overlay_of(plan);
        overlay.balancers = [(on_overlay(2), vec![on_overlay(12)].into())].into();
        overlay.keys = keys.clone();
        if keys.is_some() {
            overlay.mtu = ENCRYPTED_OVERLAY_MTU;
        }
    }
    plans
}

/// Everything that passes a namespace's interfaces.
struct Capture {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Self {
        let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
        let socket = namespace.run(open).unwrap().unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                let mut buffer = vec![0; 1 << 17];
                while !stop.load(Ordering::Relaxed) {
                    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                        Ok(length) => seen.lock().unwrap().push(buffer[..length].to_vec()),
                        Err(_) => std::thread::yield_now(),
                    }
                }
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Payload of an Ethernet frame that is UDP to this port.
fn datagram(frame: &[u8], port: u16) -> Option<&[u8]> {
    let udp = frame.get(34..)?;
    (frame[12..14] == [8, 0] && frame[23] == 17 && udp.get(2..4)? == port.to_be_bytes()).then_some(&udp[8..])
}

fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|part| part == needle)
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Sends from one to the other until it has arrived; by then both hosts know each other.
fn say(from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr) {
    to.set_nonblocking(true).unwrap();
    let port = to.local_addr().unwrap().port();
    eventually("a datagram", || {
        let _ = from.send_to(MARKER, (address, port));
        let pause = Instant::now() + Duration::from_millis(20);
        loop {
            if to.recv(&mut [0; 64]).is_ok() {
                return true;
            }
            if Instant::now() > pause {
                return false;
            }
        }
    });
}

fn heard(socket: &UdpSocket) -> usize {
    std::iter::from_fn(|| socket.recv(&mut [0; 64]).ok()).count()
}

/// A megabyte over one connection, there and back as far as it is acknowledged.
fn bulk(from: &Task, to: &Task) -> bool {
    let listener = to.namespace.run(|| std::net::TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let payload: Vec<u8> = MARKER.iter().copied().cycle().take(1 << 20).collect();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut all).map(|_| all)
    });
    let mut stream = open(&from.namespace, to.address, port).unwrap();
    stream.write_all(&payload).unwrap();
    drop(stream);
    reader.join().unwrap().is_ok_and(|read| read == payload)
}

#[test]
fn frames_leave_sealed_or_not_at_all_while_keys_rotate_and_a_daemon_restarts() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let capture = Capture::start(world.switch());
    let mut keys = keys();
    let [plan_a, plan_b] = plans(&a, &b, Some(keys.clone()));
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let tasks = [world.task(&a, 11), world.task(&b, 12)];
    let sockets = [udp_socket(&tasks[0].namespace), udp_socket(&tasks[1].namespace)];
    let _server = Server::start(&tasks[1].namespace, 80, "server");
    say(&sockets[0], &sockets[1], tasks[1].address);
    assert!(bulk(&tasks[0], &tasks[1]) && bulk(&tasks[1], &tasks[0]));
    assert_eq!(ask(&tasks[0].namespace, on_overlay(2), 80).unwrap(), "server 10.0.1.11", "by the service's address");
    assert_eq!(world.apply(&a, &plan_a).changes, 0);

    // The key goes round, the sender first and then the receiver.
    for round in 0..4 {
        keys.rotate(secret(3 + round), Timestamp::ZERO);
        let [plan_a, plan_b] = plans(&a, &b, Some(keys.clone()));
        world.apply(&a, &plan_a);
        assert_eq!(ask(&tasks[0].namespace, tasks[1].address, 80).unwrap(), "server 10.0.1.11");
        world.apply(&b, &plan_b);
        assert!(bulk(&tasks[0], &tasks[1]));
    }

    // A daemon that starts has no keys until a manager tells it; its containers' interfaces stay as they are.
    let b = b.restarted();
    let mut keyless = plans(&a, &b, Some(NetworkKeys::default()))[1].clone();
    overlay_of(&mut keyless).remote.clear();
    world.apply(&b, &keyless);
    world.connect(&b, &tasks[1]);
    heard(&sockets[1]);
    let port = sockets[1].local_addr().unwrap().port();
    sockets[0].send_to(MARKER, (tasks[1].address, port)).unwrap();
    sockets[1].send_to(MARKER, (tasks[0].address, port)).unwrap();
    let [_, plan_b] = plans(&a, &b, Some(keys.clone()));
    let report = world.apply(&b, &plan_b);
    assert_eq!(report.changes, 0, "the interface is adopted");
    say(&sockets[0], &sockets[1], tasks[1].address);
    assert!(bulk(&tasks[1], &tasks[0]));

    // No key any more: nothing goes, rather than anything in the clear.
    let [plan_a, plan_b] = plans(&a, &b, Some(NetworkKeys::default()));
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    heard(&sockets[1]);
    sockets[0].send_to(MARKER, (tasks[1].address, port)).unwrap();
    assert!(ask_udp(&tasks[0].namespace, tasks[1].address, 80).is_err());
    assert_eq!(heard(&sockets[1]), 0);

    let seen = capture.seen.clone();
    drop(capture);
    let frames = std::mem::take(&mut *seen.lock().unwrap());
    let sealed: Vec<_> = frames.iter().filter_map(|frame| datagram(frame, SEALED_PORT)).collect();
    assert!(sealed.iter().map(|part| part.len()).sum::<usize>() > 1 << 20, "it did go this way");
    for generation in 1..=5u32 {
        assert!(sealed.iter().any(|part| part[4..8] == generation.to_be_bytes()), "generation {generation}");
    }
    assert!(!frames.iter().any(|frame| has(frame, &MARKER[..16])), "in the clear");
    assert!(!frames.iter().any(|frame| datagram(frame, 4789).is_some()), "by VXLAN");
}

/// An Ethernet frame with a datagram in it.
fn udp_frame(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(mac_of(to));
    frame.extend(mac_of(from));
    frame.extend([8, 0]);
    let length = u16::try_from(payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((length + 28).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    for number in [port, port, length + 8, 0] {
        frame.extend(number.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

#[test]
fn what_is_forged_or_played_again_reaches_no_container() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let attacker = world.outside(9);
    let [plain_a, plain_b] = plans(&a, &b, None);
    let [plan_a, plan_b] = plans(&a, &b, Some(keys()));
    let target = b.underlay;
    let member = a.namespace.clone();
    let forge = |from: &Namespace, port: u16, words: &[u8]| {
        let mut vxlan = vec![8, 0, 0, 0, 0, 16, 1, 0];
        vxlan.extend(udp_frame(on_overlay(11), on_overlay(12), port, words));
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.send_to(&vxlan, (target, 4789)).unwrap();
    };

    // What is in the clear is taken from a member, so the packet is as it should be, and from nobody else.
    world.apply(&b, &plain_b);
    let task = world.task(&b, 12);
    let victim = udp_socket(&task.namespace);
    victim.set_nonblocking(true).unwrap();
    let port = victim.local_addr().unwrap().port();
    eventually("a packet of a member", || {
        forge(&attacker, port, b"forged");
        forge(&member, port, b"member");
        let mut words = [0; 64];
        let heard = std::iter::from_fn(|| victim.recv(&mut words).ok().map(|length| words[..length].to_vec()));
        let heard: Vec<_> = heard.collect();
        assert!(!heard.contains(&b"forged".to_vec()), "a stranger's frame came in");
        !heard.is_empty()
    });
    let mut nothing = plain_b.clone();
    nothing.overlays.clear();
    world.block_on(b.dataplane.forget(&task.id));
    world.apply(&b, &nothing);
    drop((plain_a, task, victim));

    let capture = Capture::start(world.switch());
    world.apply(&a, &plan_a);
    world.apply(&b, &plan_b);
    let tasks = [world.task(&a, 11), world.task(&b, 13)];
    let plan_a = {
        let mut plan = plan_a.clone();
        overlay_of(&mut plan).remote = [(on_overlay(13), b.underlay)].into();
        plan
    };
    world.apply(&a, &plan_a);
    let sockets = [udp_socket(&tasks[0].namespace), udp_socket(&tasks[1].namespace)];
    say(&sockets[0], &sockets[1], tasks[1].address);
    let mut recorded = Vec::new();
    eventually("the sealed message in the capture", || {
        recorded = capture.seen.lock().unwrap().clone();
        recorded.retain(|frame| frame.len() > 30 && frame[26..30] == a.underlay.octets());
        recorded.iter().filter_map(|frame| datagram(frame, SEALED_PORT)).any(|part| part[0] == A_PART)
    });
    drop(capture);
    let recorded: Vec<&[u8]> = recorded.iter().filter_map(|frame| datagram(frame, SEALED_PORT)).collect();

    // From the true sender's address and port, as only who owns the wire can.
    let underlay = a.underlay;
    let (namespace, _) = (a.namespace.clone(), drop(a));
    let wire = namespace.run(|| UdpSocket::bind((underlay, SEALED_PORT)).unwrap()).unwrap();
    heard(&sockets[1]);
    let replay = || {
        for datagram in &recorded {
            wire.send_to(datagram, (target, SEALED_PORT)).unwrap();
            let mut bent = datagram.to_vec();
            *bent.last_mut().unwrap() ^= 1;
            wire.send_to(&bent, (target, SEALED_PORT)).unwrap();
        }
        let port = sockets[1].local_addr().unwrap().port();
        forge(&attacker, port, b"forged");
        forge(&member, port, b"forged");
        wire.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // An answer would be to a stranger's greeting; what comes meanwhile is what got through.
        while wire.recv(&mut [0; 2048]).is_ok() {}
        heard(&sockets[1])
    };
    assert_eq!(replay(), 0);
    // The receiver restarts and remembers nothing; what was recorded names a session that is over.
    let b = b.restarted();
    world.apply(&b, &plan_b);
    world.connect(&b, &tasks[1]);
    assert_eq!(replay(), 0);
    assert_eq!(
        Namespace::open(&overlay_path(&b.config.exec_root, &network())).unwrap().links().list_prefix("vx-").unwrap(),
        []
    );
    assert_eq!(sockets[1].recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_network_that_cannot_be_sealed_is_not_made() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan, _] = plans(&a, &b, Some(keys()));
    // The name is taken, so the driver refuses.
    let namespace = Namespace::create(&overlay_path(&a.config.exec_root, &network())).unwrap();
    namespace.links().add_bridge("sealed", [2, 0, 0, 0, 0, 7], None).unwrap();
    let report = world.block_on(a.dataplane.apply(&Arc::new(plan.clone())));
    assert_eq!(report.failures.len(), 1, "{report:?}");
    let container = world.outside(7);
    let task = Task { id: skep_model::ContainerId::from_bits([7, 7]), namespace: container, address: on_overlay(11) };
    let error = world.block_on(a.dataplane.connect(&attachment(&task))).unwrap_err().to_string();
    assert!(error.starts_with("network net cannot be made on this host: make TAP interface sealed: "), "{error}");
    assert_eq!(namespace.links().list_prefix("vx-").unwrap(), []);
    // As soon as it can be, it is.
    namespace.links().delete("sealed").unwrap();
    world.apply(&a, &plan);
    let task = world.task(&a, 11);
    assert!(task.namespace.links().find("eth0").unwrap().is_some());
}

#[test]
fn nobody_is_connected_to_a_network_that_cannot_be_carried() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    let [plan, _] = plans(&a, &b, Some(keys()));
    let taken = a.namespace.run(|| UdpSocket::bind((a.underlay, SEALED_PORT)).unwrap()).unwrap();
    let report = world.block_on(a.dataplane.apply(&Arc::new(plan.clone())));
    assert_eq!(report.failures.len(), 1, "{report:?}");
    let task =
        Task { id: skep_model::ContainerId::from_bits([7, 7]), namespace: world.outside(7), address: on_overlay(11) };
    let error = world.block_on(a.dataplane.connect(&attachment(&task))).unwrap_err().to_string();
    assert!(error.contains("cannot be made on this host: take 192.168.50.1:4790/udp"), "{error}");
    drop(taken);
    world.apply(&a, &plan);
    let task = world.task(&a, 11);

    // One that is connected is left alone, should the daemon come back and the port be taken.
    let a = a.restarted();
    let _taken = a.namespace.run(|| UdpSocket::bind((a.underlay, SEALED_PORT)).unwrap()).unwrap();
    assert_eq!(world.block_on(a.dataplane.apply(&Arc::new(plan.clone()))).failures.len(), 1);
    world.connect(&a, &task);
}

#[test]
fn what_somebody_takes_away_of_it_is_mended() {
    let world = World::new();
    let (a, b) = (world.host(1, SourceMode::Preserve), world.host(2, SourceMode::Preserve));
    for (host, plan) in [&a, &b].iter().zip(plans(&a, &b, Some(keys()))) {
        world.apply(host, &plan);
    }
    let tasks = [world.task(&a, 11), world.task(&b, 12)];
    let _server = Server::start(&tasks[1].namespace, 80, "served");
    for link in [None, Some("sealed"), Some("br0")] {
        for host in [&a, &b] {
            let path = overlay_path(&host.config.exec_root, &network());
            let deleted = link.is_some_and(|link| Namespace::open(&path).unwrap().links().delete(link).unwrap());
            let report = world.repair(host);
            assert_eq!((report.changes > 0, report.failures), (deleted, Vec::new()), "{link:?}");
        }
        eventually("it is carried", || ask(&tasks[0].namespace, on_overlay(2), 80).is_ok());
        for host in [&a, &b] {
            assert_eq!(world.repair(host).changes, 0, "{link:?}");
        }
    }
}
