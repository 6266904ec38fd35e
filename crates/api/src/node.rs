//! Nodes as `/nodes` shows and changes them.

use serde::{Deserialize, Serialize};
use skep_model::node as model;
use skep_model::{Labels, NodeId};

use crate::service::{Platform, ResourceLimit};
use crate::swarm::TlsInfo;
use crate::{ConvertError, GoTime, ObjectVersion, is_default};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: String,
    pub version: ObjectVersion,
    pub created_at: GoTime,
    pub updated_at: GoTime,
    pub spec: NodeSpec,
    pub description: NodeDescription,
    pub status: NodeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_status: Option<ManagerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NodeSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub labels: Labels,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub role: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub availability: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NodeDescription {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    pub platform: Platform,
    pub resources: ResourceLimit,
    pub engine: EngineDescription,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EngineDescription {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub engine_version: String,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PluginDescription>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PluginDescription {
    #[serde(rename = "Type")]
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NodeStatus {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub addr: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ManagerStatus {
    #[serde(skip_serializing_if = "is_default")]
    pub leader: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reachability: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub addr: String,
}

pub fn role_word(role: model::Role) -> &'static str {
    match role {
        model::Role::Worker => "worker",
        model::Role::Manager => "manager",
    }
}

pub fn role(text: &str) -> Result<model::Role, ConvertError> {
    match text {
        "worker" => Ok(model::Role::Worker),
        "manager" => Ok(model::Role::Manager),
        other => ConvertError::invalid(format!("invalid Role: {other:?}")),
    }
}

pub fn availability_word(availability: model::Availability) -> &'static str {
    match availability {
        model::Availability::Active => "active",
        model::Availability::Pause => "pause",
        model::Availability::Drain => "drain",
    }
}

/// Empty text is `active`, as in `swarm init` and `join`.
pub fn availability(text: &str) -> Result<model::Availability, ConvertError> {
    match text {
        "" | "active" => Ok(model::Availability::Active),
        "pause" => Ok(model::Availability::Pause),
        "drain" => Ok(model::Availability::Drain),
        other => ConvertError::invalid(format!("invalid Availability: {other:?}")),
    }
}

fn state_word(state: model::NodeState) -> &'static str {
    match state {
        model::NodeState::Unknown => "unknown",
        model::NodeState::Down => "down",
        model::NodeState::Ready => "ready",
        model::NodeState::Disconnected => "disconnected",
    }
}

impl Node {
    /// `leader` is who leads the managers; `reachability` is the node's as a manager, as seen from the one that answers.
    pub fn from_model(node: &model::Node, leader: Option<&NodeId>, reachability: model::Reachability) -> Self {
        let description = &node.description;
        Self {
            id: node.id.to_string(),
            version: ObjectVersion { index: node.meta.version },
            created_at: node.meta.created_at.into(),
            updated_at: node.meta.updated_at.into(),
            spec: NodeSpec {
                name: node.spec.name.clone(),
                labels: node.spec.labels.clone(),
                role: role_word(node.spec.role).into(),
                availability: availability_word(node.spec.availability).into(),
            },
            description: NodeDescription {
                hostname: description.hostname.clone(),
                platform: Platform { architecture: description.architecture.clone(), os: description.os.clone() },
                resources: ResourceLimit {
                    nano_cpus: description.nano_cpus,
                    memory_bytes: description.memory_bytes,
                    generic_resources: description.generic.iter().map(Into::into).collect(),
                    ..Default::default()
                },
                engine: EngineDescription {
                    engine_version: description.engine_version.clone(),
                    labels: description.engine_labels.clone(),
                    plugins: description
                        .plugins
                        .iter()
                        .map(|(kind, name)| PluginDescription { kind: kind.clone(), name: name.clone() })
                        .collect(),
                },
                tls_info: TlsInfo::new(
                    &description.tls_trust_root_pem,
                    &description.tls_issuer_subject,
                    &description.tls_issuer_key,
                ),
            },
            status: NodeStatus {
                state: state_word(node.status.state).into(),
                message: node.status.message.clone(),
                addr: node.status.address.map(|a| a.to_string()).unwrap_or_default(),
            },
            manager_status: node.manager.as_ref().map(|manager| ManagerStatus {
                leader: leader == Some(&node.id),
                reachability: match reachability {
                    model::Reachability::Reachable => "reachable",
                    model::Reachability::Unreachable => "unreachable",
                    model::Reachability::Unknown => "unknown",
                }
                .into(),
                addr: manager.address.to_string(),
            }),
        }
    }
}

impl TryFrom<NodeSpec> for model::NodeSpec {
    type Error = ConvertError;

    fn try_from(spec: NodeSpec) -> Result<Self, ConvertError> {
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            role: role(&spec.role)?,
            availability: match spec.availability.as_str() {
                "" => return ConvertError::invalid(r#"invalid Availability: """#),
                text => availability(text)?,
            },
        })
    }
}
