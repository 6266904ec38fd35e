//! No task without a service, and no container without a task, once the world has settled.

use super::{Holds, Invariant, Settled};

pub(crate) struct Orphans;

impl Invariant for Orphans {
    fn settled(&mut self, world: &Settled) -> Holds {
        for (host, view) in &world.managers {
            if let Some(task) = view.tasks().find(|t| view.service(&t.service_id).is_none()) {
                return Err(format!("{host} has task {}, whose service is gone", task.name()));
            }
            for (node, containers) in &world.containers {
                if let Some(id) = containers.iter().find(|id| view.task(id).is_none()) {
                    return Err(format!("node {node} has a container of task {id}, which is gone"));
                }
            }
        }
        Ok(())
    }
}
