//! cgroup limits and rlimits of a container.

use serde_json::{Map, Value, json};
use skep_model::container::{HostConfig, Ulimit};

use super::HostFeatures;
use super::devices::Device;
use crate::error::{EngineError, Result};
use crate::supervisor::protocol::Rlimit;

const DEFAULT_CPU_PERIOD: i64 = 100_000;

pub(super) fn resources(host: &HostConfig, features: &HostFeatures, devices: &[Device]) -> Value {
    let mut resources = Map::new();
    resources.insert("devices".into(), device_rules(host, devices));
    let mut memory = Map::new();
    put(&mut memory, "limit", host.memory);
    put(&mut memory, "reservation", host.memory_reservation);
    if features.swap_limit && host.memory > 0 {
        // moby: as much swap again as memory, unless said otherwise.
        let swap = if host.memory_swap == 0 { host.memory.saturating_mul(2) } else { host.memory_swap };
        memory.insert("swap".into(), json!(swap));
    }
    if let Some(swappiness) = host.memory_swappiness.filter(|s| *s >= 0 && !features.cgroup_v2) {
        memory.insert("swappiness".into(), json!(swappiness));
    }
    if host.oom_kill_disable == Some(true) && !features.cgroup_v2 {
        memory.insert("disableOOMKiller".into(), json!(true));
    }
    put_all(&mut resources, "memory", memory);

    let mut cpu = Map::new();
    put(&mut cpu, "shares", host.cpu_shares);
    if host.nano_cpus > 0 {
        cpu.insert("period".into(), json!(DEFAULT_CPU_PERIOD));
        cpu.insert("quota".into(), json!(host.nano_cpus.saturating_mul(DEFAULT_CPU_PERIOD) / 1_000_000_000));
    } else {
        put(&mut cpu, "period", host.cpu_period);
        put(&mut cpu, "quota", host.cpu_quota);
    }
    if !host.cpuset_cpus.is_empty() {
        cpu.insert("cpus".into(), json!(host.cpuset_cpus));
    }
    if !host.cpuset_mems.is_empty() {
        cpu.insert("mems".into(), json!(host.cpuset_mems));
    }
    put_all(&mut resources, "cpu", cpu);

    if let Some(limit) = host.pids_limit.filter(|limit| *limit != 0) {
        resources.insert("pids".into(), json!({ "limit": limit.max(-1) }));
    }
    if host.blkio_weight > 0 && features.blkio_weight {
        resources.insert("blockIO".into(), json!({ "weight": host.blkio_weight }));
    }
    Value::Object(resources)
}

fn put(map: &mut Map<String, Value>, key: &str, value: i64) {
    if value != 0 {
        map.insert(key.to_owned(), json!(value));
    }
}

fn put_all(resources: &mut Map<String, Value>, key: &str, map: Map<String, Value>) {
    if !map.is_empty() {
        resources.insert(key.to_owned(), Value::Object(map));
    }
}

