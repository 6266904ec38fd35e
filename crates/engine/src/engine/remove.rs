//! `docker rm`.

use std::sync::Arc;

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};

impl Engine {
    pub async fn remove(&self, key: &str, options: RemoveOptions) -> Result<()> {
        let container = self.find(key)?;
        let status = container.record().state.status;
        if status.is_alive() && !options.force {
            return Err(refusal(&container));
        }
        if options.force {
            let _ = container.update(|r| r.manually_stopped = true);
        }
        let _operation = container.operation.lock().await;
        self.remove_locked(&container, options).await
    }

    async fn remove_locked(&self, container: &Arc<Container>, options: RemoveOptions) -> Result<()> {
        if container.life.borrow().removed {
            return Err(EngineError::NoSuchContainer(container.id.to_string()));
        }
        match container.record().state.status {
            Status::Running | Status::Paused if options.force => {
                let kill = StopOptions { timeout_secs: Some(0), signal: Some("KILL".to_owned()) };
                self.stop_locked(container, &kill).await?;
            }
            Status::Running | Status::Paused => return Err(refusal(container)),
            Status::Restarting if !options.force => return Err(refusal(container)),
            Status::Created | Status::Restarting | Status::Removing | Status::Exited | Status::Dead => {}
        }
        container.cancel_token();
        let id = container.id.clone();
        let record = container.update(|r| r.state.status = Status::Removing)?;
        let dir = container.dir.clone();
        let removed = blocking(move || {
            crate::rootfs::unmount(&dir.join("merged"));
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(EngineError::File {
                    what: "unable to remove filesystem of container:",
                    path: dir,
                    source: error,
                }),
                _ => Ok(()),
            }
        })
        .await;
        if let Err(error) = removed {
            let _ = container.update(|r| r.state.status = Status::Dead);
            return Err(error);
        }
        {
            let mut registry = self.registry_mut();
            registry.by_id.remove(&id);
            registry.by_name.retain(|_, other| *other != id);
        }
        self.inner.images.release(id.as_str());
        self.inner.volumes.dereference(id.as_str());
        if options.volumes || record.host_config.auto_remove {
            for mount in record.mounts.iter().filter(|m| m.anonymous) {
                if let Err(error) = self.inner.volumes.remove(&mount.name, true).await {
                    tracing::debug!(%error, volume = mount.name, "anonymous volume stays");
                }
            }
        }
        locked(&self.inner.execs).retain(|_, exec| exec.container_id != id);
        self.emit(&record, "destroy", &[]);
        container.hub.end();
        container.live(|life| life.removed = true);
        container.log_grown.send_modify(|n| *n += 1);
        Ok(())
    }

    /// For `--rm`, after the end of the run.
    pub(super) fn remove_later(&self, container: &Arc<Container>) {
        let (engine, container) = (self.clone(), Arc::clone(container));
        self.inner.tasks.spawn(async move {
            let _operation = container.operation.lock().await;
            if container.record().state.status.is_alive() {
                return;
            }
            if let Err(error) = engine.remove_locked(&container, RemoveOptions { force: true, volumes: true }).await {
                tracing::warn!(container.id = %container.id, %error, "container not removed by itself");
            }
        });
    }
}

fn refusal(container: &Container) -> EngineError {
    let record = container.record();
    let (name, id) = (&record.name, &record.id);
    let message = match record.state.status {
        Status::Paused => {
            format!("cannot remove container \"/{name}\": container is paused and must be unpaused first")
        }
        Status::Restarting => format!(
            "cannot remove container \"/{name}\": container is restarting: stop the container before removing or force remove"
        ),
        _ => format!(
            "You cannot remove a running container {id}. Stop the container before attempting removal or force remove"
        ),
    };
    EngineError::Conflict(message)
}
