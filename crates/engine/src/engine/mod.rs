//! The façade: a cheap handle to everything the engine does with containers. One file per group of operations.

mod adopt;
mod attach;
mod create;
mod exec;
mod health;
mod lifecycle;
mod merge;
mod observe;
mod remove;
mod run;
mod security;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use skep_model::ContainerId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::Cgroup;
use crate::config::{EngineConfig, SandboxDriver};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::event::{EventBus, EventKind};
use crate::image::{ImageId, ImageStore};
use crate::rootfs::Durability;
use crate::seccomp::Filters;
use crate::spec::HostFeatures;
use crate::supervisor::client::Connection;
use crate::volume::VolumeStore;

use exec::Exec;

/// Cheap to clone; all clones are the same engine.
///
/// `key` is always an id, an unambiguous beginning of one, or a name (with or without slash).
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    config: EngineConfig,
    features: HostFeatures,
    events: Arc<EventBus>,
    sandboxes: Arc<dyn SandboxDriver>,
    images: ImageStore,
    volumes: VolumeStore,
    filters: Filters,
    registry: RwLock<Registry>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    connection: RwLock<Option<Connection>>,
    /// What the last daemon left is settled; before that no policy starts anything.
    settled: AtomicBool,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// All containers, by id and by name.
#[derive(Default)]
struct Registry {
    by_id: BTreeMap<ContainerId, Arc<Container>>,
    by_name: HashMap<String, ContainerId>,
}

impl Engine {
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    pub fn events(&self) -> &Arc<EventBus> {
        &self.inner.events
    }

    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }

    pub fn volumes(&self) -> &VolumeStore {
        &self.inner.volumes
    }

    /// Newest first.
    pub fn list(&self, options: ListOptions) -> Vec<Arc<ContainerRecord>> {
        let mut records: Vec<_> = self.containers().iter().map(|c| self.shown(c)).collect();
        if !options.all {
            records.retain(|r| r.state.status.is_alive());
        }
        records.sort_by_key(|r| std::cmp::Reverse(r.created_at));
        records
    }

    pub fn inspect(&self, key: &str) -> Result<Arc<ContainerRecord>> {
        Ok(self.shown(&*self.find(key)?))
    }

    /// Bytes in the writable layer, and of the whole root file system (`inspect?size=1`, `ps -s`).
    pub async fn sizes(&self, key: &str) -> Result<(u64, u64)> {
        let graph = self.graph(&*self.find(key)?);
        blocking(move || {
            let upper = crate::rootfs::size_of(&graph.upper);
            let lower: u64 = graph.lower.iter().map(|l| crate::rootfs::size_of(l)).sum();
            Ok((upper, upper + lower))
        })
        .await
    }

    /// Containers made of an image (its id), and whether they run: for the refusal to remove it.
    pub fn containers_of_image(&self, image_id: &str) -> Vec<crate::image::ContainerUse> {
        let uses = |c: Arc<Container>| {
            let record = c.record();
            (record.image_id == image_id).then(|| crate::image::ContainerUse {
                container_id: record.id.to_string(),
                running: record.state.status.is_alive(),
            })
        };
        self.containers().into_iter().filter_map(uses).collect()
    }

    /// The mounted root of a container, for `docker cp` and `export`; mounted for the caller if it does not run.
    pub async fn with_rootfs<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        let record = container.record();
        let (alive, durability) = (record.state.status.is_alive(), durability(&record));
        let graph = self.graph(&container);
        let leaving = locked(&container.leaving).take();
        if let Some(leaving) = leaving {
            let _ = leaving.await;
        }
        blocking(move || {
            if !alive {
                crate::rootfs::mount(&graph, durability)
                    .map_err(EngineError::file("failed to mount", &graph.merged))?;
            }
            let result = work(&graph.merged);
            if !alive {
                crate::rootfs::unmount(&graph.merged);
            }
            result
        })
        .await
    }

    // ---- what the files beside this one use ----

    fn registry(&self) -> std::sync::RwLockReadGuard<'_, Registry> {
        self.inner.registry.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn registry_mut(&self) -> std::sync::RwLockWriteGuard<'_, Registry> {
        self.inner.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn containers(&self) -> Vec<Arc<Container>> {
        self.registry().by_id.values().cloned().collect()
    }

    /// By full id, then by name, then by a beginning of an id, as moby.
    fn find(&self, key: &str) -> Result<Arc<Container>> {
        let registry = self.registry();
        let key = key.strip_prefix('/').unwrap_or(key);
        if key.is_empty() {
            return Err(EngineError::Invalid("invalid container name or ID: value is empty".to_owned()));
        }
        let exact = key.parse().ok().and_then(|id: ContainerId| registry.by_id.get(&id));
        let named = || registry.by_name.get(key).and_then(|id| registry.by_id.get(id));
        if let Some(found) = exact.or_else(named) {
            return Ok(Arc::clone(found));
        }
        let mut candidates = registry.by_id.values().filter(|c| c.id.as_str().starts_with(key));
        match (candidates.next(), candidates.next()) {
            (Some(found), None) => Ok(Arc::clone(found)),
            (Some(_), Some(_)) => Err(EngineError::AmbiguousPrefix(key.to_owned())),
            (None, _) => Err(EngineError::NoSuchContainer(key.to_owned())),
        }
    }

    /// The record with what is not on disk.
    fn shown(&self, container: &Container) -> Arc<ContainerRecord> {
        let execs = locked(&self.inner.execs);
        let mut exec_ids: Vec<String> =
            execs.values().filter(|e| e.container_id == container.id).map(|e| e.id.clone()).collect();
        drop(execs);
        exec_ids.sort();
        let graph = self.graph(container);
        container.change(|record| {
            record.exec_ids = exec_ids;
            record.graph = graph;
        })
    }

    fn graph(&self, container: &Container) -> GraphDirs {
        let image: Option<ImageId> = container.record().image_id.parse().ok();
        let lower = image.and_then(|id| self.inner.images.rootfs_layers(&id).ok()).unwrap_or_default();
        crate::rootfs::graph(&container.dir, lower)
    }

    fn cgroup_path(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.cgroup_parent())
    }

    fn cgroup_parent(&self) -> &str {
        &self.inner.config.cgroup_parent
    }

    fn cgroup(&self, id: &ContainerId) -> Cgroup {
        Cgroup::new(&self.inner.features, &self.cgroup_path(id))
    }

    fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.inner.config.exec_root.join("bundles").join(id.as_str())
    }

    fn connection(&self) -> Result<Connection> {
        self.inner
            .connection
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
            .ok_or_else(|| EngineError::Unavailable("the container supervisor is not connected".to_owned()))
    }

    /// An event of a container, with the attributes moby gives every one.
    fn emit(&self, record: &ContainerRecord, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = record.config.labels.clone();
        attributes.insert("name".to_owned(), record.name.clone());
        attributes.insert("image".to_owned(), record.config.image.clone());
        for (key, value) in extra {
            attributes.insert((*key).to_owned(), value.clone());
        }
        self.inner.events.emit(EventKind::Container, action, record.id.to_string(), attributes);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("data_root", &self.inner.config.data_root).finish_non_exhaustive()
    }
}

/// Swarm tasks and `--rm` containers are gone after a crash of the host anyway.
fn durability(record: &ContainerRecord) -> Durability {
    if record.task.is_some() || record.host_config.auto_remove { Durability::Discarded } else { Durability::Kept }
}

/// File system work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| EngineError::Internal(format!("a worker thread failed: {e}")))?
}
