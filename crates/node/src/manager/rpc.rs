//! Cluster RPC as a manager serves it. Each call first says who may make it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use skep_consensus::Consensus;
use skep_control::membership;
use skep_model::node::{ManagerInfo, Role};
use skep_model::{NodeId, TaskId};
use skep_store::{Batch, Change, Refused, View};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

use super::dispatcher::{Ends, Opened, Reached};
use super::roles::RoleError;
use super::{Manager, access};
use crate::agent_loop::LEADER_HEADER;
use crate::audit;
use crate::ca::{Identity, JoinToken, secret_digest};
use crate::clock::now;
use crate::error::NodeError;
use crate::facade::TaskLog;
use crate::transport::message::{IssueRequest, JoinRaft, LogPart, LogsCall, Pong, Propose, Root, Up};
use crate::transport::proto::Envelope;
use crate::transport::proto::ca_server::{Ca, CaServer};
use crate::transport::proto::control_server::{Control, ControlServer};
use crate::transport::proto::dispatcher_server::{Dispatcher, DispatcherServer};
use crate::transport::proto::raft_server::{Raft, RaftServer};
use crate::transport::splice::{DIRECT_HEADER, IN_FLIGHT};
use crate::transport::{MAX_MESSAGE_BYTES, pack, peer_of, unpack};

type EnvelopeStream = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

const HELLO_DEADLINE: Duration = Duration::from_secs(3);
/// How long a session waits for what the node said of itself to be written; shorter than the node waits.
const WRITTEN_DEADLINE: Duration = Duration::from_secs(1);
/// A host without a certificate sends a request of a few hundred bytes; more is not read.
const MAX_STRANGER_BYTES: usize = 64 * 1024;

#[derive(Clone)]
struct Rpc {
    /// Weak: the server must not keep the manager it belongs to alive.
    manager: std::sync::Weak<Manager>,
}

impl Rpc {
    fn manager(&self) -> Result<Arc<Manager>, Status> {
        self.manager.upgrade().ok_or_else(|| Status::unavailable("this manager is shutting down"))
    }
}

pub(super) fn router(manager: &Arc<Manager>) -> Router {
    let rpc = Rpc { manager: Arc::downgrade(manager) };
    let limit = MAX_MESSAGE_BYTES;
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .tcp_nodelay(true)
        .add_service(CaServer::new(rpc.clone()).max_decoding_message_size(MAX_STRANGER_BYTES))
        .add_service(RaftServer::new(rpc.clone()).max_decoding_message_size(limit).max_encoding_message_size(limit))
        .add_service(ControlServer::new(rpc.clone()).max_decoding_message_size(limit).max_encoding_message_size(limit))
        .add_service(DispatcherServer::new(rpc).max_decoding_message_size(limit).max_encoding_message_size(limit))
}

/// Points the caller to the leader.
fn not_leader(consensus: &Consensus) -> Status {
    let mut status = Status::failed_precondition("this manager does not lead");
    let leader = consensus.leadership().borrow().leader.clone();
    if let Some(leader) = leader
        && leader.raft_id != consensus.raft_id()
        && let Ok(value) = MetadataValue::try_from(leader.address.as_str())
    {
        status.metadata_mut().insert(LEADER_HEADER, value);
    }
    status
}

