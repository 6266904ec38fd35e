//! The swarm itself: `/swarm` and the `Swarm` section of `/info`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skep_model::Labels;
use skep_model::cluster as model;

use crate::service::LogDriver;
use crate::time::{duration, nanos};
use crate::{ConvertError, GoTime, ObjectVersion, is_default};

/// `ClusterInfo` and, with join tokens, `Swarm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Swarm {
    #[serde(rename = "ID")]
    pub id: String,
    pub version: ObjectVersion,
    pub created_at: GoTime,
    pub updated_at: GoTime,
    pub spec: SwarmSpec,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
    pub root_rotation_in_progress: bool,
    pub default_addr_pool: Vec<String>,
    pub subnet_size: u32,
    pub data_path_port: u32,
    /// Left out of `/info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_tokens: Option<JoinTokens>,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(..)")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TlsInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trust_root: String,
    /// Base64 of the DER of the root's subject.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_issuer_subject: String,
    /// Base64 of the DER of the root's public key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_issuer_public_key: String,
}

impl TlsInfo {
    /// Of the swarm: what is trusted, and what signs; two roots while one replaces the other.
    pub fn of_root(root: &model::RootCa) -> Self {
        let (subject, key) = subject_and_key(root.signing().0).unwrap_or_default();
        Self::new(&root.cert_pem, &subject, &key)
    }

    /// From the PEM of the trusted root, and DER of the issuer's name and key.
    pub fn new(trust_root: &str, subject: &[u8], key: &[u8]) -> Self {
        Self {
            trust_root: trust_root.to_owned(),
            cert_issuer_subject: STANDARD.encode(subject),
            cert_issuer_public_key: STANDARD.encode(key),
        }
    }
}

/// The DER of a certificate's subject and public key (RFC 5280 `TBSCertificate`), read just far enough for that.
fn subject_and_key(pem: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let body: String = pem
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|l| !l.starts_with("-----"))
        .collect();
    let der = STANDARD.decode(body.trim()).ok()?;
    let (certificate, _) = der_value(&der)?;
    let (mut rest, _) = der_value(certificate)?;
    let mut fields = Vec::new();
    while let Some((_, length)) = der_value(rest) {
        fields.push(&rest[..length]);
        rest = &rest[length..];
    }
    // version [0], serial, algorithm, issuer, validity, subject, key
    Some((fields.get(5)?.to_vec(), fields.get(6)?.to_vec()))
}

/// The contents of the first DER value, and how many bytes it takes with its header.
fn der_value(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let first = usize::from(*bytes.get(1)?);
    let (header, length) = if first < 0x80 {
        (2, first)
    } else {
        let count = first & 0x7f;
        let digits = bytes.get(2..2 + count).filter(|d| (1..=4).contains(&d.len()))?;
        (2 + count, digits.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    Some((bytes.get(header..header.checked_add(length)?)?, header + length))
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SwarmSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub labels: Labels,
    pub orchestration: Orchestration,
    pub raft: RaftConfig,
    pub dispatcher: Dispatcher,
    #[serde(rename = "CAConfig")]
    pub ca_config: CaConfig,
    pub task_defaults: TaskDefaults,
    pub encryption_config: EncryptionConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Orchestration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_history_retention_limit: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RaftConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub snapshot_interval: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_old_snapshots: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub log_entries_for_slow_followers: u64,
    pub election_tick: u32,
    pub heartbeat_tick: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Dispatcher {
    #[serde(skip_serializing_if = "is_default")]
    pub heartbeat_period: i64,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CaConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub node_cert_expiry: i64,
    #[serde(rename = "ExternalCAs", skip_serializing_if = "Vec::is_empty")]
    pub external_cas: Vec<ExternalCa>,
    #[serde(rename = "SigningCACert", skip_serializing_if = "String::is_empty")]
    pub signing_ca_cert: String,
    #[serde(rename = "SigningCAKey", skip_serializing_if = "String::is_empty")]
    pub signing_ca_key: String,
    #[serde(skip_serializing_if = "is_default")]
    pub force_rotate: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExternalCa {
    pub protocol: String,
    #[serde(rename = "URL")]
    pub url: String,
    #[serde(skip_serializing_if = "is_default")]
    pub options: Labels,
    #[serde(rename = "CACert")]
    pub ca_cert: String,
}

impl std::fmt::Debug for CaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaConfig").field("node_cert_expiry", &self.node_cert_expiry).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TaskDefaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<LogDriver>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EncryptionConfig {
    pub auto_lock_managers: bool,
}

/// `POST /swarm/init`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InitRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub data_path_port: u32,
    pub force_new_cluster: bool,
    pub spec: SwarmSpec,
    pub auto_lock_managers: bool,
    pub availability: String,
    pub default_addr_pool: Vec<String>,
    pub subnet_size: u32,
}

/// `POST /swarm/join`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct JoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub remote_addrs: Vec<String>,
    pub join_token: String,
    pub availability: String,
}

/// `GET /swarm/unlockkey` and the body of `POST /swarm/unlock`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UnlockKey {
    pub unlock_key: String,
}

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

