//! Counters of a container.

use skep_api::container as api;
use skep_engine::container as engine;

pub(crate) fn stats(stats: &engine::Stats) -> api::Stats {
    let now = &stats.current;
    let blkio: Vec<api::BlkioEntry> = now
        .blkio
        .iter()
        .map(|e| api::BlkioEntry { major: e.major, minor: e.minor, op: e.op.clone(), value: e.value })
        .collect();
    api::Stats {
        name: format!("/{}", stats.name.trim_start_matches('/')),
        id: stats.id.clone(),
        read: now.read.into(),
        preread: stats.previous.as_ref().map(|p| p.read).unwrap_or_default().into(),
        pids_stats: api::PidsStats {
            current: now.pids_current,
            // On cgroup v2 Docker shows the kernel's "max" as the largest number, on v1 it leaves it out.
            limit: if now.pids_limit == 0 && now.cgroup_v2 { u64::MAX } else { now.pids_limit },
        },
        blkio_stats: blkio_stats(blkio, now.cgroup_v2),
        cpu_stats: cpu(now),
        precpu_stats: stats.previous.as_ref().map(cpu).unwrap_or_default(),
        memory_stats: api::MemoryStats {
            usage: now.memory_usage,
            max_usage: now.memory_max_usage,
            stats: now.memory_stats.clone(),
            failcnt: now.memory_failcnt,
            limit: now.memory_limit,
        },
        networks: now
            .networks
            .iter()
            .map(|(name, n)| {
                let counters = api::NetworkStats {
                    rx_bytes: n.rx_bytes,
                    rx_packets: n.rx_packets,
                    rx_errors: n.rx_errors,
                    rx_dropped: n.rx_dropped,
                    tx_bytes: n.tx_bytes,
                    tx_packets: n.tx_packets,
                    tx_errors: n.tx_errors,
                    tx_dropped: n.tx_dropped,
                };
                (name.clone(), counters)
            })
            .collect(),
        ..Default::default()
    }
}

/// cgroup v1 has eight counters of which only the bytes are read; v2 has no more than those.
fn blkio_stats(bytes: Vec<api::BlkioEntry>, cgroup_v2: bool) -> api::BlkioStats {
    let other = || (!cgroup_v2).then(Vec::new);
    api::BlkioStats {
        io_service_bytes_recursive: Some(bytes).filter(|b| !b.is_empty() || !cgroup_v2),
        io_serviced_recursive: other(),
        io_queue_recursive: other(),
        io_service_time_recursive: other(),
        io_wait_time_recursive: other(),
        io_merged_recursive: other(),
        io_time_recursive: other(),
        sectors_recursive: other(),
    }
}

fn cpu(sample: &engine::StatsSample) -> api::CpuStats {
    api::CpuStats {
        cpu_usage: api::CpuUsage {
            total_usage: sample.cpu_total,
            percpu_usage: if sample.cgroup_v2 { Vec::new() } else { sample.cpu_per_core.clone() },
            usage_in_kernelmode: sample.cpu_kernel,
            usage_in_usermode: sample.cpu_user,
        },
        system_cpu_usage: sample.system_cpu,
        online_cpus: sample.online_cpus,
        throttling_data: api::Throttling {
            periods: sample.throttling_periods,
            throttled_periods: sample.throttled_periods,
            throttled_time: sample.throttled_time,
        },
    }
}
