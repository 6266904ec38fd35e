//! How batches and whole stores are written: MessagePack with named fields behind a small header, so that a later version
//! can add fields and still read what an older one wrote.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skep_model::cluster::{Cluster, LimitedToken};
use skep_model::network::Network;
use skep_model::node::Node;
use skep_model::secret::{Config, Secret};
use skep_model::service::Service;
use skep_model::task::Task;
use skep_model::{NetworkId, NodeId, ServiceId, Timestamp};

use crate::change::Batch;
use crate::requests::Requests;
use crate::restart::{FailureRecord, RestartRecord, SlotKey};
use crate::{Store, View};

/// Begins every encoded store: a name and the version of the format.
const SNAPSHOT_MAGIC: &[u8; 8] = b"skepsnap";
const SNAPSHOT_VERSION: u8 = 1;
/// The first byte of every encoded batch.
const BATCH_VERSION: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("not a snapshot of a store")]
    NotASnapshot,
    #[error("format version {0} is newer than this program")]
    TooNew(u8),
    #[error("truncated: nothing after the header")]
    Empty,
    #[error("failed to decode")]
    Decode { source: rmp_serde::decode::Error },
    #[error("failed to encode")]
    Encode { source: rmp_serde::encode::Error },
}

fn write<T: Serialize>(mut out: Vec<u8>, value: &T) -> Result<Vec<u8>, CodecError> {
    rmp_serde::encode::write_named(&mut out, value).map_err(|source| CodecError::Encode { source })?;
    Ok(out)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    rmp_serde::from_slice(bytes).map_err(|source| CodecError::Decode { source })
}

impl Batch {
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        write(vec![BATCH_VERSION], self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        match bytes.split_first() {
            None => Err(CodecError::Empty),
            Some((&BATCH_VERSION, rest)) => read(rest),
            Some((&version, _)) => Err(CodecError::TooNew(version)),
        }
    }
}

/// The tables, without what can be derived from them.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Contents {
    index: u64,
    term: u64,
    highest_raft_id: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: Vec<Arc<Node>>,
    services: Vec<Arc<Service>>,
    tasks: Vec<Arc<Task>>,
    networks: Vec<Arc<Network>>,
    secrets: Vec<Arc<Secret>>,
    configs: Vec<Arc<Config>>,
    restarts: Vec<(ServiceId, SlotKey, RestartRecord)>,
    failures: Vec<(ServiceId, FailureRecord)>,
    revoked: Vec<(NodeId, Timestamp)>,
    join_tokens: Vec<LimitedToken>,
    cursors: Vec<(NetworkId, Ipv4Addr)>,
    requests: (u64, Vec<(u64, u128)>),
}

impl View {
    /// The whole state as bytes; the same state gives the same bytes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let contents = Contents {
            index: self.index,
            term: self.term,
            highest_raft_id: self.highest_raft_id,
            cluster: self.cluster.clone(),
            nodes: self.nodes.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            tasks: self.tasks.values().cloned().collect(),
            networks: self.networks.values().cloned().collect(),
            secrets: self.secrets.values().cloned().collect(),
            configs: self.configs.values().cloned().collect(),
            restarts: self.restarts.iter().map(|((s, k), r)| (s.clone(), k.clone(), r.clone())).collect(),
            failures: self.failures.iter().map(|(s, r)| (s.clone(), r.clone())).collect(),
            join_tokens: self.join_tokens.values().cloned().collect(),
            revoked: self.revoked.iter().map(|(n, at)| (n.clone(), *at)).collect(),
            requests: self.requests.contents(),
            cursors: self.addresses.iter().filter_map(|(n, a)| Some((n.clone(), a.cursor?))).collect(),
        };
        let mut header = SNAPSHOT_MAGIC.to_vec();
        header.push(SNAPSHOT_VERSION);
        write(header, &contents)
    }
}

impl Store {
    /// See [`View::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        self.view.encode()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let rest = bytes.strip_prefix(SNAPSHOT_MAGIC.as_slice()).ok_or(CodecError::NotASnapshot)?;
        let contents: Contents = match rest.split_first() {
            None => return Err(CodecError::Empty),
            Some((&SNAPSHOT_VERSION, rest)) => read(rest)?,
            Some((&version, _)) => return Err(CodecError::TooNew(version)),
        };
        let mut view = View {
            index: contents.index,
            term: contents.term,
            highest_raft_id: contents.highest_raft_id,
            cluster: contents.cluster,
            requests: Requests::from_contents(contents.requests.0, contents.requests.1),
            ..View::default()
        };
        contents.networks.into_iter().for_each(|o| view.put_network(o));
        contents.nodes.into_iter().for_each(|o| view.put_node(o));
        contents.services.into_iter().for_each(|o| view.put_service(o));
        contents.tasks.into_iter().for_each(|o| view.put_task(o));
        contents.secrets.into_iter().for_each(|o| view.put_secret(o));
        contents.configs.into_iter().for_each(|o| view.put_config(o));
        for (service, slot, record) in contents.restarts {
            view.restarts.insert((service, slot), record);
        }
        view.failures.extend(contents.failures);
        view.revoked.extend(contents.revoked);
        view.join_tokens.extend(contents.join_tokens.into_iter().map(|t| (t.id.clone(), t)));
        for (network, cursor) in contents.cursors {
            view.addresses.entry(network).or_default().cursor = Some(cursor);
        }
        Ok(Self { view })
    }
}
