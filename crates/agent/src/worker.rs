//! All tasks of one host: a machine for each, made when it is assigned and dropped when nothing of it is left.

use std::collections::BTreeMap;

use skep_model::assignment::{AssignmentSet, TaskReport};
use skep_model::task::{Task, TaskState};
use skep_model::{TaskId, Timestamp};

use crate::task::{Effect, TaskEvent, TaskMachine, earlier};

/// Effects of one step, with the task each is about.
pub type Effects = Vec<(TaskId, Effect)>;

#[derive(Clone, Debug, Default)]
pub struct Worker {
    machines: BTreeMap<TaskId, TaskMachine>,
}

impl Worker {
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole current assignment set, after every change of it. Tasks not in it must leave.
    pub fn assign(&mut self, set: &AssignmentSet, now: Timestamp, out: &mut Effects) {
        for (id, task) in &set.tasks {
            if self.machines.contains_key(id) {
                if self.differs(id, task) {
                    self.handle(id, TaskEvent::Assigned(Box::new(task.clone())), now, out);
                }
            } else {
                let mut machine = TaskMachine::new(task.clone());
                let mut effects = Vec::new();
                machine.begin(&mut effects);
                self.machines.insert(id.clone(), machine);
                out.extend(effects.into_iter().map(|effect| (id.clone(), effect)));
            }
        }
        for id in &set.left {
            if self.machines.get(id).is_some_and(|machine| !machine.has_left()) {
                self.handle(id, TaskEvent::Left, now, out);
            }
        }
        let gone: Vec<_> = self.machines.keys().filter(|id| !set.tasks.contains_key(*id)).cloned().collect();
        for id in gone {
            self.handle(&id, TaskEvent::Withdrawn, now, out);
        }
    }

    /// Whether the manager's word on a task says anything this host has not taken in.
    fn differs(&self, id: &TaskId, task: &Task) -> bool {
        self.machines.get(id).is_some_and(|machine| machine.needs(task))
    }

    /// What became of an effect, or happened to a container. Unknown tasks are passed over.
    pub fn handle(&mut self, id: &TaskId, event: TaskEvent, now: Timestamp, out: &mut Effects) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let mut effects = Vec::new();
        machine.handle(event, now, &mut effects);
        if effects.contains(&Effect::Forget) {
            self.machines.remove(id);
        }
        out.extend(effects.into_iter().map(|effect| (id.clone(), effect)));
    }

    /// Wakes every machine whose moment has come.
    pub fn due(&mut self, now: Timestamp, out: &mut Effects) {
        let due = |m: &TaskMachine| m.wake_at().is_some_and(|at| at <= now);
        let ids: Vec<_> = self.machines.iter().filter(|(_, m)| due(m)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.handle(&id, TaskEvent::Due, now, out);
        }
    }

    /// When [`Worker::due`] is next wanted.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.machines.values().fold(None, |at, machine| earlier(at, machine.wake_at()))
    }

    /// The task with its status as last reported from here.
    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.machines.get(id).map(TaskMachine::task)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.machines.values().map(TaskMachine::task)
    }

    /// What to say at the start of a session: reports of the last one may have been lost.
    pub fn reports(&self) -> Vec<TaskReport> {
        let report = |t: &Task| TaskReport { task_id: t.id.clone(), status: t.status.clone() };
        self.tasks().filter(|t| t.status.state > TaskState::Assigned).map(report).collect()
    }

    /// The container of a task, once made.
    pub fn container_id(&self, id: &TaskId) -> Option<&str> {
        self.machines.get(id).map(TaskMachine::container_id).filter(|id| !id.is_empty())
    }

    /// Of the tasks whose containers were found on this host, those that were not assigned: the caller removes them. Only
    /// meaningful once a whole assignment set has been taken in.
    pub fn strays<'a>(&self, found: impl IntoIterator<Item = &'a TaskId>) -> Vec<TaskId> {
        found.into_iter().filter(|id| !self.machines.contains_key(*id)).cloned().collect()
    }
}
