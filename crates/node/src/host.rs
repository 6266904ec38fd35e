//! Gives the engine its sandboxes from `net`. Neither knows the other; this is all that passes between them.

use async_trait::async_trait;
use skep_engine::{EngineError, SandboxDriver};
use skep_model::ContainerId;
use skep_model::sandbox::{EndpointInfo, EndpointRequest, Sandbox, SandboxRequest};
use skep_net::Net;

/// `engine::SandboxDriver` over [`Net`], for the daemon's wiring.
#[derive(Clone)]
pub struct NetSandboxes(Net);

impl NetSandboxes {
    pub fn new(net: Net) -> Self {
        Self(net)
    }
}

fn engine_error(error: skep_net::NetError) -> EngineError {
    let text = error.to_string();
    match error.kind() {
        skep_net::ErrorKind::NotFound => EngineError::NotFound(text),
        skep_net::ErrorKind::Conflict => EngineError::Conflict(text),
        skep_net::ErrorKind::Invalid => EngineError::Invalid(text),
        skep_net::ErrorKind::Forbidden => EngineError::Forbidden(text),
        skep_net::ErrorKind::NotImplemented => EngineError::NotImplemented(text),
        skep_net::ErrorKind::Internal => EngineError::Internal(text),
    }
}

#[async_trait]
impl SandboxDriver for NetSandboxes {
    async fn setup(&self, request: &SandboxRequest) -> Result<Sandbox, EngineError> {
        self.0.setup_sandbox(request).await.map_err(engine_error)
    }

    async fn teardown(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.0.teardown_sandbox(id).await.map_err(engine_error)
    }

    async fn connect(&self, id: &ContainerId, request: &EndpointRequest) -> Result<EndpointInfo, EngineError> {
        self.0.connect(id, request).await.map_err(engine_error)
    }

    async fn disconnect(&self, id: &ContainerId, network: &str, force: bool) -> Result<(), EngineError> {
        self.0.disconnect(id, network, force).await.map_err(engine_error)
    }

    async fn retain(&self, living: &[ContainerId]) -> Result<(), EngineError> {
        self.0.retain_sandboxes(living).await.map_err(engine_error)
    }
}
