//! top and stats: what a container's processes are, and what they use.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Engine, blocking};
use crate::cgroup::{Cgroup, fields};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::sys::clock;

/// Clock ticks a second in /proc, on every Linux we run on.
const TICKS: u64 = 100;
const NANOS_PER_TICK: u64 = 1_000_000_000 / TICKS;
const PERIOD: Duration = Duration::from_secs(1);

impl Engine {
    /// `ps_args` other than `-ef` and `aux` are refused: there is no `ps` to hand them to.
    pub async fn top(&self, key: &str, ps_args: &str) -> Result<Top> {
        let container = self.find(key)?;
        if !container.record().state.status.is_alive() {
            return Err(EngineError::NotRunning(container.id.to_string()));
        }
        let long = match ps_args.trim() {
            "" | "-ef" => false,
            "aux" | "-aux" => true,
            other => {
                return Err(EngineError::NotImplemented(format!(
                    "ps arguments {other:?} are not supported: use -ef or aux"
                )));
            }
        };
        let cgroup = self.cgroup(&container.id);
        blocking(move || Ok(top(&cgroup.pids(), long))).await
    }

    /// One reading, with the one a moment before as `previous` unless `one_shot`.
    pub async fn stats(&self, key: &str, one_shot: bool) -> Result<Stats> {
        let container = self.find(key)?;
        let previous = if one_shot { None } else { Some(self.sample(&container).await?) };
        if !one_shot {
            tokio::time::sleep(PERIOD).await;
        }
        let current = self.sample(&container).await?;
        Ok(Stats { id: container.id.to_string(), name: container.name(), current, previous })
    }

