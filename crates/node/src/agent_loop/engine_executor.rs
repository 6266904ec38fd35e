//! Effects on this host: containers of its engine, kernel state of its net.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use skep_agent::spec::{self, LABEL_SERVICE_ID, LABEL_TASK_ID};
use skep_agent::task::{ContainerFacts, Exit, Health, Observation, Started, TaskEvent};
use skep_engine::container::{
    ContainerRecord, CreateRequest, HealthStatus, ListOptions, LogsRequest, RemoveOptions, Status, StdStream,
    StopOptions, TaskExtras, TaskFile, WaitCondition,
};
use skep_engine::image::{ProgressSender, PullOptions, RegistryAuth};
use skep_engine::{Engine, EngineError, ErrorKind};
use skep_model::generic::GenericResource;
use skep_model::node::NodeDescription;
use skep_model::plan::HostPlan;
use skep_model::service::{PortConfig, Protocol, PublishMode};
use skep_model::task::Task;
use skep_model::{Labels, NetworkId, TaskId};
use skep_net::Net;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::executor::{Executor, LogLine, LogLines, Surroundings};
use crate::config::NodeConfig;
use crate::facade::LogRequest;

/// In uname's spelling, as Docker shows it (`x86_64`).
pub(crate) const ARCHITECTURE: &str = std::env::consts::ARCH;