/// The `Swarm` section of `/info`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub node_addr: String,
    pub local_node_state: String,
    pub control_available: bool,
    pub error: String,
    pub remote_managers: Option<Vec<Peer>>,
    #[serde(skip_serializing_if = "is_default")]
    pub nodes: usize,
    #[serde(skip_serializing_if = "is_default")]
    pub managers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Swarm>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Peer {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub addr: String,
}

impl Swarm {
    /// As `/info` shows it: without the join tokens.
    pub fn without_tokens(cluster: &model::Cluster) -> Self {
        Self {
            id: cluster.id.to_string(),
            version: ObjectVersion { index: cluster.meta.version },
            created_at: cluster.meta.created_at.into(),
            updated_at: cluster.meta.updated_at.into(),
            spec: (&cluster.spec).into(),
            tls_info: TlsInfo::of_root(&cluster.root_ca),
            root_rotation_in_progress: cluster.root_ca.rotation.is_some(),
            default_addr_pool: cluster.default_address_pools.iter().map(ToString::to_string).collect(),
            subnet_size: cluster.subnet_size.into(),
            data_path_port: cluster.data_path_port.into(),
            join_tokens: None,
        }
    }

    pub fn with_tokens(cluster: &model::Cluster) -> Self {
        let tokens =
            JoinTokens { worker: cluster.join_tokens.worker.clone(), manager: cluster.join_tokens.manager.clone() };
        Self { join_tokens: Some(tokens), ..Self::without_tokens(cluster) }
    }
}

impl From<&model::ClusterSpec> for SwarmSpec {
    fn from(spec: &model::ClusterSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            orchestration: Orchestration { task_history_retention_limit: Some(spec.task_history_limit) },
            raft: RaftConfig {
                snapshot_interval: spec.snapshot_interval,
                keep_old_snapshots: Some(spec.keep_old_snapshots),
                log_entries_for_slow_followers: spec.log_entries_for_slow_followers,
                election_tick: spec.election_tick,
                heartbeat_tick: spec.heartbeat_tick,
            },
            dispatcher: Dispatcher { heartbeat_period: nanos(spec.heartbeat_period) },
            // Neither certificate nor key of a root that was brought: they would come back with the next update (moby).
            ca_config: CaConfig {
                node_cert_expiry: nanos(spec.node_cert_expiry),
                external_cas: spec.external_cas.iter().map(ExternalCa::from).collect(),
                force_rotate: spec.force_rotate,
                ..Default::default()
            },
            task_defaults: TaskDefaults::default(),
            encryption_config: EncryptionConfig { auto_lock_managers: spec.auto_lock_managers },
        }
    }
}

impl From<&model::ExternalCa> for ExternalCa {
    fn from(ca: &model::ExternalCa) -> Self {
        Self {
            protocol: "cfssl".into(),
            url: ca.url.clone(),
            options: ca.options.clone(),
            ca_cert: ca.ca_cert_pem.clone(),
        }
    }
}

impl TryFrom<&ExternalCa> for model::ExternalCa {
    type Error = ConvertError;

    fn try_from(ca: &ExternalCa) -> Result<Self, ConvertError> {
        if !ca.protocol.is_empty() && !ca.protocol.eq_ignore_ascii_case("cfssl") {
            return ConvertError::invalid(format!("invalid CAProtocol: {:?}", ca.protocol));
        }
        if !ca.url.starts_with("https://") {
            return ConvertError::invalid(format!("invalid external CA URL {:?}: it must begin with https://", ca.url));
        }
        Ok(Self { url: ca.url.clone(), options: ca.options.clone(), ca_cert_pem: ca.ca_cert.clone() })
    }
}

