//! `skep swarm backup` and `restore`: the state of a running manager out, and in as a swarm of one manager.
//!
//! A restored state is built beside (`swarm.restoring`), takes the place of `swarm/` by rename, and has to lead before what it
//! replaced (`swarm.replaced`) is removed; if it does not, that comes back. A daemon that is killed in between finishes one or
//! the other at its next start.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use skep_model::NodeId;
use skep_model::node::Role;
use skep_store::{Batch, View};

use super::{Inner, Membership, new_raft_id};
use crate::address;
use crate::backup::{self, BackupKey};
use crate::ca::{CertificateFiles, NodeKey, Signer, parse_unlock_key};
use crate::clock::now;
use crate::config::RestoreRequest;
use crate::error::{NodeError, Result};
use crate::facade::RemoteManager;
use crate::state::{SavedState, StateFiles};

impl Inner {
    fn beside(&self, name: &str) -> PathBuf {
        self.config.swarm_dir().with_extension(name)
    }

    /// What was there before a restore, until the restored state has proved itself.
    fn replaced(&self) -> PathBuf {
        self.beside("replaced")
    }

    /// A state that holds everything acknowledged before the call, in the parts of a backup.
    pub(crate) async fn backup(&self, key: BackupKey) -> Result<impl Iterator<Item = Vec<u8>> + Send + use<>> {
        let manager = self.manager()?;
        // A write that changes nothing: once it shows here, so does all that was acknowledged before it.
        manager.propose(Batch::new(now(), Vec::new())).await?;
        let view = manager.view();
        let sealed = tokio::task::spawn_blocking(move || backup::seal(&view, &key, now()));
        sealed.await.map_err(|error| NodeError::Internal(error.to_string()))?
    }

    pub(crate) async fn restore(self: &Arc<Self>, request: RestoreRequest, file: Vec<u8>) -> Result<NodeId> {
        let _guard = self.transition.lock().await;
        let before = self.get();
        self.may_be_replaced(&before, request.force)?;
        let listen = address::listen(&request.listen_addr)?;
        let advertise = address::advertise(&request.advertise_addr, self.config.default_advertise.as_deref(), listen)?;
        let key = request.key.clone();
        let opened = tokio::task::spawn_blocking(move || backup::open(&file, &key));
        let view = opened.await.map_err(|error| NodeError::Internal(error.to_string()))??;
        // A manager that restores its own swarm stays the same node, so that its tasks stay, too.
        let own = self.files().0.load().ok().flatten().map(|state| state.node_id);
        let node_id = own.filter(|id| view.node(id).is_some()).unwrap_or_else(|| NodeId::from_bits(rand::random()));
        let raft_id = new_raft_id();
        let state = SavedState {
            node_id: node_id.clone(),
            listen,
            advertise,
            advertise_given: !request.advertise_addr.is_empty(),
            data_path: address::data_path(&request.data_path_addr)?,
            raft_id: Some(raft_id),
            alone_from: Some(raft_id),
            managers: vec![RemoteManager { node_id: node_id.clone(), addr: advertise.to_string() }],
        };
        let staged = self.beside("restoring");
        self.stage(&StateFiles::new(&staged), &CertificateFiles::new(&staged), &state, &view).await?;

        self.set(Membership::Joining);
        match before {
            Membership::Inside(member) => member.stop().await,
            Membership::Locked(locked) => locked.stop().await,
            Membership::Outside | Membership::Joining | Membership::Broken(_) => {}
        }
        let swapped = self.swap(&staged);
        if swapped.is_ok()
            && let Some(unlock_key) = view.cluster().and_then(|cluster| cluster.unlock_key.as_ref())
        {
            self.certificates.unlock(&parse_unlock_key(&unlock_key.0)?)?;
        }
        self.take_up().await;
        let failed = swapped.err().or_else(|| match self.get() {
            Membership::Broken(error) => Some(NodeError::Internal(error)),
            Membership::Outside | Membership::Joining | Membership::Inside(_) | Membership::Locked(_) => None,
        });
        self.settle_restore().await;
        let Some(error) = failed else { return Ok(node_id) };
        // Where nothing was replaced, nothing came back.
        if matches!(self.get(), Membership::Broken(_)) {
            return Err(self.undo(error));
        }
        Err(error)
    }

