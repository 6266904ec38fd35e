//! Steps every task's machine and performs what comes out: the only owner of the machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_agent::fence::{may_run_until, until_told_again};
use skep_agent::spec::NodeFacts;
use skep_agent::task::{Effect, LISTEN_TIMEOUT, Started, TaskEvent, ports_awaited};
use skep_agent::worker::{Effects, Worker};
use skep_model::TaskId;
use skep_model::task::Task;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::board::StatusBoard;
use super::executor::{Executor, Surroundings};
use super::session::Orders;
use crate::clock::now;

/// Containers made or started at once; more would only make each other wait.
const HEAVY_AT_ONCE: usize = 8;
/// Results under way to the machines.
const RESULTS: usize = 1024;

pub(crate) struct WorkerLoop {
    executor: Arc<dyn Executor>,
    board: Arc<StatusBoard>,
    node: NodeFacts,
    worker: Worker,
    around: Arc<Surroundings>,
    heavy: Arc<Semaphore>,
    results: mpsc::Sender<(TaskId, TaskEvent)>,
    /// When the last heartbeat that a leader answered was sent, since boot.
    answered: watch::Receiver<Option<Duration>>,
    running: JoinSet<()>,
    /// Containers of tasks nobody assigned are looked for once, after the first word of a manager.
    strays_removed: bool,
}

impl WorkerLoop {
    pub(crate) async fn run(
        executor: Arc<dyn Executor>,
        board: Arc<StatusBoard>,
        node: NodeFacts,
        mut orders: watch::Receiver<Option<Orders>>,
        mut answered: watch::Receiver<Option<Duration>>,
        cancel: CancellationToken,
    ) {
        let (results, mut events) = mpsc::channel(RESULTS);
        let around = Surroundings {
            node: node.clone(),
            secrets: BTreeMap::new(),
            configs: BTreeMap::new(),
            networks: BTreeMap::new(),
        };
        let mut this = Self {
            executor,
            board,
            node,
            worker: Worker::new(),
            around: Arc::new(around),
            heavy: Arc::new(Semaphore::new(HEAVY_AT_ONCE)),
            results,
            answered: answered.clone(),
            running: JoinSet::new(),
            strays_removed: false,
        };
        let mut effects = Effects::new();
        this.take_orders(&mut orders, &mut effects);
        loop {
            this.perform(std::mem::take(&mut effects));
            while this.running.try_join_next().is_some() {}
            let wake = this.worker.wake_at().map(|at| at.since(now()));
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = orders.changed() => match changed {
                    Ok(()) => this.take_orders(&mut orders, &mut effects),
                    Err(_) => return,
                },
                changed = answered.changed() => match changed {
                    Ok(()) => this.extend_leases(*answered.borrow_and_update()),
                    Err(_) => return,
                },
                event = events.recv() => if let Some((task_id, event)) = event {
                    this.worker.handle(&task_id, event, now(), &mut effects);
                },
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {
                    this.worker.due(now(), &mut effects);
                }
            }
        }
    }

    fn take_orders(&mut self, orders: &mut watch::Receiver<Option<Orders>>, effects: &mut Effects) {
        let Some(orders) = orders.borrow_and_update().clone() else { return };
        self.around = Arc::new(Surroundings {
            node: self.node.clone(),
            secrets: orders.set.secrets.clone(),
            configs: orders.set.configs.clone(),
            networks: orders.set.networks.iter().map(|(id, n)| (id.clone(), n.spec.clone())).collect(),
        });
        match orders.fresh {
            true => self.worker.assign(&orders.set, now(), effects),
            false => self.worker.assign(&until_told_again((*orders.set).clone()), now(), effects),
        }
        if orders.fresh && !std::mem::replace(&mut self.strays_removed, true) {
            let known: Vec<TaskId> = orders.set.tasks.keys().cloned().collect();
            self.running.spawn(remove_strays(self.executor.clone(), known));
        }
    }

    /// A manager was heard: tasks that may not run without may go on.
    fn extend_leases(&mut self, answered: Option<Duration>) {
        let Some(answered) = answered else { return };
        for task in self.worker.tasks().filter(|t| !t.status.state.is_terminal()) {
            let Some(until) = may_run_until(task, answered) else { continue };
            let Some(container_id) = self.worker.container_id(&task.id).map(str::to_owned) else { continue };
            let executor = self.executor.clone();
            self.running.spawn(async move {
                if let Err(error) = executor.lease(&container_id, until).await {
                    tracing::warn!(container.id = container_id, error, "cannot extend a lease");
                }
            });
        }
    }

    fn perform(&mut self, effects: Effects) {
        for (task_id, effect) in effects {
            match effect {
                Effect::Report(status) => self.board.post(task_id, status),
                Effect::Forget => self.board.forget(&task_id),
                effect => {
                    let Some(task) = self.worker.task(&task_id).cloned() else { continue };
                    let container_id = self.worker.container_id(&task_id).map(str::to_owned);
                    let act = Act {
                        executor: self.executor.clone(),
                        heavy: self.heavy.clone(),
                        around: self.around.clone(),
                        results: self.results.clone(),
                        answered: self.answered.clone(),
                        task,
                        container_id,
                    };
                    self.running.spawn(act.perform(effect));
                }
            }
        }
    }
}

