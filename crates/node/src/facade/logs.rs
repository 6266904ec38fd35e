//! `docker service logs`: asked here, answered by the nodes that run the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_model::{NodeId, ServiceId, TaskId, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;
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

/// Ends when every task's log ended (or, following, when the reader drops it or the service is gone). What is missing is
/// told at last, in one error.
pub type LogStream = mpsc::Receiver<Result<TaskLog>>;

/// Following, new tasks are looked for so often, and lost ones asked for again.
const LOOK: Duration = Duration::from_millis(500);
/// A reader that does not follow waits no longer than this for a leader.
const PATIENCE: Duration = Duration::from_secs(10);

impl Node {
    /// Every task of a service, wherever it runs; following, those to come too.
    pub async fn service_logs(&self, reference: &str, request: LogRequest) -> Result<LogStream> {
        let manager = self.inner.manager()?;
        let service_id = manager.view().find_service(reference)?.id.clone();
        Ok(collect(manager, Of::Service(service_id), request))
    }

    pub async fn task_logs(&self, reference: &str, request: LogRequest) -> Result<LogStream> {
        let manager = self.inner.manager()?;
        let task_id = manager.view().find_task(reference)?.id.clone();
        Ok(collect(manager, Of::Task(task_id), request))
    }
}

enum Of {
    Service(ServiceId),
    Task(TaskId),
}

/// How one task's log stands.
struct Feed {
    /// Of the last line that came.
    last: Option<Timestamp>,
    state: FeedState,
}

enum FeedState {
    /// To be asked for, again perhaps: there was no leader, or its answer broke off.
    Wanted,
    Open,
    /// Until then it cannot be had, and why.
    Missing(String),
    Ended,
}

/// What comes of one subscription: a part, or that it broke off.
type Part = (Vec<TaskId>, Option<LogPart>);

struct Collector {
    manager: Arc<Manager>,
    of: Of,
    request: LogRequest,
    feeds: BTreeMap<TaskId, Feed>,
    /// Parts of logs that are missing for good.
    failures: BTreeSet<String>,
    parts: mpsc::Sender<Part>,
    begun: Instant,
}

fn collect(manager: Arc<Manager>, of: Of, request: LogRequest) -> LogStream {
    let (out, lines) = mpsc::channel(64);
    let (parts, incoming) = mpsc::channel(64);
    let (feeds, failures, begun) = (BTreeMap::new(), BTreeSet::new(), Instant::now());
    let collector = Collector { manager, of, request, feeds, failures, parts, begun };
    tokio::spawn(collector.run(incoming, out));
    lines
}

impl Collector {
    async fn run(mut self, mut incoming: mpsc::Receiver<Part>, out: mpsc::Sender<Result<TaskLog>>) {
        let mut look = tokio::time::interval(LOOK);
        self.find_tasks();
        loop {
            tokio::select! {
                () = out.closed() => return,
                Some((tasks, part)) = incoming.recv() => {
                    if let Some(line) = self.take(&tasks, part)
                        && out.send(Ok(line)).await.is_err()
                    {
                        return;
                    }
                }
                _ = look.tick() => {
                    if self.request.follow {
                        self.find_tasks();
                    }
                    self.open_wanted();
                }
            }
            if self.is_over() {
                break;
            }
        }
        if let Some(note) = self.note() {
            let _ = out.send(Err(NodeError::Internal(note))).await;
        }
    }

    /// Those that have a container: the others have said nothing yet, or never will.
    fn find_tasks(&mut self) {
        let view = self.manager.view();
        let tasks: Vec<_> = match &self.of {
            Of::Service(id) => view.tasks_of_service(id).cloned().collect(),
            Of::Task(id) => view.task(id).cloned().into_iter().collect(),
        };
        for task in tasks.iter().filter(|t| t.node_id.is_some() && t.status.container.is_some()) {
            self.feeds.entry(task.id.clone()).or_insert(Feed { last: None, state: FeedState::Wanted });
        }
        if let (Of::Task(id), [task], false) = (&self.of, &tasks[..], self.request.follow)
            && task.node_id.is_none()
        {
            self.failures.insert(format!("task {id} has not been scheduled"));
        }
    }

