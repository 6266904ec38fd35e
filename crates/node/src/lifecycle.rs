//! In which state this host is, and how it gets from one to the next: outside a swarm, joining, inside, leaving.
//!
//! One transition at a time; readers never wait for one.

mod alone;
mod locked;
mod restore;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use skep_engine::Engine;
use skep_model::cluster::{Cluster, DEFAULT_POOL, DEFAULT_SUBNET_SIZE};
use skep_model::node::{ManagerInfo, Role};
use skep_model::{ClusterId, NodeId};
use skep_net::Net;
use skep_store::Batch;
use tokio::net::TcpListener;

use crate::address;
use crate::agent_loop::{EngineExecutor, Executor};
use crate::audit::AuditLog;
use crate::ca::{CertificateFiles, JoinToken, NodeKey, Signer, new_tokens, new_unlock_key};
use crate::clock::now;
use crate::config::{DEFAULT_DATA_PATH_PORT, InitRequest, JoinRequest, NodeConfig};
use crate::error::{NodeError, Result};
use crate::facade::{EventLog, LocalState, RemoteManager, SwarmInfo};
use crate::gossip::Gossip;
use crate::host::NetSandboxes;
use crate::lifecycle::locked::Locked;
use crate::manager::{Manager, ManagerConfig};
use crate::member::Member;
use crate::state::{SavedState, StateFiles};
use crate::transport::message::{IssueReply, IssueRequest};
use crate::transport::{Connection, LiveTls, TlsMaterial, fetch_root, pack, unpack};

/// moby's `swarmConnectTimeout`.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);

struct Host {
    engine: Engine,
    sandboxes: NetSandboxes,
}

#[derive(Clone, Default)]
enum Membership {
    #[default]
    Outside,
    Joining,
    Inside(Arc<Member>),
    /// A manager whose keys wait for the unlock key.
    Locked(Arc<Locked>),
    /// The saved state could not be taken up again; leaving by force is the way out.
    Broken(String),
}

pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    pub(crate) events: Arc<EventLog>,
    pub(crate) connections: std::sync::Mutex<Option<tokio::sync::mpsc::Receiver<tokio::io::DuplexStream>>>,
    host: Option<Host>,
    executor: Arc<dyn Executor>,
    gossip: Gossip,
    certificates: CertificateFiles,
    membership: RwLock<Membership>,
    transition: tokio::sync::Mutex<()>,
}

impl Inner {
    pub(crate) async fn start(config: NodeConfig, engine: Engine, sandboxes: NetSandboxes) -> Result<Arc<Self>> {
        let (sender, connections) = tokio::sync::mpsc::channel(1);
        let executor = Arc::new(EngineExecutor::new(&config, engine.clone(), sandboxes.net().clone(), sender));
        let inner = Self::start_with(config, executor, Some(Host { engine, sandboxes: sandboxes.clone() })).await?;
        sandboxes.serve(&inner);
        *inner.connections.lock().unwrap_or_else(PoisonError::into_inner) = Some(connections);
        Ok(inner)
    }

    /// With another performer of effects: tests have no engine.
    #[cfg(test)]
    pub(crate) async fn start_without_host(config: NodeConfig, executor: Arc<dyn Executor>) -> Result<Arc<Self>> {
        Self::start_with(config, executor, None).await
    }

    async fn start_with(config: NodeConfig, executor: Arc<dyn Executor>, host: Option<Host>) -> Result<Arc<Self>> {
        let inner = Arc::new(Self {
            certificates: CertificateFiles::new(&config.swarm_dir()),
            config,
            events: Arc::new(EventLog::new()),
            connections: std::sync::Mutex::default(),
            host,
            executor,
            gossip: Gossip::new(),
            membership: RwLock::default(),
            transition: tokio::sync::Mutex::default(),
        });
        let _guard = inner.transition.lock().await;
        inner.undo_half_a_restore();
        inner.take_up().await;
        inner.settle_restore().await;
        drop(_guard);
        Ok(inner)
    }

    /// From what is on disk to the state it says.
    async fn take_up(self: &Arc<Self>) {
        self.set(match Box::pin(self.resume()).await {
            Ok(Some(member)) => Membership::Inside(member),
            Ok(None) => Membership::Outside,
            Err(NodeError::Locked) => {
                tracing::warn!("this manager is locked; unlock it with `docker swarm unlock`");
                Membership::Locked(Locked::start(&self.config, self.executor.clone()))
            }
            Err(error) => {
                tracing::error!(%error, "cannot take part in the swarm this host was in");
                Membership::Broken(error.to_string())
            }
        });
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self
            .host
            .as_ref()
            .expect("a node started by the daemon has a host; only tests of this crate start without")
            .engine
    }

