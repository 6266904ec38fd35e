//! A network that delays, loses, repeats, reorders and cuts, and whose every draw follows from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skep_consensus::{Config, Consensus, Peer, Transport, TransportError};
use tokio::time::Instant;

/// What befalls each message of its own accord.
#[derive(Clone)]
pub(crate) struct Weather {
    /// One way; drawn for each message, so that later ones overtake earlier ones.
    pub(crate) delay_us: Range<u64>,
    /// Percent of messages, and of answers, that are lost.
    pub(crate) lost: u32,
    /// Percent of messages that arrive twice.
    pub(crate) repeated: u32,
}

pub(crate) const FAIR: Weather = Weather { delay_us: 100..2000, lost: 0, repeated: 0 };

struct Wires {
    dice: StdRng,
    weather: Weather,
    managers: BTreeMap<u64, Consensus>,
    /// How often each was unplugged: what an earlier life of a manager still says is not heard.
    lives: BTreeMap<u64, u32>,
    /// Ways (from, to) on which nothing arrives.
    cut: BTreeSet<(u64, u64)>,
    started: Instant,
    trace: Vec<String>,
}

/// All managers of a test and what lies between them.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<Wires>>);

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Wires {
            dice: StdRng::seed_from_u64(seed),
            weather: FAIR,
            managers: BTreeMap::new(),
            lives: BTreeMap::new(),
            cut: BTreeSet::new(),
            started: Instant::now(),
            trace: Vec::new(),
        })))
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap()
    }

    pub(crate) async fn start(&self, config: Config) -> Consensus {
        let raft_id = config.raft_id;
        let life = self.life(raft_id);
        let manager = Consensus::open(config, Arc::new(Wire { net: self.clone(), from: raft_id, life })).await.unwrap();
        self.wires().managers.insert(raft_id, manager.clone());
        manager
    }

    /// Nothing reaches this manager any more, and the net holds no handle on it.
    pub(crate) fn unplug(&self, raft_id: u64) {
        let mut wires = self.wires();
        wires.managers.remove(&raft_id);
        *wires.lives.entry(raft_id).or_default() += 1;
    }

    fn life(&self, raft_id: u64) -> u32 {
        self.wires().lives.get(&raft_id).copied().unwrap_or_default()
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.wires().weather = weather;
    }

    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.wires().cut.insert((from, to));
    }

    pub(crate) fn isolate(&self, raft_id: u64) {
        for other in 0..10 {
            self.cut(raft_id, other);
            self.cut(other, raft_id);
        }
    }

    pub(crate) fn heal(&self) {
        self.wires().cut.clear();
    }

    pub(crate) fn draw(&self, range: Range<u64>) -> u64 {
        self.wires().dice.random_range(range)
    }

    /// What happened so far, a line each: messages and what the test noted.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.wires().trace.clone()
    }

    pub(crate) fn note(&self, what: &str) {
        let mut wires = self.wires();
        let at = wires.started.elapsed().as_micros();
        wires.trace.push(format!("{at} {what}"));
    }

    fn reaches(&self, from: u64, to: u64) -> Option<Consensus> {
        let wires = self.wires();
        wires.managers.get(&to).filter(|_| !wires.cut.contains(&(from, to))).cloned()
    }
}

struct Wire {
    net: Net,
    from: u64,
    life: u32,
}

struct Fate {
    there: Duration,
    back: Duration,
    lost: bool,
    answer_lost: bool,
    again_after: Option<Duration>,
}

impl Wire {
    fn fate(&self) -> Fate {
        let mut wires = self.net.wires();
        let Weather { delay_us, lost, repeated } = wires.weather.clone();
        let mut delay = || Duration::from_micros(wires.dice.random_range(delay_us.clone()));
        let (there, back, again) = (delay(), delay(), delay());
        let mut percent = |of: u32| wires.dice.random_range(0..100) < of;
        Fate {
            there,
            back,
            lost: percent(lost),
            answer_lost: percent(lost),
            again_after: percent(repeated).then_some(again),
        }
    }
}

#[async_trait::async_trait]
impl Transport for Wire {
    async fn call(&self, peer: &Peer, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        assert!(message.len() <= skep_consensus::MAX_MESSAGE_BYTES, "a message of {} bytes", message.len());
        let (from, to, fate) = (self.from, peer.raft_id, self.fate());
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        self.net.note(&format!("{from}>{to} {} bytes {:016x}", message.len(), hasher.finish()));
        if let Some(after) = fate.again_after {
            let (net, message) = (self.net.clone(), message.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(manager) = net.reaches(from, to) {
                    manager.handle_rpc(message).await;
                }
            });
        }
        tokio::time::sleep(fate.there).await;
        let alive = || self.net.life(from) == self.life;
        if !fate.lost
            && alive()
            && let Some(manager) = self.net.reaches(from, to)
        {
            let answer = manager.handle_rpc(message).await;
            drop(manager);
            tokio::time::sleep(fate.back).await;
            if !fate.answer_lost && alive() && self.net.reaches(to, from).is_some() {
                return Ok(answer);
            }
        }
        tokio::time::sleep(timeout).await;
        Err(TransportError::Failed("no answer".to_owned()))
    }
}
