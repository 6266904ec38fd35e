//! Why a service is not as it was asked for: from the View alone, in sentences, with what to do.
//!
//! Decides what is worth telling and in which words; changes nothing. Read [`explain()`], then one function a topic.

mod place;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::Timestamp;
use skep_model::explain::{Explanation, Finding, Topic};
use skep_model::node::{Node, NodeState};
use skep_model::service::{Mode, Service, UpdateState};
use skep_model::task::{RestartCondition, Task, TaskState};
use skep_model::validate::{DEFAULT_UPDATE_DEADLINE, update_deadline};
use skep_store::View;

use words::{count, hosts, names, span};

/// What is known of a service and its tasks as of `now`.
pub fn explain(view: &View, service: &Service, now: Timestamp) -> Explanation {
    let tasks: Vec<Arc<Task>> = view
        .tasks_of_service(&service.id)
        .filter(|t| t.job_iteration == service.job_iteration() && t.desired_state < TaskState::Remove)
        .cloned()
        .collect();
    let about = About { view, service, now, tasks };
    let (summary, complete) = about.summary();
    let mut findings = Vec::new();
    about.update(&mut findings);
    about.ended(&mut findings);
    about.without_address(&mut findings);
    about.without_node(&mut findings);
    about.starting(&mut findings);
    about.nodes(&mut findings);
    findings.sort_by_key(|finding| finding.about);
    if !complete && findings.is_empty() {
        findings.push(finding(Topic::Starting, "The leader has not come to it yet.", ""));
    }
    Explanation { service: service.spec.name.clone(), summary, as_asked: complete && findings.is_empty(), findings }
}

fn finding(about: Topic, says: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { about, says: says.into(), advice: advice.into() }
}

/// How a slot's tasks ended.
struct End {
    last: Arc<Task>,
    /// That are known of.
    times: usize,
    /// No other follows.
    given_up: bool,
}

struct About<'a> {
    view: &'a View,
    service: &'a Service,
    now: Timestamp,
    /// Of the present run of a job, and not being removed; oldest first by id.
    tasks: Vec<Arc<Task>>,
}

