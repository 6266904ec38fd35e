//! What somebody else has changed in the kernel since the last plan was put in force.
//!
//! Everything forgets what is not there any more and is then put in force as for a new plan: nothing is made here that an
//! `apply` does not make. Must not know what a plan is for.

use super::container::Connection;
use super::{ApplyReport, State};
use crate::overlay::Endpoint;

impl State {
    pub(super) fn repair(&mut self) -> ApplyReport {
        let mut report = ApplyReport::default();
        if self.fresh {
            return report;
        }
        if let Some(members_only) = &mut self.members_only {
            report.note(members_only.look_again().map(|()| 0), || "look at the rule against strangers".to_owned());
        }
        self.overlays_again(&mut report);
        self.put_overlays(&mut report);
        self.attach_again(&mut report);
        // Rules come last: some are bound to a link that may have had to be made.
        for container in self.containers.values_mut() {
            report.note(container.look_again().map(|()| 0), || "look at a container's rules".to_owned());
        }
        if let Some((_, mesh)) = &mut self.mesh {
            report.note(mesh.look_again().map(|()| 0), || "look at the mesh".to_owned());
        }
        let plan = self.plan.clone();
        self.finish(&plan, report)
    }

    fn overlays_again(&mut self, report: &mut ApplyReport) {
        let mut lost = Vec::new();
        for (id, overlay) in &mut self.overlays {
            match overlay.look_again() {
                Ok(true) => {}
                Ok(false) => lost.push(id.clone()),
                Err(error) => report.failures.push(format!("failed to look at overlay network {id}: {error}")),
            }
        }
        for id in lost {
            // Its device can be taken up again only when the tunnel has let go of it.
            if self.overlays.remove(&id).is_some_and(|overlay| overlay.sealed().is_some()) {
                self.tunnel = None;
            }
        }
    }

    fn attach_again(&mut self, report: &mut ApplyReport) {
        for (id, container) in &mut self.containers {
            let before = report.changes;
            for (network_id, Connection { address, ifname }) in &container.connections {
                let Some(overlay) = self.overlays.get(network_id) else { continue };
                let (namespace, address) = (&container.namespace, *address);
                let attached = overlay.attach(&Endpoint { key: id.short(), namespace, ifname, address });
                report.note(attached, || format!("connect container {} again", id.short()));
            }
            if report.changes > before {
                container.forget_way_back();
            }
        }
    }
}
