//! Tasks as `/tasks` shows them: what `docker service ps` and every progress bar reads.

use serde::{Deserialize, Serialize};
use skep_model::task as model;

use crate::network::SwarmNetwork;
use crate::service::{GenericResource, PortConfig, TaskSpec};
use crate::{GoTime, JobIteration, ObjectVersion, is_default};
use skep_model::Labels;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Task {
    #[serde(rename = "ID")]
    pub id: String,
    pub version: ObjectVersion,
    pub created_at: GoTime,
    pub updated_at: GoTime,
    pub labels: Labels,
    pub spec: TaskSpec,
    #[serde(rename = "ServiceID", skip_serializing_if = "String::is_empty")]
    pub service_id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub slot: u64,
    #[serde(rename = "NodeID", skip_serializing_if = "String::is_empty")]
    pub node_id: String,
    pub status: TaskStatus,
    pub desired_state: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks_attachments: Vec<NetworkAttachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<JobIteration>,
    /// What it was given of its node's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
    /// Cluster volumes, of which there are none: moby writes `null`.
    pub volumes: Option<Vec<serde_json::Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TaskStatus {
    pub timestamp: GoTime,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(rename = "Err", skip_serializing_if = "String::is_empty")]
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_status: Option<ContainerStatus>,
    pub port_status: PortStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    #[serde(rename = "PID")]
    pub pid: i64,
    #[serde(rename = "ExitCode")]
    pub exit_code: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkAttachment {
    pub network: SwarmNetwork,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

impl Task {
    /// `network` finds a network of the swarm; an attachment to one that is gone is left out, as in moby.
    pub fn from_model<'a>(
        task: &model::Task,
        network: impl Fn(&skep_model::NetworkId) -> Option<&'a skep_model::network::Network>,
    ) -> Self {
        Self {
            id: task.id.to_string(),
            version: ObjectVersion { index: task.meta.version },
            created_at: task.meta.created_at.into(),
            updated_at: task.meta.updated_at.into(),
            labels: Labels::new(),
            // moby shows it of services only.
            spec: TaskSpec { runtime: String::new(), ..(&*task.spec).into() },
            service_id: task.service_id.to_string(),
            slot: task.slot.unwrap_or(0),
            node_id: task.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            status: (&task.status).into(),
            desired_state: task.desired_state.as_str().into(),
            networks_attachments: attachments(task, network),
            job_iteration: task.job_iteration.map(|index| JobIteration { index }),
            generic_resources: task.generic.iter().map(Into::into).collect(),
            volumes: None,
        }
    }
}

/// On its overlays, and on the networks that its node makes for itself: there with the address its node says it has.
fn attachments<'a>(
    task: &model::Task,
    network: impl Fn(&skep_model::NetworkId) -> Option<&'a skep_model::network::Network>,
) -> Vec<NetworkAttachment> {
    let overlays = task.networks.iter().filter_map(|a| Some((network(&a.network_id)?, vec![a.address.to_string()])));
    let named = task.spec.networks.iter().filter_map(|n| network(&n.target.parse().ok()?));
    let node_local = named.filter(|n| n.spec.is_node_local()).map(|n| {
        let address = task.status.addresses.get(&n.id);
        (n, address.iter().map(ToString::to_string).collect())
    });
    let all = overlays.chain(node_local);
    all.map(|(network, addresses)| NetworkAttachment { network: network.into(), addresses }).collect()
}

impl From<&model::TaskStatus> for TaskStatus {
    fn from(status: &model::TaskStatus) -> Self {
        Self {
            timestamp: status.at.into(),
            state: status.state.as_str().into(),
            message: status.message.clone(),
            error: status.error.clone(),
            container_status: status.container.as_ref().map(|c| ContainerStatus {
                container_id: c.container_id.clone(),
                pid: c.pid,
                exit_code: c.exit_code,
            }),
            port_status: PortStatus { ports: status.host_ports.iter().map(Into::into).collect() },
        }
    }
}

