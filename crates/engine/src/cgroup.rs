//! A container's control group, v1 or v2: freezing, counting, killing what is left, removing.
//!
//! libcontainer makes the group and sets its limits; everything after that is a read or write of a small file.

use std::path::{Path, PathBuf};

use crate::spec::HostFeatures;

const ROOT: &str = "/sys/fs/cgroup";
/// Those libcgroups manages; other v1 hierarchies (`name=systemd`, `rdma`, `misc`) are left alone.
const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// Looks at the host once, at start.
pub(crate) fn detect() -> HostFeatures {
    let root = Path::new(ROOT);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let v2 = root.join("cgroup.controllers").exists();
    let cgroup_mounts = if v2 { Vec::new() } else { v1_mounts(&mounts) };
    let memory = root.join("memory");
    HostFeatures {
        cgroup_v2: v2,
        swap_limit: v2 || memory.join("memory.memsw.limit_in_bytes").exists(),
        blkio_weight: v2 || root.join("blkio/blkio.weight").exists(),
        cgroup_mounts,
    }
}

/// `36 35 0:30 / /sys/fs/cgroup/cpu,cpuacct rw… - cgroup cgroup rw,cpu,cpuacct`.
fn v1_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let point = left.split(' ').nth(4)?;
            let options = (right.next()? == "cgroup").then(|| right.nth(1)).flatten()?;
            let ours = options.split(',').any(|o| CONTROLLERS.contains(&o));
            (ours && point.starts_with(ROOT)).then(|| PathBuf::from(point))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// One container's group.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    v2: bool,
    /// The group in every hierarchy; one on v2.
    directories: Vec<PathBuf>,
    /// Where those hierarchies are mounted, in the same order.
    mounts: Vec<PathBuf>,
}

impl Cgroup {
    pub(crate) fn new(features: &HostFeatures, path: &str) -> Self {
        let inside = path.trim_start_matches('/');
        let mounts = if features.cgroup_v2 { vec![PathBuf::from(ROOT)] } else { features.cgroup_mounts.clone() };
        Self { v2: features.cgroup_v2, directories: mounts.iter().map(|m| m.join(inside)).collect(), mounts }
    }