impl SwarmSpec {
    /// What the request leaves out keeps its value from `current`: Docker's defaults for `init`, the swarm's for `update`
    /// (moby `swarmSpecToGRPC`).
    pub fn into_model(self, current: &model::ClusterSpec) -> Result<model::ClusterSpec, ConvertError> {
        let ca = &self.ca_config;
        let external_cas = ca.external_cas.iter().map(model::ExternalCa::try_from).collect::<Result<_, _>>()?;
        if self.task_defaults.log_driver.as_ref().is_some_and(|d| !d.name.is_empty()) {
            return ConvertError::unserved("a default log driver for tasks (TaskDefaults.LogDriver)");
        }
        if !self.name.is_empty() && self.name != "default" {
            return ConvertError::invalid("invalid Name: swarm spec must be named \"default\"");
        }
        let or = |given: u64, kept: u64| if given == 0 { kept } else { given };
        let tick = |given: u32, kept: u32| if given == 0 { kept } else { given };
        let expiry = if ca.node_cert_expiry == 0 {
            current.node_cert_expiry
        } else {
            duration(ca.node_cert_expiry, "cert-expiry")?
        };
        if expiry.as_secs() < 3600 {
            return ConvertError::invalid(format!("minimum certificate expiry time must be {}", "1h0m0s"));
        }
        Ok(model::ClusterSpec {
            name: "default".into(),
            labels: self.labels,
            task_history_limit: self.orchestration.task_history_retention_limit.unwrap_or(current.task_history_limit),
            heartbeat_period: match self.dispatcher.heartbeat_period {
                0 => current.heartbeat_period,
                n => duration(n, "dispatcher-heartbeat")?,
            },
            node_cert_expiry: expiry,
            snapshot_interval: or(self.raft.snapshot_interval, current.snapshot_interval),
            keep_old_snapshots: self.raft.keep_old_snapshots.unwrap_or(current.keep_old_snapshots),
            log_entries_for_slow_followers: or(
                self.raft.log_entries_for_slow_followers,
                current.log_entries_for_slow_followers,
            ),
            election_tick: tick(self.raft.election_tick, current.election_tick),
            heartbeat_tick: tick(self.raft.heartbeat_tick, current.heartbeat_tick),
            auto_lock_managers: self.encryption_config.auto_lock_managers,
            external_cas,
            force_rotate: self.ca_config.force_rotate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json;

    #[test]
    fn init_as_the_cli_sends_it() {
        let body = br#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"10.1.0.2","DataPathAddr":"","DataPathPort":0,"ForceNewCluster":false,
            "Spec":{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},"Dispatcher":{},"CAConfig":{},
            "TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}},"AutoLockManagers":false,"Availability":"active",
            "DefaultAddrPool":null,"SubnetSize":0}"#;
        let request: InitRequest = go_json::decode(body).unwrap();
        assert_eq!(request.advertise_addr, "10.1.0.2");
        assert_eq!(request.spec.into_model(&model::ClusterSpec::default()).unwrap(), model::ClusterSpec::default());
    }

    #[test]
    fn a_spec_comes_back_through_an_update() {
        let spec = model::ClusterSpec { task_history_limit: 9, auto_lock_managers: true, ..Default::default() };
        let json = serde_json::to_vec(&SwarmSpec::from(&spec)).unwrap();
        let again: SwarmSpec = go_json::decode(&json).unwrap();
        assert_eq!(again.into_model(&model::ClusterSpec::default()).unwrap(), spec);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let short =
            SwarmSpec { ca_config: CaConfig { node_cert_expiry: 1, ..Default::default() }, ..Default::default() };
        assert!(matches!(short.into_model(&model::ClusterSpec::default()), Err(ConvertError::Invalid(_))));
    }

    #[test]
    fn garbage_is_no_certificate() {
        assert_eq!(TlsInfo::of_root(&model::RootCa::default()).cert_issuer_subject, "");
        assert_eq!(subject_and_key("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), None);
    }
}
