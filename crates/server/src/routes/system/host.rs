//! What `/info` says about the machine, from /proc.

use std::path::Path;

pub(crate) struct Facts {
    pub(crate) kernel: String,
    pub(crate) machine: String,
    pub(crate) operating_system: String,
    pub(crate) os_version: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) open_files: usize,
    /// `1` or `2`.
    pub(crate) cgroup_version: String,
    pub(crate) swap_limit: bool,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

pub(crate) fn facts() -> Facts {
    let release = read("/etc/os-release");
    let field = |name: &str| {
        let line = release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Facts {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        machine: std::env::consts::ARCH.to_owned(),
        operating_system: Some(field("PRETTY_NAME")).filter(|n| !n.is_empty()).unwrap_or_else(|| "Linux".into()),
        os_version: field("VERSION_ID"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory(&read("/proc/meminfo")),
        open_files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        cgroup_version: if v2 { "2" } else { "1" }.into(),
        swap_limit: v2 || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
    }
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read() {
        assert_eq!(super::memory("MemTotal:       24606000 kB\nMemFree: 1 kB\n"), 24_606_000 * 1024);
        assert_eq!(super::memory(""), 0);
    }
}