    pub(crate) fn net(&self) -> &Net {
        self.host
            .as_ref()
            .expect("a node started by the daemon has a host; only tests of this crate start without")
            .sandboxes
            .net()
    }

    fn get(&self) -> Membership {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, membership: Membership) {
        *self.membership.write().unwrap_or_else(PoisonError::into_inner) = membership;
    }

    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        match self.get() {
            Membership::Inside(member) => Some(member),
            Membership::Outside | Membership::Joining | Membership::Locked(_) | Membership::Broken(_) => None,
        }
    }

    pub(crate) fn manager(&self) -> Result<Arc<Manager>> {
        let member = match self.get() {
            Membership::Inside(member) => member,
            Membership::Locked(_) => return Err(NodeError::Locked),
            Membership::Outside | Membership::Joining | Membership::Broken(_) => return Err(NodeError::NoSwarm),
        };
        member.manager().ok_or(NodeError::NotManager)
    }

    fn files(&self) -> (StateFiles, CertificateFiles) {
        (StateFiles::new(&self.config.swarm_dir()), self.certificates.clone())
    }

    /// Everything of the swarm this host was in.
    fn forget(&self) -> Result<()> {
        self.certificates.forget();
        self.files().0.forget()
    }

    /// The member this host was when the daemon last ran.
    async fn resume(self: &Arc<Self>) -> Result<Option<Arc<Member>>> {
        let (state_files, certificates) = self.files();
        let Some(mut state) = state_files.load()? else { return Ok(None) };
        // An address that was found out, not given, may have been the network's to change.
        let ip = state.advertise.ip();
        if !state.advertise_given && !ip.is_unspecified() && !ip.is_loopback() && !address::is_own(ip) {
            match address::advertise("", self.config.default_advertise.as_deref(), state.listen) {
                Ok(found) => state.advertise = found,
                Err(error) => tracing::warn!(%error, "keeping an advertised address this host does not have"),
            }
        }
        let tls = self.tls_of(&certificates)?;
        let role = tls.current().identity.role;
        let manager = match (role, state.raft_id) {
            // Without its log a raft id must not vote again: the member joins anew under another.
            (Role::Manager, Some(raft_id)) if state_files.has_raft() => {
                let listener = listen(state.listen).await?;
                let config = self.manager_config(&state, raft_id, &tls, &certificates)?;
                alone::rewrite_log(&state, &config).await?;
                let manager = Manager::start(config, listener).await?;
                if state.alone_from.is_some() {
                    alone::take_over(&manager, state.advertise, &self.config.hostname).await?;
                    state.alone_from = None;
                    state.managers =
                        vec![RemoteManager { node_id: state.node_id.clone(), addr: state.advertise.to_string() }];
                    state_files.save(&state)?;
                }
                Some(manager)
            }
            (Role::Manager | Role::Worker, _) => None,
        };
        Ok(Some(self.member_of(state, tls, manager).await))
    }

    fn tls_of(&self, certificates: &CertificateFiles) -> Result<LiveTls> {
        let Some((root, certificate, key)) = certificates.load()? else {
            return Err(NodeError::Certificate("the node's certificate is missing".into()));
        };
        Ok(LiveTls::new(TlsMaterial::new(&root, &certificate, &key)?))
    }

    async fn member_of(&self, state: SavedState, tls: LiveTls, manager: Option<Arc<Manager>>) -> Arc<Member> {
        if let Some(host) = &self.host
            && let Err(error) = host.sandboxes.net().ensure_gwbridge().await
        {
            tracing::warn!(%error, "cannot make docker_gwbridge");
        }
        let (state_files, certificates) = self.files();
        let member = Member::start(
            self.config.clone(),
            state,
            state_files,
            certificates,
            tls,
            manager,
            self.executor.clone(),
            self.events.clone(),
            self.gossip.clone(),
        );
        if let Some(host) = &self.host {
            member.keep_attachments(host.sandboxes.clone());
        }
        member
    }

    fn manager_config(
        &self,
        state: &SavedState,
        raft_id: u64,
        tls: &LiveTls,
        certificates: &CertificateFiles,
    ) -> Result<ManagerConfig> {
        Ok(ManagerConfig {
            node_id: state.node_id.clone(),
            raft_dir: StateFiles::new(&self.config.swarm_dir()).raft_dir(),
            raft_id,
            storage_key: certificates.log_key()?,
            certificates: certificates.clone(),
            advertise: state.advertise,
            tls: tls.clone(),
            timing: self.config.timing,
            events: self.events.clone(),
            audit: AuditLog::new(&self.config.data_root),
            gossip: self.gossip.clone(),
        })
    }

    /// Nothing of a failed attempt is left behind.
    fn undo(&self, error: NodeError) -> NodeError {
        if let Err(left) = self.forget() {
            tracing::warn!(error = %left, "cannot clean up");
        }
        self.set(Membership::Outside);
        error
    }

    fn refuse_if_inside(&self) -> Result<()> {
        match self.get() {
            Membership::Outside => Ok(()),
            Membership::Joining | Membership::Inside(_) | Membership::Locked(_) | Membership::Broken(_) => {
                Err(NodeError::AlreadyInSwarm)
            }
        }
    }

    pub(crate) async fn init(self: &Arc<Self>, request: InitRequest) -> Result<NodeId> {
        let _guard = self.transition.lock().await;
        if request.force_new_cluster && !matches!(self.get(), Membership::Outside) {
            return self.force_new_cluster(&request).await;
        }
        self.refuse_if_inside()?;
        crate::facade::check_spec(&request.spec)?;
        let listen_at = address::listen(&request.listen_addr)?;
        let advertise =
            address::advertise(&request.advertise_addr, self.config.default_advertise.as_deref(), listen_at)?;
        let data_path = address::data_path(&request.data_path_addr)?;
        if request.data_path_port != 0 && !(1024..=49151).contains(&request.data_path_port) {
            return Err(NodeError::Invalid(format!(
                "Invalid data path port number: {}. Please use port number within the range 1024-49151",
                request.data_path_port
            )));
        }
        self.set(Membership::Joining);
        match Box::pin(self.found(request, listen_at, advertise, data_path)).await {
            Ok(member) => {
                let node_id = member.node_id().clone();
                self.set(Membership::Inside(member));
                Ok(node_id)
            }
            Err(error) => Err(self.undo(error)),
        }
    }

    async fn found(
        self: &Arc<Self>,
        request: InitRequest,
        listen_at: SocketAddr,
        advertise: SocketAddr,
        data_path: Option<std::net::IpAddr>,
    ) -> Result<Arc<Member>> {
        let (state_files, certificates) = self.files();
        self.forget()?;
        let listener = listen(listen_at).await?;
        let node_id = NodeId::from_bits(rand::random());
        let cluster = new_cluster(&request)?;

        let key = NodeKey::generate()?;
        let signed = Signer::of(&cluster.root_ca)?.sign(
            &key.request_pem()?,
            &node_id,
            Role::Manager,
            &cluster.id,
            cluster.spec.node_cert_expiry,
        )?;
        certificates.follow(cluster.unlock_key.as_ref(), 0)?;
        certificates.save(&cluster.root_ca.cert_pem, &signed.cert_pem, &key.pem(), Role::Manager)?;
        let tls = LiveTls::new(TlsMaterial::new(&cluster.root_ca.cert_pem, &signed.cert_pem, &key.pem())?);
        let raft_id = 1;
        let state = SavedState {
            node_id: node_id.clone(),
            listen: listen_at,
            advertise,
            advertise_given: !request.advertise_addr.is_empty(),
            data_path,
            raft_id: Some(raft_id),
            alone_from: None,
            managers: vec![RemoteManager { node_id: node_id.clone(), addr: advertise.to_string() }],
        };
        let manager = Manager::start(self.manager_config(&state, raft_id, &tls, &certificates)?, listener).await?;
        let internal = |error: skep_consensus::Error| NodeError::Internal(error.to_string());
        let founding = async {
            manager.consensus().bootstrap().await.map_err(internal)?;
            let mut ids = rand::random::<u128>;
            let mut changes = skep_control::membership::found(cluster, &mut ids);
            let view = manager.view();
            changes.extend(skep_control::membership::admit(
                &view,
                &node_id,
                Role::Manager,
                request.availability,
                &self.config.hostname,
                now(),
            ));
            changes.push(skep_store::Change::SetNodeManager {
                node_id: node_id.clone(),
                manager: Some(ManagerInfo { raft_id, address: advertise }),
            });
            manager.propose(Batch::new(now(), changes)).await?;
            state_files.save(&state)
        };
        if let Err(error) = founding.await {
            manager.stop().await;
            return Err(error);
        }
        let member = self.member_of(state, tls, Some(manager)).await;
        // `docker node ls` right after `swarm init` shows a ready node.
        member.wait_connected(Duration::from_secs(5)).await;
        Ok(member)
    }

    pub(crate) async fn join(self: &Arc<Self>, request: JoinRequest) -> Result<()> {
        let _guard = self.transition.lock().await;
        self.refuse_if_inside()?;
        if request.remote_addrs.is_empty() {
            return Err(NodeError::BadRequest("at least 1 RemoteAddr is required to join".into()));
        }
        let token = JoinToken::parse(&request.join_token)?;
        let listen_at = address::listen(&request.listen_addr)?;
        let data_path = address::data_path(&request.data_path_addr)?;
        let remotes = request.remote_addrs.iter().map(|text| address::remote(text)).collect::<Result<Vec<String>>>()?;
        self.set(Membership::Joining);
        let enter = self.enter(&request, &token, listen_at, data_path, &remotes);
        let begun = Instant::now();
        let member = match tokio::time::timeout(JOIN_DEADLINE, Box::pin(enter)).await {
            Ok(Ok(member)) => member,
            Ok(Err(error)) => return Err(self.undo(error)),
            Err(_) => return Err(self.undo(NodeError::Unreachable("no manager issued a certificate in time".into()))),
        };
        self.set(Membership::Inside(member.clone()));
        member.wait_joined(JOIN_DEADLINE.saturating_sub(begun.elapsed())).await
    }

    async fn enter(
        self: &Arc<Self>,
        request: &JoinRequest,
        token: &JoinToken,
        listen_at: SocketAddr,
        data_path: Option<std::net::IpAddr>,
        remotes: &[String],
    ) -> Result<Arc<Member>> {
        let (state_files, certificates) = self.files();
        self.forget()?;
        let key = NodeKey::generate()?;
        let issue = IssueRequest {
            request_pem: key.request_pem()?,
            token: Some(request.join_token.clone()),
            availability: request.availability,
            hostname: self.config.hostname.clone(),
        };
        let reply = ask_any(remotes, &token.root_digest, &issue).await?;
        certificates.take(&reply, &key)?;
        let tls = LiveTls::new(TlsMaterial::new(&reply.root_pem, &reply.cert_pem, &key.pem())?);
        let advertise = match reply.role {
            Role::Manager => {
                address::advertise(&request.advertise_addr, self.config.default_advertise.as_deref(), listen_at)?
            }
            // A worker listens nowhere; without a wish the manager sees where it comes from.
            Role::Worker if request.advertise_addr.is_empty() => listen_at,
            Role::Worker => address::advertise(&request.advertise_addr, None, listen_at)?,
        };
        let state = SavedState {
            node_id: reply.node_id.clone(),
            listen: listen_at,
            advertise,
            advertise_given: !request.advertise_addr.is_empty(),
            data_path,
            raft_id: (reply.role == Role::Manager).then(new_raft_id),
            alone_from: None,
            managers: remotes
                .iter()
                .map(|addr| RemoteManager { node_id: reply.node_id.clone(), addr: addr.clone() })
                .collect(),
        };
        // Remembered before it may count in consensus: a swarm of two would have no quorum without it.
        state_files.save(&state)?;
        let manager = match state.raft_id {
            Some(raft_id) => {
                let listener = listen(listen_at).await?;
                Some(Manager::start(self.manager_config(&state, raft_id, &tls, &certificates)?, listener).await?)
            }
            None => None,
        };
        Ok(self.member_of(state, tls, manager).await)
    }

    pub(crate) async fn leave(self: &Arc<Self>, force: bool) -> Result<()> {
        let _guard = self.transition.lock().await;
        let member = match self.get() {
            Membership::Inside(member) => member,
            Membership::Broken(_) if force => {
                self.forget()?;
                self.set(Membership::Outside);
                return Ok(());
            }
            Membership::Locked(locked) if force => {
                locked.stop().await;
                crate::member::take_away(self.executor.as_ref()).await;
                self.forget()?;
                self.set(Membership::Outside);
                return Ok(());
            }
            Membership::Locked(_) => return Err(NodeError::LeaveLocked),
            Membership::Broken(error) => return Err(NodeError::Internal(error)),
            Membership::Outside | Membership::Joining => return Err(NodeError::NotInSwarm),
        };
        if !force && let Some(manager) = member.manager() {
            return Err(NodeError::LeaveRefused(manager.leave_warning()));
        }
        member.leave().await;
        self.forget()?;
        self.set(Membership::Outside);
        Ok(())
    }

    pub(crate) async fn shutdown(&self) {
        let _guard = self.transition.lock().await;
        match self.get() {
            Membership::Inside(member) => member.stop().await,
            Membership::Locked(locked) => locked.stop().await,
            Membership::Outside | Membership::Joining | Membership::Broken(_) => {}
        }
        self.set(Membership::Outside);
    }

    /// As if the process had been killed.
    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        if let Membership::Inside(member) = self.get() {
            member.abandon();
        }
    }

    #[cfg(test)]
    pub(crate) fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    pub(crate) fn local_state(&self) -> LocalState {
        match self.get() {
            Membership::Outside => LocalState::Inactive,
            Membership::Joining => LocalState::Pending,
            Membership::Locked(_) => LocalState::Locked,
            Membership::Broken(_) => LocalState::Error,
            Membership::Inside(member) => member.local_state(),
        }
    }

    pub(crate) fn info(&self) -> SwarmInfo {
        let state = self.local_state();
        match self.get() {
            Membership::Outside | Membership::Joining => SwarmInfo { state, ..SwarmInfo::default() },
            Membership::Locked(_) => SwarmInfo { state, error: NodeError::Locked.to_string(), ..SwarmInfo::default() },
            Membership::Broken(error) => SwarmInfo { state, error, ..SwarmInfo::default() },
            Membership::Inside(member) => member.info(),
        }
    }
}

