//! Tasks: made from their service's template, allocated, assigned, reported on, removed.

use std::sync::Arc;

use skep_model::assignment::TaskReport;
use skep_model::generic::GenericResource;
use skep_model::service::Service;
use skep_model::task::{NetworkAttachment, Task, TaskSpec, TaskState, TaskStatus};
use skep_model::{Meta, NodeId, TaskId, Timestamp};

use super::{Done, Entry};
use crate::change::NewTask;
use crate::event::Object;
use crate::refused::Refused;
use crate::restart::SlotKey;

impl Entry {
    pub(super) fn create_task(&mut self, new: &NewTask) -> Done {
        let Some(service) = self.view.service(&new.service_id).cloned() else {
            return Err(Refused::Stale(format!("service {} is gone", new.service_id)));
        };
        if service.spec_version != new.spec_version {
            return Err(Refused::Stale(format!("service {} has another template", new.service_id)));
        }
        if self.view.tasks.contains_key(&new.id) || new.state > TaskState::Assigned {
            return Err(Refused::Stale(format!("task {} cannot be made", new.id)));
        }
        if new.node_id.as_ref().is_some_and(|id| self.view.node(id).is_none()) {
            return Err(Refused::Stale("its node is gone".into()));
        }
        if new.node_id.is_none() && (new.state == TaskState::Assigned || new.slot.is_none()) {
            return Err(Refused::Stale("assigned to no node".into()));
        }
        self.claim_all(&new.id, &new.networks)?;
        let template = self.template(&service);
        let task = task_of(&service, template, new, self.created());
        if new.restart
            && let Some(slot) = SlotKey::of(&task)
        {
            let key = (service.id.clone(), slot);
            self.view.restarts.entry(key).or_default().count(new.spec_version, self.at);
        }
        changed!(self, put_task, Task, None, task)
    }

    pub(super) fn template(&mut self, service: &Arc<Service>) -> Arc<TaskSpec> {
        if let Some((of, template)) = &self.template
            && Arc::ptr_eq(of, service)
        {
            return template.clone();
        }
        let mut spec = service.spec.task.clone();
        if spec.networks.is_empty() {
            spec.networks.clone_from(&service.spec.networks);
        }
        let template = Arc::new(spec);
        self.template = Some((service.clone(), template.clone()));
        template
    }

    pub(super) fn with_task(&mut self, id: &TaskId, edit: impl FnOnce(&mut Task)) -> Done {
        // Gone meanwhile: nothing to do, and nothing wrong.
        match self.view.task(id).cloned() {
            Some(old) => self.edit_task(old, edit),
            None => Ok(()),
        }
    }

    pub(super) fn edit_task(&mut self, old: Arc<Task>, edit: impl FnOnce(&mut Task)) -> Done {
        let mut new = (*old).clone();
        edit(&mut new);
        if new == *old {
            return Ok(());
        }
        new.meta = self.touched(old.meta);
        changed!(self, put_task, Task, Some(old), new)
    }

    pub(super) fn live_task(&self, id: &TaskId) -> Result<Arc<Task>, Refused> {
        match self.view.task(id) {
            Some(task) if task.is_live() => Ok(task.clone()),
            Some(_) | None => Err(Refused::Stale(format!("task {id} is over"))),
        }
    }

    pub(super) fn allocate_task(&mut self, id: &TaskId, networks: &[NetworkAttachment]) -> Done {
        if self.live_task(id)?.status.state != TaskState::New {
            return Err(Refused::Stale(format!("task {id} has its addresses")));
        }
        self.claim_all(id, networks)?;
        let at = self.at;
        self.with_task(id, |t| {
            t.networks = networks.to_vec();
            t.status = manager_status(TaskState::Pending, "pending task scheduling", at);
        })
    }

    pub(super) fn assign_task(&mut self, id: &TaskId, node: &NodeId, generic: &[GenericResource]) -> Done {
        let task = self.live_task(id)?;
        if task.status.state != TaskState::Pending || task.node_id.as_ref().is_some_and(|n| n != node) {
            return Err(Refused::Stale(format!("task {id} is not to be assigned")));
        }
        if self.view.node(node).is_none() {
            return Err(Refused::Stale(format!("node {node} is gone")));
        }
        let at = self.at;
        self.edit_task(task, |t| {
            t.node_id = Some(node.clone());
            t.generic = generic.to_vec();
            t.status = manager_status(TaskState::Assigned, "scheduler assigned task to node", at);
        })
    }

    /// A status is a clock: a lower one is an older observation. One that has ended does not end in another way: a daemon
    /// that was started anew finds a container that exited and must not run, and cannot tell which came first.
    pub(super) fn report(&mut self, report: &TaskReport) -> Done {
        if let Some(task) = self.view.task(&report.task_id).cloned() {
            self.count_failure(&task, report.status.state);
        }
        self.with_task(&report.task_id, |t| {
            let (was, is) = (t.status.state, report.status.state);
            if is == was || (is > was && !was.is_terminal()) {
                t.status = report.status.clone();
                if t.status.state == TaskState::Running {
                    t.ran_since = t.ran_since.or(Some(t.status.at));
                }
            }
        })
    }

    /// Of the present template, for the scheduler.
    pub(super) fn count_failure(&mut self, task: &Task, state: TaskState) {
        let fails = matches!(state, TaskState::Failed | TaskState::Rejected) && !task.status.state.is_terminal();
        let current = self.view.service(&task.service_id).is_some_and(|s| s.spec_version == task.spec_version);
        if let (true, Some(node)) = (fails && current, &task.node_id) {
            let record = self.view.failures.entry(task.service_id.clone()).or_default();
            record.count(task.spec_version, node, self.at);
        }
    }

    pub(super) fn remove_task(&mut self, id: &TaskId) {
        if let Some(old) = self.view.take_task(id) {
            self.tell(Object::Task(Some(old), None));
        }
    }
}

fn manager_status(state: TaskState, message: &str, at: Timestamp) -> TaskStatus {
    TaskStatus { state, at, message: message.into(), ..TaskStatus::default() }
}

fn task_of(service: &Service, spec: Arc<TaskSpec>, new: &NewTask, meta: Meta) -> Task {
    let spec_ports = || service.spec.endpoint.as_ref().map(|e| e.ports.clone()).unwrap_or_default();
    Task {
        id: new.id.clone(),
        meta,
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone(),
        slot: new.slot,
        node_id: new.node_id.clone(),
        spec,
        spec_version: new.spec_version,
        desired_state: new.desired_state,
        status: manager_status(new.state, &new.message, meta.created_at),
        networks: new.networks.clone(),
        ports: service.endpoint.as_ref().map_or_else(spec_ports, |e| e.ports.clone()),
        start_after: new.start_after,
        replaces: new.replaces.clone(),
        ran_since: None,
        job_iteration: service.job_iteration(),
        generic: new.generic.clone(),
    }
}
