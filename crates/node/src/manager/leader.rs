//! What leading is: one value, made when this manager is elected and dropped when it no longer is, with every task and
//! timer in it.
//!
//! One loop writes: first what the agents said, then what `control` makes of it, each as one batch of the log. There is no
//! timer between: while a batch is on its way to the disks the next one gathers.

use std::sync::Arc;

use futures_util::FutureExt;
use skep_consensus::{Consensus, EventStream, Notice, ProposeError};
use skep_control::{Agenda, Ctx};
use skep_model::assignment::TaskReport;
use skep_store::{Batch, Change, Kind};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dispatcher::{Dispatcher, DispatcherTask};
use super::roles::{self, Roster};
use super::root;
use crate::clock::{SteadyClock, now};
use crate::config::Timing;
use crate::gossip::Gossip;

/// Reports and node changes waiting for the log; senders wait when it is full.
const INBOX: usize = 1024;

/// What sessions bring for the log.
pub(super) enum Input {
    Changes(Vec<Change>),
    /// Of a node that waits to hear that they are written.
    Opened(Vec<Change>, oneshot::Sender<()>),
    Reports(Vec<TaskReport>),
}

pub(super) struct Leader {
    pub(super) dispatcher: Dispatcher,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Leader {
    pub(super) fn start(consensus: Consensus, roster: Arc<Roster>, term: u64, timing: Timing, gossip: Gossip) -> Self {
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (inbox, inputs) = mpsc::channel(INBOX);
        let (dispatcher, task): (Dispatcher, DispatcherTask) = Dispatcher::new();
        tasks.spawn(task.run(consensus.clone(), inbox, timing, gossip, cancel.clone()));
        let mut writer = Loop { consensus: consensus.clone(), term, agenda: Agenda::new(), clock: SteadyClock::new() };
        let stop = cancel.clone();
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = writer.run(inputs) => {} }
        });
        tasks.spawn(root::run(consensus, term, cancel.clone()));
        tasks.spawn(roles::run(roster, term, cancel.clone()));
        tasks.close();
        Self { dispatcher, cancel, tasks }
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Loop {
    consensus: Consensus,
    term: u64,
    agenda: Agenda,
    clock: SteadyClock,
}

enum Outcome {
    Applied,
    /// Decide again.
    Refused,
    /// Leadership is over, or as good as.
    Over,
}

impl Loop {
    async fn run(&mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut events = self.consensus.events();
        let mut gathered: Vec<Input> = Vec::new();
        loop {
            while let Ok(input) = inputs.try_recv() {
                gathered.push(input);
            }
            if !self.write_inputs(std::mem::take(&mut gathered)).await {
                return;
            }
            self.drain(&mut events);
            let changes = self.decide();
            if !changes.is_empty() {
                match self.write_decision(changes).await {
                    Outcome::Applied => self.agenda.accepted(),
                    Outcome::Refused => tokio::time::sleep(self.agenda.refused()).await,
                    Outcome::Over => return,
                }
                continue;
            }
            tokio::select! {
                received = inputs.recv_many(&mut gathered, INBOX) => if received == 0 { return },
                notice = events.next() => match notice {
                    Some(notice) => self.mark(&notice),
                    None => return,
                },
                () = tokio::time::sleep(self.agenda.rest(now())) => self.agenda.mark_all(),
            }
        }
    }

    fn mark(&mut self, notice: &Notice) {
        match notice {
            Notice::Applied { events, .. } => self.agenda.mark(events),
            Notice::Resync { .. } => self.agenda.mark_all(),
        }
    }

    fn drain(&mut self, events: &mut EventStream) {
        while let Some(Some(notice)) = events.next().now_or_never() {
            self.mark(&notice);
        }
    }

    fn decide(&mut self) -> Vec<Change> {
        let Some(dirty) = self.agenda.take(now()) else { return Vec::new() };
        let mut ids = rand::random::<u128>;
        let view = self.consensus.view();
        let (now, steady_since) = self.clock.read();
        let decision = skep_control::tick(&view, &dirty, &mut Ctx { now, steady_since, ids: &mut ids });
        self.agenda.decided(&decision);
        decision.changes
    }

    /// False when leadership is over.
    async fn write_inputs(&mut self, inputs: Vec<Input>) -> bool {
        let mut reports: Vec<TaskReport> = Vec::new();
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Changes(more) => changes.extend(more),
                Input::Opened(more, written) => {
                    changes.extend(more);
                    waiting.push(written);
                }
                Input::Reports(more) => reports.extend(more),
            }
        }
        // Sessions speak of nodes that may have been removed meanwhile: one refused change must not take others along.
        let together = match changes.len() {
            0 => Outcome::Applied,
            _ => self.write(changes.clone()).await,
        };
        match together {
            Outcome::Applied => {}
            Outcome::Over => return false,
            Outcome::Refused => {
                for change in changes {
                    if matches!(self.write(vec![change]).await, Outcome::Over) {
                        return false;
                    }
                }
            }
        }
        waiting.into_iter().for_each(|written| _ = written.send(()));
        if reports.is_empty() {
            return true;
        }
        !matches!(self.write(vec![Change::SetTaskStatus(reports)]).await, Outcome::Over)
    }

    /// In pieces the log takes, in order: a later piece may rest on an earlier one.
    async fn write_decision(&mut self, changes: Vec<Change>) -> Outcome {
        for batch in skep_control::split(changes, now(), self.term) {
            match self.commit(batch).await {
                Outcome::Applied => {}
                other => return other,
            }
        }
        Outcome::Applied
    }

    async fn write(&mut self, changes: Vec<Change>) -> Outcome {
        self.commit(Batch::new(now(), changes).in_term(self.term)).await
    }

    async fn commit(&self, batch: Batch) -> Outcome {
        match self.consensus.propose_as_leader(self.term, batch).await {
            Ok(_) => Outcome::Applied,
            Err(ProposeError::Refused(refused)) => {
                match refused.kind() {
                    Kind::Stale => tracing::debug!(reason = %refused, "decided anew"),
                    _ => tracing::debug!(reason = %refused, "change refused"),
                }
                Outcome::Refused
            }
            Err(ProposeError::TooLarge { bytes, limit }) => {
                tracing::error!(bytes, limit, "a decision does not fit the log");
                Outcome::Refused
            }
            Err(ProposeError::Interrupted { .. }) => Outcome::Refused,
            Err(error) => {
                tracing::debug!(%error, "leading ends");
                Outcome::Over
            }
        }
    }
}
