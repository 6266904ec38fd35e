//! What keeps tasks from nodes, and nodes from tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::explain::{Finding, Topic};
use skep_model::node::{Availability, Node, NodeState};
use skep_model::service::{Mode, PublishMode};
use skep_model::task::{Task, TaskState};

use super::words::{self, list, names};
use super::{About, finding};

impl About<'_> {
    pub(super) fn without_node(&self, out: &mut Vec<Finding>) {
        for (error, tasks) in self.by_error(|t| t.status.state == TaskState::Pending) {
            let wait = if tasks.len() == 1 { "waits" } else { "wait" };
            let says = format!("{} {wait} for a node: {error}.", names(&tasks));
            out.push(finding(Topic::Placement, says, self.placement_advice(&error)));
        }
    }

    /// One sentence for each reason the scheduler gave.
    fn placement_advice(&self, error: &str) -> String {
        let spec = &self.service.spec.task;
        let placement = spec.placement.clone().unwrap_or_default();
        let mut advice = Vec::new();
        if error.contains("insufficient resources") {
            let mut asked = Vec::new();
            if let Some(r) = spec.resources.as_ref().and_then(|r| r.reservations) {
                if r.nano_cpus > 0 {
                    asked.push(format!("{} CPUs", r.nano_cpus as f64 / 1e9));
                }
                if r.memory_bytes > 0 {
                    asked.push(words::bytes(r.memory_bytes));
                }
            }
            let generic = spec.resources.iter().flat_map(|r| &r.generic).map(|g| g.kind().to_owned());
            asked.extend(generic);
            advice.push(format!("Each task reserves {}: reserve less, or free or add a node.", list(&asked)));
        }
        if error.contains("constraints not satisfied") {
            let given: Vec<String> = placement.constraints.iter().map(|c| format!("`{c}`")).collect();
            advice.push(format!(
                "Its constraints are {}: label a node (`docker node update --label-add`) or change them.",
                list(&given)
            ));
        }
        if error.contains("unsupported platform") {
            let given: Vec<String> =
                placement.platforms.iter().map(|p| format!("{}/{}", p.os, p.architecture)).collect();
            advice.push(format!("The image is for {}: use one for the platform of the nodes.", list(&given)));
        }
        if error.contains("host-mode port") {
            let ports =
                self.service.spec.endpoint.iter().flat_map(|e| &e.ports).filter(|p| p.mode == PublishMode::Host);
            let ports: Vec<String> = ports.map(|p| format!("{}/{}", p.published_port, p.protocol)).collect();
            advice.push(format!(
                "Port {} of a host is for one task: use fewer replicas, publish in ingress mode, or add a node.",
                list(&ports)
            ));
        }
        if error.contains("max replicas per node") {
            advice.push(format!(
                "At most {} may be on one node: raise --replicas-max-per-node, or add a node.",
                placement.max_replicas
            ));
        }
        if error.contains("missing plugin") {
            advice.push("A volume driver it asks for is on none of the nodes left.".to_owned());
        }
        if error.contains("not available for new tasks") {
            let closed = self.view.nodes().filter_map(|n| Some(format!("{} is {}", words::hostname(n), closed(n)?)));
            advice.push(format!("{}.", list(&closed.collect::<Vec<_>>())));
        }
        advice.join(" ")
    }

    pub(super) fn nodes(&self, out: &mut Vec<Finding>) {
        // Tasks that still have their place on a node nobody hears of.
        let mut lost: BTreeMap<String, Vec<Arc<Task>>> = BTreeMap::new();
        for task in self.with(|t| t.status.state <= TaskState::Running) {
            let Some(node) = self.node(&task) else { continue };
            if matches!(node.status.state, NodeState::Down | NodeState::Disconnected | NodeState::Unknown) {
                lost.entry(format!("{} is {}", words::hostname(node), words::state(node.status.state)))
                    .or_default()
                    .push(task);
            }
        }
        for (node, tasks) in lost {
            let (wanted, past): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|t| t.is_wanted());
            if !wanted.is_empty() {
                out.push(finding(
                    Topic::Node,
                    format!("{node}: whether {} runs there is not known.", names(&wanted)),
                    "",
                ));
            }
            let fenced: Vec<_> = past.into_iter().filter(|t| t.stop_after().is_some()).collect();
            if !fenced.is_empty() {
                let says = format!(
                    "{node}: what replaces {} waits until it must have stopped there (label skep.stop-after).",
                    names(&fenced)
                );
                out.push(finding(Topic::Node, says, ""));
            }
        }
        // Nodes without which it is short of tasks.
        if out.iter().any(|f| f.about == Topic::Placement) || self.service.spec.mode != Mode::Global {
            return;
        }
        let closed: Vec<String> =
            self.view.nodes().filter_map(|n| Some(format!("{} is {}", words::hostname(n), closed(n)?))).collect();
        if !closed.is_empty() && self.with(Task::is_live).is_empty() {
            out.push(finding(
                Topic::Node,
                format!("{}.", list(&closed)),
                "Make a node active again: `docker node update --availability active NODE`.",
            ));
        }
    }
}

/// Why a node takes no new tasks.
fn closed(node: &Node) -> Option<&'static str> {
    match (node.status.state, node.spec.availability) {
        (NodeState::Ready, Availability::Active) => None,
        (NodeState::Ready, Availability::Pause) => Some("paused"),
        (NodeState::Ready, Availability::Drain) => Some("drained"),
        (state, _) => Some(words::state(state)),
    }
}