    fn may_be_replaced(&self, membership: &Membership, force: bool) -> Result<()> {
        match membership {
            Membership::Outside => Ok(()),
            Membership::Joining => Err(NodeError::AlreadyInSwarm),
            Membership::Inside(_) | Membership::Locked(_) | Membership::Broken(_) if !force => {
                Err(NodeError::Refused {
                    code: "FailedPrecondition",
                    text: "this node is already part of a swarm; to put the backup in its place, use --force".into(),
                    kind: crate::error::Kind::Conflict,
                })
            }
            Membership::Locked(_) | Membership::Broken(_) => Ok(()),
            Membership::Inside(member) => {
                let managers = member.manager().ok_or(NodeError::NotManager)?.consensus().members().len();
                if managers > 1 {
                    return Err(NodeError::Refused {
                        code: "FailedPrecondition",
                        text: format!(
                            "this node is one of {managers} managers, and the others would go on with the state they have; demote or remove them first, or restore on a host outside the swarm"
                        ),
                        kind: crate::error::Kind::Conflict,
                    });
                }
                Ok(())
            }
        }
    }

    /// Builds all of a member's files, for the state to be taken up from them.
    async fn stage(
        &self,
        state_files: &StateFiles,
        certificates: &CertificateFiles,
        state: &SavedState,
        view: &View,
    ) -> Result<()> {
        state_files.forget()?;
        let cluster = view.cluster().ok_or(NodeError::NoSwarm)?;
        let key = NodeKey::generate()?;
        let signed = Signer::of(&cluster.root_ca)?.sign(
            &key.request_pem()?,
            &state.node_id,
            Role::Manager,
            &cluster.id,
            cluster.spec.node_cert_expiry,
        )?;
        certificates.follow(cluster.unlock_key.as_ref(), cluster.meta.version)?;
        certificates.save(&cluster.root_ca.cert_pem, &signed.cert_pem, &key.pem(), Role::Manager)?;
        let raft_id = state.raft_id.unwrap_or_default();
        let log = skep_consensus::Config::new(
            state_files.raft_dir(),
            raft_id,
            state.advertise.to_string(),
            certificates.log_key()?,
        );
        skep_consensus::restore(&log, view).await.map_err(|error| NodeError::Internal(error.to_string()))?;
        state_files.save(state)
    }

    fn swap(&self, staged: &std::path::Path) -> Result<()> {
        let (current, replaced) = (self.config.swarm_dir(), self.replaced());
        remove(&replaced)?;
        if current.exists() {
            fs::rename(&current, &replaced).map_err(NodeError::file("move aside", &current))?;
        }
        self.certificates.forget();
        fs::rename(staged, &current).map_err(NodeError::file("put in place", &current))
    }

    /// Before anything is taken up: a restore that was cut short between its two renames did not happen.
    pub(super) fn undo_half_a_restore(&self) {
        let (current, replaced) = (self.config.swarm_dir(), self.replaced());
        if replaced.exists()
            && !current.exists()
            && let Err(error) = fs::rename(&replaced, &current)
        {
            tracing::error!(%error, path = %replaced.display(), "cannot put back what a restore moved aside");
        }
        if let Err(error) = remove(&self.beside("restoring")) {
            tracing::warn!(%error, "cannot clean up");
        }
    }

    /// After the state was taken up: what a restore replaced goes if it proved itself, and comes back if it did not.
    pub(super) async fn settle_restore(self: &Arc<Self>) {
        let (current, replaced) = (self.config.swarm_dir(), self.replaced());
        let settled = match self.get() {
            Membership::Inside(_) => remove(&replaced),
            // Not known yet.
            Membership::Locked(_) | Membership::Joining => Ok(()),
            Membership::Outside | Membership::Broken(_) if replaced.exists() => {
                tracing::error!("a restored state cannot be used; what it replaced is put back");
                self.certificates.forget();
                let put_back = remove(&current)
                    .and_then(|()| fs::rename(&replaced, &current).map_err(NodeError::file("put back", &replaced)));
                self.take_up().await;
                put_back
            }
            Membership::Outside | Membership::Broken(_) => Ok(()),
        };
        if let Err(error) = settled {
            tracing::error!(%error, "cannot settle a restore");
        }
    }
}

fn remove(directory: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(NodeError::file("remove", directory)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