    /// Makes the groups, and at `folder` a tree of them to be bound into the container at `/sys/fs/cgroup`, read-only: one
    /// mount of the runtime's instead of one a controller, each of which costs it half a millisecond.
    pub(crate) fn mount_view(&self, folder: &Path, writable: bool) -> std::io::Result<()> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
        let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        std::fs::create_dir_all(folder)?;
        mount(c"tmpfs", folder, c"tmpfs", plain, c"mode=755,size=64k")?;
        mount_change(folder, MountPropagationFlags::PRIVATE)?;
        let access = if writable { MountFlags::empty() } else { MountFlags::RDONLY };
        for (mount_point, directory) in self.mounts.iter().zip(&self.directories) {
            std::fs::create_dir_all(directory)?;
            let Some(name) = mount_point.file_name() else { continue };
            let target = folder.join(name);
            std::fs::create_dir(&target)?;
            mount_bind(directory, &target)?;
            mount_remount(&target, MountFlags::BIND | plain | access, c"")?;
        }
        mount_remount(folder, MountFlags::BIND | plain | access, c"")?;
        Ok(())
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.v2
    }

    /// Empty on v1.
    pub(crate) fn v2_directory(&self) -> &Path {
        self.directories.first().filter(|_| self.v2).map_or(Path::new(""), PathBuf::as_path)
    }

    /// The text of a file of a controller; empty if it is not there.
    pub(crate) fn read(&self, controller: &str, file: &str) -> String {
        self.path(controller, file).and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default()
    }

    pub(crate) fn number(&self, controller: &str, file: &str) -> u64 {
        self.read(controller, file).trim().parse().unwrap_or(0)
    }

    /// A `key value` line of a file.
    pub(crate) fn field(&self, controller: &str, file: &str, key: &str) -> u64 {
        fields(&self.read(controller, file)).find(|(k, _)| *k == key).map_or(0, |(_, v)| v)
    }

    pub(crate) fn write(&self, controller: &str, file: &str, value: &str) -> std::io::Result<()> {
        let path = self.path(controller, file).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        std::fs::write(path, value)
    }

    fn path(&self, controller: &str, file: &str) -> Option<PathBuf> {
        if self.v2 {
            return self.directories.first().map(|d| d.join(file));
        }
        // Co-mounted controllers are one directory: `cpu,cpuacct`.
        let of = |mount: &PathBuf| {
            let name = mount.file_name().unwrap_or_default().to_string_lossy();
            name.split(',').any(|part| part == controller)
        };
        let index = self.mounts.iter().position(of)?;
        self.directories.get(index).map(|d| d.join(file))
    }

    /// Processes killed by the kernel for memory in this group.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        self.field("memory", file, "oom_kill")
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = self.read("pids", "cgroup.procs");
        let text = if text.is_empty() { self.read("devices", "cgroup.procs") } else { text };
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Stops or continues every process; waits until it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> std::io::Result<()> {
        let (file, value, seen) = match (self.v2, frozen) {
            (true, true) => ("cgroup.freeze", "1", "1"),
            (true, false) => ("cgroup.freeze", "0", "0"),
            (false, true) => ("freezer.state", "FROZEN", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED", "THAWED"),
        };
        for _ in 0..200 {
            self.write("freezer", file, value)?;
            let now = if self.v2 {
                self.field("freezer", "cgroup.events", "frozen").to_string()
            } else {
                self.read("freezer", file).trim().to_owned()
            };
            if now == seen {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(std::io::Error::other("the processes did not freeze in time"))
    }

    /// Kills whatever is in the group, for a container whose parent is gone or that shares a pid namespace.
    pub(crate) fn kill_all(&self) {
        for _ in 0..100 {
            if self.v2 && self.write("", "cgroup.kill", "1").is_ok() && self.pids().is_empty() {
                return;
            }
            let pids = self.pids();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = crate::sys::process::kill(pid, libc::SIGKILL);
            }
            let _ = self.freeze(false);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Groups below (made by the container itself) go first.
    pub(crate) fn remove(&self) {
        for directory in &self.directories {
            remove_tree(directory);
        }
    }
}

fn remove_tree(directory: &Path) {
    let busy = |e: &std::io::Error| e.raw_os_error() == Some(libc::EBUSY);
    for attempt in 0..50 {
        match std::fs::remove_dir(directory) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) if busy(&error) && attempt == 0 => {
                for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|t| t.is_dir()) {
                        remove_tree(&entry.path());
                    }
                }
            }
            // The last process is dead but not yet out of the group.
            Err(error) if busy(&error) => std::thread::sleep(std::time::Duration::from_millis(2)),
            Err(error) => {
                tracing::debug!(%error, path = %directory.display(), "cgroup stays");
                return;
            }
        }
    }
}

/// Moving a process between groups takes a lock whose first holder waits for a grace period of the kernel's RCU, 3 to 15 ms;
/// those who follow soon do not. Taken here for nothing while a start still does other things, it is cheap when the runtime
/// comes to it.
pub(crate) fn warm_up(features: &HostFeatures) {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let root = match features.cgroup_v2 {
            true => controllers.is_empty().then(|| PathBuf::from(ROOT)),
            false => (controllers == "pids").then(|| Path::new(ROOT).join("pids")),
        }?;
        Some(root.join(path.trim_start_matches('/')).join("cgroup.procs"))
    });
    if let Some(file) = own {
        // To where we are: nothing moves.
        let _ = std::fs::write(file, "0");
    }
}

/// Groups under `/skep-<tag>` in any hierarchy, by name.
pub(crate) fn groups_of(features: &HostFeatures, parent: &str) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    for directory in Cgroup::new(features, parent).directories {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.into_iter().collect()
}

/// Removes the daemon's own parent group if nothing is in it.
pub(crate) fn remove_parent(features: &HostFeatures, parent: &str) {
    for directory in Cgroup::new(features, parent).directories {
        let _ = std::fs::remove_dir(directory);
    }
}

/// `key value` lines.
pub(crate) fn fields(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_hierarchies_are_found_by_their_controllers() {
        let text = "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                    32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let mounts = v1_mounts(text);
        assert_eq!(mounts, [PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), "/sys/fs/cgroup/memory".into()]);
        let features = HostFeatures { cgroup_mounts: mounts, ..HostFeatures::default() };
        let group = Cgroup::new(&features, "/skep-0/abc");
        assert_eq!(group.path("cpuacct", "x").unwrap(), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/skep-0/abc/x"));
        assert_eq!(group.path("pids", "x"), None);
    }
}
