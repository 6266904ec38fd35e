//! Containers, exec instances, stats and top, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_model::Labels;
use skep_model::container::{ContainerConfig, HostConfig, StringOrList};

use crate::network::{EndpointSettings, EndpointsConfig};
use crate::{ConvertError, GoTime, go_json, is_default};

mod human;
pub use human::{human_duration, status_text};

/// Members of `HostConfig` that [`HostConfig`] cannot hold because nothing here can do them.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct UnservedHostConfig {
    device_requests: Vec<Value>,
    blkio_weight_device: Vec<Value>,
    blkio_device_read_bps: Vec<Value>,
    blkio_device_write_bps: Vec<Value>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    blkio_device_read_iops: Vec<Value>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    blkio_device_write_iops: Vec<Value>,
    cpu_realtime_period: i64,
    cpu_realtime_runtime: i64,
    cpu_count: i64,
    cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps")]
    io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth")]
    io_maximum_bandwidth: u64,
}

impl UnservedHostConfig {
    fn check(&self) -> Result<(), ConvertError> {
        let asked = [
            (!self.device_requests.is_empty(), "HostConfig.DeviceRequests (--gpus, CDI devices)"),
            (!self.blkio_weight_device.is_empty(), "HostConfig.BlkioWeightDevice (--blkio-weight-device)"),
            (!self.blkio_device_read_bps.is_empty(), "HostConfig.BlkioDeviceReadBps (--device-read-bps)"),
            (!self.blkio_device_write_bps.is_empty(), "HostConfig.BlkioDeviceWriteBps (--device-write-bps)"),
            (!self.blkio_device_read_iops.is_empty(), "HostConfig.BlkioDeviceReadIOps (--device-read-iops)"),
            (!self.blkio_device_write_iops.is_empty(), "HostConfig.BlkioDeviceWriteIOps (--device-write-iops)"),
            (self.cpu_realtime_period != 0, "HostConfig.CpuRealtimePeriod (--cpu-rt-period)"),
            (self.cpu_realtime_runtime != 0, "HostConfig.CpuRealtimeRuntime (--cpu-rt-runtime)"),
            (self.cpu_count != 0, "HostConfig.CpuCount (--cpu-count)"),
            (self.cpu_percent != 0, "HostConfig.CpuPercent (--cpu-percent)"),
            (self.io_maximum_iops != 0, "HostConfig.IOMaximumIOps (--io-maxiops)"),
            (self.io_maximum_bandwidth != 0, "HostConfig.IOMaximumBandwidth (--io-maxbandwidth)"),
        ];
        match asked.into_iter().find(|(asked, _)| *asked) {
            Some((_, what)) => ConvertError::unserved(what),
            None => Ok(()),
        }
    }
}

/// `POST /containers/create`: the body is a `ContainerConfig` with two more members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateBody {
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub endpoints: EndpointsConfig,
}

