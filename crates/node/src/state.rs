//! What a member must remember to come back as the same member; the rest it is told.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_model::NodeId;
use skep_model::assignment::AssignmentSet;

use crate::ca::write_private;
use crate::error::{NodeError, Result};
use crate::facade::RemoteManager;
use crate::transport::message::Facts;

/// `swarm/state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedState {
    pub(crate) node_id: NodeId,
    pub(crate) listen: SocketAddr,
    /// Where this node's RPC is reached, when it is a manager.
    pub(crate) advertise: SocketAddr,
    /// Given by the user, rather than found out.
    pub(crate) advertise_given: bool,
    pub(crate) data_path: Option<IpAddr>,
    /// Number in consensus while it is a manager; a new one after a demotion.
    pub(crate) raft_id: Option<u64>,
    /// This manager is to go on alone under `raft_id`, with the log it wrote under this number; until the swarm knows.
    #[serde(default)]
    pub(crate) alone_from: Option<u64>,
    /// Managers heard of last, for the next start.
    pub(crate) managers: Vec<RemoteManager>,
}

/// `swarm/worker/assignments`: what the node was last told to run, so that containers are kept without a manager.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct SavedAssignments {
    pub(crate) facts: SavedFacts,
    pub(crate) set: AssignmentSet,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedFacts(pub(crate) Option<Facts>);

#[derive(Clone, Debug)]
pub(crate) struct StateFiles {
    directory: PathBuf,
}

impl StateFiles {
    pub(crate) fn new(swarm_dir: &Path) -> Self {
        Self { directory: swarm_dir.to_owned() }
    }

    pub(crate) fn raft_dir(&self) -> PathBuf {
        self.directory.join("raft")
    }

    pub(crate) fn has_raft(&self) -> bool {
        self.raft_dir().join("raft.db").exists()
    }

    pub(crate) fn load(&self) -> Result<Option<SavedState>> {
        let path = self.directory.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| NodeError::Internal(format!("{} is damaged: {e}", path.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NodeError::file("read", path)(error)),
        }
    }

    pub(crate) fn save(&self, state: &SavedState) -> Result<()> {
        let json = serde_json::to_vec_pretty(state).map_err(|e| NodeError::Internal(e.to_string()))?;
        write_private(&self.directory.join("state.json"), &json)
    }

    fn assignments_path(&self) -> PathBuf {
        self.directory.join("worker").join("assignments")
    }

    /// Damaged assignments are as good as none: a manager sends them again.
    pub(crate) fn load_assignments(&self) -> SavedAssignments {
        fs::read(self.assignments_path()).ok().and_then(|bytes| rmp_serde::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Without secrets, configs, networks' keys and registry credentials: they never touch a worker's disk in the clear.
    pub(crate) fn save_assignments(&self, facts: Option<&Facts>, set: &AssignmentSet) -> Result<()> {
        let mut set = set.clone();
        set.secrets.clear();
        set.configs.clear();
        for network in set.networks.values_mut() {
            network.keys = None;
        }
        for task in set.tasks.values_mut() {
            if task.spec.container.pull_auth.is_some() {
                Arc::make_mut(&mut task.spec).container.pull_auth = None;
            }
        }
        let saved = SavedAssignments { facts: SavedFacts(facts.cloned()), set };
        let bytes = rmp_serde::to_vec_named(&saved).map_err(|e| NodeError::Internal(e.to_string()))?;
        write_private(&self.assignments_path(), &bytes)
    }

    /// Everything of the swarm this host was in.
    pub(crate) fn forget(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(NodeError::file("remove", &self.directory)(error)),
        }
    }

    /// Whether the disk takes writes: more than a log needs to begin again, so that it does not fail at once.
    pub(crate) fn try_disk(&self) -> Result<()> {
        let path = self.directory.join("room");
        let tried = fs::File::create(&path).and_then(|mut file| {
            // Without a name nothing is left of it, however this ends.
            fs::remove_file(&path)?;
            file.write_all(&vec![0; 4 << 20])?;
            file.sync_all()
        });
        tried.map_err(NodeError::file("write", path))
    }

    /// A manager that was demoted keeps nothing of the log.
    pub(crate) fn forget_raft(&self) -> Result<()> {
        match fs::remove_dir_all(self.raft_dir()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(NodeError::file("remove", self.raft_dir())(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_model::network::{Network, NetworkKeys, NetworkSpec};
    use skep_model::secret::SecretBytes;
    use skep_model::{NetworkId, Timestamp};

    use super::*;

    #[test]
    fn keys_of_networks_are_neither_on_disk_nor_in_what_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let files = StateFiles::new(folder.path());
        let secret = SecretBytes(b"a key that is on no worker's disk".to_vec());
        let id: NetworkId = "enc".parse().unwrap();
        let spec = NetworkSpec { name: "enc".into(), ..NetworkSpec::default() };
        let keys = Some(NetworkKeys::new(secret.clone(), secret.clone(), Timestamp::ZERO));
        let network = Network { keys, ..Network::new(id.clone(), spec) };
        let set = AssignmentSet { networks: [(id.clone(), network)].into(), ..AssignmentSet::default() };
        files.save_assignments(None, &set).unwrap();
        let bytes = fs::read(files.assignments_path()).unwrap();
        assert!(!bytes.windows(8).any(|part| part == &secret.0[..8]));
        assert_eq!(files.load_assignments().set.networks[&id].keys, None);
        assert!(!format!("{set:?}").contains(&format!("{:?}", &secret.0[..4])[1..14]));
    }
}
