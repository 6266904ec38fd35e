//! Containers without a kernel: they take their time, fail, end by themselves, and live on when the daemon does not.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_agent::task::{ContainerFacts, Effect, Exit, Observation, Started, TaskEvent};
use skep_model::{ServiceId, TaskId};
use skep_store::SlotKey;

use crate::HostId;
use crate::dice::Dice;
use crate::trace::Detail;
use crate::world::{Event, World};

/// What a task that may not run twice is one of.
pub(crate) type Place = (ServiceId, SlotKey);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Exited(i64),
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) state: State,
    image: String,
    /// Somebody of this life of the daemon waits for its end.
    watched_in: u64,
    /// Counts its starts: there may be one.
    starts: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Engine {
    pub(crate) containers: BTreeMap<TaskId, Container>,
    /// Until when the supervisor lets them run, by the clock of the host's boot (`supervisor/server/lease.rs`).
    leases: BTreeMap<TaskId, Lease>,
}

#[derive(Clone, Debug)]
struct Lease {
    until: Duration,
    place: Place,
}

impl Engine {
    pub(crate) fn running(&self) -> impl Iterator<Item = &TaskId> {
        self.containers.iter().filter(|(_, c)| c.state == State::Running).map(|(id, _)| id)
    }

    /// A host without power runs nothing; what lay on its disk is still there.
    pub(crate) fn power_off(&mut self, mut ended: impl FnMut(&TaskId)) {
        self.leases.clear();
        for (id, container) in self.containers.iter_mut().filter(|(_, c)| c.state == State::Running) {
            ended(id);
            container.state = State::Exited(255);
        }
    }
}

/// What an image's containers do, by its name: `ok:1`, `flaky:1`…
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    Steady,
    /// Ends with an error after a while, every other time.
    Flaky,
    /// Ends with an error at once.
    Broken,
    /// Ends well after a while.
    Short,
    /// There is none.
    Missing,
    /// Does not listen to SIGTERM.
    Stubborn,
    /// Ends after a while, well or, in bad times, not.
    Job,
}

fn temper(image: &str) -> Temper {
    match image.split(':').next().unwrap_or_default() {
        "flaky" => Temper::Flaky,
        "broken" => Temper::Broken,
        "short" => Temper::Short,
        "missing" => Temper::Missing,
        "stubborn" => Temper::Stubborn,
        "job" => Temper::Job,
        _ => Temper::Steady,
    }
}

fn takes(effect: &Effect, temper: Temper, dice: &mut Dice) -> Duration {
    match effect {
        Effect::Observe => dice.millis(1, 5),
        Effect::Pull => dice.millis(2, 250),
        Effect::Create => dice.millis(5, 40),
        Effect::Start => dice.millis(10, 80),
        Effect::Stop { grace, .. } if temper == Temper::Stubborn => *grace,
        Effect::Stop { .. } => dice.millis(2, 300),
        Effect::Kill | Effect::Remove => dice.millis(2, 20),
        Effect::Wait | Effect::Report(_) | Effect::Forget => Duration::ZERO,
    }
}

fn ended(code: i64) -> TaskEvent {
    TaskEvent::Exited(Exit { code, cause: String::new() })
}

impl World {
    /// Begins what the agent asked for; [`World::engine_did`] finishes it.
    pub(crate) fn engine_begins(&mut self, host: HostId, task: TaskId, image: &str, effect: Effect) {
        let delay = takes(&effect, temper(image), &mut self.dice.engine);
        let life = self.hosts[host.0].life;
        let image = image.to_owned();
        self.after(delay, Event::Engine { host, life, task, image, effect });
    }

    pub(crate) fn engine_did(&mut self, host: HostId, life: u64, task: TaskId, image: String, effect: Effect) {
        let there = &self.hosts[host.0];
        let alive = there.life == life && there.daemon.is_some();
        // A daemon that died in the middle may have done it, or not; but not once the next one is there, which waits for what
        // was being started before it looks.
        let too_late = !alive && there.daemon.is_some();
        if !there.has_power || too_late || (!alive && self.dice.engine.percent(50)) {
            return;
        }
        if let Some(event) = self.carry_out(host, life, &task, &image, &effect)
            && alive
        {
            self.task_event(host, &task, event);
        }
    }

    fn carry_out(&mut self, host: HostId, life: u64, task: &TaskId, image: &str, effect: &Effect) -> Option<TaskEvent> {
        let unlucky = !self.calm && self.dice.engine.percent(self.engine_trouble);
        let temper = temper(image);
        let containers = &mut self.hosts[host.0].engine.containers;
        match effect {
            Effect::Observe if unlucky => Some(TaskEvent::Observed(Observation::Unknown)),
            Effect::Observe => Some(TaskEvent::Observed(match containers.get(task) {
                None => Observation::Absent,
                Some(container) => Observation::Known {
                    container_id: task.to_string(),
                    state: match container.state {
                        State::Created => ContainerFacts::Created,
                        State::Running => ContainerFacts::Running {
                            pid: 1,
                            health: None,
                            host_ports: Vec::new(),
                            addresses: BTreeMap::new(),
                        },
                        State::Exited(code) => ContainerFacts::Exited(Exit { code, cause: String::new() }),
                    },
                },
            })),
            Effect::Pull if temper == Temper::Missing && !self.calm => {
                Some(TaskEvent::Pulled(Err(format!("No such image: {image}"))))
            }
            Effect::Pull if unlucky => Some(TaskEvent::Pulled(Err("the registry does not answer".into()))),
            Effect::Pull => Some(TaskEvent::Pulled(Ok(()))),
            Effect::Create if unlucky => Some(TaskEvent::Created(Err("the disk is full".into()))),
            Effect::Create => {
                let new = Container { state: State::Created, image: image.into(), watched_in: 0, starts: 0 };
                containers.entry(task.clone()).or_insert(new);
                Some(TaskEvent::Created(Ok(task.to_string())))
            }
            Effect::Start if unlucky => Some(TaskEvent::Started(Err("the runtime failed".into()))),
            Effect::Start => Some(self.start(host, life, task, temper)),
            Effect::Wait => {
                let container = containers.get_mut(task)?;
                container.watched_in = life;
                match container.state {
                    State::Exited(code) => Some(ended(code)),
                    State::Created | State::Running => None,
                }
            }
            Effect::Stop { .. } | Effect::Kill if unlucky => Some(TaskEvent::StopFailed("busy".into())),
            Effect::Stop { .. } => {
                self.container_ends(host, task, if temper == Temper::Stubborn { 137 } else { 143 });
                None
            }
            Effect::Kill => {
                self.container_ends(host, task, 137);
                None
            }
            Effect::Remove if unlucky => Some(TaskEvent::Removed(Err("busy".into()))),
            Effect::Remove => {
                self.remove_container(host, task);
                Some(TaskEvent::Removed(Ok(())))
            }
            Effect::Report(_) | Effect::Forget => None,
        }
    }

