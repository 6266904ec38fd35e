//! What every route has at hand.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use skep_engine::Engine;
use skep_engine::image::ImageStore;
use skep_engine::volume::VolumeStore;
use skep_model::{NodeId, Timestamp};
use skep_node::Node;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the daemon knows about itself, for `/info` and `/version`.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// A name for this engine that survives restarts; the CLI shows it as `ID`.
    pub id: String,
    /// `docker info`'s `Server Version`.
    pub version: String,
    pub git_commit: String,
    pub build_time: String,
    pub hostname: String,
    /// `--label`.
    pub labels: Vec<String>,
    /// `--node-generic-resource`.
    pub generic_resources: Vec<skep_model::generic::GenericResource>,
    pub debug: bool,
    pub live_restore: bool,
    pub data_root: PathBuf,
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: Vec<String>,
    /// `HTTP_PROXY` and its like, as `docker info` shows them.
    pub proxies: BTreeMap<String, String>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ServerState {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    engine: Engine,
    about: About,
    /// Execs of containers on other nodes that were made through this one, oldest first.
    execs: Mutex<VecDeque<(String, NodeId)>>,
    /// Ends every stream and hijacked connection.
    stop: CancellationToken,
    /// Work that outlives its connection: hijacked streams, and changes whose client went away half-way.
    work: TaskTracker,
}

impl ServerState {
    pub fn new(node: Node, about: About) -> Self {
        let engine = node.engine().clone();
        Self {
            inner: Arc::new(Inner {
                node,
                engine,
                about,
                execs: Mutex::default(),
                stop: CancellationToken::new(),
                work: TaskTracker::new(),
            }),
        }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.inner.node
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn execs(&self) -> &Mutex<VecDeque<(String, NodeId)>> {
        &self.inner.execs
    }

    pub(crate) fn images(&self) -> &ImageStore {
        self.inner.engine.images()
    }

    pub(crate) fn volumes(&self) -> &VolumeStore {
        self.inner.engine.volumes()
    }

    pub(crate) fn about(&self) -> &About {
        &self.inner.about
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(crate) fn work(&self) -> &TaskTracker {
        &self.inner.work
    }
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
