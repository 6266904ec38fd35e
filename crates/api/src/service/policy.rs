//! The parts of a task template that are not its container: resources, restarts, placement, updates, logs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use skep_model::generic as model;

use crate::{ConvertError, is_default};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ResourceRequirements {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<ResourceLimit>,
    #[serde(skip_serializing_if = "is_default")]
    pub swap_bytes: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub memory_swappiness: Option<i64>,
}

/// `Limit` and `Resources` in one: the first has pids, the second generic resources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimit {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
    pub nano_cpus: i64,
    #[serde(rename = "MemoryBytes", skip_serializing_if = "is_default")]
    pub memory_bytes: i64,
    #[serde(rename = "Pids", skip_serializing_if = "is_default")]
    pub pids: i64,
    #[serde(rename = "GenericResources", skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
}

/// One of the two is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GenericResource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_resource_spec: Option<NamedResource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discrete_resource_spec: Option<DiscreteResource>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NamedResource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DiscreteResource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: i64,
}

impl From<&model::GenericResource> for GenericResource {
    fn from(resource: &model::GenericResource) -> Self {
        match resource.clone() {
            model::GenericResource::Named { kind, value } => {
                Self { named_resource_spec: Some(NamedResource { kind, value }), discrete_resource_spec: None }
            }
            model::GenericResource::Discrete { kind, value } => {
                Self { named_resource_spec: None, discrete_resource_spec: Some(DiscreteResource { kind, value }) }
            }
        }
    }
}

impl TryFrom<GenericResource> for model::GenericResource {
    type Error = ConvertError;

    fn try_from(resource: GenericResource) -> Result<Self, ConvertError> {
        match (resource.named_resource_spec, resource.discrete_resource_spec) {
            (Some(NamedResource { kind, value }), None) => Ok(Self::Named { kind, value }),
            (None, Some(DiscreteResource { kind, value })) => Ok(Self::Discrete { kind, value }),
            _ => ConvertError::invalid(
                "invalid generic resource: either NamedResourceSpec or DiscreteResourceSpec is wanted",
            ),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RestartPolicy {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub condition: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Placement {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<PlacementPreference>,
    #[serde(skip_serializing_if = "is_default")]
    pub max_replicas: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PlacementPreference {
    pub spread: Option<SpreadOver>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SpreadOver {
    pub spread_descriptor: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    #[serde(rename = "Architecture", skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    #[serde(rename = "OS", skip_serializing_if = "String::is_empty")]
    pub os: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogDriver {
    pub name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UpdateConfig {
    pub parallelism: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub delay: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure_action: String,
    #[serde(skip_serializing_if = "is_default")]
    pub monitor: i64,
    #[serde(with = "float")]
    pub max_failure_ratio: f32,
    pub order: String,
}

/// Go prints `0` and `0.5` where Rust prints `0.0` and, for what is not exact in binary, more digits.
pub mod float {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::cast_possible_truncation, reason = "checked to be a small whole number")]
    pub fn serialize<S: Serializer>(value: &f32, s: S) -> Result<S::Ok, S::Error> {
        if value.fract() == 0.0 && value.abs() < 1e9 { s.serialize_i64(*value as i64) } else { s.serialize_f32(*value) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f32, D::Error> {
        f32::deserialize(d)
    }
}
