//! A host for one test: a network namespace of its own with a neighbour outside, and a `Net` in it.

#![allow(unreachable_pub, dead_code, reason = "shared by several test binaries")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use skep_model::ContainerId;
use skep_model::sandbox::{EndpointRequest, NetworkMode, PublishRequest, SandboxRequest};
use skep_model::service::Protocol;
use skep_net::link::{Namespace, Route, Veth, VethEnd};
use skep_net::{Net, NetConfig};

pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const PATIENCE: Duration = Duration::from_secs(2);
/// Long enough for a packet on this machine, short enough to wait for one that must not come.
const GLANCE: Duration = Duration::from_millis(400);

/// Directories of a test, and everything mounted below.
pub struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.0.join("exec/netns")).into_iter().flatten().flatten() {
            let _ = Namespace::delete(&entry.path());
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Host {
    pub namespace: Namespace,
    pub outside: Namespace,
    scratch: Scratch,
}

impl Host {
    /// Runs a test on a thread in fresh network and mount namespaces, which the runtime's threads inherit.
    pub fn run<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Host) -> F + Send + 'static) {
        let scratch = std::env::temp_dir().join(format!("skep-net-{name}-{}", std::process::id()));
        let thread = std::thread::spawn(move || {
            use nix::sched::CloneFlags;
            nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            let host = Self::make(scratch);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(test(host));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn make(scratch: PathBuf) -> Self {
        std::fs::create_dir_all(&scratch).unwrap();
        let scratch = Scratch(scratch);
        std::fs::write(scratch.0.join("resolv.conf"), format!("nameserver {OUTSIDE}\nsearch example.org\n")).unwrap();
        std::fs::write(scratch.0.join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let namespace = Namespace::current().unwrap();
        let outside_path = scratch.0.join("outside");
        let outside = Namespace::create(&outside_path).unwrap();
        // Only the descriptor is needed.
        Namespace::delete(&outside_path).unwrap();
        namespace.links().set_up(1).unwrap();
        namespace
            .links()
            .add_veth(&Veth {
                near: VethEnd { name: "wan", namespace: None, mac: None, master: None, up: true },
                far: VethEnd { name: "lan", namespace: Some(outside.fd().as_fd()), mac: None, master: None, up: false },
                mtu: None,
            })
            .unwrap();
        let prefix = |address| ipnet::Ipv4Net::new(address, 24).unwrap();
        let (near, far) = (namespace.links().index("wan").unwrap(), outside.links().index("lan").unwrap());
        namespace.links().add_address(near, prefix(HOST)).unwrap();
        namespace.links().add_route(&Route::default_via(OUTSIDE, near)).unwrap();
        outside.links().set_up(far).unwrap();
        outside.links().add_address(far, prefix(OUTSIDE)).unwrap();
        Self { namespace, outside, scratch }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    pub async fn net(&self) -> Net {
        let mut config = NetConfig::new(self.path("data"), self.path("exec"), "ab12", skep_agent::dns::answer);
        config.resolv_conf = self.path("resolv.conf");
        config.hosts = self.path("hosts");
        Net::open(config).await.unwrap()
    }
}

pub fn id(n: u8) -> ContainerId {
    ContainerId::from_bits([u128::from(n) << 120, u128::from(n)])
}

pub fn endpoint(network: &str) -> EndpointRequest {
    EndpointRequest { network: network.to_owned(), ..EndpointRequest::default() }
}

pub fn request(n: u8, name: &str, networks: &[&str]) -> SandboxRequest {
    SandboxRequest {
        container_id: id(n),
        container_name: name.to_owned(),
        hostname: format!("h{n}"),
        domainname: String::new(),
        mode: NetworkMode::Private,
        is_task: false,
        endpoints: networks.iter().map(|network| endpoint(network)).collect(),
        publish: vec![],
        dns: vec![],
        dns_search: vec![],
        dns_options: vec![],
        extra_hosts: vec![],
    }
}

pub fn port(container_port: u16, protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PublishRequest {
    PublishRequest {
        container_port,
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_ports: (host_port, host_port),
    }
}

pub fn netns(sandbox: &skep_model::sandbox::Sandbox) -> Namespace {
    open(sandbox.netns.as_ref().unwrap())
}

pub fn open(path: &Path) -> Namespace {
    Namespace::open(path).unwrap()
}

/// A TCP server that tells each client who it came as, until dropped.
pub struct Server {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn tcp(namespace: &Namespace, port: u16) -> Self {
        let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::spawn(move || {
            if let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        })
    }

    pub fn tcp6(namespace: &Namespace, port: u16) -> Self {
        let listener = namespace.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::spawn(move || {
            if let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
            }
        })
    }

    pub fn udp(namespace: &Namespace, port: u16) -> Self {
        Self::udp_named(namespace, port, "")
    }

    /// Says its own name before it.
    pub fn udp_named(namespace: &Namespace, port: u16, name: &str) -> Self {
        let name = name.to_owned();
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self::spawn(move || {
            let mut buffer = [0; 64];
            if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", peer.ip()).trim_start().as_bytes(), peer);
            }
        })
    }

    /// A name server that knows `example.com` as 192.0.2.7 and nothing else.
    pub fn dns(namespace: &Namespace) -> Self {
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self::spawn(move || {
            let mut buffer = [0; 512];
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { return };
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_queries(query.queries.iter().cloned());
            if query.queries[0].name().to_ascii() == "example.com." {
                let data = RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 7));
                reply.add_answer(hickory_proto::rr::Record::from_rdata(query.queries[0].name().clone(), 60, data));
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&reply.to_vec().unwrap(), peer).unwrap();
        })
    }

    fn spawn(mut step: impl FnMut() + Send + 'static) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                step();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who the server at `address` takes a client in `namespace` for.
pub fn tcp(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> Option<String> {
    talk_tcp(namespace, SocketAddr::new(address.into(), port), PATIENCE)
}

/// The same, where nothing is expected.
pub fn tcp_glance(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> Option<String> {
    talk_tcp(namespace, SocketAddr::new(address.into(), port), GLANCE)
}

fn talk_tcp(namespace: &Namespace, address: SocketAddr, patience: Duration) -> Option<String> {
    namespace
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
        .unwrap()
}

pub fn udp(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> Option<String> {
    ask_udp(namespace, address, port).ok()
}

/// The same; an error says whether it was refused.
pub fn ask_udp(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::new(address.into(), port);
    let any: IpAddr = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    namespace.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(address)?;
        socket.send(b"who am I")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })?
}

/// Asks the container's resolver over UDP, and checks that it says the same over TCP.
pub fn lookup(namespace: &Namespace, name: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
    let message = ask(namespace, name, RecordType::A);
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    (message.metadata.response_code, addresses.collect())
}

/// What the container's resolver says to a question of any type, as text.
pub fn lookup_text(namespace: &Namespace, name: &str, kind: RecordType) -> Vec<String> {
    ask(namespace, name, kind).answers.iter().map(|record| record.data.to_string()).collect()
}

fn ask(namespace: &Namespace, name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_str_relaxed(format!("{name}.")).unwrap(), kind));
    let bytes = query.to_vec().unwrap();
    let reply = namespace
        .run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
            socket.connect(("127.0.0.11", 53)).unwrap();
            socket.send(&bytes).unwrap();
            let mut buffer = [0; 1500];
            let length = socket.recv(&mut buffer).expect("the resolver answers");
            buffer[..length].to_vec()
        })
        .unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.metadata.id, query.metadata.id);
    message
}

pub fn lookup_tcp(namespace: &Namespace, name: &str) -> usize {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_str_relaxed(format!("{name}.")).unwrap(), RecordType::A));
    let bytes = query.to_vec().unwrap();
    let reply = namespace
        .run(|| {
            let mut stream = TcpStream::connect(("127.0.0.11", 53)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply).unwrap();
            reply
        })
        .unwrap();
    Message::from_vec(&reply).unwrap().answers.len()
}

/// Waits for what happens in its own time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}
