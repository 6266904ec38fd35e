//! `skep bench-network`: the network side alone, without engine or swarm, as `cargo xtask bench network` wants it. Prints one
//! line a figure, `name value`.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use skep_model::plan::{Backend, HostPlan, IngressPlan, MeshPort, OverlayPlan};
use skep_model::sandbox::{EndpointRequest, NetworkMode, SandboxRequest};
use skep_model::service::Protocol;
use skep_model::{ContainerId, NetworkId};
use skep_net::link::Namespace;
use skep_net::{Net, NetConfig};

use crate::args::BenchNetworkCommand;

/// The address of `docker0`, which every host has.
const HOST: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const VIP: Ipv4Addr = on_overlay(2);
const PORT: u16 = 8080;
/// A connection that takes longer has failed. A first packet that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(900);

const fn on_overlay(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

pub(crate) fn run(command: &BenchNetworkCommand) -> anyhow::Result<ExitCode> {
    if let BenchNetworkCommand::Await { name, count, without } = command {
        return await_name(name, *count, without);
    }
    // A network namespace of its own; nothing else runs yet in this process.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the network namespace")?;
    let root = PathBuf::from(format!("/run/skep-bench-{}", std::process::id()));
    crate::daemon::take_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let (data_root, exec_root) = (root.join("data"), root.join("exec"));
        let tag = format!("{:04x}", std::process::id() & 0xffff);
        let net = Net::open(NetConfig::new(&data_root, &exec_root, &tag, skep_node::answer)).await?;
        let measured = match command {
            BenchNetworkCommand::Services => services(&net).await,
            BenchNetworkCommand::Swaps { count, mesh } => swaps(&net, *count, *mesh).await,
            BenchNetworkCommand::Await { .. } => Ok(()),
        };
        net.retain_sandboxes(&[]).await?;
        net.apply(&Arc::default()).await;
        net.close().await;
        measured
    });
    let _ = std::fs::remove_dir_all(&root);
    result.map(|()| ExitCode::SUCCESS)
}

fn network() -> NetworkId {
    NetworkId::from_bits(7)
}

/// One overlay with this host's leg of the mesh on it.
fn plan() -> HostPlan {
    let overlay = OverlayPlan {
        name: "net".into(),
        vni: 4097,
        subnet: Some(Ipv4Net::new_assert(on_overlay(0), 24)),
        gateway: Some(on_overlay(1)),
        mtu: 1450,
        local: (3..240).map(on_overlay).collect(),
        ..OverlayPlan::default()
    };
    let ingress = IngressPlan {
        network_id: Some(network()),
        address: Some(Ipv4Net::new_assert(on_overlay(240), 24)),
        ..IngressPlan::default()
    };
    HostPlan {
        vtep: Some(HOST),
        vxlan_port: 4789,
        members: Vec::new(),
        overlays: [(network(), overlay)].into(),
        ingress: Some(ingress),
        ..HostPlan::default()
    }
}

/// Port 80 of these tasks.
fn published(addresses: impl Iterator<Item = Ipv4Addr>) -> MeshPort {
    let backends: Vec<Backend> = addresses.map(|address| Backend { address, port: 80 }).collect();
    MeshPort { ring: backends.into(), ..MeshPort::default() }
}

async fn apply(net: &Net, plan: &HostPlan) -> anyhow::Result<Duration> {
    let plan = Arc::new(plan.clone());
    let begun = Instant::now();
    let report = net.apply(&plan).await;
    let took = begun.elapsed();
    match report.failures.first() {
        None => Ok(took),
        Some(failure) => bail!("{failure}"),
    }
}

/// A container's namespace on the overlay, with nothing in it.
async fn sandbox(net: &Net, last: u8) -> anyhow::Result<Namespace> {
    let request = SandboxRequest {
        container_id: ContainerId::from_bits([u128::from(last) << 120, 0]),
        container_name: format!("bench-{last}"),
        hostname: String::new(),
        domainname: String::new(),
        mode: NetworkMode::Private,
        is_task: true,
        endpoints: vec![EndpointRequest {
            network: network().to_string(),
            address: Some(on_overlay(last)),
            ..EndpointRequest::default()
        }],
        publish: Vec::new(),
        dns: Vec::new(),
        dns_search: Vec::new(),
        dns_options: Vec::new(),
        extra_hosts: Vec::new(),
    };
    let made = net.setup_sandbox(&request).await?;
    Ok(Namespace::open(&made.netns.context("a sandbox has a namespace")?)?)
}

