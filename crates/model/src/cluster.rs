//! The swarm itself: one object, the singleton every manager agrees on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::node::Role;
use crate::secret::SecretBytes;
use crate::{ClusterId, JoinTokenId, Labels, Meta, Timestamp};

/// UDP port of the VXLAN traffic where `--data-path-port` names none.
pub const DEFAULT_DATA_PATH_PORT: u16 = 4789;
/// Where members ask one another who is alive, over TCP and UDP.
pub const GOSSIP_PORT: u16 = 7946;
/// What overlay subnets are cut from where `--default-addr-pool` names nothing.
pub const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Prefix length of overlay subnets where `--default-addr-pool-mask-length` names none.
pub const DEFAULT_SUBNET_SIZE: u8 = 24;

/// The replicated cluster object. There is exactly one once a swarm is initialised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    /// The secret halves of the join tokens, with the CA digest already in front: full `SWMTKN-1-…` strings.
    pub join_tokens: JoinTokens,
    /// What managers' keys on disk are locked with; present exactly while `spec.auto_lock_managers`.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
    /// Pools overlay subnets are cut from, `DefaultAddrPool`.
    pub default_address_pools: Vec<ipnet::Ipv4Net>,
    /// Prefix length of the subnets cut from the pools, `SubnetSize`.
    pub subnet_size: u8,
    /// UDP port of the VXLAN traffic, `DataPathPort`.
    pub data_path_port: u16,
    /// When the root was last rotated.
    pub root_rotated_at: Timestamp,
    /// What members seal their gossip with. A node that is removed knows it: the store forgets it then, and the leader makes
    /// another.
    #[serde(default)]
    pub gossip_key: Option<GossipKey>,
}

impl Cluster {
    /// With Docker's defaults, and nothing yet that is drawn or given: no root, tokens, keys or pools.
    pub fn new(id: ClusterId) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa::default(),
            join_tokens: JoinTokens::default(),
            unlock_key: None,
            default_address_pools: Vec::new(),
            subnet_size: DEFAULT_SUBNET_SIZE,
            data_path_port: DEFAULT_DATA_PATH_PORT,
            root_rotated_at: Timestamp::ZERO,
            gossip_key: None,
        }
    }
}

/// Shared by all members; secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKey {
    /// Tells keys apart while one takes the other's place; drawn at random.
    pub number: u32,
    /// 32 bytes.
    pub secret: SecretBytes,
}

/// What `docker swarm update` may change. Defaults are Docker's (`defaultSwarmSpec` in moby).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    pub name: String,
    pub labels: Labels,
    pub task_history_limit: i64,
    pub heartbeat_period: Duration,
    pub node_cert_expiry: Duration,
    pub snapshot_interval: u64,
    pub keep_old_snapshots: u64,
    pub log_entries_for_slow_followers: u64,
    pub election_tick: u32,
    pub heartbeat_tick: u32,
    pub auto_lock_managers: bool,
    pub external_cas: Vec<ExternalCa>,
    /// Raised to have a new root made, `docker swarm ca --rotate`.
    pub force_rotate: u64,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".into(),
            labels: Labels::new(),
            task_history_limit: 5,
            heartbeat_period: Duration::from_secs(5),
            node_cert_expiry: Duration::from_secs(90 * 24 * 3600),
            snapshot_interval: 10_000,
            keep_old_snapshots: 0,
            log_entries_for_slow_followers: 500,
            election_tick: 10,
            heartbeat_tick: 1,
            auto_lock_managers: false,
            external_cas: Vec::new(),
            force_rotate: 0,
        }
    }
}

/// The root that signs every node's certificate.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootCa {
    /// PEM of the self-signed root: what every node trusts.
    pub cert_pem: String,
    /// PEM of its key; secret. Empty if only an external CA has it.
    pub key_pem: String,
    /// `sha256:<hex>` of the certificate, as joiners pin it.
    pub digest: String,
    /// PEM of this root signed by the one before it: goes with every certificate, for nodes that have not heard of this one.
    pub cross_signed_pem: String,
    /// The root that is to follow, while one does.
    pub rotation: Option<RootRotation>,
    /// `ClusterSpec::force_rotate` when a rotation was last begun.
    pub last_forced_rotation: u64,
}

impl RootCa {
    /// PEM of certificate and key of what signs now: of the new root from the moment a rotation begins.
    pub fn signing(&self) -> (&str, &str) {
        match &self.rotation {
            Some(next) => (&next.cert_pem, &next.key_pem),
            None => (&self.cert_pem, &self.key_pem),
        }
    }

    /// PEM of what goes with every certificate so that nodes trusting only an older root accept it.
    pub fn intermediates(&self) -> &str {
        self.rotation.as_ref().map_or(&self.cross_signed_pem, |next| &next.cross_signed_pem)
    }
}

/// A root on its way in: it signs already, and is trusted through the old one until every node has a certificate of it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootRotation {
    pub cert_pem: String,
    /// Secret; empty if only an external CA has it.
    pub key_pem: String,
    /// PEM of the new root signed by the old one.
    pub cross_signed_pem: String,
}

impl std::fmt::Debug for RootRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootRotation(..)")
    }
}

/// Somebody else who signs for a root, `--external-ca`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalCa {
    /// Of a CFSSL `sign` endpoint, https.
    pub url: String,
    pub options: Labels,
    /// PEM of the root it signs for; empty is the swarm's current one.
    pub ca_cert_pem: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// A join token that ends: by itself, or by use. The swarm keeps no more than its digest, so it is shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedToken {
    pub id: JoinTokenId,
    pub role: Role,
    /// SHA-256 of its last part, in hex.
    pub secret_digest: String,
    pub created_at: Timestamp,
    /// `None` lives until it is removed, used up, or the root is rotated.
    pub expires_at: Option<Timestamp>,
    /// How many hosts may join with it; `None` is any number.
    pub uses: Option<u32>,
    pub used: u32,
}

impl LimitedToken {
    /// Why nobody can join with it at this time, and what to do.
    pub fn refusal(&self, at: Timestamp) -> Option<String> {
        let role = match self.role {
            Role::Manager => "manager",
            Role::Worker => "worker",
        };
        let instead = format!("make another one on a manager with \"skep swarm join-token create --role {role}\"");
        if self.expires_at.is_some_and(|end| at >= end) {
            let end = self.expires_at.unwrap_or_default();
            return Some(format!("the join token expired at {end}: {instead}"));
        }
        match self.uses {
            Some(uses) if self.used >= uses => {
                Some(format!("the join token was good for {uses} joins, all used: {instead}"))
            }
            Some(_) | None => None,
        }
    }
}

impl std::fmt::Debug for LimitedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The two join tokens in full; secret, hence no contents in `Debug`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(..)")
    }
}

/// `SWMKEY-1-…` in full; secret, hence no contents in `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockKey(pub String);

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}
