//! Jobs: so many completions, or one on every node there was when the job was asked for, and then no more.
//!
//! A run is one iteration of the service. What is complete in it is complete: whatever becomes of its node, and whoever
//! leads. A slot whose policy leaves a failure at that stays failed, and the job short of it.

use std::collections::BTreeMap;

use skep_model::service::Service;
use skep_model::task::TaskState;
use skep_store::SlotKey;

use super::global::takes_new;
use super::slot::{Slot, slots};
use super::{Desk, How};
use crate::schedule::fits_statically;

impl Desk<'_> {
    /// Tasks of earlier runs that have not ended are taken away.
    pub(super) fn begin_run(&mut self, service: &Service) {
        let tasks: Vec<_> = self.plan.view().tasks_of_service(&service.id).cloned().collect();
        for task in tasks.iter().filter(|t| t.job_iteration != service.job_iteration()) {
            if !task.status.state.is_terminal() {
                self.desire(&task.id, TaskState::Remove);
            }
        }
    }

    /// A replicated job: slots from 0, each completed once, so many at a time.
    pub(super) fn completions(&mut self, service: &Service, max_concurrent: u64, total: u64) {
        let slots = self.slots_of_run(service);
        let busy = slots.values().filter(|slot| slot.live().next().is_some()).count();
        let mut room = max_concurrent.saturating_sub(u64::try_from(busy).unwrap_or(u64::MAX));
        for key in (0..total).map(SlotKey::Slot) {
            if room == 0 {
                return;
            }
            if slots.get(&key).is_none_or(|slot| !self.is_taken(service, slot)) {
                self.create(service, &key, How::at_once());
                room -= 1;
            }
        }
    }

    /// A global job: once on every node that fits and was there when the run began.
    pub(super) fn once_everywhere(&mut self, service: &Service) {
        let Some(job) = service.job_status else { return };
        let slots = self.slots_of_run(service);
        let fits_on = fits_statically(&service.spec.task);
        let nodes: Vec<_> = self.plan.view().nodes().cloned().collect();
        for node in nodes.iter().filter(|n| n.meta.created_at < job.last_execution && takes_new(n)) {
            let key = SlotKey::Node(node.id.clone());
            let taken = slots.get(&key).is_some_and(|slot| self.is_taken(service, slot));
            if !taken && fits_on(node) {
                self.create(service, &key, How::at_once());
            }
        }
    }

    fn slots_of_run(&self, service: &Service) -> BTreeMap<SlotKey, Slot> {
        let mut slots = slots(self.plan.view(), &service.id);
        for slot in slots.values_mut() {
            slot.tasks.retain(|t| t.job_iteration == service.job_iteration());
        }
        slots
    }

    /// Complete, under way, or failed for good.
    fn is_taken(&self, service: &Service, slot: &Slot) -> bool {
        slot.tasks.iter().any(|t| t.status.state == TaskState::Complete)
            || slot.wanted().next().is_some()
            || self.is_finished(service, slot)
    }
}