/// Distinct for every time a host becomes a manager; consensus never sees one twice.
pub(crate) fn new_raft_id() -> u64 {
    rand::random::<u64>() >> 1 | 2
}

pub(crate) async fn listen(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.map_err(|error| {
        NodeError::Internal(format!("failed to listen on remote API address: listen tcp {at}: {error}"))
    })
}

fn new_cluster(request: &InitRequest) -> Result<Cluster> {
    let root_ca = Signer::create_root()?;
    let join_tokens = new_tokens(&root_ca.digest)?;
    let pools = if request.default_address_pools.is_empty() {
        vec![DEFAULT_POOL.parse().map_err(|_| NodeError::Internal("the default pool is no network".into()))?]
    } else {
        request.default_address_pools.clone()
    };
    let subnet_size = if request.subnet_size == 0 { DEFAULT_SUBNET_SIZE } else { request.subnet_size };
    if subnet_size > 29 {
        return Err(NodeError::BadRequest("invalid default-addr-pool-mask-length: must be at most 29".into()));
    }
    if let Some(pool) = pools.iter().find(|pool| pool.prefix_len() > subnet_size) {
        return Err(NodeError::BadRequest(format!(
            "invalid CIDR: subnet size {subnet_size} is larger than pool {pool}"
        )));
    }
    Ok(Cluster {
        spec: request.spec.clone(),
        root_ca,
        join_tokens,
        unlock_key: request.spec.auto_lock_managers.then(new_unlock_key),
        default_address_pools: pools,
        subnet_size,
        data_path_port: if request.data_path_port == 0 { DEFAULT_DATA_PATH_PORT } else { request.data_path_port },
        root_rotated_at: now(),
        gossip_key: Some(crate::gossip::new_key()),
        ..Cluster::new(ClusterId::from_bits(rand::random()))
    })
}