fn role_status(manager: &Manager, error: &RoleError) -> Status {
    match error {
        RoleError::NotLeading => not_leader(manager.consensus()),
        RoleError::Unwanted => Status::permission_denied(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

fn status_of(error: &NodeError) -> Status {
    match error {
        NodeError::InvalidToken => Status::invalid_argument("A valid join token is necessary to join this cluster"),
        NodeError::NoLeader(_) => Status::unavailable(error.to_string()),
        NodeError::Store(Refused::Invalid(text)) => Status::invalid_argument(text.clone()),
        _ => Status::internal(error.to_string()),
    }
}

impl Rpc {
    /// Who a certificate is for, and what makes the node if it is new: its role is the token's, or its object's when it renews.
    fn admit(
        view: &View,
        peer: Option<Identity>,
        request: &IssueRequest,
    ) -> Result<(NodeId, Role, Vec<Change>), Status> {
        let cluster = view.cluster().ok_or_else(|| Status::unavailable("the swarm is not ready"))?;
        let Some(token) = &request.token else {
            let identity = peer.ok_or_else(|| Status::unauthenticated("a join token or a certificate is required"))?;
            let node = access::renewing(&identity, cluster, view)?;
            return Ok((node.id.clone(), skep_control::membership::role_due(node), Vec::new()));
        };
        let (role, spent) = match JoinToken::role_granted(token, &cluster.join_tokens) {
            Some(role) => (role, None),
            None => {
                let digest = secret_digest(token);
                let limited = view.join_tokens().find(|t| t.secret_digest == digest);
                let limited = limited.ok_or_else(|| status_of(&NodeError::InvalidToken))?;
                if let Some(reason) = limited.refusal(now()) {
                    return Err(Status::invalid_argument(reason));
                }
                (limited.role, Some(Change::SpendJoinToken(limited.id.clone())))
            }
        };
        let node_id = NodeId::from_bits(rand::random());
        let admitted = membership::admit(view, &node_id, role, request.availability, &request.hostname, now());
        Ok((node_id, role, spent.into_iter().chain(admitted).collect()))
    }
}

#[tonic::async_trait]
impl Ca for Rpc {
    async fn get_root(&self, _: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        // A manager that has no state yet shows what it was told when it joined.
        let cert_pem = match manager.view().cluster() {
            Some(cluster) => cluster.root_ca.cert_pem.clone(),
            None => manager.tls().current().root_pem.clone(),
        };
        Ok(Response::new(pack(&Root { cert_pem })))
    }

    async fn issue(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let peer = peer_of(&request)?;
        let request: IssueRequest = unpack(request.get_ref())?;
        let view = manager.view();
        let (node_id, role, admitted) = Self::admit(&view, peer.identity, &request)?;
        let reply = manager
            .issue(&request.request_pem, &node_id, role)
            .await
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !admitted.is_empty() {
            let who = format!("join token from {}", peer.address.ip());
            let proposed = audit::by(who, manager.propose(Batch::new(now(), admitted)));
            proposed.await.map_err(|error| status_of(&error))?;
        }
        tracing::info!(node.id = %node_id, peer = %peer.address, ?role, "certificate issued");
        Ok(Response::new(pack(&reply)))
    }
}

#[tonic::async_trait]
impl Raft for Rpc {
    async fn ping(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        access::raft_peer(&request, &manager)?;
        let consensus = taking_part(&manager)?;
        let leads = consensus.leadership().borrow().is_leader;
        Ok(Response::new(pack(&Pong { raft_id: consensus.raft_id(), leads })))
    }

    async fn call(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        access::raft_peer(&request, &manager)?;
        let body = taking_part(&manager)?.handle_rpc(request.into_inner().body).await;
        Ok(Response::new(Envelope { body }))
    }
}

#[tonic::async_trait]
impl Control for Rpc {
    async fn propose(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = access::of_manager(&request, &manager)?;
        if manager.consensus().leadership().borrow().is_leader {
            access::present(&identity, &manager)?;
        }
        let call: Propose = unpack(request.get_ref())?;
        let batch = Batch::decode(&call.batch).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(pack(&manager.propose_here(batch).await)))
    }

    async fn join_raft(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = access::of_joiner(&request, &manager)?;
        let call: JoinRaft = unpack(request.get_ref())?;
        let info = ManagerInfo { raft_id: call.raft_id, address: call.address };
        let joined = manager.roster().join(&identity.node_id, info).await;
        joined.map_err(|error| role_status(&manager, &error))?;
        Ok(Response::new(pack(&())))
    }

    async fn leave_raft(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = access::of_manager(&request, &manager)?;
        let left = manager.roster().leave(&identity.node_id).await;
        left.map_err(|error| role_status(&manager, &error))?;
        Ok(Response::new(pack(&())))
    }

    type ReachStream = EnvelopeStream;

    async fn reach(&self, request: Request<Streaming<Envelope>>) -> Result<Response<EnvelopeStream>, Status> {
        let manager = self.manager()?;
        let identity = access::of_manager(&request, &manager)?;
        let dispatcher = manager.dispatcher().ok_or_else(|| not_leader(manager.consensus()))?;
        access::present(&identity, &manager)?;
        let direct = request.metadata().get(DIRECT_HEADER).cloned();
        let mut pieces = request.into_inner();
        let first = pieces.next().await.transpose()?.ok_or_else(|| Status::invalid_argument("which node?"))?;
        let (to, to_node) = mpsc::channel(IN_FLIGHT);
        let (from_node, from) = mpsc::channel(IN_FLIGHT);
        if !dispatcher.reach(unpack(&first)?, Ends { to_node, from_node, direct }).await {
            return Err(Status::not_found("the node has no session with the leader"));
        }
        manager.tasks.spawn(manager.cancel.clone().run_until_cancelled_owned(hand_on(pieces, to)));
        Ok(Response::new(Box::pin(ReceiverStream::new(from).map(Ok))))
    }

    type LogsStream = EnvelopeStream;

    async fn logs(&self, request: Request<Envelope>) -> Result<Response<EnvelopeStream>, Status> {
        let manager = self.manager()?;
        let identity = access::of_manager(&request, &manager)?;
        let call: LogsCall = unpack(request.get_ref())?;
        let dispatcher = manager.dispatcher().ok_or_else(|| not_leader(manager.consensus()))?;
        access::present(&identity, &manager)?;
        let (sink, lines) = mpsc::channel(call.tasks.len() + 64);
        dispatcher.subscribe(call.tasks, call.request, sink).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(lines).map(|part| Ok(pack(&part))))))
    }
}

