//! `docker service logs`: asked here, answered by the nodes that run the tasks.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_model::{NodeId, ServiceId, TaskId, Timestamp};
use tokio::sync::mpsc;

use super::Node;
use crate::error::Result;

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
        let _ = (reference, request);
        unimplemented!()
    }

    pub async fn task_logs(&self, reference: &str, request: LogRequest) -> Result<LogStream> {
        let _ = (reference, request);
        unimplemented!()
    }
}
