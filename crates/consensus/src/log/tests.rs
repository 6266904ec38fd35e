//! openraft's own test suite of the storage contract, and what is particular to ours.

use std::sync::atomic::{AtomicU64, Ordering};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::LogStore;
use crate::config::Config;
use crate::machine::Machine;
use crate::snapshot::SnapshotDir;
use crate::types::Types;
use crate::work::Work;

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
