//! The façade: a cheap handle to everything the engine does.

use std::path::Path;
use std::sync::Arc;

use skep_model::ContainerId;
use skep_model::sandbox::EndpointRequest;

use crate::config::{EngineConfig, SandboxDriver};
use crate::container::*;
use crate::error::Result;
use crate::event::EventBus;

/// Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    config: EngineConfig,
    events: Arc<EventBus>,
}

/// `key` is always an id, an unambiguous beginning of one, or a name (with or without slash).
#[allow(unused_variables)]
impl Engine {
    /// Loads what is on disk, finds or starts the supervisor, adopts the containers that live, settles those that do not,
    /// and applies restart policies.
    pub async fn open(config: EngineConfig, sandboxes: Arc<dyn SandboxDriver>) -> Result<Self> {
        unimplemented!()
    }

    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }
    pub fn events(&self) -> &Arc<EventBus> {
        &self.inner.events
    }
    /// Stops serving: logs are flushed, tasks ended; containers live on under the supervisor.
    pub async fn close(&self) {
        unimplemented!()
    }
    /// Stops every container (dockerd's shutdown without `live-restore`).
    pub async fn stop_all(&self, timeout_secs: i64) {
        unimplemented!()
    }

    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        unimplemented!()
    }
    pub async fn start(&self, key: &str) -> Result<()> {
        unimplemented!()
    }
    /// NotModified if it is not running.
    pub async fn stop(&self, key: &str, options: StopOptions) -> Result<()> {
        unimplemented!()
    }
    /// `signal` as a name with or without `SIG`, or a number; empty is KILL.
    pub async fn kill(&self, key: &str, signal: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn restart(&self, key: &str, options: StopOptions) -> Result<()> {
        unimplemented!()
    }
    pub async fn pause(&self, key: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn unpause(&self, key: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn rename(&self, key: &str, name: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn remove(&self, key: &str, options: RemoveOptions) -> Result<()> {
        unimplemented!()
    }
    pub async fn update(&self, key: &str, request: UpdateRequest) -> Result<Vec<String>> {
        unimplemented!()
    }
    /// Newest first.
    pub fn list(&self, options: ListOptions) -> Vec<Arc<ContainerRecord>> {
        unimplemented!()
    }
    pub fn inspect(&self, key: &str) -> Result<Arc<ContainerRecord>> {
        unimplemented!()
    }
    /// Bytes in the writable layer, and of the whole root file system (`inspect?size=1`, `ps -s`).
    pub async fn sizes(&self, key: &str) -> Result<(u64, u64)> {
        unimplemented!()
    }
    pub async fn wait(&self, key: &str, condition: WaitCondition) -> Result<WaitOutcome> {
        unimplemented!()
    }
    pub async fn logs(&self, key: &str, request: LogsRequest) -> Result<LogStream> {
        unimplemented!()
    }
    pub async fn attach(&self, key: &str, request: AttachRequest) -> Result<Attached> {
        unimplemented!()
    }
    pub async fn resize(&self, key: &str, height: u16, width: u16) -> Result<()> {
        unimplemented!()
    }
    /// `ps_args` other than `-ef` and `aux` are refused.
    pub async fn top(&self, key: &str, ps_args: &str) -> Result<Top> {
        unimplemented!()
    }
    /// One reading, with the one a moment before as `previous` unless `one_shot`.
    pub async fn stats(&self, key: &str, one_shot: bool) -> Result<Stats> {
        unimplemented!()
    }
    /// A reading a second until the container is removed.
    pub async fn stats_stream(&self, key: &str) -> Result<StatsStream> {
        unimplemented!()
    }

    pub async fn exec_create(&self, key: &str, config: ExecConfig) -> Result<String> {
        unimplemented!()
    }
    pub async fn exec_start_attached(&self, exec_id: &str) -> Result<Attached> {
        unimplemented!()
    }
    pub async fn exec_start_detached(&self, exec_id: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn exec_resize(&self, exec_id: &str, height: u16, width: u16) -> Result<()> {
        unimplemented!()
    }
    pub fn exec_inspect(&self, exec_id: &str) -> Result<ExecRecord> {
        unimplemented!()
    }

    /// Connects a container to a network: at once if it runs, else when it starts.
    pub async fn connect(&self, key: &str, request: EndpointRequest) -> Result<()> {
        unimplemented!()
    }
    pub async fn disconnect(&self, key: &str, network: &str, force: bool) -> Result<()> {
        unimplemented!()
    }

    /// For `docker cp` and `export`: the mounted root file system of a container, mounted for the caller if it is stopped.
    pub async fn with_rootfs<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        unimplemented!()
    }

    /// Containers made of an image (its id), for the refusal to remove it.
    pub fn containers_of_image(&self, image_id: &str) -> Vec<ContainerId> {
        unimplemented!()
    }
}
