//! Lives of tasks, written as scripts: events in, effects out.

use std::sync::Arc;
use std::time::Duration;

use std::collections::BTreeMap;

use skep_model::Timestamp;
use skep_model::task::{DEFAULT_STOP_GRACE_PERIOD, NetworkAttachment, Task, TaskState};

use super::*;
use crate::spec::tests::task;

const NOW: Timestamp = Timestamp::from_secs(100);

struct Stage {
    machine: TaskMachine,
    now: Timestamp,
}

fn stage(edit: impl FnOnce(&mut Task)) -> Stage {
    let mut task = task();
    edit(&mut task);
    Stage { machine: TaskMachine::new(task), now: NOW }
}

fn words(effects: &[Effect]) -> String {
    let word = |effect: &Effect| match effect {
        Effect::Observe => "observe".into(),
        Effect::Pull => "pull".into(),
        Effect::Create => "create".into(),
        Effect::Start => "start".into(),
        Effect::Wait => "wait".into(),
        Effect::Stop { drain, grace } if drain.is_zero() => format!("stop({})", grace.as_secs()),
        Effect::Stop { drain, grace } => format!("drain({}) stop({})", drain.as_secs(), grace.as_secs()),
        Effect::Kill => "kill".into(),
        Effect::Remove => "remove".into(),
        Effect::Forget => "forget".into(),
        Effect::Report(status) if status.error.is_empty() => format!("{}:{}", status.state.as_str(), status.message),
        Effect::Report(status) => format!("{}:{}:{}", status.state.as_str(), status.message, status.error),
    };
    effects.iter().map(word).collect::<Vec<_>>().join(", ")
}

impl Stage {
    #[track_caller]
    fn check(&mut self, event: TaskEvent, expected: &str) -> &mut Self {
        let mut out = Vec::new();
        self.machine.handle(event.clone(), self.now, &mut out);
        assert_eq!(words(&out), expected, "{event:?}");
        self
    }

    fn desire(&self, desired_state: TaskState) -> TaskEvent {
        TaskEvent::Assigned(Box::new(Task { desired_state, ..self.machine.task().clone() }))
    }

    fn running(&mut self) -> &mut Self {
        self.check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
            .check(TaskEvent::Pulled(Ok(())), "create")
            .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared, starting:starting, start")
            .check(started(false), "running:started")
    }
}

fn observed(observation: Observation) -> TaskEvent {
    TaskEvent::Observed(observation)
}

fn known(state: ContainerFacts) -> TaskEvent {
    observed(Observation::Known { container_id: "c1".into(), state })
}

fn started(has_health_check: bool) -> TaskEvent {
    TaskEvent::Started(Ok(Started { pid: 7, has_health_check, host_ports: Vec::new(), addresses: BTreeMap::new() }))
}

fn exited(code: i64) -> TaskEvent {
    TaskEvent::Exited(Exit { code, cause: String::new() })
}

#[test]
fn from_assigned_to_removed() {
    let mut stage = stage(|_| {});
    let mut out = Vec::new();
    stage.machine.begin(&mut out);
    assert_eq!(words(&out), "observe");
    stage.running();
    let shutdown = stage.desire(TaskState::Shutdown);
    stage
        .check(shutdown, "stop(10)")
        .check(exited(143), "shutdown:shutdown")
        .check(TaskEvent::Withdrawn, "remove")
        .check(TaskEvent::Removed(Ok(())), "forget");
}

#[test]
fn how_it_ends_is_said_as_docker_says_it() {
    stage(|_| {}).running().check(exited(0), "complete:finished");
    stage(|_| {}).running().check(exited(1), "failed:started:task: non-zero exit (1)");
    let oom = TaskEvent::Exited(Exit { code: 137, cause: "OOM killed".into() });
    stage(|_| {}).running().check(oom, "failed:started:task: non-zero exit (137): OOM killed");
    let mut stage = stage(|_| {});
    stage.running().check(exited(3), "failed:started:task: non-zero exit (3)");
    let container = stage.machine.task().status.container.clone().unwrap();
    assert_eq!((container.container_id.as_str(), container.pid, container.exit_code), ("c1", 7, 3));
}

