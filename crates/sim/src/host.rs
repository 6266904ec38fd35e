//! One host: its clock, its daemon, and what survives each kind of end.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use skep_model::assignment::AssignmentSet;
use skep_model::node::{NodeDescription, Role};
use skep_model::{NodeId, Timestamp};

use crate::HostId;
use crate::agent::Agent;
use crate::engine::Engine;
use crate::leader::Leader;
use crate::log::Disk;
use crate::places::{Keeper, Key};

/// When every world begins, by a clock that is right.
const EPOCH: Timestamp = Timestamp::from_secs(1_800_000_000);

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) node_id: NodeId,
    /// What its certificate says.
    pub(crate) role: Role,
    /// It has a log, and will open it when it starts.
    pub(crate) has_log: bool,
    /// Where it looks for the leader.
    pub(crate) known_managers: Vec<HostId>,
    pub(crate) has_power: bool,
    pub(crate) disk: Disk,
    /// Counts the daemon's lives; what an earlier life asked for answers nobody.
    pub(crate) life: u64,
    pub(crate) frozen_until: Duration,
    /// Since when gossip has not reached it.
    pub(crate) lost_since: Option<Duration>,
    /// How far the clock is ahead, and how much faster it runs, in millionths.
    pub(crate) skew_ms: i64,
    pub(crate) drift_ppm: i64,
    /// How much faster its clock of the time since boot runs, in millionths: no two quartzes are alike.
    pub(crate) rate_ppm: u32,
    pub(crate) engine: Engine,
    /// Containers that are no tasks and live, where they are.
    pub(crate) placed: BTreeMap<Key, Ipv4Addr>,
    /// `worker/assignments`: what the leader said last.
    pub(crate) saved: Option<AssignmentSet>,
    /// The daemon; `None` while it is down.
    pub(crate) daemon: Option<Daemon>,
}

pub(crate) struct Daemon {
    pub(crate) agent: Agent,
    pub(crate) keeper: Keeper,
    pub(crate) leader: Option<Leader>,
    /// Its consensus ended on a disk that failed.
    pub(crate) log_stopped: bool,
    /// It asked to be let in a moment ago.
    pub(crate) asks_to_join: bool,
}

impl Host {
    pub(crate) fn new(id: HostId, node_id: NodeId, managers: usize, rate_ppm: u32) -> Self {
        let has_log = id.0 < managers;
        Self {
            id,
            node_id,
            role: if has_log { Role::Manager } else { Role::Worker },
            has_log,
            known_managers: (0..managers).map(HostId).collect(),
            has_power: true,
            disk: Disk::Fine,
            life: 0,
            frozen_until: Duration::ZERO,
            lost_since: None,
            skew_ms: 0,
            drift_ppm: 0,
            rate_ppm,
            engine: Engine::default(),
            placed: BTreeMap::new(),
            saved: None,
            daemon: None,
        }
    }

    /// What its clock shows.
    pub(crate) fn clock(&self, now: Duration) -> Timestamp {
        let nanos = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let drift = nanos / 1_000_000 * self.drift_ppm;
        Timestamp(EPOCH.0 + nanos + drift + self.skew_ms * 1_000_000)
    }

    /// How long until its clock shows `at`.
    pub(crate) fn until(&self, at: Timestamp, now: Duration) -> Duration {
        at.since(self.clock(now))
    }

    /// What the clock of its boot shows: nobody sets that one.
    pub(crate) fn since_boot(&self, now: Duration) -> Duration {
        now + now * self.rate_ppm / 1_000_000
    }

    /// When the clock of its boot will show `at`.
    pub(crate) fn boot_shows(&self, at: Duration) -> Duration {
        at.mul_f64(1_000_000.0 / f64::from(1_000_000 + self.rate_ppm)) + Duration::from_micros(1)
    }

    pub(crate) fn description(&self) -> NodeDescription {
        NodeDescription {
            hostname: self.id.to_string(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            ..NodeDescription::default()
        }
    }

    pub(crate) fn address(&self) -> std::net::IpAddr {
        [192, 168, 0, u8::try_from(self.id.0 + 1).unwrap_or(u8::MAX)].into()
    }
}