/// The state a filter `desired-state=…` names, if it is one that tasks can be wanted in.
pub fn desired_state(text: &str) -> Option<model::TaskState> {
    match text.to_ascii_lowercase().as_str() {
        "new" => Some(model::TaskState::New),
        "pending" => Some(model::TaskState::Pending),
        "assigned" => Some(model::TaskState::Assigned),
        "accepted" => Some(model::TaskState::Accepted),
        "preparing" => Some(model::TaskState::Preparing),
        "ready" => Some(model::TaskState::Ready),
        "starting" => Some(model::TaskState::Starting),
        "running" => Some(model::TaskState::Running),
        "complete" => Some(model::TaskState::Complete),
        "shutdown" => Some(model::TaskState::Shutdown),
        "failed" => Some(model::TaskState::Failed),
        "rejected" => Some(model::TaskState::Rejected),
        "remove" => Some(model::TaskState::Remove),
        "orphaned" => Some(model::TaskState::Orphaned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skep_model::network::{Network, NetworkAllocation, NetworkSpec};
    use skep_model::{Meta, NetworkId, TaskId, Timestamp};

    use super::*;

    #[test]
    fn a_running_task_as_docker_shows_it() {
        let net: NetworkId = "n1".parse().unwrap();
        let spec =
            NetworkSpec { name: "ingress".into(), driver: "overlay".into(), ingress: true, ..Default::default() };
        let network = Network {
            allocation: Some(NetworkAllocation {
                gateway6: None,
                vni: 4096,
                subnet: "10.0.0.0/24".parse().unwrap(),
                gateway: "10.0.0.1".parse().unwrap(),
            }),
            ..Network::new(net.clone(), spec)
        };
        let task = model::Task {
            id: "t1".parse::<TaskId>().unwrap(),
            meta: Meta { version: 7, created_at: Timestamp::from_secs(1), updated_at: Timestamp::from_secs(2) },
            service_id: "s1".parse().unwrap(),
            service_name: "web".into(),
            service_labels: Labels::new(),
            slot: Some(3),
            node_id: Some("m1".parse().unwrap()),
            spec: model::TaskSpec {
                container: model::ContainerSpec { image: "busybox".into(), ..Default::default() },
                ..Default::default()
            }
            .into(),
            spec_version: 5,
            desired_state: model::TaskState::Running,
            status: model::TaskStatus {
                state: model::TaskState::Running,
                at: Timestamp::from_secs(3),
                message: "started".into(),
                container: Some(model::ContainerStatus { container_id: "c1".into(), pid: 42, exit_code: 0 }),
                ..Default::default()
            },
            networks: vec![model::NetworkAttachment {
                network_id: net.clone(),
                address: "10.0.0.9/24".parse().unwrap(),
                aliases: Vec::new(),
            }],
            ports: Vec::new(),
            start_after: None,
            replaces: None,
            job_iteration: None,
            ran_since: None,
            generic: Vec::new(),
        };
        let got = serde_json::to_value(Task::from_model(&task, |id| (*id == net).then_some(&network))).unwrap();
        assert_eq!(
            got["Status"],
            json!({
                "Timestamp": "1970-01-01T00:00:03Z", "State": "running", "Message": "started",
                "ContainerStatus": {"ContainerID": "c1", "PID": 42, "ExitCode": 0}, "PortStatus": {}
            })
        );
        assert_eq!(got["Slot"], 3);
        assert_eq!(got["Labels"], json!({}));
        assert_eq!(got["DesiredState"], "running");
        let attachment = &got["NetworksAttachments"][0];
        assert_eq!(attachment["Addresses"], json!(["10.0.0.9/24"]));
        assert_eq!(attachment["Network"]["Spec"]["Name"], "ingress");
        assert_eq!(attachment["Network"]["IPAMOptions"]["Configs"][0]["Gateway"], "10.0.0.1");
    }
}