async fn remove_strays(executor: Arc<dyn Executor>, known: Vec<TaskId>) {
    for task_id in executor.found().await {
        if known.contains(&task_id) {
            continue;
        }
        match executor.remove_stray(&task_id).await {
            Ok(()) => tracing::info!(task.id = %task_id, "removed a container of a task that is gone"),
            Err(error) => tracing::warn!(task.id = %task_id, error, "cannot remove a container of a task that is gone"),
        }
    }
}

/// One effect on its way.
struct Act {
    executor: Arc<dyn Executor>,
    heavy: Arc<Semaphore>,
    around: Arc<Surroundings>,
    results: mpsc::Sender<(TaskId, TaskEvent)>,
    answered: watch::Receiver<Option<Duration>>,
    task: Task,
    container_id: Option<String>,
}

impl Act {
    /// What may not run without a manager has its lease before it starts.
    async fn start(&self, container_id: &str) -> Result<Started, String> {
        if self.task.stop_after().is_some() {
            let mut answered = self.answered.clone();
            let heard = answered.wait_for(Option::is_some).await.map_err(|_| "the daemon ends")?.unwrap_or_default();
            if let Some(until) = may_run_until(&self.task, heard) {
                self.executor.lease(container_id, until).await?;
            }
        }
        self.executor.start(&self.task, container_id).await
    }

    async fn perform(self, effect: Effect) {
        let container_id = self.container_id.clone().unwrap_or_default();
        let event = match effect {
            Effect::Observe => TaskEvent::Observed(self.executor.observe(&self.task).await),
            Effect::Pull => TaskEvent::Pulled(self.executor.pull(&self.task).await),
            Effect::Create => {
                let _turn = self.heavy.acquire().await;
                TaskEvent::Created(self.executor.create(&self.task, &self.around).await)
            }
            Effect::Start => {
                let started = {
                    let _turn = self.heavy.acquire().await;
                    self.start(&container_id).await
                };
                let runs = started.is_ok();
                let ports = ports_awaited(&self.task);
                if runs && !ports.is_empty() {
                    self.executor.listening(&container_id, &ports, LISTEN_TIMEOUT).await;
                }
                self.send(TaskEvent::Started(started)).await;
                if runs {
                    self.watch(&container_id).await;
                }
                return;
            }
            Effect::Wait => return self.watch(&container_id).await,
            Effect::Stop { drain, grace } => match self.executor.stop(&container_id, drain, grace).await {
                Ok(()) => return,
                Err(error) => TaskEvent::StopFailed(error),
            },
            Effect::Kill => match self.executor.kill(&container_id).await {
                Ok(()) => return,
                Err(error) => TaskEvent::StopFailed(error),
            },
            Effect::Remove => TaskEvent::Removed(self.executor.remove(&self.task, self.container_id.as_deref()).await),
            Effect::Report(_) | Effect::Forget => return,
        };
        self.send(event).await;
    }

    async fn send(&self, event: TaskEvent) {
        let _ = self.results.send((self.task.id.clone(), event)).await;
    }

    async fn watch(&self, container_id: &str) {
        let (events, mut happened) = mpsc::channel(16);
        let watch = self.executor.watch(container_id, events);
        let pass_on = async {
            while let Some(event) = happened.recv().await {
                self.send(event).await;
            }
        };
        tokio::join!(watch, pass_on);
    }
}
