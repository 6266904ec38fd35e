//! `docker service logs`: asked here, answered by the nodes that run the tasks.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_model::{NodeId, ServiceId, TaskId, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::Node;
use crate::error::{NodeError, Result};
use crate::manager::Manager;
use crate::transport::message::{LogPart, LogsCall};
use crate::transport::{pack, unpack};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogRequest {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    /// Zero is from the beginning.
    pub since: Timestamp,
    /// The last so many lines of each task; `None` is all.
    pub tail: Option<u64>,
}

/// One piece of one task's output: a whole line with its newline, or part of an overlong one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskLog {
    pub service_id: ServiceId,
    pub task_id: TaskId,
    pub node_id: NodeId,
    pub stderr: bool,
    pub at: Timestamp,
    #[serde(with = "bytes_as_vec")]
    pub data: Bytes,
}

mod bytes_as_vec {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        Vec::<u8>::deserialize(d).map(Bytes::from)
    }
}

/// Ends when every task's log ended (or, following, when the reader drops it). An error item names a node whose part is
/// missing; the others go on.
pub type LogStream = mpsc::Receiver<Result<TaskLog>>;

impl Node {
    /// Every task of a service, wherever it runs.
    pub async fn service_logs(&self, reference: &str, request: LogRequest) -> Result<LogStream> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let service = view.find_service(reference)?;
        // Tasks that never came to a node have said nothing.
        let tasks = view.tasks_of_service(&service.id).filter(|t| t.node_id.is_some()).map(|t| t.id.clone()).collect();
        open(&manager, tasks, request).await
    }

    pub async fn task_logs(&self, reference: &str, request: LogRequest) -> Result<LogStream> {
        let manager = self.inner.manager()?;
        let task_id = manager.view().find_task(reference)?.id.clone();
        open(&manager, vec![task_id], request).await
    }
}

/// The leader has the sessions: asked here, or over RPC.
async fn open(manager: &Manager, tasks: Vec<TaskId>, request: LogRequest) -> Result<LogStream> {
    let (sink, lines) = mpsc::channel(64);
    if let Some(dispatcher) = manager.dispatcher() {
        dispatcher.subscribe(tasks, request, sink).await;
        return Ok(lines);
    }
    let connection = manager.leader_connection().ok_or_else(|| manager.no_leader(false))?;
    let failed = |status: tonic::Status| NodeError::Internal(status.to_string());
    let mut parts = connection.control().logs(pack(&LogsCall { tasks, request })).await.map_err(failed)?.into_inner();
    // Ends with the leader's stream, or when the reader drops its end.
    tokio::spawn(async move {
        loop {
            let part = tokio::select! { () = sink.closed() => return, part = parts.next() => part };
            let item = match part {
                None => return,
                Some(Err(status)) => Err(failed(status)),
                Some(Ok(envelope)) => match unpack::<LogPart>(&envelope) {
                    Ok(LogPart::Line(line)) => Ok(line),
                    Ok(LogPart::Failed(text)) => Err(NodeError::Internal(text)),
                    Ok(LogPart::Begin(_)) => continue,
                    Err(status) => Err(failed(status)),
                },
            };
            let over = item.is_err();
            if sink.send(item).await.is_err() || over {
                return;
            }
        }
    });
    Ok(lines)
}
