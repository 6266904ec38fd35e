//! An address on each of its networks for every new task.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::ServiceId;
use skep_model::network::Network;
use skep_model::service::Service;
use skep_model::task::{NetworkAttachment, Task, TaskState};
use skep_store::{Change, View};

use super::service;
use crate::plan::Plan;

/// What a task waits with while it has no addresses (swarmkit's message).
const WAITING: &str = "pending task allocation";

pub(crate) fn tasks(plan: &mut Plan) {
    let pending: Vec<Arc<Task>> =
        plan.view().waiting_tasks().filter(|t| t.status.state == TaskState::New).cloned().collect();
    // Networks of a service are looked up once, not once a task.
    let mut known: BTreeMap<ServiceId, Result<Vec<Arc<Network>>, String>> = BTreeMap::new();
    for task in pending {
        let Some(service) = plan.view().service(&task.service_id).cloned() else { continue };
        let view = plan.view();
        let networks = known.entry(service.id.clone()).or_insert_with(|| networks(view, &service)).clone();
        match networks.and_then(|networks| attachments(plan, &task, &networks)) {
            Ok(networks) => {
                plan.push(Change::AllocateTask { task_id: task.id.clone(), networks });
            }
            Err(error) => {
                plan.push(Change::SetTaskRemark { task_id: task.id.clone(), message: WAITING.into(), error });
            }
        }
    }
}

fn networks(view: &View, service: &Service) -> Result<Vec<Arc<Network>>, String> {
    let obstacle = service::obstacle(view, service);
    if !obstacle.is_empty() {
        return Err(obstacle);
    }
    let mut out = service::networks(view, &service.spec)?;
    out.extend(service::ingress(view, &service.spec)?);
    Ok(out)
}

fn attachments(plan: &Plan, task: &Task, networks: &[Arc<Network>]) -> Result<Vec<NetworkAttachment>, String> {
    let mut out: Vec<NetworkAttachment> = Vec::new();
    for network in networks {
        if out.iter().any(|a| a.network_id == network.id) {
            continue;
        }
        let target = |n: &&skep_model::service::NetworkAttachmentConfig| {
            n.target == network.id.as_str() || n.target == network.spec.name
        };
        out.push(NetworkAttachment {
            network_id: network.id.clone(),
            address: service::fresh(plan.view(), network)?,
            aliases: task.spec.networks.iter().find(target).map(|n| n.aliases.clone()).unwrap_or_default(),
        });
    }
    Ok(out)
}