/// A thousand services of three tasks elsewhere, published and with a VIP each: all at once, and one of them changed.
async fn services(net: &Net) -> anyhow::Result<()> {
    let mut plan = plan();
    apply(net, &plan).await?;
    sandbox(net, 11).await?;
    let address = |third: u8, n: u16| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, third, 0, 1)) + u32::from(n));
    let elsewhere = Ipv4Addr::new(172, 17, 0, 77);
    let overlay = plan.overlays.get_mut(&network()).context("the overlay")?;
    let tasks = |n: u16| (0..3).map(move |k| address(9, n * 3 + k));
    overlay.remote = (0..1000).flat_map(tasks).map(|task| (task, elsewhere)).collect();
    overlay.balancers = (0..1000).map(|n| (address(8, n), tasks(n).collect::<Vec<_>>().into())).collect();
    let ingress = plan.ingress.as_mut().context("the mesh")?;
    let ports = |n| published(tasks(n));
    ingress.ports = (0..1000).map(|n| ((Protocol::Tcp, 20_000 + n), ports(n))).collect();
    let print = |name: &str, took: Duration| println!("{name} {:.3}", took.as_secs_f64() * 1e3);
    print("network_1000_services_applied_ms", apply(net, &plan).await?);
    for n in 0..50 {
        // In the containers and in the mesh, as the agent has it.
        let overlay = plan.overlays.get_mut(&network()).context("the overlay")?;
        overlay.balancers.get_mut(&address(8, n)).context("a service")?.backends.pop();
        let ingress = plan.ingress.as_mut().context("the mesh")?;
        ingress.ports.get_mut(&(Protocol::Tcp, 20_000 + n)).context("a port")?.ring.backends.pop();
        print("network_one_backend_of_1000_changed_ms", apply(net, &plan).await?);
    }
    Ok(())
}

/// Answers every connection with a line.
fn serve(namespace: &Namespace) -> anyhow::Result<()> {
    let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, b"here\n");
        }
    });
    Ok(())
}

#[derive(Default)]
struct Tally {
    made: AtomicUsize,
    failed: AtomicUsize,
    over: AtomicBool,
}

fn connect_until_over(address: SocketAddr, tally: &Tally) {
    while !tally.over.load(Ordering::Relaxed) {
        let connected = TcpStream::connect_timeout(&address, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            // To its end, so that no server's queue of connections overflows and the server's side closes first.
            stream.read_to_string(&mut String::new())
        });
        tally.made.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = connected {
            tally.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("connection to {address}: {error}");
        }
    }
}

/// Backends of a service exchanged as fast as they can be, while a client makes one connection after the other.
async fn swaps(net: &Net, count: usize, mesh: bool) -> anyhow::Result<()> {
    let with = |backends: &[u8]| {
        let mut plan = plan();
        let addresses = || backends.iter().map(|last| on_overlay(*last));
        for overlay in plan.overlays.values_mut() {
            overlay.balancers = [(VIP, addresses().collect::<Vec<_>>().into())].into();
        }
        if let Some(ingress) = &mut plan.ingress {
            ingress.ports = BTreeMap::from([((Protocol::Tcp, PORT), published(addresses()))]);
        }
        plan
    };
    let layouts = [with(&[11, 12, 13]), with(&[12, 13]), with(&[13, 11, 12, 13]), with(&[11])];
    apply(net, &layouts[0]).await?;
    for last in [11, 12, 13] {
        serve(&sandbox(net, last).await?)?;
    }
    let (client, address) = if mesh {
        (Namespace::current()?, SocketAddr::from((HOST, PORT)))
    } else {
        (sandbox(net, 20).await?, SocketAddr::from((VIP, 80)))
    };
    let tally = std::sync::Arc::new(Tally::default());
    let load = {
        let tally = tally.clone();
        std::thread::spawn(move || client.run(|| connect_until_over(address, &tally)))
    };
    let begun = Instant::now();
    for turn in 1..=count {
        apply(net, &layouts[turn % layouts.len()]).await?;
    }
    let took = begun.elapsed().as_secs_f64();
    tally.over.store(true, Ordering::Relaxed);
    load.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let what = if mesh { "mesh" } else { "vip" };
    println!("network_swaps_{what} {count}");
    println!("network_swaps_{what}_per_s {:.0}", count as f64 / took);
    println!("network_swaps_{what}_connections {}", tally.made.load(Ordering::Relaxed));
    println!("network_swaps_{what}_failed {}", tally.failed.load(Ordering::Relaxed));
    Ok(())
}

/// Asks the resolver of this network namespace again and again, and prints the moment (milliseconds since 1970) at which a name
/// has so many addresses (0: some), and none of `without`.
fn await_name(name: &str, count: usize, without: &[Ipv4Addr]) -> anyhow::Result<ExitCode> {
    let mut query = vec![0x5e, 0x9e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    // The root; A, IN.
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(127, 0, 0, 11), 53))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut answer, mut last) = ([0; 4096], Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        socket.send(&query)?;
        let length = socket.recv(&mut answer).unwrap_or(0);
        let addresses = addresses(answer.get(query.len()..length).unwrap_or_default());
        let enough = if count == 0 { !addresses.is_empty() } else { addresses.len() == count };
        if enough && !without.iter().any(|address| addresses.contains(address)) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            println!("{:.3}", now.as_secs_f64() * 1e3);
            return Ok(ExitCode::SUCCESS);
        }
        last = addresses;
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("{name} is to have {count} addresses without {without:?}, and has {last:?}")
}

/// Of the records after the question: each a name (here always a pointer), type, class, TTL, length and an address.
fn addresses(records: &[u8]) -> Vec<Ipv4Addr> {
    let (records, _) = records.as_chunks::<16>();
    let address = |record: &[u8; 16]| Ipv4Addr::new(record[12], record[13], record[14], record[15]);
    records.iter().filter(|record| record[2..4] == [0, 1]).map(address).collect()
}
