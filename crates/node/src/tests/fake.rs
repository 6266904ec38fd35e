//! An executor whose containers exist in memory: at once, unless told otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use skep_agent::task::{ContainerFacts, Exit, Observation, Started, TaskEvent};
use skep_model::node::NodeDescription;
use skep_model::plan::HostPlan;
use skep_model::task::Task;
use skep_model::{ServiceId, TaskId};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

use crate::agent_loop::{Executor, LogLine, LogLines, Surroundings};
use crate::facade::LogRequest;

struct Container {
    task: TaskId,
    service: ServiceId,
    name: String,
    /// `None` before it starts.
    running: watch::Sender<Option<bool>>,
    lease: watch::Sender<Duration>,
}

/// One host's containers; they outlive the node that made them, as real ones do.
pub(super) struct FakeHost {
    hostname: String,
    containers: Mutex<BTreeMap<String, Container>>,
    pub(super) plan: Mutex<HostPlan>,
}

impl FakeHost {
    pub(super) fn new(hostname: &str) -> Arc<Self> {
        Arc::new(Self { hostname: hostname.into(), containers: Mutex::default(), plan: Mutex::default() })
    }

    pub(super) fn running(&self) -> Vec<TaskId> {
        let containers = self.containers.lock().unwrap();
        containers.values().filter(|c| *c.running.borrow() == Some(true)).map(|c| c.task.clone()).collect()
    }

    /// Not even a container that has ended.
    pub(super) fn is_empty(&self) -> bool {
        self.containers.lock().unwrap().is_empty()
    }

    /// As a process that ends by itself.
    pub(super) fn crash(&self, task: &TaskId) {
        let containers = self.containers.lock().unwrap();
        for container in containers.values().filter(|c| c.task == *task) {
            container.running.send_replace(Some(false));
        }
    }
}

#[async_trait]
impl Executor for FakeHost {
    async fn describe(&self, root_pem: &str, _: Option<std::net::IpAddr>) -> NodeDescription {
        NodeDescription {
            hostname: self.hostname.clone(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            tls_trust_root_pem: root_pem.into(),
            plugins: vec![("Network".into(), "overlay".into()), ("Volume".into(), "local".into())],
            ..NodeDescription::default()
        }
    }

    async fn observe(&self, task: &Task) -> Observation {
        let containers = self.containers.lock().unwrap();
        let Some((id, container)) = containers.iter().find(|(_, c)| c.task == task.id) else {
            return Observation::Absent;
        };
        let state = match *container.running.borrow() {
            None => ContainerFacts::Created,
            Some(true) => {
                ContainerFacts::Running { pid: 1, health: None, host_ports: Vec::new(), addresses: BTreeMap::new() }
            }
            Some(false) => ContainerFacts::Exited(Exit { code: 1, cause: String::new() }),
        };
        Observation::Known { container_id: id.clone(), state }
    }

    async fn pull(&self, task: &Task) -> Result<(), String> {
        match task.spec.container.image.as_str() {
            "missing" => Err("No such image: missing:latest".into()),
            _ => Ok(()),
        }
    }

    async fn create(&self, task: &Task, _around: &Surroundings) -> Result<String, String> {
        let id = format!("c{}", task.id);
        self.containers.lock().unwrap().insert(
            id.clone(),
            Container {
                task: task.id.clone(),
                service: task.service_id.clone(),
                name: task.name(),
                running: watch::channel(None).0,
                lease: watch::channel(Duration::ZERO).0,
            },
        );
        Ok(id)
    }

    async fn start(&self, _task: &Task, container_id: &str) -> Result<Started, String> {
        let containers = self.containers.lock().unwrap();
        let container = containers.get(container_id).ok_or("No such container")?;
        container.running.send_replace(Some(true));
        Ok(Started { pid: 1, has_health_check: false, host_ports: Vec::new(), addresses: BTreeMap::new() })
    }

    async fn listening(&self, _container_id: &str, _ports: &[u16], _at_most: Duration) {}

    async fn watch(&self, container_id: &str, events: mpsc::Sender<TaskEvent>) {
        let receiver = self.containers.lock().unwrap().get(container_id).map(|c| c.running.subscribe());
        if let Some(mut running) = receiver {
            let _ = running.wait_for(|r| *r == Some(false)).await;
        }
        let _ = events.send(TaskEvent::Exited(Exit { code: 1, cause: String::new() })).await;
    }

    async fn stop(&self, container_id: &str, _drain: Duration, _grace: Duration) -> Result<(), String> {
        if let Some(container) = self.containers.lock().unwrap().get(container_id) {
            container.running.send_replace(Some(false));
        }
        Ok(())
    }

    async fn kill(&self, container_id: &str) -> Result<(), String> {
        self.stop(container_id, Duration::ZERO, Duration::ZERO).await
    }

    /// As the supervisor does it: a daemon that is gone changes nothing.
    async fn lease(&self, container_id: &str, until: Duration) -> Result<(), String> {
        let (running, mut lease) = {
            let containers = self.containers.lock().unwrap();
            let container = containers.get(container_id).ok_or("No such container")?;
            let is_first = container.lease.send_replace(until).is_zero();
            if !is_first {
                return Ok(());
            }
            (container.running.clone(), container.lease.subscribe())
        };
        tokio::spawn(async move {
            while let Some(left) = { *lease.borrow_and_update() }.checked_sub(skep_engine::since_boot()) {
                tokio::time::sleep(left + Duration::from_millis(1)).await;
            }
            running.send_if_modified(|r| *r == Some(true) && r.replace(false).is_some());
        });
        Ok(())
    }

    async fn remove(&self, task: &Task, _container_id: Option<&str>) -> Result<(), String> {
        self.remove_stray(&task.id).await
    }

    async fn found(&self) -> Vec<TaskId> {
        self.containers.lock().unwrap().values().map(|c| c.task.clone()).collect()
    }

    async fn remove_stray(&self, task: &TaskId) -> Result<(), String> {
        self.containers.lock().unwrap().retain(|_, c| c.task != *task);
        Ok(())
    }

    async fn apply(&self, plan: &Arc<HostPlan>) -> bool {
        *self.plan.lock().unwrap() = HostPlan::clone(plan);
        true
    }

    /// Says everything back.
    async fn serve(&self, connection: DuplexStream) {
        let (mut reader, mut writer) = tokio::io::split(connection);
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    }

    async fn logs(&self, task: &TaskId, _request: &LogRequest) -> Result<LogLines, String> {
        let containers = self.containers.lock().unwrap();
        let container = containers.values().find(|c| c.task == *task).ok_or("its container is gone")?;
        let line = LogLine {
            service_id: container.service.clone(),
            stderr: false,
            at: crate::clock::now(),
            data: Bytes::from(format!("hello from {}\n", container.name)),
        };
        Ok(futures_util::stream::iter([Ok(line)]).boxed())
    }
}
