//! Hosts on 127.0.0.x, each with a node that can be dropped and started again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use skep_model::service::{Mode, ServiceSpec};
use skep_model::task::{Task, TaskState};
use tempfile::TempDir;

use super::fake::FakeHost;
use crate::ca::CertificateFiles;
use crate::lifecycle::Inner;
use crate::transport::{LiveTls, TlsMaterial};
use crate::{InitRequest, JoinRequest, Node, NodeConfig};

static NEXT: AtomicU16 = AtomicU16::new(0);

pub(super) struct Host {
    pub(super) node: Node,
    pub(super) fake: Arc<FakeHost>,
    config: NodeConfig,
    pub(super) address: String,
    _directory: TempDir,
}

impl Host {
    pub(super) async fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Other test processes have other addresses: pids differ in the low bytes.
        let pid = std::process::id();
        let port = free_port();
        let address = format!("127.{}.{}.{}:{port}", 1 + (pid >> 8) % 250, pid % 250, 1 + number % 250);
        let config = NodeConfig::new(directory.path().join("data"), directory.path().join("run"), name);
        let fake = FakeHost::new(name);
        let node = start(&config, &fake).await;
        Self { node, fake, config, address, _directory: directory }
    }

    pub(super) async fn init(&self) {
        self.node
            .swarm_init(InitRequest { listen_addr: self.address.clone(), ..InitRequest::default() })
            .await
            .unwrap();
    }

    pub(super) fn join_request(&self, to: &Host, token: &str) -> JoinRequest {
        JoinRequest {
            listen_addr: self.address.clone(),
            advertise_addr: self.address.clone(),
            remote_addrs: vec![to.address.clone()],
            join_token: token.into(),
            ..JoinRequest::default()
        }
    }

    pub(super) async fn join_as_worker(&self, to: &Host) {
        let token = to.node.swarm_inspect().unwrap().join_tokens.worker;
        self.node.swarm_join(self.join_request(to, &token)).await.unwrap();
    }

    pub(super) async fn join_as_manager(&self, to: &Host) {
        let token = to.node.swarm_inspect().unwrap().join_tokens.manager;
        self.node.swarm_join(self.join_request(to, &token)).await.unwrap();
    }

    /// The daemon ends in order and comes back; containers go on meanwhile.
    pub(super) async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = start(&self.config, &self.fake).await;
    }

    pub(super) fn data_root(&self) -> &Path {
        &self.config.data_root
    }

    /// With the certificate that is on its disk now.
    pub(super) fn tls(&self) -> LiveTls {
        let (root, certificate, key) = CertificateFiles::new(&self.config.swarm_dir()).load().unwrap().unwrap();
        LiveTls::new(TlsMaterial::new(&root, &certificate, &key).unwrap())
    }

    pub(super) fn assignments(&self) -> PathBuf {
        self.config.data_root.join("swarm/worker/assignments")
    }

    pub(super) async fn start(&mut self) {
        self.node = start(&self.config, &self.fake).await;
    }

    /// After [`abandon`](crate::lifecycle::Inner::abandon): the log is free once the old one has let go of it.
    pub(super) async fn restart_after_crash(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.start().await;
            if self.node.info().state != crate::LocalState::Error {
                return;
            }
            assert!(Instant::now() < deadline, "{}", self.node.info().error);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As if the network had given the host another address while its daemon was away.
    pub(super) fn move_to_another_address(&mut self) {
        let path = self.swarm_dir().join("state.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, port) = self.address.split_once(':').unwrap();
        let elsewhere =
            format!("127.254.{}.{}:{port}", std::process::id() % 250, NEXT.fetch_add(1, Ordering::Relaxed) % 250 + 1);
        std::fs::write(path, text.replace(&self.address, &elsewhere)).unwrap();
        self.address = elsewhere;
    }

    pub(super) fn swarm_dir(&self) -> PathBuf {
        self.config.data_root.join("swarm")
    }

    pub(super) fn certificates(&self) -> PathBuf {
        self.config.data_root.join("swarm/certificates")
    }
}

async fn start(config: &NodeConfig, fake: &Arc<FakeHost>) -> Node {
    Node { inner: Box::pin(Inner::start_without_host(config.clone(), fake.clone())).await.unwrap() }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A manager and so many workers, joined.
pub(super) async fn cluster(workers: usize) -> Vec<Host> {
    let manager = Host::new("node1").await;
    manager.init().await;
    let mut hosts = vec![manager];
    for number in 0..workers {
        let worker = Host::new(&format!("node{}", number + 2)).await;
        worker.join_as_worker(&hosts[0]).await;
        hosts.push(worker);
    }
    hosts
}

/// So many managers, the first of them leading.
pub(super) async fn managers(count: usize) -> Vec<Host> {
    let mut hosts = cluster(0).await;
    for number in 1..count {
        let host = Host::new(&format!("node{}", number + 1)).await;
        host.join_as_manager(&hosts[0]).await;
        hosts.push(host);
    }
    hosts
}

pub(super) fn service(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = ServiceSpec { name: name.into(), mode: Mode::Replicated { replicas }, ..ServiceSpec::default() };
    spec.task.container.image = "skep/whoami".into();
    spec
}

/// Polls until it holds; the message says what did not.
#[track_caller]
pub(super) fn eventually<'a>(
    what: &'a str,
    seconds: u64,
    mut holds: impl FnMut() -> bool + 'a,
) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    async move {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !holds() {
            assert!(Instant::now() < deadline, "{place}: {what}: not within {seconds} s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) fn running(node: &Node) -> Vec<Task> {
    let mut tasks = node.task_list().unwrap();
    tasks.retain(|t| t.status.state == TaskState::Running && t.desired_state == TaskState::Running);
    tasks
}
