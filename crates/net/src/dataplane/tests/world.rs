//! The stage. Everything is in namespaces under a temporary folder and goes with it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skep_model::network::mac_of;
use skep_model::plan::{HostPlan, IngressPlan, OverlayPlan};
use skep_model::{ContainerId, NetworkId};

use crate::dataplane::{ApplyReport, Attachment, Dataplane, DataplaneConfig, overlay_path};
use crate::ingress::rules::SourceMode;
use crate::link::{Namespace, Route, Veth, VethEnd};

/// A folder that takes its mounts with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("skep-net-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { folders.push(path) } else { _ = Namespace::delete(&path) }
            }
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) struct World {
    folder: Folder,
    switch: Namespace,
    bridge: u32,
    runtime: tokio::runtime::Runtime,
    links: std::cell::Cell<u8>,
}

pub(super) struct Host {
    pub(super) namespace: Namespace,
    pub(super) underlay: Ipv4Addr,
    pub(super) config: DataplaneConfig,
    pub(super) dataplane: Dataplane,
}

/// The kernel tells a bridge of a port's carrier from a work queue. A container takes longer to start than that; a test
/// client does not.
fn wait_for_ports(namespace: &Namespace, prefix: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !namespace.links().list_prefix(prefix).unwrap().iter().all(|link| link.running) {
        assert!(Instant::now() < deadline, "a port of {prefix} has no carrier");
        std::thread::yield_now();
    }
}

impl Host {
    fn wait(&self) {
        if let Ok(overlay) = Namespace::open(&overlay_path(&self.config.exec_root, &network())) {
            wait_for_ports(&overlay, "ep-");
        }
    }

    /// As after a restart of the daemon: everything that was in memory is lost.
    pub(super) fn restarted(self) -> Self {
        let Self { namespace, underlay, config, dataplane } = self;
        drop(dataplane);
        let dataplane = Dataplane::new(config.clone());
        Self { namespace, underlay, config, dataplane }
    }
}

/// Changes of a new daemon that finds everything as it would make it: it puts its own rules against strangers beside those of
/// the one before, and takes these away.
pub(super) const ADOPTED: usize = 17;

pub(super) struct Task {
    pub(super) id: ContainerId,
    pub(super) namespace: Namespace,
    pub(super) address: Ipv4Addr,
}

pub(super) fn network() -> NetworkId {
    NetworkId::from_bits(7)
}

