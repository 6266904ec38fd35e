//! A manager between the start of its daemon and `docker swarm unlock`: it takes no part in the swarm, and what its host was
//! told last goes on.

use std::sync::Arc;
use std::time::Duration;

use skep_agent::spec::NodeFacts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Inner, Membership};
use crate::agent_loop::{ARCHITECTURE, Executor, Orders, StatusBoard, WorkerLoop, run_plane};
use crate::ca::parse_unlock_key;
use crate::config::NodeConfig;
use crate::error::{NodeError, Result};
use crate::state::StateFiles;

pub(super) struct Locked {
    /// Nobody gives other orders while it is locked.
    _orders: watch::Sender<Option<Orders>>,
    /// Nor does a leader answer.
    _answered: watch::Sender<Option<Duration>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Locked {
    pub(super) fn start(config: &NodeConfig, executor: Arc<dyn Executor>) -> Arc<Self> {
        let state_files = StateFiles::new(&config.swarm_dir());
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let saved = state_files.load_assignments();
        let remembered =
            saved.facts.0.map(|facts| Orders { facts, set: Arc::new(saved.set), fresh: false, word: None });
        let (orders, _) = watch::channel(remembered);
        let (answered, _) = watch::channel(None);
        if let Ok(Some(state)) = state_files.load() {
            let names = NodeFacts {
                node_id: state.node_id.clone(),
                hostname: config.hostname.clone(),
                os: "linux".into(),
                architecture: ARCHITECTURE.into(),
            };
            let board = Arc::new(StatusBoard::default());
            let told = (orders.subscribe(), answered.subscribe());
            tasks.spawn(WorkerLoop::run(executor.clone(), board, names, told.0, told.1, cancel.clone()));
            // Nobody hears of it: there is no session.
            let in_force = watch::Sender::new(None);
            tasks.spawn(run_plane(state.node_id, executor, state_files, orders.subscribe(), in_force, cancel.clone()));
        }
        tasks.close();
        Arc::new(Self { _orders: orders, _answered: answered, cancel, tasks })
    }

    /// Containers go on.
    pub(super) async fn stop(&self) {
        self.cancel.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
    }
}

impl Inner {
    pub(crate) async fn unlock(self: &Arc<Self>, key: &str) -> Result<()> {
        let _guard = self.transition.lock().await;
        let locked = match self.get() {
            Membership::Locked(locked) => locked,
            Membership::Inside(member) if member.manager().is_some() => return Err(NodeError::NotLocked),
            Membership::Inside(_) => return Err(NodeError::NotManager),
            Membership::Outside | Membership::Joining | Membership::Broken(_) => return Err(NodeError::NoSwarm),
        };
        self.certificates.unlock(&parse_unlock_key(key)?)?;
        locked.stop().await;
        self.take_up().await;
        self.settle_restore().await;
        match self.get() {
            Membership::Broken(error) => {
                Err(NodeError::Internal(format!("swarm component could not be started: {error}")))
            }
            Membership::Outside | Membership::Joining | Membership::Inside(_) | Membership::Locked(_) => Ok(()),
        }
    }
}
