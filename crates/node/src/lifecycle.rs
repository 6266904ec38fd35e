//! stub
use std::sync::Arc;
use skep_engine::Engine;
use skep_net::Net;
use skep_model::NodeId;
use tokio::sync::broadcast;
use crate::config::*;
use crate::error::*;
use crate::facade::*;

pub(crate) struct Inner { pub(crate) events: broadcast::Sender<SwarmEvent> }
pub(crate) struct Mgr;
impl Mgr { pub(crate) fn view(&self) -> skep_store::View { unimplemented!() } }
impl Inner {
    pub(crate) async fn start(_: NodeConfig, _: Engine, _: Net) -> Result<Arc<Self>> { unimplemented!() }
    pub(crate) async fn shutdown(&self) {}
    pub(crate) fn engine(&self) -> &Engine { unimplemented!() }
    pub(crate) fn net(&self) -> &Net { unimplemented!() }
    pub(crate) fn manager(&self) -> Result<Mgr> { unimplemented!() }
    pub(crate) fn info(&self) -> SwarmInfo { unimplemented!() }
    pub(crate) fn local_state(&self) -> LocalState { unimplemented!() }
    pub(crate) fn leader(&self) -> Option<NodeId> { unimplemented!() }
    pub(crate) async fn init(&self, _: InitRequest) -> Result<NodeId> { unimplemented!() }
    pub(crate) async fn join(&self, _: JoinRequest) -> Result<()> { unimplemented!() }
    pub(crate) async fn leave(&self, _: bool) -> Result<()> { unimplemented!() }
}