pub(super) fn on_overlay(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn net(address: Ipv4Addr) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new(address, 24).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        let folder = Folder::new();
        let switch = Namespace::create(&folder.0.join("switch")).unwrap();
        let bridge = switch.links().add_bridge("sw0", [2, 0, 0, 0, 0, 1], None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        Self { folder, switch, bridge, runtime, links: 0.into() }
    }

    /// A namespace on the underlay, with address 192.168.50.<last>.
    pub(super) fn outside(&self, last: u8) -> Namespace {
        let namespace = Namespace::create(&self.folder.0.join(format!("on-{last}"))).unwrap();
        let address = Ipv4Addr::new(192, 168, 50, last);
        let veth = Veth {
            near: VethEnd {
                name: &format!("p{last}"),
                namespace: None,
                mac: None,
                master: Some(self.bridge),
                up: true,
            },
            far: VethEnd {
                name: "eth0",
                namespace: Some(namespace.fd().as_fd()),
                mac: Some(mac_of(address)),
                master: None,
                up: false,
            },
            mtu: None,
        };
        self.switch.links().add_veth(&veth).unwrap();
        let index = namespace.links().index("eth0").unwrap();
        namespace.links().add_address(index, net(address)).unwrap();
        namespace.links().set_up(index).unwrap();
        wait_for_ports(&self.switch, "p");
        namespace
    }

    pub(super) fn host(&self, last: u8, source_mode: SourceMode) -> Host {
        let namespace = self.outside(last);
        let config = DataplaneConfig {
            exec_root: self.folder.0.join(format!("host-{last}")),
            tag: "ab12".to_owned(),
            host: namespace.clone(),
            source_mode,
        };
        Host {
            namespace,
            underlay: Ipv4Addr::new(192, 168, 50, last),
            dataplane: Dataplane::new(config.clone()),
            config,
        }
    }

    pub(super) fn apply(&self, host: &Host, plan: &HostPlan) -> ApplyReport {
        let report = self.runtime.block_on(host.dataplane.apply(&Arc::new(plan.clone())));
        host.wait();
        assert_eq!(report.failures, Vec::<String>::new());
        report
    }

    pub(super) fn repair(&self, host: &Host) -> ApplyReport {
        let report = self.runtime.block_on(host.dataplane.repair());
        host.wait();
        report
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A container with a way out through its host (as docker_gwbridge gives it) and a place on the overlay.
    pub(super) fn task(&self, host: &Host, last: u8) -> Task {
        let path = self.folder.0.join(format!("task-{}-{last}", host.underlay));
        let namespace = Namespace::create(&path).unwrap();
        let number = self.links.get();
        self.links.set(number + 1);
        let (outer, inner) = (Ipv4Addr::new(172, 18, number, 1), Ipv4Addr::new(172, 18, number, 2));
        let name = format!("gw{number}");
        let end = |name, namespace| VethEnd { name, namespace, mac: None, master: None, up: false };
        host.namespace
            .links()
            .add_veth(&Veth { near: end(&name, None), far: end("gw", Some(namespace.fd().as_fd())), mtu: None })
            .unwrap();
        let outer_index = host.namespace.links().index(&name).unwrap();
        host.namespace.links().add_address(outer_index, net(outer)).unwrap();
        let inner_index = namespace.links().index("gw").unwrap();
        namespace.links().add_address(inner_index, net(inner)).unwrap();
        host.namespace.links().set_up(outer_index).unwrap();
        namespace.links().set_up(inner_index).unwrap();
        namespace.links().add_route(&Route::default_via(outer, inner_index)).unwrap();
        let task =
            Task { id: ContainerId::from_bits([u128::from(last) << 120, 0]), namespace, address: on_overlay(last) };
        self.connect(host, &task);
        task
    }

    pub(super) fn connect(&self, host: &Host, task: &Task) {
        let attached = self.block_on(host.dataplane.connect(&attachment(task))).unwrap();
        assert_eq!(attached.address, net(task.address));
        host.wait();
    }

    /// What is between the hosts.
    pub(super) fn switch(&self) -> &Namespace {
        &self.switch
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder.0
    }
}

pub(super) fn attachment(task: &Task) -> Attachment {
    Attachment {
        container_id: task.id.clone(),
        network_id: network(),
        namespace: task.namespace.clone(),
        address: task.address,
        ifname: "eth0".to_owned(),
    }
}

/// The plan of `hosts[me]`, with nobody on the overlay but the hosts' legs if `mesh`.
pub(super) fn plan(hosts: &[&Host], me: usize, mesh: bool) -> HostPlan {
    let leg = |index: usize| on_overlay(240 + u8::try_from(index).unwrap());
    let mut overlay = OverlayPlan {
        name: "net".to_owned(),
        vni: 4097,
        subnet: Some(net(on_overlay(0))),
        gateway: Some(on_overlay(1)),
        mtu: 1450,
        ..OverlayPlan::default()
    };
    let others = || (0..hosts.len()).filter(|index| *index != me);
    let ingress = mesh.then(|| {
        overlay.remote = others().map(|index| (leg(index), hosts[index].underlay)).collect();
        IngressPlan {
            network_id: Some(network()),
            address: Some(net(leg(me))),
            mesh_index: u16::try_from(me).unwrap(),
            node_macs: others().map(|index| (u16::try_from(index).unwrap(), mac_of(leg(index)))).collect(),
            ports: [].into(),
        }
    });
    HostPlan {
        vtep: Some(hosts[me].underlay),
        vxlan_port: 4789,
        members: others().map(|index| hosts[index].underlay).collect(),
        overlays: [(network(), overlay)].into(),
        ingress,
        zones: [].into(),
    }
}

pub(super) fn overlay_of(plan: &mut HostPlan) -> &mut OverlayPlan {
    plan.overlays.get_mut(&network()).unwrap()
}

/// Answers TCP and UDP on a port with its name and the client's address.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(namespace: &Namespace, port: u16, name: &str) -> Self {
        Self::start_at(namespace, (Ipv4Addr::UNSPECIFIED, port).into(), name)
    }

    pub(super) fn start6(namespace: &Namespace, port: u16, name: &str) -> Self {
        Self::start_at(namespace, (Ipv6Addr::UNSPECIFIED, port).into(), name)
    }

    fn start_at(namespace: &Namespace, address: SocketAddr, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (listener, socket) =
            namespace.run(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())).unwrap();
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let tcp = {
            let (stop, name) = (stop.clone(), name.to_owned());
            std::thread::spawn(move || {
                let mut open = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, peer)) => {
                            let _ = writeln!(stream, "{name} {}", peer.ip());
                            open.push(stream);
                            if open.len() > 64 {
                                open.remove(0);
                            }
                        }
                        Err(_) => {
                            let mut fds = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
                            let _ = nix::poll::poll(&mut fds, 20_u8);
                        }
                    }
                }
            })
        };
        let udp = {
            let (stop, name) = (stop.clone(), name.to_owned());
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
                    }
                }
            })
        };
        Self { stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A TCP connection's first line.
pub(super) fn ask(from: &Namespace, address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    let mut stream = open(from, address, port)?;
    read_line(&mut stream)
}

pub(super) fn open(from: &Namespace, address: impl Into<IpAddr>, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((address.into(), port));
    let stream = from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// From a source port that may be in use towards others.
pub(super) fn open_from(from: &Namespace, source_port: u16, address: Ipv4Addr, port: u16) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let stream: TcpStream = from.run(|| socket(AddressFamily::INET, SocketType::STREAM, None)).unwrap().unwrap().into();
    sockopt::set_socket_reuseaddr(&stream, true).unwrap();
    bind(&stream, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, source_port))).unwrap();
    connect(&stream, &SocketAddr::from((address, port))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(super) fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(char::from(byte[0]));
    }
    Ok(line)
}

/// An UDP answer, from a socket of its own.
pub(super) fn ask_udp(from: &Namespace, address: Ipv4Addr, port: u16) -> io::Result<String> {
    ask_udp_with(&udp_socket(from), address, port)
}

pub(super) fn udp_socket(from: &Namespace) -> UdpSocket {
    bound(from, "0.0.0.0:0")
}

pub(super) fn udp_socket6(from: &Namespace) -> UdpSocket {
    bound(from, "[::]:0")
}

fn bound(from: &Namespace, address: &str) -> UdpSocket {
    let socket = from.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(super) fn ask_udp_with(socket: &UdpSocket, address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    socket.connect((address.into(), port))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
