//! Logs and attach: what a container said, and what it says.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};

/// Records read ahead of a slow client.
const LOG_QUEUE: usize = 256;

impl Engine {
    pub async fn logs(&self, key: &str, request: LogsRequest) -> Result<LogStream> {
        let container = self.find(key)?;
        if !request.stdout && !request.stderr {
            return Err(EngineError::Invalid("You must choose at least one stream".to_owned()));
        }
        let record = container.record();
        if !crate::logs::readable(&record.host_config.log_config) {
            return Err(EngineError::NotImplemented("configured logging driver does not support reading".to_owned()));
        }
        // Subscribed before the reading, so that nothing written in between is missed.
        let mut grown = container.log_grown.subscribe();
        let mut life = container.life.subscribe();
        let (path, wanted) = (record.log_path.clone(), request.clone());
        let (first, mut reader) =
            blocking(move || crate::logs::read(&path, &wanted).map_err(EngineError::file("failed to read", path)))
                .await?;
        let (sender, receiver) = mpsc::channel(LOG_QUEUE);
        let closing = self.inner.closing.clone();
        let follow = async move {
            for record in first {
                if sender.send(Ok(record)).await.is_err() {
                    return;
                }
            }
            if !request.follow {
                return;
            }
            loop {
                // Looked at before the reading: what was said before the end is then certainly read.
                let over = {
                    let life = life.borrow_and_update();
                    let ended = life.exits > 0 || record.state.status == Status::Exited;
                    life.removed || (ended && !life.alive && !life.restarting)
                };
                grown.mark_unchanged();
                let mut records = Vec::new();
                loop {
                    match reader.next(&mut records) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(_) => return,
                    }
                }
                for record in records.into_iter().filter(|r| crate::logs::wanted(r, &request)) {
                    if sender.send(Ok(record)).await.is_err() {
                        return;
                    }
                }
                if over {
                    return;
                }
                tokio::select! {
                    changed = grown.changed() => if changed.is_err() { return },
                    changed = life.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = closing.cancelled() => return,
                }
            }
        };
        self.inner.tasks.spawn(follow);
        Ok(ReceiverStream::new(receiver).boxed())
    }

    /// Attaches to a container that runs or is about to be started.
    pub async fn attach(&self, key: &str, request: AttachRequest) -> Result<Attached> {
        let container = self.find(key)?;
        let record = container.record();
        match record.state.status {
            Status::Paused => {
                return Err(EngineError::Conflict(format!(
                    "container {} is paused, unpause the container before attach",
                    record.id
                )));
            }
            Status::Restarting => {
                return Err(EngineError::Conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    record.id
                )));
            }
            _ => {}
        }
        // Before the log is read: a line may come twice then, but none gets lost.
        let live = request.stream.then(|| container.hub.subscribe());
        let replay: OutputStream = if request.logs {
            let logs = LogsRequest { stdout: request.stdout, stderr: request.stderr, ..LogsRequest::default() };
            let records = self.logs(key, logs).await?;
            records.map(|r| r.map(|r| OutputChunk { stream: r.stream, data: r.data })).boxed()
        } else {
            futures_util::stream::empty().boxed()
        };
        let (stdout, stderr) = (request.stdout, request.stderr);
        let output = match live {
            Some(receiver) => {
                let asked = move |chunk: &OutputChunk| if chunk.stream == StdStream::Stderr { stderr } else { stdout };
                let live = ReceiverStream::new(receiver).filter(move |c| std::future::ready(asked(c))).map(Ok);
                replay.chain(live).boxed()
            }
            None => replay,
        };
        let stdin = (request.stdin && request.stream && record.config.open_stdin).then(|| self.stdin_of(&container));
        self.emit(&record, "attach", &[]);
        Ok(Attached { tty: record.config.tty, stdin, output })
    }

    fn stdin_of(&self, container: &Arc<Container>) -> StdinWriter {
        let config = &container.record().config;
        let closes = config.stdin_once && !config.tty;
        let on_close = closes.then(|| {
            let (engine, container) = (self.clone(), Arc::clone(container));
            let runtime = tokio::runtime::Handle::current();
            Box::new(move || {
                container.stdin.set(StdinState::Closed);
                let id = container.id.to_string();
                let tasks = engine.inner.tasks.clone();
                // The supervisor has the pipe open too, for the daemon after us.
                tasks.spawn_on(
                    async move {
                        if let Ok(connection) = engine.connection() {
                            let _ = connection.close_stdin(&id).await;
                        }
                    },
                    &runtime,
                );
            }) as Box<dyn FnOnce() + Send>
        });
        StdinWriter::of_container(Arc::clone(&container.stdin), on_close)
    }

    pub async fn resize(&self, key: &str, height: u16, width: u16) -> Result<()> {
        let container = self.find(key)?;
        let pty = locked(&container.run).pty.clone();
        let Some(pty) = pty else {
            if container.record().state.status.is_alive() {
                return Ok(());
            }
            return Err(EngineError::NotRunning(container.id.to_string()));
        };
        resize(&*pty, height, width).map_err(|e| EngineError::Internal(format!("failed to resize tty: {e}")))?;
        let size = [("height", height.to_string()), ("width", width.to_string())];
        self.emit(&container.record(), "resize", &size);
        Ok(())
    }
}