/// moby `oci.DefaultLinuxSpec`: nothing, but making nodes, and the usual few.
fn device_rules(host: &HostConfig, devices: &[Device]) -> Value {
    if host.privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let node = |kind: &str, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if let Some(major) = major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    let mut rules =
        vec![json!({ "allow": false, "access": "rwm" }), node("c", None, None, "m"), node("b", None, None, "m")];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200)] {
        rules.push(node("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(node("c", Some(136), None, "rwm"));
    rules.extend(devices.iter().map(Device::rule));
    rules.extend(host.device_cgroup_rules.iter().filter_map(|rule| parse_rule(rule)));
    Value::Array(rules)
}

/// `c 42:* rmw`.
fn parse_rule(text: &str) -> Option<Value> {
    let mut words = text.split_whitespace();
    let kind = words.next().filter(|k| matches!(*k, "a" | "b" | "c"))?;
    let (major, minor) = words.next()?.split_once(':')?;
    let access = words.next()?;
    let mut rule = json!({ "allow": true, "type": kind, "access": access });
    for (name, number) in [("major", major), ("minor", minor)] {
        // Only a star is any: what cannot be read must not open more than was meant.
        if number != "*" {
            rule[name] = json!(number.parse::<u32>().ok()?);
        }
    }
    Some(rule)
}

/// `--ulimit` to numbers.
pub(crate) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Rlimit>> {
    ulimits.iter().map(rlimit).collect()
}

fn rlimit(ulimit: &Ulimit) -> Result<Rlimit> {
    const NAMES: &[(&str, u32)] = &[
        ("cpu", libc::RLIMIT_CPU),
        ("fsize", libc::RLIMIT_FSIZE),
        ("data", libc::RLIMIT_DATA),
        ("stack", libc::RLIMIT_STACK),
        ("core", libc::RLIMIT_CORE),
        ("rss", libc::RLIMIT_RSS),
        ("nproc", libc::RLIMIT_NPROC),
        ("nofile", libc::RLIMIT_NOFILE),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("as", libc::RLIMIT_AS),
        ("locks", libc::RLIMIT_LOCKS),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("rttime", libc::RLIMIT_RTTIME),
    ];
    let resource = NAMES
        .iter()
        .find(|(name, _)| *name == ulimit.name)
        .map(|(_, number)| *number)
        .ok_or_else(|| EngineError::Invalid(format!("invalid ulimit type: {}", ulimit.name)))?;
    // -1 is unlimited, which as an unsigned number it already says.
    let number = |n: i64| u64::from_ne_bytes(n.to_ne_bytes());
    Ok(Rlimit { resource, soft: number(ulimit.soft), hard: number(ulimit.hard) })
}

/// What moby refuses at create.
pub(crate) fn validate(host: &HostConfig) -> Result<()> {
    const MIN_MEMORY: i64 = 6 * 1024 * 1024;
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return Err(EngineError::Invalid("Minimum memory limit allowed is 6MB".to_owned()));
    }
    if host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(EngineError::Invalid(
            "Minimum memoryswap limit should be larger than memory limit, see usage".to_owned(),
        ));
    }
    if let Some(rule) = host.device_cgroup_rules.iter().find(|rule| parse_rule(rule).is_none()) {
        return Err(EngineError::Invalid(format!("invalid device cgroup rule format: '{rule}'")));
    }
    if host.nano_cpus < 0 {
        return Err(EngineError::Invalid("range of CPUs is from 0.01".to_owned()));
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if host.nano_cpus > i64::try_from(cpus).unwrap_or(1) * 1_000_000_000 {
        return Err(EngineError::Invalid(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    if host.nano_cpus > 0 && (host.cpu_period > 0 || host.cpu_quota > 0) {
        return Err(EngineError::Invalid(
            "Conflicting options: Nano CPUs and CPU Period cannot both be set".to_owned(),
        ));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(EngineError::Invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    if host.shm_size < 0 {
        return Err(EngineError::Invalid("SHM size can not be less than 0".to_owned()));
    }
    rlimits(&host.ulimits).map(|_| ())
}

/// `docker update` of a running container.
pub(crate) fn apply(cgroup: &crate::cgroup::Cgroup, host: &HostConfig, features: &HostFeatures) -> Result<()> {
    let set = |controller: &str, file: &str, value: String| {
        cgroup
            .write(controller, file, &value)
            .map_err(|e| EngineError::Internal(format!("Cannot update container: failed to write {file}: {e}")))
    };
    let quota = if host.nano_cpus > 0 {
        Some((host.nano_cpus.saturating_mul(DEFAULT_CPU_PERIOD) / 1_000_000_000, DEFAULT_CPU_PERIOD))
    } else if host.cpu_quota != 0 {
        Some((host.cpu_quota, if host.cpu_period > 0 { host.cpu_period } else { DEFAULT_CPU_PERIOD }))
    } else {
        None
    };
    let pids = host.pids_limit.filter(|n| *n != 0).map(|n| if n < 0 { "max".to_owned() } else { n.to_string() });
    if let Some(pids) = pids {
        set("pids", "pids.max", pids)?;
    }
    if features.cgroup_v2 {
        if host.memory > 0 {
            set("memory", "memory.max", host.memory.to_string())?;
        }
        if let Some((quota, period)) = quota {
            set("cpu", "cpu.max", format!("{quota} {period}"))?;
        }
        if host.cpu_shares > 0 {
            // runc's conversion of [2..262144] to [1..10000].
            set("cpu", "cpu.weight", (1 + ((host.cpu_shares - 2) * 9999) / 262_142).to_string())?;
        }
    } else {
        if host.memory > 0 {
            let swap = if host.memory_swap == 0 { host.memory.saturating_mul(2) } else { host.memory_swap };
            let limit = host.memory.to_string();
            // The memory limit may not pass the limit of both: whichever order is refused, the other works.
            if features.swap_limit && set("memory", "memory.memsw.limit_in_bytes", swap.to_string()).is_err() {
                set("memory", "memory.limit_in_bytes", limit)?;
                set("memory", "memory.memsw.limit_in_bytes", swap.to_string())?;
            } else {
                set("memory", "memory.limit_in_bytes", limit)?;
            }
        }
        if let Some((quota, period)) = quota {
            set("cpu", "cpu.cfs_period_us", period.to_string())?;
            set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
        }
        if host.cpu_shares > 0 {
            set("cpu", "cpu.shares", host.cpu_shares.to_string())?;
        }
    }
    if !host.cpuset_cpus.is_empty() {
        set("cpuset", "cpuset.cpus", host.cpuset_cpus.clone())?;
    }
    if !host.cpuset_mems.is_empty() {
        set("cpuset", "cpuset.mems", host.cpuset_mems.clone())?;
    }
    Ok(())
}