#[test]
fn an_image_or_container_that_cannot_be_had_is_a_rejection() {
    stage(|_| {})
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Err("No such image: x:latest".into())), "rejected:preparing:No such image: x:latest");
    stage(|_| {})
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Err("no space".into())), "rejected:preparing:no space");
}

#[test]
fn a_failed_start_is_a_failure() {
    stage(|_| {})
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared, starting:starting, start")
        .check(TaskEvent::Started(Err("exec: not found".into())), "failed:starting:exec: not found");
}

#[test]
fn it_waits_ready_until_it_is_wanted() {
    let mut stage = stage(|t| t.desired_state = TaskState::Ready);
    stage
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared");
    let run = stage.desire(TaskState::Running);
    stage.check(run, "starting:starting, start");
}

#[test]
fn stopped_before_it_started_it_never_starts() {
    let mut stage = stage(|_| {});
    stage.check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull");
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "").check(TaskEvent::Pulled(Ok(())), "shutdown:shutdown");
}

#[test]
fn stopped_while_it_starts_it_is_stopped_as_soon_as_it_runs() {
    let mut stage = stage(|t| Arc::make_mut(&mut t.spec).container.stop_grace_period = Some(Duration::from_secs(3)));
    stage
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared, starting:starting, start")
        .check(TaskEvent::Withdrawn, "")
        .check(started(false), "running:started, stop(3)")
        .check(exited(143), "shutdown:shutdown, remove")
        .check(TaskEvent::Removed(Err("busy".into())), "");
    stage.now = NOW.plus(RETRY_DELAY);
    stage.check(TaskEvent::Due, "remove").check(TaskEvent::Removed(Ok(())), "forget");
}

#[test]
fn with_a_health_check_it_runs_once_it_is_healthy() {
    let mut stage = stage(|_| {});
    stage
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared, starting:starting, start")
        .check(started(true), "")
        .check(TaskEvent::HealthChanged(Health::Healthy), "running:started")
        .check(TaskEvent::HealthChanged(Health::Unhealthy), "stop(10)")
        .check(exited(143), "failed:started:task: non-zero exit (143): dockerexec: unhealthy container");
}

#[test]
fn a_container_that_does_not_end_is_killed() {
    let mut stage = stage(|_| {});
    stage.running().check(TaskEvent::Withdrawn, "stop(10)");
    assert_eq!(stage.machine.wake_at(), Some(NOW.plus(Duration::from_secs(15))));
    stage.now = NOW.plus(Duration::from_secs(15));
    stage.check(TaskEvent::Due, "kill").check(exited(137), "shutdown:shutdown, remove");
}

fn was(state: TaskState) -> Stage {
    stage(|t| t.status.state = state)
}

#[test]
fn what_runs_is_adopted_without_a_word() {
    let running = ContainerFacts::Running { pid: 7, health: None, host_ports: Vec::new(), addresses: BTreeMap::new() };
    was(TaskState::Running).check(known(running.clone()), "wait");
    was(TaskState::Starting).check(known(running.clone()), "wait, running:started");
    let mut stopped = was(TaskState::Running);
    stopped.machine = TaskMachine::new(Task { desired_state: TaskState::Shutdown, ..stopped.machine.task().clone() });
    stopped.check(known(running), "wait, stop(10)");
}

#[test]
fn what_ended_meanwhile_is_reported() {
    let exit = |code| known(ContainerFacts::Exited(Exit { code, cause: String::new() }));
    was(TaskState::Running)
        .check(exit(2), "failed::task: non-zero exit (2)".replace("failed::", "failed:started:").as_str());
    was(TaskState::Running).check(exit(0), "complete:finished");
    was(TaskState::Failed).check(exit(2), "");
}

#[test]
fn what_is_complete_was_not_shut_down() {
    let exited = || known(ContainerFacts::Exited(Exit { code: 0, cause: String::new() }));
    let complete = || {
        stage(|t| {
            t.status.state = TaskState::Complete;
            t.desired_state = TaskState::Shutdown;
        })
    };
    complete().check(exited(), "").check(TaskEvent::Withdrawn, "remove");
    complete().check(known(ContainerFacts::Created), "");
}

