//! A container of the engine as `docker create` describes it.
//!
//! These types carry Docker's own JSON names (Engine API `ContainerConfig` and `HostConfig`), because the same words are
//! what the API takes, what the engine keeps on disk beside the container, and what `docker inspect` gives back: three
//! copies of eighty fields would only drift apart (docs/adr/0003). Null and absent read as the default, as in Go.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Labels;

/// Go writes an empty map or slice as `null`; read it as empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// `{}` of Go's `map[string]struct{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The portable part: what the image also has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerConfig {
    #[serde(deserialize_with = "or_default")]
    pub hostname: String,
    #[serde(deserialize_with = "or_default")]
    pub domainname: String,
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub attach_stdin: bool,
    #[serde(deserialize_with = "or_default")]
    pub attach_stdout: bool,
    #[serde(deserialize_with = "or_default")]
    pub attach_stderr: bool,
    /// `80/tcp` -> `{}`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "or_default")]
    pub tty: bool,
    #[serde(deserialize_with = "or_default")]
    pub open_stdin: bool,
    #[serde(deserialize_with = "or_default")]
    pub stdin_once: bool,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    pub cmd: Option<StringOrList>,
    pub healthcheck: Option<HealthConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    pub volumes: Option<BTreeMap<String, Empty>>,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    pub entrypoint: Option<StringOrList>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_disabled: Option<bool>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds; absent means 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// Docker accepts a bare string where it documents a list (`strslice.StrSlice`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StringOrList(pub Vec<String>);

impl<'de> Deserialize<'de> for StringOrList {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match Either::deserialize(d)? {
            Either::One(s) => vec![s],
            Either::Many(v) => v,
        }))
    }
}

/// Durations in nanoseconds; 0 inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthConfig {
    /// `[]` inherit, `["NONE"]` off, `["CMD", …]` exec, `["CMD-SHELL", command]`.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
}

/// The host-specific part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    #[serde(deserialize_with = "or_default")]
    pub binds: Vec<String>,
    #[serde(rename = "ContainerIDFile", deserialize_with = "or_default")]
    pub container_id_file: String,
    #[serde(deserialize_with = "or_default")]
    pub log_config: LogConfig,
    /// `default`, `bridge`, `host`, `none`, `container:<id>` or a network's name.
    #[serde(deserialize_with = "or_default")]
    pub network_mode: String,
    /// `80/tcp` -> where it is published.
    #[serde(deserialize_with = "or_default")]
    pub port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: ContainerRestartPolicy,
    #[serde(deserialize_with = "or_default")]
    pub auto_remove: bool,
    #[serde(deserialize_with = "or_default")]
    pub volume_driver: String,
    #[serde(deserialize_with = "or_default")]
    pub volumes_from: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountPoint>,
    #[serde(deserialize_with = "or_default")]
    pub console_size: [u16; 2],
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub cap_add: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cap_drop: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cgroupns_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub dns: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub dns_options: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub dns_search: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub extra_hosts: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub group_add: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub ipc_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub cgroup: String,
    #[serde(deserialize_with = "or_default")]
    pub links: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub oom_score_adj: i64,
    #[serde(deserialize_with = "or_default")]
    pub pid_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub privileged: bool,
    #[serde(deserialize_with = "or_default")]
    pub publish_all_ports: bool,
    #[serde(deserialize_with = "or_default")]
    pub readonly_rootfs: bool,
    #[serde(deserialize_with = "or_default")]
    pub security_opt: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_opt: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode", deserialize_with = "or_default")]
    pub uts_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub userns_mode: String,
    /// Bytes of /dev/shm; 0 is 64 MiB.
    #[serde(deserialize_with = "or_default")]
    pub shm_size: i64,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub runtime: String,
    #[serde(deserialize_with = "or_default")]
    pub isolation: String,
    // Resources, flattened as in Go's embedded struct.
    #[serde(deserialize_with = "or_default")]
    pub cpu_shares: i64,
    /// Bytes.
    #[serde(deserialize_with = "or_default")]
    pub memory: i64,
    #[serde(deserialize_with = "or_default")]
    pub nano_cpus: i64,
    #[serde(deserialize_with = "or_default")]
    pub cgroup_parent: String,
    #[serde(deserialize_with = "or_default")]
    pub blkio_weight: u16,
    #[serde(deserialize_with = "or_default")]
    pub cpu_period: i64,
    #[serde(deserialize_with = "or_default")]
    pub cpu_quota: i64,
    #[serde(deserialize_with = "or_default")]
    pub cpuset_cpus: String,
    #[serde(deserialize_with = "or_default")]
    pub cpuset_mems: String,
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<DeviceMapping>,
    #[serde(deserialize_with = "or_default")]
    pub device_cgroup_rules: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub memory_reservation: i64,
    #[serde(deserialize_with = "or_default")]
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub pids_limit: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub ulimits: Vec<Ulimit>,
    pub init: Option<bool>,
    /// Absent means Docker's defaults; `[]` means none (what `privileged` sends).
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogConfig {
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub driver: String,
    #[serde(deserialize_with = "or_default")]
    pub config: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortBinding {
    #[serde(rename = "HostIp", deserialize_with = "or_default")]
    pub host_ip: String,
    /// A port, a range `8000-8010`, or empty for any free one.
    #[serde(deserialize_with = "or_default")]
    pub host_port: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerRestartPolicy {
    /// Empty or `no`, `always`, `unless-stopped`, `on-failure`.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub maximum_retry_count: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DeviceMapping {
    pub path_on_host: String,
    pub path_in_container: String,
    pub cgroup_permissions: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// `--mount` of a container: the API's `Mount` in JSON. [`crate::task::Mount`] is the same thing typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub target: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindMountOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeMountOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsMountOptions>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BindMountOptions {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub propagation: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub non_recursive: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub create_mountpoint: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub read_only_non_recursive: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub read_only_force_recursive: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VolumeMountOptions {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<DriverConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DriverConfig {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TmpfsMountOptions {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero_i64")]
    pub size_bytes: i64,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero_u32")]
    pub mode: u32,
    /// Each a word, or a word and its value.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Vec<String>>,
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}
