//! A container as an OCI runtime configuration: Docker's defaults, what was asked for, and around libcontainer's traps.
//!
//! Pure: everything read from the host comes in as an argument, so that a spec can be tested as a value. What the spec
//! leaves out on purpose, because our executor does it later: capabilities, seccomp, rlimits, `noNewPrivileges`.

pub(crate) mod capabilities;
pub(crate) mod device_program;
pub(crate) mod devices;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod user;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_model::container::{ContainerConfig, HostConfig};

use user::ResolvedUser;

/// What the host can do, as far as a spec depends on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostFeatures {
    pub(crate) cgroup_v2: bool,
    /// v1: where controllers are mounted.
    pub(crate) cgroup_mounts: Vec<PathBuf>,
    pub(crate) swap_limit: bool,
    pub(crate) blkio_weight: bool,
}

/// A namespace of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    Host,
    Private,
    Path(PathBuf),
}

#[derive(Clone, Debug)]
pub(crate) struct SpecInput<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) host_config: &'a HostConfig,
    pub(crate) features: &'a HostFeatures,
    pub(crate) rootfs: &'a Path,
    pub(crate) hostname: &'a str,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: ResolvedUser,
    /// Absolute: `/skep-<tag>/<id>`.
    pub(crate) cgroup: String,
    /// v1: a tree of the container's own groups, read-only, to be bound in.
    pub(crate) cgroup_view: Option<PathBuf>,
    pub(crate) network: Namespace,
    pub(crate) pid: Namespace,
    pub(crate) ipc: Namespace,
    pub(crate) uts: Namespace,
    /// Binds, volumes, tmpfs, and the files the engine puts in (`/etc/hosts`…).
    pub(crate) mounts: Vec<mounts::SpecMount>,
    /// Besides the default ones.
    pub(crate) devices: Vec<devices::Device>,
}

/// moby `oci.DefaultLinuxSpec`.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(crate) fn build(input: &SpecInput<'_>) -> Value {
    let host = input.host_config;
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": input.cgroup,
        "resources": limits::resources(host, input.features, &input.devices),
        "devices": input.devices.iter().map(devices::Device::spec).collect::<Vec<_>>(),
        "maskedPaths": paths(host.masked_paths.as_ref(), host.privileged, MASKED_PATHS),
        "readonlyPaths": paths(host.readonly_paths.as_ref(), host.privileged, READONLY_PATHS),
        "sysctl": host.sysctls,
    });
    if input.mounts.iter().any(|m| m.options.iter().any(|o| o == "rshared" || o == "shared")) {
        linux["rootfsPropagation"] = json!("shared");
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process(&Process {
            args: &input.args,
            env: &input.env,
            cwd: working_dir(&input.config.working_dir),
            user: &input.user,
            tty: input.config.tty,
            console_size: host.console_size,
            oom_score_adj: host.oom_score_adj,
        }),
        "root": { "path": input.rootfs, "readonly": host.readonly_rootfs },
        "mounts": mounts::all(input),
        "linux": linux,
    });
    if input.uts == Namespace::Private {
        spec["hostname"] = json!(input.hostname);
        if !input.config.domainname.is_empty() {
            spec["domainname"] = json!(input.config.domainname);
        }
    }
    spec
}

/// `config.json`'s `process`, and all of an exec's `process.json`.
pub(crate) struct Process<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) user: &'a ResolvedUser,
    pub(crate) tty: bool,
    /// Height, width; zeros if unknown.
    pub(crate) console_size: [u16; 2],
    pub(crate) oom_score_adj: i64,
}

pub(crate) fn process(process: &Process<'_>) -> Value {
    let mut value = json!({
        "terminal": process.tty,
        "user": { "uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.additional_gids },
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        // Always: the supervisor's own is -999 and would be inherited.
        "oomScoreAdj": process.oom_score_adj,
    });
    let [height, width] = process.console_size;
    if process.tty && height > 0 && width > 0 {
        value["consoleSize"] = json!({ "height": height, "width": width });
    }
    value
}

pub(crate) fn working_dir(text: &str) -> &str {
    if text.is_empty() { "/" } else { text }
}

fn paths(asked: Option<&Vec<String>>, privileged: bool, default: &[&str]) -> Vec<String> {
    match asked {
        Some(paths) => paths.clone(),
        None if privileged => Vec::new(),
        None => default.iter().map(|p| (*p).to_owned()).collect(),
    }
}

fn namespaces(input: &SpecInput<'_>) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    let kinds = [("network", &input.network), ("pid", &input.pid), ("ipc", &input.ipc), ("uts", &input.uts)];
    for (kind, namespace) in kinds {
        match namespace {
            Namespace::Host => {}
            Namespace::Private => list.push(json!({ "type": kind })),
            Namespace::Path(path) => list.push(json!({ "type": kind, "path": path })),
        }
    }
    if private_cgroup(input) {
        list.push(json!({ "type": "cgroup" }));
    }
    Value::Array(list)
}

/// Docker's defaults: private on v2, the host's on v1 (where the mounts below show the container's own part).
pub(crate) fn private_cgroup(input: &SpecInput<'_>) -> bool {
    match input.host_config.cgroupns_mode.as_str() {
        "private" => true,
        "host" => false,
        _ => input.features.cgroup_v2 && !input.host_config.privileged,
    }
}

#[cfg(test)]
mod tests;