/// One whose disk failed is as good as gone to the others, though it runs.
fn taking_part(manager: &Manager) -> Result<&Consensus, Status> {
    let consensus = manager.consensus();
    if consensus.has_ended() { Err(Status::unavailable("it takes no part in consensus")) } else { Ok(consensus) }
}

/// Hands on what comes until it ends, or nobody takes it.
async fn hand_on(mut from: Streaming<Envelope>, to: mpsc::Sender<Envelope>) {
    while let Some(Ok(piece)) = from.next().await {
        if to.send(piece).await.is_err() {
            return;
        }
    }
}

/// What a node says first on a connection that it was asked for.
async fn ticket(request: Request<Streaming<Envelope>>) -> Result<(u64, Streaming<Envelope>), Status> {
    let mut pieces = request.into_inner();
    let first = pieces.next().await.transpose()?.ok_or_else(|| Status::invalid_argument("which one?"))?;
    Ok((unpack(&first)?, pieces))
}

fn nobody_asked() -> Status {
    Status::not_found("nobody asked for this connection")
}

async fn connect(manager: &Manager, ends: Ends, pieces: Streaming<Envelope>) -> Response<EnvelopeStream> {
    let Ends { to_node, from_node, .. } = ends;
    if from_node.send(is_there()).await.is_ok() {
        manager.tasks.spawn(manager.cancel.clone().run_until_cancelled_owned(hand_on(pieces, from_node)));
    }
    Response::new(Box::pin(ReceiverStream::new(to_node).map(Ok)))
}

/// What a node that was asked for a connection says first to who asked.
fn is_there() -> Envelope {
    pack(&())
}

fn of_its_own(view: &View, node_id: &NodeId, line: &TaskLog) -> bool {
    line.node_id == *node_id && view.node(node_id).is_some() && of_node(view, node_id, &line.task_id)
}

fn of_node(view: &View, node_id: &NodeId, task_id: &TaskId) -> bool {
    view.task(task_id).and_then(|task| task.node_id.as_ref()).is_none_or(|id| id == node_id)
}

/// A call of a member to the leader.
fn of_node_to_leader<T>(request: &Request<T>, manager: &Manager) -> Result<Identity, Status> {
    let identity = access::member(request, manager)?;
    if manager.dispatcher().is_none() {
        return Err(not_leader(manager.consensus()));
    }
    access::present(&identity, manager)?;
    Ok(identity)
}

#[tonic::async_trait]
impl Dispatcher for Rpc {
    type SessionStream = EnvelopeStream;

