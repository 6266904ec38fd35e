//! Answers log subscriptions: reads the logs of the tasks asked for and streams them to the manager that asked, since
//! nobody can connect to a worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::NodeId;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::executor::Executor;
use crate::facade::TaskLog;
use crate::transport::message::{LogPart, LogSubscription};
use crate::transport::{Connection, pack};

/// Lines under way from one node; a slow reader slows the reading of files, not memory.
const LINES_IN_FLIGHT: usize = 64;

/// Dropped with the session, and every feed with it.
pub(super) struct LogFeeds {
    executor: Arc<dyn Executor>,
    connection: Connection,
    node_id: NodeId,
    feeds: JoinSet<()>,
    by_id: BTreeMap<u64, AbortHandle>,
}

impl LogFeeds {
    pub(super) fn new(executor: Arc<dyn Executor>, connection: Connection, node_id: NodeId) -> Self {
        Self { executor, connection, node_id, feeds: JoinSet::new(), by_id: BTreeMap::new() }
    }

    pub(super) fn start(&mut self, subscription: LogSubscription) {
        while self.feeds.try_join_next().is_some() {}
        self.by_id.retain(|_, feed| !feed.is_finished());
        let id = subscription.id;
        let feed = feed(self.executor.clone(), self.connection.clone(), self.node_id.clone(), subscription);
        self.by_id.insert(id, self.feeds.spawn(feed));
    }

    pub(super) fn stop(&mut self, id: u64) {
        if let Some(feed) = self.by_id.remove(&id) {
            feed.abort();
        }
    }
}

async fn feed(executor: Arc<dyn Executor>, connection: Connection, node_id: NodeId, subscription: LogSubscription) {
    let (parts, outgoing) = mpsc::channel(LINES_IN_FLIGHT);
    let read = async move {
        let mut tasks = JoinSet::new();
        if parts.send(pack(&LogPart::Begin(subscription.id))).await.is_err() {
            return;
        }
        for task_id in subscription.tasks {
            let (executor, parts, request) = (executor.clone(), parts.clone(), subscription.request.clone());
            let node_id = node_id.clone();
            tasks.spawn(async move {
                let mut lines = match executor.logs(&task_id, &request).await {
                    Ok(lines) => lines,
                    Err(error) => {
                        let error = Some(format!("task {task_id}: {error}"));
                        let _ = parts.send(pack(&LogPart::Ended { task_id, error })).await;
                        return;
                    }
                };
                while let Some(line) = lines.next().await {
                    let part = match line {
                        Ok(line) => LogPart::Line(TaskLog {
                            service_id: line.service_id,
                            task_id: task_id.clone(),
                            node_id: node_id.clone(),
                            stderr: line.stderr,
                            at: line.at,
                            data: line.data,
                        }),
                        Err(error) => LogPart::Failed(format!("task {task_id}: {error}")),
                    };
                    if parts.send(pack(&part)).await.is_err() {
                        return;
                    }
                }
                let _ = parts.send(pack(&LogPart::Ended { task_id, error: None })).await;
            });
        }
        drop(parts);
        while tasks.join_next().await.is_some() {}
    };
    let mut dispatcher = connection.dispatcher();
    let publish = dispatcher.publish_logs(ReceiverStream::new(outgoing));
    // If the manager hangs up, the reading ends with it.
    tokio::pin!(read);
    tokio::select! {
        published = publish => if let Err(status) = published {
            tracing::debug!(%status, "log feed ended");
        },
        () = async { read.await; std::future::pending::<()>().await } => {}
    }
}
