//! Gives the engine its sandboxes from `net`. Neither knows the other; this is all that passes between them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use skep_engine::{EngineError, SandboxDriver};
use skep_model::sandbox::{EndpointInfo, EndpointRequest, LocalNetwork, Sandbox, SandboxRequest};
use skep_model::{ContainerId, NetworkId};
use skep_net::Net;
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use crate::attachments::ATTACH_DEADLINE;
use crate::error::{Kind, NodeError};
use crate::lifecycle::Inner;
use crate::transport::message::AttachCall;

/// `engine::SandboxDriver` over [`Net`], for the daemon's wiring.
#[derive(Clone)]
pub struct NetSandboxes {
    net: Net,
    shared: Arc<Shared>,
}

struct Shared {
    /// Who speaks to the swarm; the engine starts containers before it is there.
    node: watch::Sender<Weak<Inner>>,
    /// One thing at a time with a container's place in the swarm.
    turns: Mutex<BTreeMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    changed: Notify,
}

impl NetSandboxes {
    pub fn new(net: Net) -> Self {
        let (node, _) = watch::channel(Weak::new());
        Self { net, shared: Arc::new(Shared { node, turns: Mutex::default(), changed: Notify::new() }) }
    }

    pub(crate) fn net(&self) -> &Net {
        &self.net
    }

    pub(crate) fn serve(&self, node: &Arc<Inner>) {
        self.shared.node.send_replace(Arc::downgrade(node));
    }

    /// Containers that are no tasks, by where they are in the swarm: their address and names.
    pub(crate) fn attached(&self) -> BTreeMap<(NetworkId, ContainerId), (Ipv4Addr, Vec<String>)> {
        let attached = self.net.attached().into_iter();
        attached.map(|(container, at)| ((at.network_id, container), (at.address.addr(), at.dns_names))).collect()
    }

    /// Returns when `attached` may have changed.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn turn_of(&self, container: &ContainerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(container.clone()).or_default().clone()
    }

    /// `None` while the container is started, stopped or connected.
    pub(crate) fn try_turn(&self, container: &ContainerId) -> Option<OwnedMutexGuard<()>> {
        self.turn_of(container).try_lock_owned().ok()
    }

    async fn place_all(&self, request: &SandboxRequest) -> Result<SandboxRequest, EngineError> {
        let mut placed = request.clone();
        for endpoint in &mut placed.endpoints {
            self.place(&request.container_id, request.dns_names(endpoint), endpoint).await?;
        }
        Ok(placed)
    }

    /// Asks the swarm for a place on a network that this host does not have itself; the endpoint then names it by id.
    async fn place(
        &self,
        container: &ContainerId,
        names: Vec<String>,
        endpoint: &mut EndpointRequest,
    ) -> Result<(), EngineError> {
        let local = self.net.network(&endpoint.network);
        // The beginning of an id comes after a name or id of the swarm's; and what is here of the swarm's is the swarm's.
        let named = |n: &LocalNetwork| {
            !n.spec.of_swarm && (n.spec.name == endpoint.network || n.id.as_str() == endpoint.network)
        };
        if local.as_ref().is_ok_and(named) {
            return Ok(());
        }
        let mut node = self.shared.node.subscribe();
        let there = tokio::time::timeout(ATTACH_DEADLINE, node.wait_for(|node| node.strong_count() > 0));
        let Some(node) = there.await.ok().and_then(Result::ok).and_then(|node| node.upgrade()) else { return Ok(()) };
        // Outside a swarm there is no such network, and `net` says so.
        let Some(member) = node.member() else { return Ok(()) };
        let call = AttachCall {
            network: endpoint.network.clone(),
            container_id: container.clone(),
            names,
            address: endpoint.address,
            address6: endpoint.address6,
        };
        let at = match member.attach(&call).await {
            Err(error) if local.is_ok() && error.kind() == Kind::NotFound => return Ok(()),
            attached => attached.map_err(|error| unattached(&endpoint.network, &error))?,
        };
        endpoint.network = at.network_id.to_string();
        endpoint.made_from = at.made_from.map(Box::new);
        if endpoint.made_from.is_none() {
            endpoint.address = at.address;
        }
        Ok(())
    }
}

fn unattached(network: &str, error: &NodeError) -> EngineError {
    let text = format!("Could not attach to network {network}: {error}");
    match error.kind() {
        Kind::NotFound => EngineError::NotFound(text),
        Kind::Forbidden => EngineError::Forbidden(text),
        Kind::Invalid => EngineError::Invalid(text),
        Kind::Conflict => EngineError::Conflict(text),
        Kind::Unavailable => EngineError::Unavailable(text),
        _ => EngineError::Internal(text),
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
        if request.is_task {
            return self.net.setup_sandbox(request).await.map_err(engine_error);
        }
        let turn = self.turn_of(&request.container_id).lock_owned().await;
        let result = match self.place_all(request).await {
            Ok(request) => self.net.setup_sandbox(&request).await.map_err(engine_error),
            Err(error) => Err(error),
        };
        drop(turn);
        self.shared.changed.notify_one();
        result
    }

    async fn teardown(&self, id: &ContainerId) -> Result<(), EngineError> {
        let result = self.net.teardown_sandbox(id).await.map_err(engine_error);
        self.shared.changed.notify_one();
        result
    }

    async fn connect(&self, id: &ContainerId, request: &EndpointRequest) -> Result<EndpointInfo, EngineError> {
        let turn = self.turn_of(id).lock_owned().await;
        let mut endpoint = request.clone();
        let names = self.net.request_of(id).map(|sandbox| sandbox.dns_names(request)).unwrap_or_default();
        let result = match self.place(id, names, &mut endpoint).await {
            Ok(()) => self.net.connect(id, &endpoint).await.map_err(engine_error),
            Err(error) => Err(error),
        };
        drop(turn);
        self.shared.changed.notify_one();
        result
    }

    async fn disconnect(&self, id: &ContainerId, network: &str, force: bool) -> Result<(), EngineError> {
        let result = self.net.disconnect(id, network, force).await.map_err(engine_error);
        self.shared.changed.notify_one();
        result
    }

    async fn retain(&self, living: &[ContainerId]) -> Result<(), EngineError> {
        self.net.retain_sandboxes(living).await.map_err(engine_error)
    }
}