impl CreateBody {
    pub fn decode(body: &[u8]) -> Result<Self, ConvertError> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Rest {
            host_config: HostConfig,
            networking_config: Networking,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Networking {
            endpoints_config: EndpointsConfig,
        }
        if body.iter().all(u8::is_ascii_whitespace) {
            return ConvertError::invalid("invalid JSON: got EOF while reading request body");
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Unserved {
            host_config: UnservedHostConfig,
        }
        let config = go_json::decode(body)?;
        let rest: Rest = go_json::decode(body)?;
        go_json::decode::<Unserved>(body)?.host_config.check()?;
        Ok(Self { config, host_config: rest.host_config, endpoints: rest.networking_config.endpoints_config })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateResponse {
    pub id: String,
    pub warnings: Vec<String>,
}

/// `GET /containers/{id}/json`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspect {
    pub id: String,
    pub created: GoTime,
    pub path: String,
    pub args: Vec<String>,
    pub state: State,
    pub image: String,
    pub resolv_conf_path: String,
    pub hostname_path: String,
    pub hosts_path: String,
    pub log_path: String,
    pub name: String,
    pub restart_count: u32,
    pub driver: String,
    pub platform: String,
    pub mount_label: String,
    pub process_label: String,
    pub app_armor_profile: String,
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    pub host_config: HostConfig,
    pub graph_driver: GraphDriver,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
    pub mounts: Vec<MountPoint>,
    pub config: ContainerConfig,
    pub network_settings: NetworkSettings,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    pub status: String,
    pub running: bool,
    pub paused: bool,
    pub restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    pub dead: bool,
    pub pid: i32,
    pub exit_code: i32,
    pub error: String,
    pub started_at: GoTime,
    pub finished_at: GoTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    pub status: String,
    pub failing_streak: u32,
    pub log: Vec<HealthProbe>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthProbe {
    pub start: GoTime,
    pub end: GoTime,
    pub exit_code: i32,
    pub output: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GraphDriver {
    pub data: BTreeMap<String, String>,
    pub name: String,
}

/// One of `Mounts` of an inspection.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MountPoint {
    #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub source: String,
    pub destination: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    pub mode: String,
    #[serde(rename = "RW")]
    pub rw: bool,
    pub propagation: String,
}

/// What is published where: `80/tcp` to its host ports, `null` for exposed only.
pub type PortMap = BTreeMap<String, Option<Vec<skep_model::container::PortBinding>>>;

#[derive(Clone, Debug, Default, Serialize)]
#[serde(default)]
pub struct NetworkSettings {
    #[serde(rename = "Bridge")]
    pub bridge: String,
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    #[serde(rename = "SandboxKey")]
    pub sandbox_key: String,
    #[serde(rename = "Ports")]
    pub ports: PortMap,
    #[serde(rename = "HairpinMode")]
    pub hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    pub link_local_ipv6_address: String,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    pub link_local_ipv6_prefix_len: u8,
    #[serde(rename = "SecondaryIPAddresses")]
    pub secondary_ip_addresses: Option<Vec<String>>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub secondary_ipv6_addresses: Option<Vec<String>>,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "Gateway")]
    pub gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    #[serde(rename = "Networks")]
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// One of `GET /containers/json`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    pub id: String,
    pub names: Vec<String>,
    pub image: String,
    #[serde(rename = "ImageID")]
    pub image_id: String,
    pub command: String,
    pub created: i64,
    pub ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
    pub labels: Labels,
    pub state: String,
    pub status: String,
    pub host_config: SummaryHostConfig,
    pub network_settings: SummaryNetworks,
    pub mounts: Vec<MountPoint>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SummaryHostConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network_mode: String,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SummaryNetworks {
    pub networks: BTreeMap<String, EndpointSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Port {
    #[serde(rename = "IP", skip_serializing_if = "String::is_empty")]
    pub ip: String,
    #[serde(rename = "PrivatePort")]
    pub private_port: u16,
    #[serde(rename = "PublicPort", skip_serializing_if = "is_default")]
    pub public_port: u16,
    #[serde(rename = "Type")]
    pub kind: String,
}

/// `POST /containers/{id}/wait`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct WaitResponse {
    pub status_code: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<WaitError>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct WaitError {
    pub message: String,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TopResponse {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}

/// `POST /containers/{id}/exec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecCreate {
    pub user: String,
    pub privileged: bool,
    pub tty: bool,
    pub console_size: Option<[u16; 2]>,
    pub attach_stdin: bool,
    pub attach_stderr: bool,
    pub attach_stdout: bool,
    pub detach: bool,
    pub detach_keys: String,
    pub env: Vec<String>,
    pub working_dir: String,
    pub cmd: Option<StringOrList>,
}

/// `POST /exec/{id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecStart {
    pub detach: bool,
    pub tty: bool,
    pub console_size: Option<[u16; 2]>,
}

/// `GET /exec/{id}/json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExecInspect {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Running")]
    pub running: bool,
    #[serde(rename = "ExitCode")]
    pub exit_code: Option<i32>,
    #[serde(rename = "ProcessConfig")]
    pub process_config: ExecProcess,
    #[serde(rename = "OpenStdin")]
    pub open_stdin: bool,
    #[serde(rename = "OpenStderr")]
    pub open_stderr: bool,
    #[serde(rename = "OpenStdout")]
    pub open_stdout: bool,
    #[serde(rename = "CanRemove")]
    pub can_remove: bool,
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    #[serde(rename = "DetachKeys")]
    pub detach_keys: String,
    #[serde(rename = "Pid")]
    pub pid: i32,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub struct ExecProcess {
    pub tty: bool,
    pub entrypoint: String,
    pub arguments: Vec<String>,
    pub privileged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
}

/// `POST /containers/{id}/update`: resources beside a restart policy. Read twice, as create is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateBody {
    pub resources: HostConfig,
    pub restart_policy: Option<skep_model::container::ContainerRestartPolicy>,
}

impl UpdateBody {
    pub fn decode(body: &[u8]) -> Result<Self, ConvertError> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Rest {
            restart_policy: Option<skep_model::container::ContainerRestartPolicy>,
        }
        go_json::decode::<UnservedHostConfig>(body)?.check()?;
        Ok(Self { resources: go_json::decode(body)?, restart_policy: go_json::decode::<Rest>(body)?.restart_policy })
    }
}

