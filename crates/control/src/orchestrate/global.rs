//! One task on every node that fits.

use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::Service;
use skep_model::task::TaskState;
use skep_store::SlotKey;

use super::slot::slots;
use super::{Desk, How, may_keep};
use crate::schedule::fits_statically;

impl Desk<'_> {
    pub(super) fn everywhere(&mut self, service: &Service) {
        let slots = slots(self.plan.view(), &service.id);
        let fits_on = fits_statically(&service.spec.task);
        let nodes: Vec<_> = self.plan.view().nodes().cloned().collect();
        for node in &nodes {
            let key = SlotKey::Node(node.id.clone());
            let slot = slots.get(&key);
            let fits = fits_on(node);
            let wanted = slot.is_some_and(|s| s.wanted().next().is_some());
            if wanted && !fits {
                for task in slot.iter().flat_map(|s| s.wanted()) {
                    self.desire(&task.id, TaskState::Remove);
                }
            } else if fits && !wanted && takes_new(node) && !slot.is_some_and(|s| self.is_finished(service, s)) {
                self.create(service, &key, How::at_once());
            }
        }
    }
}

/// A paused node keeps what it has.
pub(super) fn takes_new(node: &std::sync::Arc<Node>) -> bool {
    may_keep(Some(node)) && node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}
