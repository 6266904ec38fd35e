//! This host as a member: its identity, its agent, and its manager while it is one.
//!
//! Follows the role its certificate has: a worker that is promoted starts a manager, a demoted one stops it. Renews the
//! certificate between half and four fifths of its life.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use skep_agent::spec::NodeFacts;
use skep_model::NodeId;
use skep_model::node::Role;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent_loop::{
    ARCHITECTURE, Executor, InForce, Orders, REMOVED, Session, StatusBoard, WorkerLoop, run_plane,
};
use crate::attachments;
use crate::audit::AuditLog;
use crate::ca::{CertificateFiles, NodeKey, check_chain};
use crate::clock::now;
use crate::config::NodeConfig;
use crate::error::{NodeError, Result};
use crate::facade::{EventLog, LocalState, RemoteManager, SwarmInfo};
use crate::gossip::Gossip;
use crate::host::NetSandboxes;
use crate::manager::{Manager, ManagerConfig};
use crate::state::{SavedState, StateFiles};
use crate::transport::message::{IssueReply, IssueRequest, Trust};
use crate::transport::{Connection, LiveTls, TlsMaterial, pack, unpack};

const RENEW_RETRY: Duration = Duration::from_secs(5);
/// How often is looked whether a join is through.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Consensus that ended on this host begins again after this: late enough for one that cannot last.
const BEGIN_AGAIN: Duration = Duration::from_secs(5);
/// A role or root that could not be taken up is tried again soon, since users wait for it, and then less often.
const ROLE_RETRY: Duration = Duration::from_millis(200);
/// A member that leaves says goodbye for no longer than this: the managers may all be gone.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct Member {
    config: NodeConfig,
    state: Mutex<SavedState>,
    state_files: StateFiles,
    certificates: CertificateFiles,
    tls: LiveTls,
    /// Started, though the others may not have taken it in yet.
    manager: RwLock<Option<Arc<Manager>>>,
    /// As the leader told them last.
    managers: watch::Sender<Vec<RemoteManager>>,
    connected: watch::Receiver<bool>,
    removed: watch::Receiver<bool>,
    wanted_role: watch::Sender<Option<Role>>,
    wanted_trust: watch::Sender<Option<Trust>>,
    executor: Arc<dyn Executor>,
    orders: watch::Sender<Option<Orders>>,
    events: Arc<EventLog>,
    gossip: Gossip,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Member {
    #[expect(clippy::too_many_arguments, reason = "one call site; a struct would only repeat the fields")]
    pub(crate) fn start(
        config: NodeConfig,
        state: SavedState,
        state_files: StateFiles,
        certificates: CertificateFiles,
        tls: LiveTls,
        manager: Option<Arc<Manager>>,
        executor: Arc<dyn Executor>,
        events: Arc<EventLog>,
        gossip: Gossip,
    ) -> Arc<Self> {
        let node_id = state.node_id.clone();
        let saved = state_files.load_assignments();
        let remembered =
            saved.facts.0.map(|facts| Orders { facts, set: Arc::new(saved.set), fresh: false, word: None });
        let (orders, _) = watch::channel(remembered);
        let (managers, _) = watch::channel(state.managers.clone());
        let (connected_sender, connected) = watch::channel(false);
        let (wanted_role, _) = watch::channel(None);
        let (wanted_trust, _) = watch::channel(None);
        let (removed_sender, removed) = watch::channel(false);
        let board = Arc::new(StatusBoard::default());
        let (answered, _) = watch::channel(None);
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());

        let advertised = (state.advertise_given && !state.advertise.ip().is_unspecified())
            .then_some(state.advertise.ip())
            .or(manager.is_some().then_some(state.advertise.ip()));
        let in_force = watch::Sender::new(InForce::None);
        let session = Session {
            node_id: node_id.clone(),
            tls: tls.clone(),
            timing: config.timing,
            executor: executor.clone(),
            board: board.clone(),
            orders: orders.clone(),
            gossip: gossip.clone(),
            in_force: in_force.subscribe(),
            answered: answered.clone(),
            managers: managers.clone(),
            connected: connected_sender,
            removed: removed_sender,
            wanted_role: wanted_role.clone(),
            wanted_trust: wanted_trust.clone(),
            advertise: state.data_path.or(advertised),
        };
        let names = NodeFacts {
            node_id: node_id.clone(),
            hostname: config.hostname.clone(),
            os: "linux".into(),
            architecture: ARCHITECTURE.into(),
        };
        tasks.spawn(WorkerLoop::run(
            executor.clone(),
            board,
            names,
            orders.subscribe(),
            answered.subscribe(),
            cancel.clone(),
        ));
        let plane =
            run_plane(node_id, executor.clone(), state_files.clone(), orders.subscribe(), in_force, cancel.clone());
        tasks.spawn(plane);
        tasks.spawn(session.run(cancel.clone()));
        let listen = state.listen.ip();
        tasks.spawn(gossip.clone().run(state.node_id.clone(), listen, orders.subscribe(), cancel.clone()));

        let member = Arc::new(Self {
            config,
            state: Mutex::new(state),
            state_files,
            certificates,
            tls,
            manager: RwLock::new(manager),
            managers,
            connected,
            removed,
            wanted_role,
            wanted_trust,
            executor,
            orders,
            events,
            gossip,
            cancel: cancel.clone(),
            tasks: tasks.clone(),
        });
        let keeper = member.clone();
        tasks.spawn(async move {
            tokio::select! { () = cancel.cancelled() => {}, () = keeper.keep() => {} }
        });
        tasks.close();
        member
    }

    /// What the swarm knows of this host's containers that are no tasks follows what they are.
    pub(crate) fn keep_attachments(self: &Arc<Self>, sandboxes: NetSandboxes) {
        let keeper = attachments::keep(sandboxes, self.clone());
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(keeper));
    }

    pub(crate) fn orders(&self) -> watch::Receiver<Option<Orders>> {
        self.orders.subscribe()
    }

    pub(crate) fn tls(&self) -> &LiveTls {
        &self.tls
    }

    /// As far as this node was told.
    pub(crate) fn manager_addresses(&self) -> Vec<String> {
        self.managers.borrow().iter().map(|manager| manager.addr.clone()).collect()
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.tls.current().identity.node_id.clone()
    }

    /// Once consensus counts on it.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.started_manager().filter(|manager| manager.votes())
    }

    fn started_manager(&self) -> Option<Arc<Manager>> {
        self.manager.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the others have this manager for one, and look for it where it is. What its own log says of that may be long
    /// out of date: a manager that is taken out while it is cut off never hears of it.
    fn is_announced(&self, manager: &Manager) -> bool {
        let own = RemoteManager { node_id: manager.node_id().clone(), addr: manager.address().to_string() };
        manager.votes() && self.managers.borrow().contains(&own)
    }

    fn set_manager(&self, manager: Option<Arc<Manager>>) {
        *self.manager.write().unwrap_or_else(PoisonError::into_inner) = manager;
    }

    fn with_state<T>(&self, f: impl FnOnce(&mut SavedState) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) async fn wait_connected(&self, limit: Duration) {
        let mut connected = self.connected.clone();
        let _ = tokio::time::timeout(limit, connected.wait_for(|now| *now)).await;
    }

    /// Until the swarm counts on this node in its role, or it is given up to join in the background.
    pub(crate) async fn wait_joined(&self, limit: Duration) -> Result<()> {
        let joined = async {
            let _ = self.connected.clone().wait_for(|now| *now).await;
            while self.role() == Role::Manager && !self.started_manager().is_some_and(|m| self.is_announced(&m)) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(limit, joined).await.map_err(|_| NodeError::JoinTimeout)
    }

    pub(crate) fn local_state(&self) -> LocalState {
        if *self.removed.borrow() {
            return LocalState::Error;
        }
        // A manager answers for itself; a worker is active once a manager knows it.
        let known = self.manager().is_some() || *self.connected.borrow() || self.orders.borrow().is_some();
        if known { LocalState::Active } else { LocalState::Pending }
    }

    pub(crate) fn info(&self) -> SwarmInfo {
        let manager = self.manager();
        let view = manager.as_ref().map(|m| m.view());
        let own = self.orders.borrow().as_ref().and_then(|o| o.set.nodes.get(&self.node_id()).map(|n| n.vtep));
        let advertise = self.with_state(|s| s.advertise.ip());
        let node_addr = match own {
            _ if !advertise.is_unspecified() => advertise.to_string(),
            Some(vtep) => vtep.to_string(),
            None => String::new(),
        };
        SwarmInfo {
            node_id: Some(self.node_id()),
            node_addr,
            state: self.local_state(),
            role: self.tls.current().identity.role,
            control_available: manager.is_some(),
            error: if *self.removed.borrow() { REMOVED.to_owned() } else { String::new() },
            remote_managers: self.managers.borrow().clone(),
            nodes: view.as_ref().map(skep_store::View::nodes_len),
            managers: view.as_ref().map(|v| v.nodes().filter(|n| n.manager.is_some()).count()),
            cluster: view.as_ref().and_then(|v| v.cluster().map(|c| (**c).clone())),
        }
    }

    /// Saves what changes, follows the wanted role, renews the certificate.
    async fn keep(&self) {
        let mut managers = self.managers.subscribe();
        managers.mark_changed();
        let mut wanted = self.wanted_role.subscribe();
        let mut trust = self.wanted_trust.subscribe();
        // Drawn once, so that nodes that joined together do not renew together.
        let share = 0.5 + rand::random::<f64>() * 0.3;
        let mut pause = ROLE_RETRY;
        loop {
            let role = *wanted.borrow_and_update();
            let (step, outcome) = if role.is_some_and(|role| role != self.role()) {
                // A manager that has not heard of the new role yet gives a certificate of the old one: asked again.
                let renewed = self.renew().await;
                ("renew the certificate for another role", renewed.map(|()| role == Some(self.role())))
            } else if (self.role() == Role::Manager) != self.started_manager().is_some() {
                ("take up the role", Box::pin(self.follow_role()).await.map(|()| true))
            } else if trust.has_changed().unwrap_or(false) {
                let due = trust.borrow_and_update().clone();
                let followed = self.follow_trust(due).await;
                if !matches!(followed, Ok(true)) {
                    trust.mark_changed();
                }
                ("trust what the swarm trusts", followed)
            } else if let Some(manager) = self.started_manager().filter(|manager| manager.consensus().has_ended()) {
                tokio::time::sleep(BEGIN_AGAIN).await;
                ("take part in consensus again", self.begin_again(&manager).await.map(|()| true))
            } else if let Some(manager) = self.started_manager().filter(|manager| !self.is_announced(manager)) {
                let remotes = self.manager_addresses();
                let joined = tokio::select! {
                    joined = manager.join_consensus(&remotes) => joined,
                    // Demoted again: there is nothing to wait for. (The leader says the role it wants more than once.)
                    _ = wanted.wait_for(|role| *role == Some(Role::Worker)) => Ok(true),
                };
                // Before it is asked again the leader's new list of managers may come.
                match joined {
                    Ok(true) => ("be taken in as a manager", Ok(false)),
                    Ok(false) => ("renew a certificate from before a demotion", self.renew().await.map(|()| false)),
                    Err(error) => ("be taken in as a manager", Err(error)),
                }
            } else {
                tokio::select! {
                    changed = managers.changed() => {
                        if changed.is_err() { return }
                        self.save_managers(&mut managers);
                    }
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = async {
                        tokio::select! {
                            () = tokio::time::sleep(self.renew_in(share)) => {}
                            () = self.certificates.exposed() => {}
                        }
                    } => if let Err(error) = self.renew().await {
                        tracing::warn!(%error, "cannot renew the certificate");
                        tokio::time::sleep(RENEW_RETRY).await;
                    },
                    changed = trust.changed() => {
                        if changed.is_err() { return }
                        trust.mark_changed();
                    }
                    () = self.consensus_ended() => {}
                }
                continue;
            };
            match outcome {
                Ok(true) => pause = ROLE_RETRY,
                Ok(false) => tokio::time::sleep(ROLE_RETRY).await,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot {step}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RENEW_RETRY);
                }
            }
        }
    }

    /// False if it is to be tried again.
    async fn follow_trust(&self, wanted: Option<Trust>) -> Result<bool> {
        let have = self.tls.current();
        match wanted {
            Some(wanted) if wanted.issuer_key != have.issuer.key => {
                self.renew().await?;
                // A manager that has not heard of the new root yet gives a certificate of the old one.
                Ok(self.tls.current().issuer.key == wanted.issuer_key)
            }
            Some(wanted) if wanted.root_pem != have.root_pem => self.adopt_root(&wanted.root_pem).map(|()| true),
            Some(_) | None => Ok(true),
        }
    }

    /// The role its certificate has.
    fn role(&self) -> Role {
        self.tls.current().identity.role
    }

    fn save_managers(&self, managers: &mut watch::Receiver<Vec<RemoteManager>>) {
        let known = managers.borrow_and_update().clone();
        let state = self.with_state(|state| {
            state.managers = known;
            state.clone()
        });
        if let Err(error) = self.state_files.save(&state) {
            tracing::warn!(%error, "cannot save the list of managers");
        }
    }

    fn renew_in(&self, share: f64) -> Duration {
        let identity = &self.tls.current().identity;
        let life = identity.not_after.saturating_sub(identity.issued_at()).max(0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "seconds of a certificate's life"
        )]
        let at = identity.issued_at() + (life as f64 * share) as i64;
        let left = at - now().0 / 1_000_000_000;
        Duration::from_secs(u64::try_from(left).unwrap_or(0)).max(Duration::from_secs(1))
    }

    async fn renew(&self) -> Result<()> {
        let key = NodeKey::generate()?;
        let issue = IssueRequest {
            request_pem: key.request_pem()?,
            token: None,
            availability: skep_model::node::Availability::Active,
            hostname: self.config.hostname.clone(),
        };
        let managers = self.managers.borrow().clone();
        let mut last = NodeError::NoLeader(String::new());
        for remote in &managers {
            let connection = Connection::lazy(&remote.addr, &self.tls)?;
            let mut request = tonic::Request::new(pack(&issue));
            request.set_timeout(Duration::from_secs(5));
            match connection.ca().issue(request).await {
                Ok(reply) => {
                    let reply: IssueReply = unpack(reply.get_ref()).map_err(|s| NodeError::Internal(s.to_string()))?;
                    return self.take_up(&reply, &key);
                }
                Err(status) => last = NodeError::Internal(status.to_string()),
            }
        }
        // When every manager's certificate has run out there is nobody to ask.
        match self.manager().filter(|_| self.tls.current().identity.has_expired(now())) {
            Some(manager) => self.take_up(&manager.issue_to_itself(&issue.request_pem).await?, &key),
            None => Err(last),
        }
    }

    fn take_up(&self, reply: &IssueReply, key: &NodeKey) -> Result<()> {
        check_chain(&reply.root_pem, &reply.cert_pem)?;
        let material = TlsMaterial::new(&reply.root_pem, &reply.cert_pem, &key.pem())?;
        self.certificates.take(reply, key)?;
        self.tls.replace(material);
        tracing::info!(role = ?reply.role, "certificate renewed");
        Ok(())
    }

    /// The root was replaced. The certificate this node has must be good for those who trust only the new one.
    fn adopt_root(&self, root_pem: &str) -> Result<()> {
        let Some((_, cert_pem, key_pem)) = self.certificates.load()? else { return Ok(()) };
        check_chain(root_pem, &cert_pem)?;
        let material = TlsMaterial::new(root_pem, &cert_pem, &key_pem)?;
        self.certificates.save(root_pem, &cert_pem, &key_pem, material.identity.role)?;
        self.tls.replace(material);
        tracing::info!("the new root certificate is trusted from now on");
        Ok(())
    }

    /// Makes the manager the certificate says there should be, or ends the one it says there should not.
    async fn follow_role(&self) -> Result<()> {
        match (self.tls.current().identity.role, self.started_manager()) {
            (Role::Manager, None) => Box::pin(self.become_manager()).await,
            (Role::Worker, Some(manager)) => {
                self.set_manager(None);
                manager.stop().await;
                self.state_files.forget_raft()?;
                self.certificates.forget_log_key()?;
                // A worker has no use for a lock, and nobody to unlock it.
                self.certificates.unseal()?;
                let state = self.with_state(|state| {
                    state.raft_id = None;
                    state.clone()
                });
                self.state_files.save(&state)
            }
            (Role::Manager, Some(_)) | (Role::Worker, None) => Ok(()),
        }
    }

    /// Until this manager takes no part in consensus any more.
    async fn consensus_ended(&self) {
        match self.started_manager() {
            Some(manager) => manager.consensus().ended().await,
            None => std::future::pending().await,
        }
    }

    /// Its disk failed, full more often than not: with the log it has, once the disk takes writes. Reads are served until then.
    async fn begin_again(&self, manager: &Manager) -> Result<()> {
        self.state_files.try_disk()?;
        manager.stop().await;
        self.set_manager(None);
        Ok(())
    }

    async fn become_manager(&self) -> Result<()> {
        let mut state = self.with_state(|state| state.clone());
        // A try that was cut short may have made it a voter already: that one is to be finished, not followed by another.
        // Without its log a raft id may not vote again, and the log is of no use under another.
        let raft_id = match state.raft_id.filter(|_| self.state_files.has_raft()) {
            Some(raft_id) => raft_id,
            None => {
                self.state_files.forget_raft()?;
                crate::lifecycle::new_raft_id()
            }
        };
        state.raft_id = Some(raft_id);
        if state.advertise.ip().is_unspecified() {
            let own = self.orders.borrow().as_ref().and_then(|o| o.set.nodes.get(&state.node_id).map(|n| n.vtep));
            state.advertise = match own {
                Some(vtep) => (vtep, state.listen.port()).into(),
                None => crate::address::advertise("", self.config.default_advertise.as_deref(), state.listen)?,
            };
        }
        self.state_files.save(&state)?;
        self.with_state(|own| *own = state.clone());
        let listener = crate::lifecycle::listen(state.listen).await?;
        let config = ManagerConfig {
            node_id: state.node_id.clone(),
            raft_dir: self.state_files.raft_dir(),
            raft_id,
            storage_key: self.certificates.log_key()?,
            certificates: self.certificates.clone(),
            advertise: state.advertise,
            tls: self.tls.clone(),
            timing: self.config.timing,
            events: self.events.clone(),
            audit: AuditLog::new(&self.config.data_root),
            gossip: self.gossip.clone(),
        };
        let manager = Manager::start(config, listener).await?;
        self.set_manager(Some(manager));
        Ok(())
    }

    /// Says goodbye, takes this host's tasks away and stops.
    pub(crate) async fn leave(&self) {
        // A session would call the node ready again.
        self.cancel.cancel();
        if let Some(manager) = self.started_manager() {
            manager.hand_over().await;
        }
        let managers = self.managers.borrow().clone();
        let alone = self.manager().is_some_and(|m| m.consensus().members().len() <= 1);
        if !alone {
            let goodbye = self.goodbye(&managers);
            let _ = tokio::time::timeout(GOODBYE_DEADLINE, goodbye).await;
        }
        self.stop().await;
        take_away(self.executor.as_ref()).await;
    }

    /// Out of consensus first, then out of sight; whoever leads takes it, and a new leader may need a moment.
    async fn goodbye(&self, managers: &[RemoteManager]) {
        let request = |seconds| {
            let mut request = tonic::Request::new(pack(&()));
            request.set_timeout(Duration::from_secs(seconds));
            request
        };
        let mut manages = self.started_manager().is_some();
        loop {
            for remote in managers {
                let Ok(connection) = Connection::lazy(&remote.addr, &self.tls) else { continue };
                if manages && connection.control().leave_raft(request(5)).await.is_ok() {
                    manages = false;
                }
                if !manages && connection.dispatcher().leave(request(2)).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[cfg(test)]
    pub(crate) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        self.cancel.cancel();
        if let Some(manager) = self.started_manager() {
            manager.abandon();
        }
    }

    /// Ends everything in order; containers go on.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        if let Some(manager) = self.started_manager() {
            self.set_manager(None);
            manager.stop().await;
        }
    }
}

/// All that the swarm ran on this host.
pub(crate) async fn take_away(executor: &dyn Executor) {
    for task_id in executor.found().await {
        if let Err(error) = executor.remove_stray(&task_id).await {
            tracing::warn!(task.id = %task_id, error, "cannot remove a task's container");
        }
    }
    executor.apply(&Arc::default()).await;
}
