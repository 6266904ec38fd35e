//! The mounts of a container, in the order they are made.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Namespace, SpecInput};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecMount {
    pub(crate) destination: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    pub(crate) options: Vec<String>,
}

impl SpecMount {
    fn new(destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            destination: destination.into(),
            kind: kind.to_owned(),
            source: source.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    pub(crate) fn bind(
        destination: impl Into<PathBuf>,
        source: impl Into<PathBuf>,
        propagation: &str,
        read_only: bool,
    ) -> Self {
        let propagation = if propagation.is_empty() { "rprivate" } else { propagation };
        let access = if read_only { "ro" } else { "rw" };
        Self {
            destination: destination.into(),
            kind: "bind".to_owned(),
            source: source.into(),
            options: ["rbind", propagation, access].iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    /// Where a bind is, and its word for what is mounted there later.
    pub(crate) fn propagation(&self) -> Option<(String, String)> {
        let word = self.options.iter().find(|o| crate::volume::propagation(o).is_some())?;
        Some((self.destination.to_string_lossy().into_owned(), word.clone()))
    }

    /// Without what is mounted below the source.
    pub(crate) fn non_recursive(mut self) -> Self {
        self.options.iter_mut().filter(|o| *o == "rbind").for_each(|o| "bind".clone_into(o));
        self
    }

    /// A read-only bind whose mounts below are read-only, too.
    pub(crate) fn read_only_below(mut self) -> Self {
        self.options.push("rro".to_owned());
        self
    }

    /// Options as `--tmpfs` has them; moby's defaults come first.
    pub(crate) fn tmpfs(destination: impl Into<PathBuf>, options: &str) -> Self {
        let mut all: Vec<String> = ["noexec", "nosuid", "nodev"].iter().map(|o| (*o).to_owned()).collect();
        for option in options.split(',').filter(|o| !o.is_empty()) {
            all.retain(|o| o.strip_prefix("no") != Some(option) && option.strip_prefix("no") != Some(o) && o != option);
            all.push(option.to_owned());
        }
        Self { destination: destination.into(), kind: "tmpfs".to_owned(), source: "tmpfs".into(), options: all }
    }

    fn json(&self) -> Value {
        json!({ "destination": self.destination, "type": self.kind, "source": self.source, "options": self.options })
    }
}

/// Docker's own mounts, then the user's, outer ones first; a user's mount takes the place of Docker's.
pub(super) fn all(input: &SpecInput<'_>) -> Vec<Value> {
    let mut mounts = defaults(input);
    mounts.retain(|default| !input.mounts.iter().any(|m| m.destination == default.destination));
    let mut theirs: Vec<&SpecMount> = input.mounts.iter().collect();
    theirs.sort_by_key(|m| m.destination.components().count());
    mounts.iter().chain(theirs).map(SpecMount::json).collect()
}

fn defaults(input: &SpecInput<'_>) -> Vec<SpecMount> {
    let host = input.host_config;
    let mut mounts = Vec::new();
    mounts.push(SpecMount::new("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]));
    mounts.push(SpecMount::new("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    mounts.push(SpecMount::new("/dev/pts", "devpts", "devpts", &pts));
    let access = if host.privileged { "rw" } else { "ro" };
    mounts.push(SpecMount::new("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]));
    cgroup(input, access, &mut mounts);
    mounts.push(SpecMount::new("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    match &input.ipc {
        Namespace::Host => mounts.push(SpecMount::bind("/dev/shm", "/dev/shm", "rprivate", false)),
        Namespace::Path(path) => {
            // The other container's, seen through one of its processes: /proc/<pid>/ns/ipc names it.
            let shm = path.parent().and_then(Path::parent).map(|proc| proc.join("root/dev/shm"));
            mounts.push(SpecMount::bind("/dev/shm", shm.unwrap_or_default(), "rprivate", false));
        }
        Namespace::Private => {
            let bytes = if host.shm_size > 0 { host.shm_size } else { 67_108_864 };
            let size = format!("size={bytes}");
            mounts.push(SpecMount::new("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
        }
    }
    mounts
}

/// libcontainer ignores `ro` on a v1 `cgroup` mount, and the container's root could raise its own limits. So on v1 the
/// container's own directories are plain read-only binds in a tree made beforehand; on v2 the mount is honoured.
fn cgroup(input: &SpecInput<'_>, access: &str, mounts: &mut Vec<SpecMount>) {
    if input.features.cgroup_v2 {
        mounts.push(SpecMount::new(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ));
        return;
    }
    if let Some(view) = &input.cgroup_view {
        mounts.push(SpecMount::bind("/sys/fs/cgroup", view, "rprivate", !input.host_config.privileged));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_options_override_the_defaults() {
        let mount = SpecMount::tmpfs("/run", "rw,exec,size=65536k");
        assert_eq!(mount.options, ["nosuid", "nodev", "rw", "exec", "size=65536k"]);
        assert_eq!(SpecMount::tmpfs("/run", "").options, ["noexec", "nosuid", "nodev"]);
    }
}
