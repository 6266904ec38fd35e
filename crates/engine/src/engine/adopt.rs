//! Opening the engine: what is on disk, what the supervisor holds, and making both agree.
//!
//! The supervisor's word counts for what runs, the disk's for everything else; whatever neither knows is taken away. A daemon
//! killed at any instant leaves one of the states that are settled here.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use skep_model::ContainerId;
use skep_model::container::LogConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::run::{kill_all, wants_restart};
use super::{Engine, Inner, Registry, blocking};
use crate::config::{EngineConfig, SandboxDriver};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::event::{EventBus, EventKind};
use crate::image::{EventSink, ImageStore, ImageStoreConfig, ObjectKind};
use crate::supervisor::client::{Connection, Known};
use crate::supervisor::protocol::Exit;
use crate::volume::VolumeStore;

/// The exit code of a process whose end nobody saw.
const UNKNOWN_EXIT: i32 = 255;

impl Engine {
    /// Loads what is on disk, finds or starts the supervisor, adopts the containers that live, settles those that do not,
    /// and applies restart policies.
    pub async fn open(config: EngineConfig, sandboxes: Arc<dyn SandboxDriver>) -> Result<Self> {
        let defaults = LogConfig { driver: config.log_driver.clone(), config: config.log_options.clone() };
        crate::logs::check(&defaults)
            .map_err(|error| EngineError::Invalid(format!("failed to set log opts: {error}")))?;
        for directory in [config.data_root.join("containers"), config.exec_root.join("bundles")] {
            std::fs::create_dir_all(&directory).map_err(EngineError::file("failed to create", directory))?;
        }
        let events = Arc::new(EventBus::default());
        let sink = object_events(&events);
        let images = ImageStore::open(ImageStoreConfig {
            insecure_registries: config.insecure_registries.clone(),
            registry_mirrors: config.registry_mirrors.clone(),
            ..ImageStoreConfig::new(&config.data_root, Arc::clone(&sink))
        })
        .await?;
        let volumes = VolumeStore::open(&config.data_root, sink).await?;
        let (connection, known, reader) = Connection::open(&config).await?;
        let engine = Self {
            inner: Arc::new(Inner {
                features: crate::cgroup::detect(),
                filters: crate::seccomp::Filters::new(config.exec_root.join("seccomp")),
                events,
                sandboxes,
                images,
                volumes,
                registry: RwLock::new(Registry::default()),
                execs: Mutex::default(),
                connection: RwLock::new(Some(connection)),
                settled: AtomicBool::new(false),
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
                config,
            }),
        };
        engine.load_all();
        engine.adopt_all(known).await?;
        engine.remove_stale().await;
        engine.inner.images.sweep().await?;
        engine.watch_supervisor(reader);
        engine.inner.settled.store(true, Ordering::Release);
        engine.apply_policies();
        Ok(engine)
    }

    /// Asks the supervisor to become the program at `exe` without letting go of any container.
    pub async fn upgrade_supervisor(&self, exe: &Path) -> Result<()> {
        self.connection()?.upgrade(&exe.to_string_lossy()).await
    }

    /// Its process id, for memory figures.
    pub fn supervisor_pid(&self) -> Option<i32> {
        self.connection().ok().map(|c| c.supervisor_pid)
    }