#[test]
fn what_is_gone_is_not_made_again() {
    was(TaskState::Running).check(observed(Observation::Absent), "failed::No such container: web.3.task1");
    was(TaskState::Complete).check(observed(Observation::Absent), "").check(TaskEvent::Withdrawn, "remove");
    was(TaskState::Preparing).check(observed(Observation::Absent), "pull");
    was(TaskState::Ready).check(known(ContainerFacts::Created), "starting:starting, start");
}

#[test]
fn unknown_is_not_absent() {
    let mut stage = was(TaskState::Running);
    stage.check(observed(Observation::Unknown), "");
    stage.now = NOW.plus(RETRY_DELAY);
    stage.check(TaskEvent::Due, "observe");
}

#[test]
fn answers_that_come_late_are_passed_over() {
    let mut stage = stage(|_| {});
    stage
        .running()
        .check(observed(Observation::Absent), "")
        .check(TaskEvent::Pulled(Err("late".into())), "")
        .check(TaskEvent::Created(Ok("c2".into())), "")
        .check(exited(0), "complete:finished")
        .check(exited(1), "")
        .check(started(false), "");
}

fn with_clients() -> Stage {
    let attachment = NetworkAttachment {
        network_id: "ingress".parse().unwrap(),
        address: "10.0.0.7/24".parse().unwrap(),
        aliases: Vec::new(),
    };
    stage(|t| t.networks = vec![attachment])
}

#[test]
fn a_task_with_clients_is_stopped_when_no_host_gives_it_any() {
    let mut stage = with_clients();
    stage.running();
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "").check(TaskEvent::Left, "drain(1) stop(10)");
    assert_eq!(stage.machine.wake_at(), Some(NOW.plus(DRAIN + DEFAULT_STOP_GRACE_PERIOD + KILL_MARGIN)));
    stage.check(TaskEvent::Left, "").check(exited(143), "shutdown:shutdown");
}

#[test]
fn a_host_that_never_says_so_holds_nobody_up_for_ever() {
    let mut stage = with_clients();
    stage.running();
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "").check(TaskEvent::Due, "");
    assert_eq!(stage.machine.wake_at(), Some(NOW.plus(LEAVE_TIMEOUT)));
    stage.now = NOW.plus(LEAVE_TIMEOUT);
    stage.check(TaskEvent::Due, "drain(1) stop(10)");
}

#[test]
fn what_ends_unhealthy_or_by_itself_or_is_withdrawn_waits_for_nobody() {
    let mut stage = with_clients();
    stage.running().check(TaskEvent::HealthChanged(Health::Unhealthy), "stop(10)");
    with_clients().running().check(TaskEvent::Withdrawn, "stop(10)");
    let mut stage = with_clients();
    stage.running();
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "").check(exited(1), "shutdown:shutdown");
    let mut stage = with_clients();
    stage.running();
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "").check(TaskEvent::Withdrawn, "stop(10)");
}

#[test]
fn what_was_never_healthy_has_no_clients() {
    let mut stage = with_clients();
    stage
        .check(observed(Observation::Absent), "accepted:accepted, preparing:preparing, pull")
        .check(TaskEvent::Pulled(Ok(())), "create")
        .check(TaskEvent::Created(Ok("c1".into())), "ready:prepared, starting:starting, start")
        .check(started(true), "");
    let shutdown = stage.desire(TaskState::Shutdown);
    stage.check(shutdown, "stop(10)");
}

#[test]
fn rejected_by_a_manager_while_it_runs_it_leaves_like_any_other() {
    let mut stage = with_clients();
    stage.running();
    let mut task = Task { desired_state: TaskState::Shutdown, ..stage.machine.task().clone() };
    task.status.state = TaskState::Rejected;
    stage.check(TaskEvent::Assigned(Box::new(task)), "").check(TaskEvent::Left, "drain(1) stop(10)");
}

#[test]
fn what_the_mesh_sends_connections_to_is_waited_for() {
    let port = |target_port, mode, protocol| PortConfig { target_port, mode, protocol, ..PortConfig::default() };
    let mut stage = stage(|_| {});
    stage.machine = TaskMachine::new(Task {
        ports: vec![
            port(80, PublishMode::Ingress, Protocol::Tcp),
            port(53, PublishMode::Ingress, Protocol::Udp),
            port(22, PublishMode::Host, Protocol::Tcp),
        ],
        ..stage.machine.task().clone()
    });
    assert_eq!(ports_awaited(stage.machine.task()), [80]);
}
