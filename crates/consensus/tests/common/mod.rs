//! Managers in one process over a network whose links can be cut.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) mod linear;
pub(crate) mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep_consensus::{Config, Consensus, Leadership, Peer, SimDisk, Transport, TransportError};
use skep_model::secret::SecretBytes;
use skep_model::{ConfigId, Labels, Meta, Timestamp};
use skep_store::{Batch, Change, View};

pub(crate) const KEY: [u8; 32] = [42; 32];
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A batch that creates the config `name`; refused when the name is taken.
pub(crate) fn create(name: &str) -> Batch {
    create_with(name, name.as_bytes().to_vec())
}

pub(crate) fn id_of(name: &str) -> ConfigId {
    let bits = name.bytes().fold(7u128, |hash, byte| hash.wrapping_mul(0x1_0000_01b3).wrapping_add(u128::from(byte)));
    ConfigId::from_bits(bits)
}

pub(crate) fn create_with(name: &str, data: Vec<u8>) -> Batch {
    let config = skep_model::secret::Config {
        id: id_of(name),
        meta: Meta::default(),
        name: name.to_owned(),
        labels: Labels::default(),
        data: SecretBytes(data),
        templating: None,
    };
    Batch::new(Timestamp::default(), vec![Change::CreateConfig(Box::new(config))])
}

/// Names of all configs `manager` has applied.
pub(crate) fn names(manager: &Consensus) -> BTreeSet<String> {
    names_in(&manager.view())
}

pub(crate) fn names_in(view: &View) -> BTreeSet<String> {
    view.configs().map(|config| config.name.clone()).collect()
}

#[derive(Default)]
struct Wires {
    managers: BTreeMap<u64, Consensus>,
    cut: BTreeSet<(u64, u64)>,
    sent: u64,
}

/// All managers of a test and the links between them.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Mutex<Wires>>);

impl Hub {
    pub(crate) async fn start(&self, config: Config) -> Consensus {
        let raft_id = config.raft_id;
        let link = Arc::new(Link { hub: self.clone(), from: raft_id });
        let manager = Consensus::open(config, link).await.unwrap();
        self.0.lock().unwrap().managers.insert(raft_id, manager.clone());
        manager
    }

    /// What is sent to `raft_id` reaches `manager`, as if it had taken over the address.
    pub(crate) fn plug(&self, raft_id: u64, manager: &Consensus) {
        self.0.lock().unwrap().managers.insert(raft_id, manager.clone());
    }

    /// Takes a manager off the net, so that the caller holds the last handle.
    pub(crate) fn unplug(&self, raft_id: u64) {
        self.0.lock().unwrap().managers.remove(&raft_id);
    }

    pub(crate) fn isolate(&self, raft_id: u64) {
        let mut wires = self.0.lock().unwrap();
        for other in 0..10 {
            wires.cut.extend([(raft_id, other), (other, raft_id)]);
        }
    }

    pub(crate) fn heal(&self) {
        self.0.lock().unwrap().cut.clear();
    }
}

struct Link {
    hub: Hub,
    from: u64,
}

#[async_trait::async_trait]
impl Transport for Link {
    async fn call(&self, peer: &Peer, message: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        assert!(message.len() <= skep_consensus::MAX_MESSAGE_BYTES, "a message of {} bytes", message.len());
        let reached = {
            let mut wires = self.hub.0.lock().unwrap();
            wires.sent += 1;
            let cut = wires.cut.contains(&(self.from, peer.raft_id));
            wires.managers.get(&peer.raft_id).filter(|_| !cut).cloned()
        };
        match reached {
            Some(manager) => Ok(manager.handle_rpc(message).await),
            None => Err(TransportError::Unreachable("no link".to_owned())),
        }
    }
}

/// A manager that is alone: nothing can be sent.
pub(crate) struct NoPeers;

#[async_trait::async_trait]
impl Transport for NoPeers {
    async fn call(&self, peer: &Peer, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable(format!("{} is not there", peer.address)))
    }
}

pub(crate) fn config(dir: &Path, raft_id: u64) -> Config {
    let mut config = Config::new(dir.join(format!("m{raft_id}")), raft_id, format!("10.0.0.{raft_id}:2377"), KEY);
    config.timing.propose_timeout = Duration::from_secs(5);
    config
}

/// Runs `story` in one thread whose clock moves when nothing else can.
pub(crate) fn simulate<F: Future>(story: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(story)
}

pub(crate) fn simulated(raft_id: u64, seed: u64, disk: &SimDisk) -> Config {
    let mut config = config("/sim".as_ref(), raft_id);
    config.disk = Arc::new(disk.clone());
    config.simulation_seed = Some(seed.wrapping_mul(31).wrapping_add(raft_id));
    (config.snapshot_interval, config.log_entries_for_slow_followers) = (40, 5);
    config
}

pub(crate) async fn alone(dir: &Path) -> Consensus {
    let manager = Consensus::open(config(dir, 1), Arc::new(NoPeers)).await.unwrap();
    if !manager.has_state().await.unwrap() {
        manager.bootstrap().await.unwrap();
    }
    leads(&manager).await;
    manager
}

/// Three voters, the first of them leading.
pub(crate) async fn three(dir: &Path, adjust: impl Fn(&mut Config)) -> (Hub, [Consensus; 3]) {
    let hub = Hub::default();
    let start = async |raft_id| {
        let mut config = config(dir, raft_id);
        adjust(&mut config);
        hub.start(config).await
    };
    let managers = [start(1).await, start(2).await, start(3).await];
    managers[0].bootstrap().await.unwrap();
    for manager in &managers[1..] {
        join(&managers[0], manager).await;
    }
    (hub, managers)
}

pub(crate) async fn join(leader: &Consensus, manager: &Consensus) {
    let raft_id = manager.raft_id();
    leader.add_learner(Peer { raft_id, address: format!("10.0.0.{raft_id}:2377") }).await.unwrap();
    leader.promote(raft_id).await.unwrap();
}

pub(crate) async fn leads(manager: &Consensus) -> Leadership {
    let mut leadership = manager.leadership();
    let led = leadership.wait_for(|now| now.is_leader);
    tokio::time::timeout(PATIENCE, led).await.expect("leads in time").unwrap().clone()
}

/// Which of `managers` leads, once one does.
pub(crate) async fn leader_of<'a>(managers: &[&'a Consensus]) -> &'a Consensus {
    let leads = || managers.iter().find(|manager| manager.leadership().borrow().is_leader).copied();
    eventually("a leader", || async { leads().is_some() }).await;
    leads().unwrap()
}

pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn has(manager: &Consensus, name: &str) {
    eventually(&format!("{name} on {}", manager.raft_id()), || async { names(manager).contains(name) }).await;
}
