//! One manager alone: with the data it has, after the others are lost for good (`--force-new-cluster`), or with a state from
//! a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind::NotFound;

use openraft::{BasicNode, Entry, EntryPayload, Membership};
use skep_store::View;

use crate::config::Config;
use crate::disk::Open;
use crate::error::Error;
use crate::log::{Disk, Recovered};
use crate::types::{EntryTerm, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::work::Work;

/// Rewrites the log in `config.dir`, which is member `before`'s, so that `config.raft_id` is the only member; call it before
/// [`Consensus::open`], with consensus not running. Everything committed here is kept, and what was not known to be committed
/// is kept as well: with the other managers gone it cannot be told whether someone was promised it. Done again, it changes
/// nothing.
///
/// The new membership is written under a new term voted for by this manager alone, so that no manager of the old cluster
/// can hold another entry with the same (term, index). Under the new number it is a stranger to them: should they come back,
/// and be enough to elect a leader, that leader cannot write here.
///
/// [`Consensus::open`]: crate::Consensus::open
pub async fn force_new_cluster(config: &Config, before: u64) -> Result<(), Error> {
    if config.disk.open(&config.dir.join("raft.db"), Open::Existing).is_err_and(|error| error.kind() == NotFound) {
        return Err(nothing());
    }
    let work = Work::of(config);
    let (disk, recovered) = match Disk::open(&Config { raft_id: before, ..config.clone() }, &work).await {
        Err(Error::OtherMember { found, .. }) if found == config.raft_id => return Ok(()),
        opened => opened?,
    };
    let (config, path) = (config.clone(), config.dir.clone());
    let rewritten = work.run(move || rewrite(&config, &disk, &recovered));
    rewritten.await.map_err(|panic| Error::Damaged { path, what: format!("rewriting it failed: {panic}") })?
}

fn nothing() -> Error {
    Error::Refused("there is no cluster state to start a new cluster from".to_owned())
}

/// Makes the files of a manager in an empty `config.dir`: the only member, and with the state `view`. Call it before
/// [`Consensus::open`](crate::Consensus::open).
pub async fn restore(config: &Config, view: &View) -> Result<(), Error> {
    // Makes the directories.
    crate::snapshot::SnapshotDir::open(config)?;
    let work = Work::of(config);
    let (disk, _) = Disk::open(config, &work).await?;
    let (config, path, view) = (config.clone(), config.dir.clone(), view.clone());
    let written = work.run(move || write_state(&config, &disk, &view));
    written.await.map_err(|panic| Error::Damaged { path, what: format!("writing it failed: {panic}") })?
}

fn write_state(config: &Config, disk: &Disk, view: &View) -> Result<(), Error> {
    let state = view.encode().map_err(|error| Error::Refused(error.to_string()))?;
    let last = LogId { leader_id: EntryTerm::new(view.term().max(1)), index: view.index() };
    let membership = alone(config)?;
    let last_membership = StoredMembership::new(Some(last), membership.clone());
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    crate::snapshot::SnapshotDir::open(config)?.write(&meta, &state)?;
    let term = last.leader_id.term + 1;
    let log_id = LogId { leader_id: EntryTerm::new(term), index: last.index + 1 };
    let entry = Entry { log_id, payload: EntryPayload::Membership(membership) };
    disk.rewrite(config.raft_id, &Vote::new(term, config.raft_id), Some(last), &entry)
}

/// This manager as the only member.
fn alone(config: &Config) -> Result<Membership<u64, BasicNode>, Error> {
    let members = BTreeMap::from([(config.raft_id, BasicNode::new(&config.address))]);
    Membership::new(vec![BTreeSet::from([config.raft_id])], members).map_err(|error| Error::Refused(error.to_string()))
}

fn rewrite(config: &Config, disk: &Disk, recovered: &Recovered) -> Result<(), Error> {
    let Some(vote) = recovered.vote else {
        return Err(nothing());
    };
    let snapshot = crate::snapshot::SnapshotDir::open(config)?.read()?;
    let last = recovered.last.max(snapshot.and_then(|snapshot| snapshot.meta.last_log_id));
    let term = vote.leader_id.term.max(last.map_or(0, |id| id.leader_id.term)) + 1;
    let log_id = LogId { leader_id: EntryTerm::new(term), index: last.map_or(0, |id| id.index + 1) };
    let entry = Entry { log_id, payload: EntryPayload::Membership(alone(config)?) };
    disk.rewrite(config.raft_id, &Vote::new(term, config.raft_id), last, &entry)
}
