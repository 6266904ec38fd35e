//! openraft's own test suite of the storage contract, and what is particular to ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::common::{blank_ent, log_id};
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::time::sleep;

use super::LogStore;
use crate::config::Config;
use crate::machine::Machine;
use crate::snapshot::SnapshotDir;
use crate::types::Types;
use crate::work::Work;
use crate::{Crash, SimDisk};

struct Fresh {
    dir: tempfile::TempDir,
    built: AtomicU64,
}

impl StoreBuilder<Types, LogStore, Machine> for Fresh {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<Types>> {
        let number = self.built.fetch_add(1, Ordering::Relaxed);
        let config = Config::new(self.dir.path().join(number.to_string()), 1, "", [1; 32]);
        let snapshots = SnapshotDir::open(&config).unwrap();
        let log = LogStore::open(&config).await.unwrap();
        Ok(((), log, Machine::open(snapshots, Work::of(&config)).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_contract_of_openraft_is_kept() {
    let fresh = Fresh { dir: tempfile::tempdir().unwrap(), built: AtomicU64::default() };
    Suite::test_all(fresh).await.unwrap();
}

/// The log said how far it was committed and did not hold all of that after a crash: the manager never started again.
#[tokio::test(start_paused = true)]
async fn what_others_committed_is_not_on_record_before_it_is_on_this_disk() {
    let disk = SimDisk::default();
    let mut config = Config::new("/sim/raft", 1, "", [1; 32]);
    config.disk = Arc::new(disk.clone());
    config.simulation_seed = Some(1);
    // Makes the directory.
    SnapshotDir::open(&config).unwrap();
    let mut log = LogStore::open(&config).await.unwrap();
    disk.set_latency(Duration::from_millis(100));
    log.append([blank_ent::<Types>(1, 1, 0)], IOFlushed::noop()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    // The disk is at work on the first: this one waits, and a quorum has it meanwhile.
    log.append([blank_ent::<Types>(1, 1, 1)], IOFlushed::noop()).await.unwrap();
    log.save_committed(Some(log_id::<Types>(1, 1, 1))).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    disk.crash(Crash::Keep);
    drop(log);
    let mut log = LogStore::open(&config).await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last, Some(log_id::<Types>(1, 1, 0)));
    assert!(log.read_committed().await.unwrap() <= last);
}