pub(crate) struct EngineExecutor {
    engine: Engine,
    net: Net,
    hostname: String,
    labels: Labels,
    generic_resources: Vec<GenericResource>,
    version: String,
    connections: mpsc::Sender<DuplexStream>,
    /// One pull of an image at a time: the others find it there.
    pulls: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl EngineExecutor {
    /// `connections` is where those of managers to the API of this host's containers go.
    pub(crate) fn new(config: &NodeConfig, engine: Engine, net: Net, connections: mpsc::Sender<DuplexStream>) -> Self {
        Self {
            engine,
            net,
            hostname: config.hostname.clone(),
            labels: config.labels.clone(),
            generic_resources: config.generic_resources.clone(),
            version: config.engine_version.clone(),
            connections,
            pulls: Mutex::default(),
        }
    }

    fn container_of(&self, task_id: &TaskId) -> Option<Arc<ContainerRecord>> {
        self.engine
            .list(ListOptions { all: true })
            .into_iter()
            .find(|c| c.config.labels.get(LABEL_TASK_ID).is_some_and(|id| id == task_id.as_str()))
    }

    fn pull_turn(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
        pulls.entry(image.to_owned()).or_default().clone()
    }

    async fn remove_container(&self, key: &str) -> Result<(), String> {
        match self.engine.remove(key, RemoveOptions { force: true, volumes: true }).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.to_string()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn memory_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<i64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

fn cpus() -> i64 {
    std::thread::available_parallelism().ok().and_then(|n| i64::try_from(n.get()).ok()).unwrap_or(1)
}

fn facts_of(record: &ContainerRecord) -> ContainerFacts {
    match record.state.status {
        Status::Created => ContainerFacts::Created,
        Status::Running | Status::Paused | Status::Restarting => ContainerFacts::Running {
            pid: i64::from(record.state.pid),
            health: record.state.health.as_ref().map(|h| health_of(h.status)),
            host_ports: host_ports(record),
            addresses: addresses(record),
        },
        Status::Exited | Status::Dead | Status::Removing => ContainerFacts::Exited(exit_of(record)),
    }
}

fn health_of(status: HealthStatus) -> Health {
    match status {
        HealthStatus::Starting => Health::Starting,
        HealthStatus::Healthy => Health::Healthy,
        HealthStatus::Unhealthy => Health::Unhealthy,
    }
}

fn exit_of(record: &ContainerRecord) -> Exit {
    let cause = match (record.state.oom_killed, record.state.error.as_str()) {
        (true, _) => "OOM killed".to_owned(),
        (false, error) => error.to_owned(),
    };
    Exit { code: i64::from(record.state.exit_code), cause }
}

/// What this host gave it on networks that hosts make for themselves.
fn addresses(record: &ContainerRecord) -> BTreeMap<NetworkId, Ipv4Addr> {
    let made_here: Vec<&str> =
        record.endpoints.iter().filter(|e| e.made_from.is_some()).map(|e| e.network.as_str()).collect();
    let there = record.sandbox.iter().flat_map(|s| &s.endpoints);
    there
        .filter(|e| made_here.contains(&e.network_id.as_str()))
        .map(|e| (e.network_id.clone(), e.address.addr()))
        .collect()
}

fn host_ports(record: &ContainerRecord) -> Vec<PortConfig> {
    let published = record.sandbox.iter().flat_map(|s| &s.published);
    published
        .filter(|p| p.host_ip.is_ipv4())
        .map(|p| PortConfig {
            name: String::new(),
            protocol: match p.protocol {
                Protocol::Tcp => Protocol::Tcp,
                Protocol::Udp => Protocol::Udp,
                Protocol::Sctp => Protocol::Sctp,
            },
            target_port: p.container_port,
            published_port: p.host_port,
            mode: PublishMode::Host,
        })
        .collect()
}

/// An answer to `stop` or `kill` that means there is nothing left to stop.
fn already(error: &EngineError) -> bool {
    matches!(error.kind(), ErrorKind::NotModified | ErrorKind::NotFound | ErrorKind::Conflict)
}

#[async_trait]
impl Executor for EngineExecutor {
    async fn describe(&self, root_pem: &str, address: Option<IpAddr>) -> NodeDescription {
        let plugin = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        NodeDescription {
            hostname: self.hostname.clone(),
            os: "linux".into(),
            architecture: ARCHITECTURE.into(),
            nano_cpus: cpus() * 1_000_000_000,
            memory_bytes: memory_bytes(),
            generic: self.generic_resources.clone(),
            engine_version: self.version.clone(),
            engine_labels: self.labels.clone(),
            plugins: vec![
                plugin("Log", "json-file"),
                plugin("Network", "bridge"),
                plugin("Network", "host"),
                plugin("Network", "macvlan"),
                plugin("Network", "null"),
                plugin("Network", "overlay"),
                plugin("Volume", "local"),
            ],
            tls_trust_root_pem: root_pem.to_owned(),
            link_mtu: address.and_then(|address| self.net.underlay_mtu(address)),
            ..NodeDescription::default()
        }
    }

    async fn observe(&self, task: &Task) -> Observation {
        match self.container_of(&task.id) {
            None => Observation::Absent,
            Some(record) => Observation::Known { container_id: record.id.to_string(), state: facts_of(&record) },
        }
    }

    /// An image that is here is used as it is: a tag is resolved to a digest when the service is created, and a digest
    /// cannot change. (moby pulls anyway; `DOCKER_SERVICE_PREFER_OFFLINE_IMAGE` makes it do as we do.)
    async fn pull(&self, task: &Task) -> Result<(), String> {
        let request = spec::pull(task);
        let images = self.engine.images();
        if images.resolve(&request.image).is_ok() {
            return Ok(());
        }
        let turn = self.pull_turn(&request.image);
        let _turn = turn.lock().await;
        if images.resolve(&request.image).is_ok() {
            return Ok(());
        }
        let auth = match &request.auth {
            Some(header) => {
                RegistryAuth::from_header(&String::from_utf8_lossy(&header.0)).map_err(|error| error.to_string())?
            }
            None => None,
        };
        let pulled = images.pull(&request.image, PullOptions { auth, platform: None }, ProgressSender::silent()).await;
        match pulled {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(task.id = %task.id, image = request.image, %error, "cannot pull");
                Err(format!("No such image: {}", familiar(&request.image)))
            }
        }
    }

    async fn create(&self, task: &Task, around: &Surroundings) -> Result<String, String> {
        if let Some(record) = self.container_of(&task.id) {
            return Ok(record.id.to_string());
        }
        let plan = spec::container(task, &around.node, &around.secrets, &around.configs, &around.networks)?;
        // The engine would only find out when it starts the container.
        for endpoint in &plan.endpoints {
            self.net.ensure_of_swarm(endpoint).await.map_err(|error| error.to_string())?;
        }
        let files = plan.files.into_iter().map(|f| TaskFile {
            target: f.target.into(),
            uid: f.uid,
            gid: f.gid,
            mode: f.mode,
            data: f.data,
        });
        let request = CreateRequest {
            name: Some(plan.name),
            config: plan.config,
            host_config: plan.host_config,
            endpoints: plan.endpoints,
            task: Some(TaskExtras { task_id: task.id.to_string(), files: files.collect() }),
            platform: String::new(),
        };
        self.engine.create(request).await.map(|created| created.id.to_string()).map_err(|error| error.to_string())
    }

    async fn start(&self, _task: &Task, container_id: &str) -> Result<Started, String> {
        match self.engine.start(container_id).await {
            // moby's word before whatever the engine says.
            Err(error) if error.kind() != ErrorKind::NotModified => {
                return Err(format!("starting container failed: {error}"));
            }
            Ok(()) | Err(_) => {}
        }
        let record = self.engine.inspect(container_id).map_err(|error| error.to_string())?;
        Ok(Started {
            pid: i64::from(record.state.pid),
            has_health_check: record.state.health.as_ref().is_some_and(|h| h.status != HealthStatus::Healthy),
            host_ports: host_ports(&record),
            addresses: addresses(&record),
        })
    }

    async fn listening(&self, container_id: &str, ports: &[u16], at_most: Duration) {
        let running = || self.engine.inspect(container_id).ok().filter(|r| r.state.status == Status::Running);
        let checked = |record: &ContainerRecord| record.state.health.is_some();
        if let Some(record) = running().filter(|r| !checked(r)) {
            super::sockets::listening(record.state.pid, ports, at_most, || running().is_some()).await;
        }
    }

    async fn watch(&self, container_id: &str, events: mpsc::Sender<TaskEvent>) {
        let (_, mut happened) = self.engine.events().subscribe(None);
        let wait = self.engine.wait(container_id, WaitCondition::NotRunning);
        tokio::pin!(wait);
        // What the health was before anyone listened.
        if let Some(health) = self.engine.inspect(container_id).ok().and_then(|r| r.state.health.clone())
            && health.status != HealthStatus::Starting
        {
            let _ = events.send(TaskEvent::HealthChanged(health_of(health.status))).await;
        }
        let outcome = loop {
            tokio::select! {
                outcome = &mut wait => break outcome,
                event = happened.recv() => {
                    if let Ok(event) = event && !(event.actor_id == container_id && event.action.starts_with("health_status")) {
                        continue;
                    }
                    // Of this container, or some were missed: the record tells.
                    if let Some(health) = self.engine.inspect(container_id).ok().and_then(|r| r.state.health.clone()) {
                        let _ = events.send(TaskEvent::HealthChanged(health_of(health.status))).await;
                    }
                }
            }
        };
        let exit = match (outcome, self.engine.inspect(container_id)) {
            (_, Ok(record)) => exit_of(&record),
            (Ok(outcome), Err(_)) => Exit { code: i64::from(outcome.exit_code), cause: outcome.error },
            (Err(error), Err(_)) => Exit { code: 137, cause: error.to_string() },
        };
        let _ = events.send(TaskEvent::Exited(exit)).await;
    }

    async fn stop(&self, container_id: &str, drain: Duration, grace: Duration) -> Result<(), String> {
        if !drain.is_zero()
            && let Ok(record) = self.engine.inspect(container_id)
        {
            super::sockets::quiet(record.state.pid, drain).await;
        }
        let timeout_secs = i64::try_from(grace.as_secs_f64().ceil() as u64).ok();
        match self.engine.stop(container_id, StopOptions { timeout_secs, signal: None }).await {
            Err(error) if !already(&error) => Err(error.to_string()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn kill(&self, container_id: &str) -> Result<(), String> {
        match self.engine.kill(container_id, "KILL").await {
            Err(error) if !already(&error) => Err(error.to_string()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn lease(&self, container_id: &str, until: Duration) -> Result<(), String> {
        self.engine.lease(container_id, until).await.map_err(|error| error.to_string())
    }

    async fn remove(&self, task: &Task, container_id: Option<&str>) -> Result<(), String> {
        match container_id {
            Some(id) => self.remove_container(id).await,
            None => match self.container_of(&task.id) {
                Some(record) => self.remove_container(record.id.as_str()).await,
                None => Ok(()),
            },
        }
    }

    async fn found(&self) -> Vec<TaskId> {
        self.engine
            .list(ListOptions { all: true })
            .iter()
            .filter_map(|c| c.config.labels.get(LABEL_TASK_ID)?.parse().ok())
            .collect()
    }

    async fn remove_stray(&self, task: &TaskId) -> Result<(), String> {
        match self.container_of(task) {
            Some(record) => self.remove_container(record.id.as_str()).await,
            None => Ok(()),
        }
    }

    async fn apply(&self, plan: &Arc<HostPlan>) -> bool {
        let report = self.net.apply(plan).await;
        for problem in &report.failures {
            tracing::warn!(?problem, "the data plane is not all as it should be");
        }
        !report.misdirected
    }

    async fn serve(&self, connection: DuplexStream) {
        let _ = self.connections.send(connection).await;
    }

    async fn logs(&self, task: &TaskId, request: &LogRequest) -> Result<LogLines, String> {
        let record = self.container_of(task).ok_or_else(|| "its container is gone".to_owned())?;
        let service_id = record
            .config
            .labels
            .get(LABEL_SERVICE_ID)
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| "its container names no service".to_owned())?;
        let wanted = LogsRequest {
            stdout: request.stdout,
            stderr: request.stderr,
            follow: request.follow,
            tail: request.tail.and_then(|n| usize::try_from(n).ok()),
            since: (!request.since.is_zero()).then_some(request.since),
            until: None,
        };
        let lines = self.engine.logs(record.id.as_str(), wanted).await.map_err(|error| error.to_string())?;
        Ok(lines
            .map(move |line: Result<_, EngineError>| {
                line.map(|line| LogLine {
                    service_id: skep_model::ServiceId::clone(&service_id),
                    stderr: line.stream == StdStream::Stderr,
                    at: line.time,
                    data: line.data,
                })
                .map_err(|error| error.to_string())
            })
            .boxed())
    }
}

/// As Docker shows a reference: without the digest's noise, with `:latest`.
fn familiar(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