    /// Subscribes to all that are to be asked for in the same way at once.
    fn open_wanted(&mut self) {
        let mut fresh = Vec::new();
        for (id, feed) in &mut self.feeds {
            if matches!(feed.state, FeedState::Missing(_)) && self.request.follow {
                feed.state = FeedState::Wanted;
            }
            if !matches!(feed.state, FeedState::Wanted) {
                continue;
            }
            feed.state = FeedState::Open;
            match feed.last {
                None => fresh.push(id.clone()),
                // What was said before has come.
                Some(last) => {
                    let request = LogRequest { since: Timestamp(last.0 + 1), tail: None, ..self.request.clone() };
                    subscribe(self.manager.clone(), vec![id.clone()], request, self.parts.clone());
                }
            }
        }
        if !fresh.is_empty() {
            subscribe(self.manager.clone(), fresh, self.request.clone(), self.parts.clone());
        }
    }

    fn take(&mut self, tasks: &[TaskId], part: Option<LogPart>) -> Option<TaskLog> {
        match part {
            Some(LogPart::Line(line)) => {
                if let Some(feed) = self.feeds.get_mut(&line.task_id) {
                    feed.last = Some(line.at);
                }
                return Some(line);
            }
            Some(LogPart::Ended { task_id, error }) => {
                if let Some(feed) = self.feeds.get_mut(&task_id) {
                    feed.state = error.map_or(FeedState::Ended, FeedState::Missing);
                }
            }
            Some(LogPart::Failed(text)) => drop(self.failures.insert(text)),
            Some(LogPart::Begin(_)) => {}
            None => {
                for task in tasks {
                    if let Some(feed) = self.feeds.get_mut(task).filter(|f| matches!(f.state, FeedState::Open)) {
                        feed.state = FeedState::Wanted;
                    }
                }
            }
        }
        None
    }

    fn is_over(&self) -> bool {
        let all = |is: fn(&FeedState) -> bool| self.feeds.values().all(|f| is(&f.state));
        if self.request.follow {
            let view = self.manager.view();
            let more = match &self.of {
                Of::Service(id) => view.service(id).is_some(),
                Of::Task(id) => view.task(id).is_some_and(|t| !t.status.state.is_terminal()),
            };
            return !more && all(|s| matches!(s, FeedState::Ended | FeedState::Missing(_)));
        }
        all(|s| matches!(s, FeedState::Ended | FeedState::Missing(_)))
            || self.begun.elapsed() > PATIENCE && all(|s| !matches!(s, FeedState::Open))
    }

    /// swarmkit's words (`manager/logbroker`).
    fn note(self) -> Option<String> {
        let mut reasons = self.failures;
        for (id, feed) in self.feeds {
            match feed.state {
                FeedState::Ended => {}
                FeedState::Missing(why) => drop(reasons.insert(why)),
                FeedState::Wanted | FeedState::Open => drop(reasons.insert(format!("task {id}: there is no leader"))),
            }
        }
        let reasons: Vec<String> = reasons.into_iter().collect();
        (!reasons.is_empty()).then(|| {
            format!(
                "warning: incomplete log stream. some logs could not be retrieved for the following reasons: {}",
                reasons.join(", ")
            )
        })
    }
}

/// Asks the leader, who has the sessions: here, or over RPC.
fn subscribe(manager: Arc<Manager>, tasks: Vec<TaskId>, request: LogRequest, parts: mpsc::Sender<Part>) {
    tokio::spawn(async move {
        let told = async {
            if let Some(dispatcher) = manager.dispatcher() {
                let (sink, mut lines) = mpsc::channel(tasks.len() + 64);
                dispatcher.subscribe(tasks.clone(), request, sink).await;
                drop(dispatcher);
                while let Some(part) = lines.recv().await {
                    if parts.send((Vec::new(), Some(part))).await.is_err() {
                        return;
                    }
                }
                return;
            }
            let Some(connection) = manager.leader_connection() else { return };
            let call = LogsCall { tasks: tasks.clone(), request };
            let Ok(answer) = connection.control().logs(pack(&call)).await else { return };
            let mut answer = answer.into_inner();
            while let Some(Ok(envelope)) = answer.next().await {
                let Ok(part) = unpack::<LogPart>(&envelope) else { return };
                if parts.send((Vec::new(), Some(part))).await.is_err() {
                    return;
                }
            }
        };
        // If nobody reads any more, the call ends with this.
        tokio::select! {
            () = parts.closed() => return,
            () = told => {}
        }
        let _ = parts.send((tasks, None)).await;
    });
}