    async fn session(&self, request: Request<Streaming<Envelope>>) -> Result<Response<EnvelopeStream>, Status> {
        let manager = self.manager()?;
        let identity = access::member(&request, &manager)?;
        let peer = peer_of(&request)?;
        let Some(dispatcher) = manager.dispatcher() else { return Err(not_leader(manager.consensus())) };
        access::present(&identity, &manager)?;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, up.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))?
            .ok_or_else(|| Status::invalid_argument("no hello"))??;
        let Up::Hello(hello) = unpack::<Up>(&first)? else { return Err(Status::invalid_argument("no hello")) };
        let node_id = identity.node_id.clone();
        // A certificate that is not renewed in time ends the session with it.
        let left = identity.not_after.saturating_sub(now().0 / 1_000_000_000).max(0).cast_unsigned();
        let certificate_ends = tokio::time::sleep(Duration::from_secs(left + 1));
        let Opened { id: session_id, down, written } = dispatcher.open(identity, *hello, peer.address.ip()).await?;
        let reader = manager.tasks.clone();
        let cancel = manager.cancel.clone();
        reader.spawn(async move {
            let read = async {
                while let Some(Ok(envelope)) = up.next().await {
                    let Ok(message) = unpack::<Up>(&envelope) else { break };
                    if !dispatcher.heard(node_id.clone(), session_id.clone(), message).await {
                        break;
                    }
                }
            };
            tokio::select! { () = cancel.cancelled() => {}, () = certificate_ends => {}, () = read => {} }
            dispatcher.closed(node_id, session_id).await;
        });
        // Who has joined is ready then, and known as it described itself (swarmkit's `register` waits, too).
        let _ = tokio::time::timeout(WRITTEN_DEADLINE, written).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(down))))
    }

    async fn publish_logs(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = access::member(&request, &manager)?;
        let dispatcher = manager.dispatcher().ok_or_else(|| not_leader(manager.consensus()))?;
        access::present(&identity, &manager)?;
        let mut parts = request.into_inner();
        let mut sink = None;
        loop {
            let next = match &sink {
                None => parts.next().await,
                Some(sink) => {
                    let sink: &mpsc::Sender<_> = sink;
                    // A reader that went away ends the feed, and with it the reading on the node.
                    tokio::select! { () = sink.closed() => return Ok(Response::new(pack(&()))), part = parts.next() => part }
                }
            };
            let Some(part) = next.transpose()? else { return Ok(Response::new(pack(&()))) };
            let item = match unpack::<LogPart>(&part)? {
                LogPart::Begin(id) => {
                    sink = dispatcher.sink_of(id, identity.node_id.clone()).await;
                    if sink.is_none() {
                        return Err(Status::not_found("no such log subscription"));
                    }
                    continue;
                }
                // A node tells what its own containers said, and only while it is one of this swarm.
                LogPart::Line(line) if of_its_own(&manager.view(), &identity.node_id, &line) => LogPart::Line(line),
                LogPart::Line(_) => return Err(Status::permission_denied("a line of another node")),
                LogPart::Ended { task_id, error } if of_node(&manager.view(), &identity.node_id, &task_id) => {
                    LogPart::Ended { task_id, error }
                }
                LogPart::Ended { .. } => return Err(Status::permission_denied("a task of another node")),
                part @ LogPart::Failed(_) => part,
            };
            let Some(sink) = &sink else { return Err(Status::invalid_argument("lines of no subscription")) };
            if sink.send(item).await.is_err() {
                return Ok(Response::new(pack(&())));
            }
        }
    }

    type ReachedStream = EnvelopeStream;

    async fn reached(&self, request: Request<Streaming<Envelope>>) -> Result<Response<EnvelopeStream>, Status> {
        let manager = self.manager()?;
        let identity = access::member(&request, &manager)?;
        let dispatcher = manager.dispatcher().ok_or_else(|| not_leader(manager.consensus()))?;
        access::present(&identity, &manager)?;
        let directly = request.metadata().contains_key(DIRECT_HEADER);
        let (ticket, pieces) = ticket(request).await?;
        match dispatcher.reached(ticket, identity.node_id, directly).await {
            None => Err(nobody_asked()),
            Some(Reached::Here(ends)) => Ok(connect(&manager, ends, pieces).await),
            Some(Reached::Elsewhere(direct)) => {
                let mut status = Status::failed_precondition("the manager that asked takes the call itself");
                status.metadata_mut().insert(DIRECT_HEADER, direct);
                Err(status)
            }
        }
    }

    type ReachedDirectlyStream = EnvelopeStream;

    async fn reached_directly(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<EnvelopeStream>, Status> {
        let manager = self.manager()?;
        let identity = access::member(&request, &manager)?;
        let (ticket, pieces) = ticket(request).await?;
        let ends = manager.calls().answered(ticket, &identity.node_id).ok_or_else(nobody_asked)?;
        Ok(connect(&manager, ends, pieces).await)
    }

    async fn attach(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = of_node_to_leader(&request, &manager)?;
        let attached = manager.attach(&identity.node_id, &unpack(request.get_ref())?).await;
        Ok(Response::new(pack(&attached?)))
    }

    async fn detach(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = of_node_to_leader(&request, &manager)?;
        manager.detach(&identity.node_id, &unpack(request.get_ref())?).await?;
        Ok(Response::new(pack(&())))
    }

    async fn leave(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let manager = self.manager()?;
        let identity = access::member(&request, &manager)?;
        let dispatcher = manager.dispatcher().ok_or_else(|| not_leader(manager.consensus()))?;
        access::present(&identity, &manager)?;
        manager.audit().left(&identity.node_id);
        dispatcher.leave(identity.node_id).await;
        Ok(Response::new(pack(&())))
    }
}