/// `GET /containers/{id}/stats`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    pub name: String,
    pub id: String,
    pub read: GoTime,
    pub preread: GoTime,
    pub pids_stats: PidsStats,
    pub blkio_stats: BlkioStats,
    pub num_procs: u32,
    pub storage_stats: BTreeMap<String, u64>,
    pub cpu_stats: CpuStats,
    pub precpu_stats: CpuStats,
    pub memory_stats: MemoryStats,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkStats>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct PidsStats {
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct BlkioStats {
    pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
    pub io_serviced_recursive: Option<Vec<BlkioEntry>>,
    pub io_queue_recursive: Option<Vec<BlkioEntry>>,
    pub io_service_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_wait_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_merged_recursive: Option<Vec<BlkioEntry>>,
    pub io_time_recursive: Option<Vec<BlkioEntry>>,
    pub sectors_recursive: Option<Vec<BlkioEntry>>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct CpuStats {
    pub cpu_usage: CpuUsage,
    #[serde(skip_serializing_if = "is_default")]
    pub system_cpu_usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub online_cpus: u32,
    pub throttling_data: Throttling,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct CpuUsage {
    pub total_usage: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_usage: Vec<u64>,
    pub usage_in_kernelmode: u64,
    pub usage_in_usermode: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct MemoryStats {
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub max_usage: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub failcnt: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct NetworkStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// `POST /containers/prune`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    #[serde(rename = "ContainersDeleted")]
    pub containers_deleted: Option<Vec<String>>,
    #[serde(rename = "SpaceReclaimed")]
    pub space_reclaimed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_as_docker_run_sends_it() {
        let body = br#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,"Tty":false,
            "OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["echo","hi"],"Image":"busybox","Volumes":{},"WorkingDir":"","Entrypoint":null,
            "Labels":{"A":"b"},"HostConfig":{"Binds":["/tmp:/x:ro"],"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},
            "NetworkMode":"default","PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"RestartPolicy":{"Name":"no","MaximumRetryCount":0},
            "AutoRemove":true,"ConsoleSize":[24,80],"CapAdd":null,"Dns":null,"Memory":0,"MemorySwappiness":-1,"OomKillDisable":null,
            "PidsLimit":0,"Ulimits":[],"MaskedPaths":null,"ReadonlyPaths":null},
            "NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":{},"Links":null,"Aliases":["w"],"MacAddress":""}}}}"#;
        let got = CreateBody::decode(body).unwrap();
        assert_eq!(got.config.cmd, Some(StringOrList(vec!["echo".into(), "hi".into()])));
        assert_eq!(got.config.entrypoint, None);
        assert!(got.host_config.auto_remove);
        assert_eq!(got.host_config.console_size, [24, 80]);
        let endpoint = got.endpoints["default"].clone().unwrap();
        assert_eq!(endpoint.into_request("bridge".into()).unwrap().aliases, ["w"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_not_dropped() {
        let gpus =
            br#"{"Image":"a","HostConfig":{"DeviceRequests":[{"Driver":"","Count":-1,"Capabilities":[["gpu"]]}]}}"#;
        assert!(matches!(CreateBody::decode(gpus), Err(ConvertError::Unserved(_))));
        let cli = br#"{"Image":"a","HostConfig":{"DeviceRequests":null,"BlkioDeviceReadBps":[],"CpuCount":0,"IOMaximumIOps":0}}"#;
        CreateBody::decode(cli).unwrap();
        assert!(UpdateBody::decode(br#"{"CpuRealtimePeriod":1000}"#).is_err());
    }

    #[test]
    fn a_command_may_be_one_string() {
        let got =
            CreateBody::decode(br#"{"image":"busybox","cmd":"date","hostconfig":{"binds":null,"privileged":true}}"#)
                .unwrap();
        assert_eq!(got.config.cmd, Some(StringOrList(vec!["date".into()])));
        assert_eq!(got.config.image, "busybox");
        assert!(got.host_config.privileged);
    }
}