impl About<'_> {
    fn name(&self) -> &str {
        &self.service.spec.name
    }

    fn with(&self, holds: impl Fn(&Task) -> bool) -> Vec<Arc<Task>> {
        self.tasks.iter().filter(|t| holds(t)).cloned().collect()
    }

    /// The sentence, and whether all is there.
    fn summary(&self) -> (String, bool) {
        let running = self.with(|t| t.is_live() && t.status.state == TaskState::Running && !self.is_lost(t));
        let complete = self.with(|t| t.status.state == TaskState::Complete).len();
        let name = self.name();
        let on = hosts(self.view, &running);
        let on = if on.is_empty() { String::new() } else { format!(", on {on}") };
        let busy = running.len();
        match self.service.spec.mode {
            Mode::Replicated { replicas: 0 } => (format!("{name}: asked to run nothing (0 replicas)."), busy == 0),
            Mode::Replicated { replicas } => {
                let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
                (format!("{name}: {busy} of {} running{on}.", count(wanted, "replica")), busy == wanted)
            }
            Mode::Global => {
                let wanted = self.with(Task::is_live).len();
                let text = match wanted {
                    0 => format!("{name}: running nowhere; no node that takes tasks satisfies its constraints."),
                    _ => format!("{name}: running on {busy} of {}{on}.", count(wanted, "node")),
                };
                (text, wanted > 0 && busy == wanted)
            }
            Mode::ReplicatedJob { total_completions, .. } => {
                let total = usize::try_from(total_completions).unwrap_or(usize::MAX);
                (format!("{name}: {complete} of {} complete, {busy} running.", count(total, "task")), complete >= total)
            }
            Mode::GlobalJob => {
                let left = self.with(Task::is_live).len();
                (format!("{name}: complete on {}, under way on {left}.", count(complete, "node")), left == 0)
            }
        }
    }

    fn node(&self, task: &Task) -> Option<&Arc<Node>> {
        self.view.node(task.node_id.as_ref()?)
    }

    fn is_lost(&self, task: &Task) -> bool {
        task.node_id.is_some() && self.node(task).is_none_or(|n| n.status.state == NodeState::Down)
    }

    fn update(&self, out: &mut Vec<Finding>) {
        let Some(update) = &self.service.update_status else { return };
        let (name, message) = (self.name(), &update.message);
        let current = |t: &Task| t.spec_version == self.service.spec_version;
        let old = self.with(|t| t.is_live() && !current(t)).len();
        let waiting = self.with(|t| t.is_live() && current(t) && t.status.state < TaskState::Running);
        match update.state {
            UpdateState::Paused | UpdateState::RollbackPaused => {
                let what = if update.state == UpdateState::Paused { "Its update" } else { "Its rollback" };
                let says = format!("{what} is paused with {} still as before: {message}.", count(old, "task"),);
                let go_back = if self.service.previous_spec.is_some() && update.state == UpdateState::Paused {
                    format!("Go back with `docker service rollback {name}`, or mend")
                } else {
                    "Mend".to_owned()
                };
                let advice = format!(
                    "{go_back} what failed and go on with `docker service update {name}` (`docker service ps --no-trunc {name}` and `docker service logs {name}` tell more)."
                );
                out.push(finding(Topic::Update, says, advice));
            }
            UpdateState::Updating | UpdateState::RollbackStarted => {
                let what = if update.state == UpdateState::Updating { "An update" } else { "A rollback" };
                let since = span(self.now.since(update.started_at));
                let left = if old > 0 {
                    format!("{} still to do", count(old, "task"))
                } else {
                    "the last tasks are watched".into()
                };
                let patience =
                    update_deadline(&self.service.spec.labels).ok().flatten().unwrap_or(DEFAULT_UPDATE_DEADLINE);
                let waits = if waiting.is_empty() {
                    String::new()
                } else {
                    format!("; it waits for {} to run, for {} at the most", names(&waiting), span(patience))
                };
                out.push(finding(Topic::Update, format!("{what} is under way for {since}: {left}{waits}."), ""));
            }
            UpdateState::Completed | UpdateState::RollbackCompleted => {}
        }
    }

    /// What ended by itself last, slot by slot, told together where the error is the same.
    fn ended(&self, out: &mut Vec<Finding>) {
        let ended = |t: &Task| {
            matches!(t.status.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete)
                && t.spec_version == self.service.spec_version
        };
        let mut slots: BTreeMap<String, Vec<Arc<Task>>> = BTreeMap::new();
        for task in &self.tasks {
            slots.entry(task.slot_name()).or_default().push(task.clone());
        }
        let mut causes: BTreeMap<(Topic, String), Vec<End>> = BTreeMap::new();
        for tasks in slots.values_mut() {
            tasks.sort_by_key(|t| t.meta.created_at);
            let live = tasks.iter().rev().find(|t| t.is_live());
            if live.is_some_and(|t| t.status.state == TaskState::Running) {
                continue;
            }
            let times = tasks.iter().filter(|t| ended(t)).count();
            let Some(last) = tasks.iter().rev().find(|t| ended(t)) else { continue };
            // A job's task that is complete is as asked.
            if last.status.state == TaskState::Complete && self.service.spec.mode.is_job() {
                continue;
            }
            let topic = if last.status.state == TaskState::Rejected && last.status.message == "preparing" {
                Topic::Image
            } else {
                Topic::Failing
            };
            let error = match (last.status.state, last.status.error.as_str()) {
                (TaskState::Complete, _) => "it ended by itself with exit code 0".to_owned(),
                (_, "") => "no reason was given".to_owned(),
                (_, error) => error.to_owned(),
            };
            causes.entry((topic, error)).or_default().push(End { last: last.clone(), times, given_up: live.is_none() });
        }
        for ((topic, error), slots) in causes {
            out.push(self.cause(topic, &error, &slots));
        }
    }

    fn cause(&self, topic: Topic, error: &str, slots: &[End]) -> Finding {
        let name = self.name();
        let tasks: Vec<Arc<Task>> = slots.iter().map(|end| end.last.clone()).collect();
        let times: usize = slots.iter().map(|end| end.times).sum();
        let last = tasks.iter().map(|t| t.status.at).max().unwrap_or_default();
        let given_up = slots.iter().filter(|end| end.given_up).count();
        let mut says = format!(
            "{} {} on {}: {error} ({}, the last one {} ago).",
            names(&tasks),
            if topic == Topic::Image { "could not run" } else { "ended" },
            hosts(self.view, &tasks),
            count(times, "known failure"),
            span(self.now.since(last)),
        );
        let policy = self.service.spec.task.restart.unwrap_or_default();
        if given_up > 0 {
            let why = match policy.condition {
                RestartCondition::None => "the restart condition is none".to_owned(),
                RestartCondition::OnFailure if error.contains("exit code 0") => {
                    "the restart condition is on-failure".into()
                }
                _ if policy.max_attempts > 0 => format!(
                    "{} are used up",
                    count(usize::try_from(policy.max_attempts).unwrap_or(usize::MAX), "restart attempt")
                ),
                _ => "the update stopped there".to_owned(),
            };
            says = format!(
                "{says} {} not started again: {why}.",
                if given_up == 1 { "It is".to_owned() } else { format!("{given_up} of them are") }
            );
        }
        let image = &self.service.spec.task.container.image;
        let mut advice = if topic == Topic::Image {
            format!(
                "Check that {image} is there and may be pulled (`docker pull {image}` on that host); give credentials with `docker service update --with-registry-auth --image {image} {name}`."
            )
        } else if error.contains("unhealthy container") {
            "Its health check fails: see `docker inspect` of the container on that host, under State.Health.".to_owned()
        } else if error.contains("no longer meets constraints") {
            format!(
                "The node changed and does not fit any more: see the constraints and reservations in `docker service inspect --pretty {name}`."
            )
        } else {
            format!("See what it wrote: `docker service logs {name}`.")
        };
        if given_up > 0 {
            advice.push_str(&format!(" Try again with `docker service update --force {name}`."));
        }
        finding(topic, says, advice)
    }

    fn without_address(&self, out: &mut Vec<Finding>) {
        for (error, tasks) in self.by_error(|t| t.status.state == TaskState::New) {
            let wait = if tasks.len() == 1 { "waits" } else { "wait" };
            let says = format!("{} {wait} for an address or a port: {error}.", names(&tasks));
            let advice =
                "Take away what is not used on that network, or give the service a network with a larger subnet.";
            out.push(finding(Topic::Address, says, if error.is_empty() { "" } else { advice }));
        }
    }

    fn by_error(&self, holds: impl Fn(&Task) -> bool) -> BTreeMap<String, Vec<Arc<Task>>> {
        let mut out: BTreeMap<String, Vec<Arc<Task>>> = BTreeMap::new();
        for task in self.with(|t| t.is_live() && holds(t)) {
            let error =
                if task.status.error.is_empty() { "the leader has not come to it yet" } else { &task.status.error };
            out.entry(error.to_owned()).or_default().push(task);
        }
        out
    }

    fn starting(&self, out: &mut Vec<Finding>) {
        let begun = |t: &Task| {
            t.is_live() && (TaskState::Assigned..TaskState::Running).contains(&t.status.state) && !self.is_lost(t)
        };
        for task in self.with(begun) {
            let on = hosts(self.view, std::slice::from_ref(&task));
            let since = span(self.now.since(task.status.at));
            let name = task.slot_name();
            let says = match (task.status.state, task.start_after.filter(|at| *at > self.now)) {
                (_, Some(at)) if task.desired_state < TaskState::Running => {
                    format!("{name} is started on {on} in {} (the restart delay).", span(at.since(self.now)))
                }
                (TaskState::Ready, _) if task.desired_state < TaskState::Running => {
                    format!("{name} is ready on {on} and waits for the task before it to end.")
                }
                (TaskState::Assigned | TaskState::Accepted, _) => {
                    format!("{name} was given to {on} {since} ago, which has not begun.")
                }
                (TaskState::Preparing, _) => {
                    format!("{name} is prepared on {on} for {since}: its image is pulled and its container made.")
                }
                _ if task.spec.container.healthcheck.is_some() => {
                    format!(
                        "{name} runs on {on} for {since} and is not healthy yet; it gets no connections until it is."
                    )
                }
                _ => format!("{name} is started on {on} since {since}."),
            };
            out.push(finding(Topic::Starting, says, ""));
        }
    }
}
