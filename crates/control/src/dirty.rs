//! What may need a decision. Marks are hints to save work: a reconciler reads the View, never what an event said, and marking
//! everything is always right.

use std::collections::BTreeSet;

use skep_model::ServiceId;
use skep_store::{Event, Object};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    pub(crate) everything: bool,
    pub(crate) services: BTreeSet<ServiceId>,
    /// Nodes, networks or the cluster moved: allocation and every waiting task are looked at again.
    pub(crate) world: bool,
}

impl Dirty {
    /// Startup, a new term, a missed event, or the periodic look.
    pub fn all() -> Self {
        Self { everything: true, ..Self::default() }
    }

    pub fn mark_all(&mut self) {
        self.everything = true;
    }

    pub fn mark_service(&mut self, id: &ServiceId) {
        self.services.insert(id.clone());
    }

    pub fn mark(&mut self, event: &Event) {
        match &event.object {
            Object::Cluster(..) | Object::Network(..) => self.world = true,
            // Tasks anywhere may have to move, or may have waited for it.
            Object::Node(old, new) => match (old, new) {
                (Some(old), Some(new))
                    if old.spec == new.spec
                        && old.status.state == new.status.state
                        && old.role == new.role
                        && old.status.address == new.status.address
                        && old.description == new.description => {}
                _ => self.everything = true,
            },
            Object::Service(old, new) => {
                if let Some(service) = new.as_ref().or(old.as_ref()) {
                    self.services.insert(service.id.clone());
                }
                if new.is_none() {
                    self.world = true;
                }
            }
            Object::Task(old, new) => {
                if let Some(task) = new.as_ref().or(old.as_ref()) {
                    self.services.insert(task.service_id.clone());
                }
                // Something was freed: a waiting task may fit.
                let ended = new.as_ref().is_none_or(|t| t.status.state.is_terminal());
                if ended {
                    self.world = true;
                }
            }
            Object::Secret(..) | Object::Config(..) => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Leaves nothing marked and returns what was.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}
