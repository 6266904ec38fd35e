//! The state machine: applies committed batches to the store in order, publishes each result, and takes snapshots.
//!
//! The store lives in memory. What survives a restart is the newest snapshot and the log behind it.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use skep_store::{Batch, Store};

use crate::error::Error;
use crate::feed::Published;
use crate::snapshot::SnapshotDir;
use crate::types::{Blob, LogId, Outcome, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, Types};
use crate::work::Work;

pub(crate) struct Machine {
    state: State,
    published: Arc<Published>,
    snapshots: SnapshotDir,
    work: Work,
}

/// Everything a snapshot must carry. A clone is cheap: the store's tables are persistent maps.
#[derive(Clone, Default)]
struct State {
    store: Store,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl State {
    fn index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    fn from_snapshot(meta: &SnapshotMeta, data: &SnapshotData) -> Result<Self, String> {
        let store = Store::decode(&data.0).map_err(|error| error.to_string())?;
        Ok(Self { store, applied: meta.last_log_id, membership: meta.last_membership.clone() })
    }
}

impl Machine {
    /// Starts from the newest snapshot, or empty.
    pub(crate) async fn open(snapshots: SnapshotDir, work: Work) -> Result<Self, Error> {
        let for_reading = snapshots.clone();
        let read = work.run(move || match for_reading.read()? {
            None => Ok(State::default()),
            Some(snapshot) => State::from_snapshot(&snapshot.meta, &snapshot.snapshot)
                .map_err(|what| Error::Damaged { path: for_reading.path().to_owned(), what }),
        });
        let state = read
            .await
            .map_err(|panic| Error::Damaged { path: snapshots.path().to_owned(), what: panic.to_string() })??;
        let published = Published::new(state.index(), state.store.view());
        Ok(Self { state, published, snapshots, work })
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    /// An error ends this manager's part in consensus. Whoever proposed the batch could read it, and applies it: a program
    /// that cannot is older, and passing over it would part this manager's state from the others' for good. With the next
    /// program it goes on from here.
    fn apply_batch(&mut self, id: LogId, payload: &Blob) -> Result<Outcome, io::Error> {
        let batch = Batch::decode(&payload.0).map_err(|error| {
            let index = id.index;
            tracing::error!(index, %error, "the log has a change that this program does not know: upgrade this host");
            io::Error::other(format!(
                "entry {index} of the log was written by a newer program ({error}): upgrade this host"
            ))
        })?;
        Ok(match self.state.store.apply(id.index, id.leader_id.term, &batch) {
            Ok(events) => {
                self.published.applied(id.index, self.state.store.view(), events);
                Outcome::default()
            }
            Err(refused) => {
                tracing::debug!(index = id.index, reason = %refused, "batch refused");
                Outcome { refused: Some(refused) }
            }
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = match entry.payload {
                EntryPayload::Blank => Outcome::default(),
                EntryPayload::Normal(payload) => self.apply_batch(entry.log_id, &payload)?,
                EntryPayload::Membership(membership) => {
                    self.state.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::default()
                }
            };
            self.state.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), snapshots: self.snapshots.clone(), work: self.work.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        let (snapshots, meta) = (self.snapshots.clone(), meta.clone());
        let installed = self.work.run(move || {
            let state = State::from_snapshot(&meta, &data).map_err(io::Error::other)?;
            snapshots.write(&meta, &data.0).map_err(io::Error::other)?;
            Ok::<_, io::Error>(state)
        });
        self.state = installed.await.map_err(io::Error::other)??;
        self.published.replaced(self.state.index(), self.state.store.view());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshots = self.snapshots.clone();
        let read = self.work.run(move || snapshots.read()).await;
        read.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

/// The state at one log id, to be written while applying goes on.
pub(crate) struct Builder {
    state: State,
    snapshots: SnapshotDir,
    work: Work,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (state, snapshots) = (self.state.clone(), self.snapshots.clone());
        let built = self.work.run(move || {
            let (meta, data) = (state.meta(), SnapshotData(state.store.encode().map_err(io::Error::other)?.into()));
            snapshots.write(&meta, &data.0).map_err(io::Error::other)?;
            tracing::info!(index = state.index(), bytes = data.0.len(), "snapshot written");
            Ok(Snapshot { meta, snapshot: data })
        });
        built.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::EntryTerm;

    #[tokio::test]
    async fn what_a_newer_program_wrote_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path(), 1, "127.0.0.1:1", [0; 32]);
        let mut machine = Machine::open(SnapshotDir::open(&config).unwrap(), Work::of(&config)).await.unwrap();
        let at = LogId { leader_id: EntryTerm::new(1), index: 1 };
        let known = Batch::new(skep_model::Timestamp::ZERO, Vec::new()).encode().unwrap();
        let newer_format = [&[known[0] + 1], &known[1..]].concat();
        // What MessagePack has for `{"changes": ["Unheard"]}`.
        let newer_change = [&known[..1], b"\x81\xa7changes\x91\xa7Unheard"].concat();
        for bytes in [newer_format, newer_change] {
            let error = machine.apply_batch(at, &Blob(bytes.into())).unwrap_err();
            assert!(error.to_string().contains("upgrade this host"), "{error}");
        }
        assert!(machine.apply_batch(at, &Blob(known.into())).is_ok());
    }
}