    fn load_all(&self) {
        let folder = self.inner.config.data_root.join("containers");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let dir = entry.path();
            let record = match load(&dir) {
                Ok(record) => record,
                Err(error) => {
                    // A creation or removal that was interrupted.
                    tracing::info!(path = %dir.display(), %error, "leftover of a container removed");
                    crate::rootfs::unmount(&dir.join("merged"));
                    let _ = std::fs::remove_dir_all(&dir);
                    continue;
                }
            };
            if let Ok(image) = record.image_id.parse() {
                let _ = self.inner.images.hold(record.id.as_str(), &image);
            }
            for mount in record.mounts.iter().filter(|m| m.kind == "volume") {
                let _ = self.inner.volumes.reference(&mount.name, record.id.as_str());
            }
            let mut registry = self.registry_mut();
            registry.by_name.insert(record.name.clone(), record.id.clone());
            registry.by_id.insert(record.id.clone(), Arc::new(Container::new(dir, record)));
        }
    }

    async fn adopt_all(&self, known: Vec<Known>) -> Result<()> {
        let connection = self.connection()?;
        let mut known: HashMap<String, Known> = known.into_iter().map(|k| (k.id.clone(), k)).collect();
        for container in self.containers() {
            match known.remove(container.id.as_str()) {
                Some(known) => self.adopt(&container, &connection, known).await?,
                None => self.settle_lost(&container, &connection).await,
            }
        }
        // Started, but the daemon died before it wrote the container down, or while it removed it.
        for (id, known) in known {
            if known.exit.is_none() {
                let _ = connection.signal(&id, "", libc::SIGKILL).await;
            }
            let _ = connection.forget(&id, "").await;
        }
        Ok(())
    }

    /// Its process (or at least its exit code and its last output) is with the supervisor.
    async fn adopt(&self, container: &Arc<Container>, connection: &Connection, known: Known) -> Result<()> {
        let record = container.record();
        let seen = record.state.finished_at.0 >= known.started_at && !record.state.status.is_alive();
        if known.exit.is_some() && seen {
            // All was settled but for telling the supervisor.
            return connection.forget(&known.id, "").await;
        }
        let record = container.update(|r| {
            let started_at = skep_model::Timestamp(known.started_at);
            if !r.state.status.is_alive() || r.state.pid != known.pid {
                // The daemon before this one died before it wrote down that it runs.
                r.state = super::run::running(r, known.pid, started_at);
            }
        })?;
        let log = self.open_log(&record, false).await?;
        *locked(&container.log) = log;
        container.live(|life| life.alive = true);
        self.attach_run(container, known.stdio);
        match known.exit {
            Some(exit) => self.end_run(container, connection, exit).await,
            None => self.watch_run(container)?,
        }
        Ok(())
    }

    /// Marked as running, but no process of it is with the supervisor.
    async fn settle_lost(&self, container: &Arc<Container>, connection: &Connection) {
        if container.record().state.status == Status::Removing {
            self.remove_later(container);
            return;
        }
        if !container.record().state.status.is_alive() {
            return;
        }
        let cgroup = self.cgroup(&container.id);
        kill_all(cgroup).await;
        let file = crate::supervisor::exits_directory(&self.inner.config.exec_root).join(container.id.as_str());
        let written = std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let lost = Exit { code: UNKNOWN_EXIT, signal: 0, at: crate::sys::clock::now().0 };
        self.end_run(container, connection, written.unwrap_or(lost)).await;
    }

    /// What a dead daemon or a reboot left: mounts, groups, bundles and runtime states of containers that do not live.
    async fn remove_stale(&self) {
        let containers = self.containers();
        let living: Vec<ContainerId> =
            containers.iter().filter(|c| c.record().state.status.is_alive()).map(|c| c.id.clone()).collect();
        if let Err(error) = self.inner.sandboxes.retain(&living).await {
            tracing::warn!(%error, "stale sandboxes stay");
        }
        let alive = move |name: &str| living.iter().any(|id| id.as_str() == name);
        let engine = self.clone();
        let _ = blocking(move || {
            for container in containers.iter().filter(|c| !alive(c.id.as_str())) {
                crate::rootfs::unmount(&container.dir.join("merged"));
            }
            let inner = &engine.inner;
            let parent = engine.cgroup_parent();
            // Only what has a container's name: the parent group may be the user's, with other things in it.
            let ours = |name: &&String| name.len() == 64 && name.parse::<ContainerId>().is_ok() && !alive(name);
            for name in crate::cgroup::groups_of(&inner.features, parent).iter().filter(ours) {
                let group = crate::cgroup::Cgroup::new(&inner.features, &format!("{parent}/{name}"));
                group.kill_all();
                group.remove();
            }
            let folders =
                [inner.config.exec_root.join("bundles"), crate::supervisor::state_root(&inner.config.exec_root)];
            for entry in folders.iter().flat_map(std::fs::read_dir).flatten().flatten() {
                if !alive(&entry.file_name().to_string_lossy()) {
                    super::start::BUNDLE_MOUNTS
                        .iter()
                        .for_each(|name| crate::rootfs::unmount(&entry.path().join(name)));
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
            Ok(())
        })
        .await;
    }

    /// Those that were waiting for their next start, and those whose policy wants them up.
    fn apply_policies(&self) {
        for container in self.containers() {
            let record = container.record();
            let waiting = record.state.status == Status::Restarting;
            let stopped = record.state.status == Status::Exited;
            if !waiting && !stopped {
                continue;
            }
            if wants_restart(&record, record.state.exit_code, true) {
                let _ = container.update(|r| r.state.status = Status::Restarting);
                container.live(|life| life.restarting = true);
                self.restart_after(&container, Duration::ZERO);
            } else if waiting {
                let _ = container.update(|r| r.state.status = Status::Exited);
            } else if record.host_config.auto_remove {
                self.remove_later(&container);
            }
        }
    }

    /// Connects again when the supervisor is gone (it crashed, or was upgraded), and settles what that means.
    fn watch_supervisor(&self, reader: tokio::task::JoinHandle<()>) {
        let engine = self.clone();
        self.inner.tasks.spawn(async move {
            let mut reader = reader;
            loop {
                tokio::select! {
                    _ = &mut reader => {}
                    () = engine.inner.closing.cancelled() => return,
                }
                tracing::warn!("connection to the supervisor lost");
                let Some(next) = engine.reconnect().await else { return };
                reader = next;
            }
        });
    }

    async fn reconnect(&self) -> Option<tokio::task::JoinHandle<()>> {
        loop {
            match Connection::open(&self.inner.config).await {
                Ok((connection, known, reader)) => {
                    *self.inner.connection.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(connection.clone());
                    self.resume_all(&connection, known).await;
                    return Some(reader);
                }
                Err(error) => tracing::warn!(%error, "no supervisor"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = self.inner.closing.cancelled() => return None,
            }
        }
    }

    /// The output is still read from the pipes we have; only the ends are to be waited for anew.
    async fn resume_all(&self, connection: &Connection, known: Vec<Known>) {
        let known: BTreeMap<String, Known> = known.into_iter().map(|k| (k.id.clone(), k)).collect();
        for container in self.containers() {
            if !container.record().state.status.is_alive() {
                continue;
            }
            match known.get(container.id.as_str()) {
                Some(Known { exit: Some(exit), .. }) => self.end_run(&container, connection, *exit).await,
                Some(_) => {
                    let _ = self.watch_run(&container);
                }
                None => self.settle_lost(&container, connection).await,
            }
        }
    }
}

fn object_events(events: &Arc<EventBus>) -> EventSink {
    let events = Arc::clone(events);
    Arc::new(move |event| {
        let kind = match event.kind {
            ObjectKind::Image => EventKind::Image,
            ObjectKind::Volume => EventKind::Volume,
        };
        events.emit(kind, event.action, event.id, event.attributes);
    })
}