/// A certificate from the first manager that gives one.
async fn ask_any(remotes: &[String], digest: &str, issue: &IssueRequest) -> Result<IssueReply> {
    let mut last = NodeError::JoinTimeout;
    for remote in remotes {
        match ask(remote, digest, issue).await {
            Ok(reply) => return Ok(reply),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(remote: &str, digest: &str, issue: &IssueRequest) -> Result<IssueReply> {
    let root = fetch_root(remote).await?;
    if crate::ca::root_digest(&root) != digest {
        return Err(NodeError::Internal(format!(
            "rpc error: code = Unknown desc = remote CA does not match fingerprint. Expected: {}",
            digest.trim_start_matches("sha256:")
        )));
    }
    let connection = Connection::joining(remote, &root)?;
    let mut request = tonic::Request::new(pack(issue));
    request.set_timeout(Duration::from_secs(10));
    let reply = connection.ca().issue(request).await.map_err(|status| match status.code() {
        tonic::Code::InvalidArgument => NodeError::Refused {
            code: "InvalidArgument",
            text: status.message().to_owned(),
            kind: crate::error::Kind::Invalid,
        },
        tonic::Code::Unavailable => NodeError::Unreachable(status.message().to_owned()),
        _ => NodeError::Internal(status.to_string()),
    })?;
    unpack(reply.get_ref()).map_err(|status| NodeError::Internal(status.message().to_owned()))
}