    /// Leases only grow: an answer that was overtaken shortens none.
    pub(crate) fn lease(&mut self, host: HostId, task: TaskId, place: Place, until: Duration) {
        let new = Lease { until: Duration::ZERO, place };
        let lease = self.hosts[host.0].engine.leases.entry(task.clone()).or_insert(new);
        if until > lease.until {
            lease.until = until;
            let at = self.hosts[host.0].boot_shows(until);
            self.at(at, Event::LeaseEnds { host, task });
        }
    }

    fn lease_is_over(&self, host: HostId, task: &TaskId) -> bool {
        let there = &self.hosts[host.0];
        there.engine.leases.get(task).is_some_and(|lease| lease.until <= there.since_boot(self.now))
    }

    /// The supervisor kills, whatever became of the daemon.
    pub(crate) fn lease_ends(&mut self, host: HostId, task: &TaskId) {
        let runs = self.hosts[host.0].engine.containers.get(task).is_some_and(|c| c.state == State::Running);
        if runs && self.lease_is_over(host, task) {
            let name = self.names.task(task);
            self.tell(Detail::Story, format!("{host}: nobody answers, and {name} is killed"));
            self.container_ends(host, task, 137);
        }
    }

    fn start(&mut self, host: HostId, life: u64, task: &TaskId, temper: Temper) -> TaskEvent {
        let name = self.names.task(task);
        if self.lease_is_over(host, task) {
            return TaskEvent::Started(Err("this host has not been in touch with a manager for too long".into()));
        }
        let Some(container) = self.hosts[host.0].engine.containers.get_mut(task) else {
            return TaskEvent::Started(Err("No such container".into()));
        };
        container.starts += 1;
        if container.starts > 1 {
            self.violation.get_or_insert_with(|| format!("the container of {name} was started twice"));
        }
        container.state = State::Running;
        container.watched_in = life;
        if let Some(lease) = self.hosts[host.0].engine.leases.get(task)
            && let Err(violation) = self.watch.started(&lease.place, task, host)
        {
            self.violated(violation);
        }
        let ends = match temper {
            Temper::Flaky if self.dice.engine.percent(50) => Some((self.dice.engine.millis(300, 6_000), 1)),
            Temper::Broken => Some((self.dice.engine.millis(1, 50), 1)),
            Temper::Short => Some((self.dice.engine.millis(500, 3_000), 0)),
            Temper::Job => {
                let fails = self.dice.engine.percent(30) && !self.calm;
                Some((self.dice.engine.millis(300, 3_000), i64::from(fails)))
            }
            Temper::Steady | Temper::Flaky | Temper::Missing | Temper::Stubborn => None,
        };
        if let Some((after, code)) = ends.filter(|_| !self.calm || temper == Temper::Job) {
            self.after(after, Event::ContainerEnds { host, task: task.clone(), code });
        }
        TaskEvent::Started(Ok(Started { pid: 1, ..Started::default() }))
    }

    /// It ends by itself. In quiet times only what is to end does.
    pub(crate) fn container_due(&mut self, host: HostId, task: &TaskId, code: i64) {
        let containers = &self.hosts[host.0].engine.containers;
        let is_job = containers.get(task).is_some_and(|c| temper(&c.image) == Temper::Job);
        if is_job || !self.calm {
            self.container_ends(host, task, code);
        }
    }

    pub(crate) fn container_ends(&mut self, host: HostId, task: &TaskId, code: i64) {
        let there = &mut self.hosts[host.0];
        let life = there.life;
        let Some(container) = there.engine.containers.get_mut(task).filter(|c| c.state == State::Running) else {
            return;
        };
        container.state = State::Exited(code);
        self.watch.ended(task);
        let (watched, image) = (container.watched_in == life, container.image.clone());
        if self.trace_on {
            let name = self.names.task(task);
            self.tell(Detail::Step, format!("{host}: container of {name} ({image}) exited with {code}"));
        }
        if watched && self.hosts[host.0].daemon.is_some() {
            self.task_event(host, task, ended(code));
        }
    }

    /// Containers nobody was told to keep.
    pub(crate) fn remove_container(&mut self, host: HostId, task: &TaskId) {
        self.hosts[host.0].engine.containers.remove(task);
        self.hosts[host.0].engine.leases.remove(task);
    }
}
