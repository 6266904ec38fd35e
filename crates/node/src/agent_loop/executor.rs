//! What performs the effects `agent` decides on. Two: the engine and net of this host, and an instant one in tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use skep_agent::spec::NodeFacts;
use skep_agent::task::{Observation, Started, TaskEvent};
use skep_model::network::NetworkSpec;
use skep_model::node::NodeDescription;
use skep_model::plan::HostPlan;
use skep_model::secret::{Config, Secret};
use skep_model::task::Task;
use skep_model::{ConfigId, NetworkId, SecretId, ServiceId, TaskId, Timestamp};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::facade::LogRequest;

/// What a task needs of the assignments it came with.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) node: NodeFacts,
    pub(crate) secrets: BTreeMap<SecretId, Secret>,
    pub(crate) configs: BTreeMap<ConfigId, Config>,
    pub(crate) networks: BTreeMap<NetworkId, NetworkSpec>,
}

#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    pub(crate) service_id: ServiceId,
    pub(crate) stderr: bool,
    pub(crate) at: Timestamp,
    pub(crate) data: Bytes,
}

pub(crate) type LogLines = BoxStream<'static, Result<LogLine, String>>;

/// Errors are texts for the user: they become a task's `status.err`. Every call may be repeated.
#[async_trait]
pub(crate) trait Executor: Send + Sync + 'static {
    /// `address` is this node's own, where it has been told one.
    async fn describe(&self, root_pem: &str, address: Option<IpAddr>) -> NodeDescription;
    async fn observe(&self, task: &Task) -> Observation;
    async fn pull(&self, task: &Task) -> Result<(), String>;
    async fn create(&self, task: &Task, around: &Surroundings) -> Result<String, String>;
    async fn start(&self, task: &Task, container_id: &str) -> Result<Started, String>;
    /// Returns when a container that has no health check listens on one of the ports, has ended, or after `at_most`.
    async fn listening(&self, container_id: &str, ports: &[u16], at_most: Duration);
    /// Sends `HealthChanged` as it happens and `Exited` at last, also if that was before the call.
    async fn watch(&self, container_id: &str, events: mpsc::Sender<TaskEvent>);
    /// Before the stop signal, connections under way have up to `drain` to end.
    async fn stop(&self, container_id: &str, drain: Duration, grace: Duration) -> Result<(), String>;
    async fn kill(&self, container_id: &str) -> Result<(), String>;
    /// It is killed once this host has been up for so long, unless a later lease comes first; whatever becomes of the daemon.
    async fn lease(&self, container_id: &str, until: Duration) -> Result<(), String>;
    async fn remove(&self, task: &Task, container_id: Option<&str>) -> Result<(), String>;
    /// Tasks that have a container here, whoever made it.
    async fn found(&self) -> Vec<TaskId>;
    /// Removes the container of a task nobody knows any more.
    async fn remove_stray(&self, task: &TaskId) -> Result<(), String>;
    /// Whether new connections now go only where the plan says.
    async fn apply(&self, plan: &Arc<HostPlan>) -> bool;
    /// A manager's connection to the API of the containers here.
    async fn serve(&self, connection: DuplexStream);
    async fn logs(&self, task: &TaskId, request: &LogRequest) -> Result<LogLines, String>;
}
