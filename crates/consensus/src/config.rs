//! What a caller decides about one manager's consensus; every default is a named constant.
//!
//! A leader that dies is noticed after [`ELECTION_MIN`] to [`ELECTION_MAX`] of silence. On a noisy machine that is made
//! longer by as much as the machine was late lately, up to [`ELECTION_STRETCH_MAX`] (`patience.rs`): nothing to configure. A
//! follower that wakes late does no harm by itself: it asks first whether anybody would vote for it (pre-vote), and nobody
//! does who has heard the leader within the lease, half of [`ELECTION_MAX`]. Where the round trip between managers, or a
//! flush of their disks, comes near a hundred milliseconds, give all of them a longer [`Timing`]: an answer to a request for
//! votes is waited for no longer than the shortest draw, [`ELECTION_MIN`] less the lease.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, HostDisk};

/// How often a leader shows itself. Swarm: one tick a second; a dead leader is then noticed after 3 to 10 s.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A follower that heard nothing for this long asks around for votes (drawn anew between min and max each time).
pub const ELECTION_MIN: Duration = Duration::from_millis(600);
pub const ELECTION_MAX: Duration = Duration::from_millis(900);
/// The most that is added to the silence a manager bears before it stands for election, when its machine is late itself.
pub const ELECTION_STRETCH_MAX: Duration = Duration::from_secs(2);
/// Entries between two snapshots (SwarmKit `SnapshotInterval` 10000).
pub const SNAPSHOT_INTERVAL: u64 = 10_000;
/// Entries kept behind a snapshot for followers that are a little late (SwarmKit `LogEntriesForSlowFollowers` 500).
pub const LOG_ENTRIES_FOR_SLOW_FOLLOWERS: u64 = 500;
/// How long a proposal may take from call to answer.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The clocks of one manager. All managers of a cluster should have the same.
#[derive(Clone, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// After this a proposal answers [`ProposeError::Timeout`](crate::ProposeError::Timeout): its outcome is unknown.
    pub propose_timeout: Duration,
    /// How long a proposal waits for a leader to appear before it answers `NoLeader`.
    pub leader_wait: Duration,
}

impl Timing {
    /// How long a leader may count on a quorum's answer: followers grant nobody else a vote for this long after it. openraft
    /// has a follower wait for the lease *and* a random time, so half of the longest silence is the lease.
    pub(crate) fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// The shortest random time on top of the lease; openraft wants it longer than a heartbeat.
    pub(crate) fn shortest_draw(&self) -> Duration {
        self.election_min.saturating_sub(self.lease()).max(self.heartbeat + Duration::from_millis(1))
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT,
            election_min: ELECTION_MIN,
            election_max: ELECTION_MAX,
            propose_timeout: PROPOSE_TIMEOUT,
            leader_wait: ELECTION_MAX * 2,
        }
    }
}

/// One manager's place in the cluster and on disk.
#[derive(Clone)]
pub struct Config {
    /// Directory of `raft.db` and `snapshots/`; made if missing, with mode 0700.
    pub dir: PathBuf,
    /// This manager's number in the cluster. Never reused with an empty directory: a manager that was demoted and is
    /// promoted again draws a new one.
    pub raft_id: u64,
    /// Where other managers reach this one (`host:port`), as the membership records it.
    pub address: String,
    pub timing: Timing,
    /// Seals every record and snapshot on disk.
    pub storage_key: [u8; 32],
    pub snapshot_interval: u64,
    pub log_entries_for_slow_followers: u64,
    /// What `dir` lies on: this host's files, or a [`SimDisk`](crate::SimDisk).
    pub disk: Arc<dyn Disk>,
    /// `Some` makes the manager repeatable: whatever it draws follows from this number, it starts no thread, and disk work
    /// is done where it is asked for, after [`Disk::latency`]. All that is left outside is the clock and the order in which
    /// messages arrive, so run it in a tokio runtime of one thread built with `start_paused(true)`, over a
    /// [`Transport`](crate::Transport) that is as repeatable. Let at most one task wait on one manager's
    /// [`leadership`](crate::Consensus::leadership): tokio wakes several in an order that cannot be seeded.
    ///
    /// What is simulated then, and what is not, is in `docs/adr/0008`.
    pub simulation_seed: Option<u64>,
}

impl Config {
    /// A manager with default timing.
    pub fn new(dir: impl Into<PathBuf>, raft_id: u64, address: impl Into<String>, storage_key: [u8; 32]) -> Self {
        Self {
            dir: dir.into(),
            raft_id,
            address: address.into(),
            timing: Timing::default(),
            storage_key,
            snapshot_interval: SNAPSHOT_INTERVAL,
            log_entries_for_slow_followers: LOG_ENTRIES_FOR_SLOW_FOLLOWERS,
            disk: Arc::new(HostDisk),
            simulation_seed: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("dir", &self.dir)
            .field("raft_id", &self.raft_id)
            .field("address", &self.address)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}