    /// A reading a second until the container is removed; empty ones while it does not run.
    pub async fn stats_stream(&self, key: &str) -> Result<StatsStream> {
        let container = self.find(key)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let engine = self.clone();
        let mut life = container.life.subscribe();
        self.inner.tasks.spawn(async move {
            let mut previous = None;
            let mut clock = tokio::time::interval(PERIOD);
            loop {
                tokio::select! {
                    _ = clock.tick() => {}
                    gone = life.wait_for(|l| l.removed) => { drop(gone); return }
                    () = sender.closed() => return,
                    () = engine.inner.closing.cancelled() => return,
                }
                let Ok(current) = engine.sample(&container).await else { return };
                let stats =
                    Stats { id: container.id.to_string(), name: container.name(), current: current.clone(), previous };
                previous = Some(current);
                if sender.send(stats).await.is_err() {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn sample(&self, container: &Arc<Container>) -> Result<StatsSample> {
        let state = container.record().state.clone();
        if !state.status.is_alive() {
            return Ok(StatsSample { read: clock::now(), ..StatsSample::default() });
        }
        let cgroup = self.cgroup(&container.id);
        blocking(move || Ok(sample(&cgroup, state.pid))).await
    }
}

fn sample(cgroup: &Cgroup, pid: i32) -> StatsSample {
    let mut sample = StatsSample { read: clock::now(), cgroup_v2: cgroup.is_v2(), ..StatsSample::default() };
    (sample.system_cpu, sample.online_cpus) = system_cpu();
    sample.networks = networks(pid);
    if cgroup.is_v2() {
        sample_v2(cgroup, &mut sample)
    } else {
        sample_v1(cgroup, &mut sample)
    }
    let host = host_memory();
    if sample.memory_limit == 0 || sample.memory_limit > host {
        sample.memory_limit = host;
    }
    sample
}

fn sample_v1(cgroup: &Cgroup, sample: &mut StatsSample) {
    sample.cpu_total = cgroup.number("cpuacct", "cpuacct.usage");
    sample.cpu_per_core =
        cgroup.read("cpuacct", "cpuacct.usage_percpu").split_whitespace().filter_map(|n| n.parse().ok()).collect();
    sample.cpu_user = cgroup.field("cpuacct", "cpuacct.stat", "user") * NANOS_PER_TICK;
    sample.cpu_kernel = cgroup.field("cpuacct", "cpuacct.stat", "system") * NANOS_PER_TICK;
    sample.throttling_periods = cgroup.field("cpu", "cpu.stat", "nr_periods");
    sample.throttled_periods = cgroup.field("cpu", "cpu.stat", "nr_throttled");
    sample.throttled_time = cgroup.field("cpu", "cpu.stat", "throttled_time");
    sample.memory_usage = cgroup.number("memory", "memory.usage_in_bytes");
    sample.memory_max_usage = cgroup.number("memory", "memory.max_usage_in_bytes");
    sample.memory_limit = cgroup.number("memory", "memory.limit_in_bytes");
    sample.memory_failcnt = cgroup.number("memory", "memory.failcnt");
    sample.memory_stats = owned(&cgroup.read("memory", "memory.stat"));
    sample.pids_current = cgroup.number("pids", "pids.current");
    sample.pids_limit = cgroup.number("pids", "pids.max");
    let text = cgroup.read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let text = if text.is_empty() { cgroup.read("blkio", "blkio.throttle.io_service_bytes") } else { text };
    sample.blkio = text.lines().filter_map(blkio_v1).collect();
}

fn sample_v2(cgroup: &Cgroup, sample: &mut StatsSample) {
    let cpu = owned(&cgroup.read("cpu", "cpu.stat"));
    let micros = |key: &str| cpu.get(key).copied().unwrap_or(0) * 1000;
    sample.cpu_total = micros("usage_usec");
    sample.cpu_user = micros("user_usec");
    sample.cpu_kernel = micros("system_usec");
    sample.throttling_periods = micros("nr_periods") / 1000;
    sample.throttled_periods = micros("nr_throttled") / 1000;
    sample.throttled_time = micros("throttled_usec");
    sample.memory_usage = cgroup.number("memory", "memory.current");
    sample.memory_max_usage = cgroup.number("memory", "memory.peak");
    sample.memory_limit = cgroup.number("memory", "memory.max");
    sample.memory_stats = owned(&cgroup.read("memory", "memory.stat"));
    sample.pids_current = cgroup.number("pids", "pids.current");
    sample.pids_limit = cgroup.number("pids", "pids.max");
    sample.blkio = cgroup.read("io", "io.stat").lines().flat_map(blkio_v2).collect();
}

fn owned(text: &str) -> BTreeMap<String, u64> {
    fields(text).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `8:0 Read 4096`.
fn blkio_v1(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let op = words.next()?.to_ascii_lowercase();
    Some(BlkioEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value: words.next()?.parse().ok()? })
}

/// `8:0 rbytes=4096 wbytes=0 …`.
fn blkio_v2(line: &str) -> Vec<BlkioEntry> {
    let mut words = line.split_whitespace();
    let device =
        words.next().and_then(|d| d.split_once(':')).and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let Some((major, minor)) = device else { return Vec::new() };
    words
        .filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            let op = match key {
                "rbytes" => "read",
                "wbytes" => "write",
                _ => return None,
            };
            Some(BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().ok()? })
        })
        .collect()
}

/// Time of all CPUs since the boot, in nanoseconds, and how many there are.
fn system_cpu() -> (u64, u32) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let total = text.lines().next().map_or(0, |line| {
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
    });
    let cpus = text.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
    (total * NANOS_PER_TICK, u32::try_from(cpus).unwrap_or(1))
}

fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemTotal:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn networks(pid: i32) -> BTreeMap<String, NetworkStats> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines().skip(2).filter_map(network).filter(|(name, _)| name != "lo").collect()
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast | bytes packets errs drop …`.
fn network(line: &str) -> Option<(String, NetworkStats)> {
    let (name, rest) = line.split_once(':')?;
    let n: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let at = |index: usize| n.get(index).copied().unwrap_or(0);
    let stats = NetworkStats {
        rx_bytes: at(0),
        rx_packets: at(1),
        rx_errors: at(2),
        rx_dropped: at(3),
        tx_bytes: at(8),
        tx_packets: at(9),
        tx_errors: at(10),
        tx_dropped: at(11),
    };
    Some((name.trim().to_owned(), stats))
}

fn top(pids: &[i32], long: bool) -> Top {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let boot = boot_time();
    let titles: &[&str] = if long {
        &["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"]
    } else {
        &["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    };
    let mut pids = pids.to_vec();
    pids.sort_unstable();
    Top {
        titles: titles.iter().map(|t| (*t).to_owned()).collect(),
        processes: pids.into_iter().filter_map(|pid| process_line(pid, &users, boot, long)).collect(),
    }
}

fn process_line(pid: i32, users: &str, boot: i64, long: bool) -> Option<Vec<String>> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The name is in parentheses and may contain anything.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let field: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| field.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let uid = std::fs::metadata(&folder).ok()?.uid();
    let user = users
        .lines()
        .find(|l| l.split(':').nth(2) == Some(&uid.to_string()))
        .and_then(|l| l.split(':').next())
        .map_or_else(|| uid.to_string(), str::to_owned);
    let ticks = number(11) + number(12);
    let started = boot + i64::try_from(number(19) / TICKS).unwrap_or(0);
    let now = clock::now().0 / 1_000_000_000;
    let lived = u64::try_from(now - started).unwrap_or(0).max(1);
    let percent = ticks * 100 / TICKS / lived;
    let command = command_line(&folder, name);
    let terminal = terminal(number(4));
    let time = ticks / TICKS;
    let short_time = format!("{:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60);
    let start = local_time(started, now);
    if !long {
        let parent = field.get(1)?.to_string();
        return Some(vec![user, pid.to_string(), parent, percent.to_string(), start, terminal, short_time, command]);
    }
    let resident = number(21) * 4;
    let memory = host_memory() / 1024;
    let tenths = (resident * 1000).checked_div(memory).unwrap_or(0);
    Some(vec![
        user,
        pid.to_string(),
        format!("{percent}.0"),
        format!("{}.{}", tenths / 10, tenths % 10),
        (number(20) / 1024).to_string(),
        resident.to_string(),
        terminal,
        field.first()?.to_string(),
        start,
        format!("{}:{:02}", time / 60, time % 60),
        command,
    ])
}

fn command_line(folder: &Path, name: &str) -> String {
    let bytes = std::fs::read(folder.join("cmdline")).unwrap_or_default();
    if bytes.is_empty() {
        return format!("[{name}]");
    }
    let words: Vec<_> = bytes.split(|b| *b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    words.join(" ")
}

/// tty_nr of /proc/pid/stat.
fn terminal(number: u64) -> String {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xfff00);
    match major {
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        4 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

fn boot_time() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("btime ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// `14:05` of today, `Nov20` of an earlier day, in UTC.
fn local_time(seconds: i64, now: i64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let day = 86_400;
    if seconds / day == now / day {
        return format!("{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60);
    }
    let text = skep_model::Timestamp::from_secs(seconds).to_string();
    let month = text.get(5..7).and_then(|m| m.parse::<usize>().ok()).unwrap_or(1);
    format!("{}{}", MONTHS[(month - 1).min(11)], text.get(8..10).unwrap_or("01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        let (name, stats) = network("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 0 0 0 0").unwrap();
        assert_eq!((name.as_str(), stats.rx_bytes, stats.tx_bytes, stats.tx_dropped), ("eth0", 1, 9, 12));
        let entry = blkio_v1("8:16 Read 4096").unwrap();
        assert_eq!((entry.major, entry.minor, entry.op.as_str(), entry.value), (8, 16, "read", 4096));
        assert_eq!(blkio_v2("8:0 rbytes=1 wbytes=2 rios=3").len(), 2);
        assert_eq!((terminal(0x8803), terminal(0)), ("pts/3".to_owned(), "?".to_owned()));
        let own = top(&[i32::try_from(std::process::id()).unwrap()], false);
        assert_eq!((own.processes.len(), own.processes[0].len()), (1, 8));
    }
}
