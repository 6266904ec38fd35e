//! Device rules on cgroup v2, where no controller keeps them but a program of ours.
//!
//! A host with v2 alone is made up in a mount namespace; the groups in it are real, with or without their controllers.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use crate::host::Host;

const ROOT: &str = "/sys/fs/cgroup";
/// As root in a container may: makes a node of a disk of the host's, and reads it.
const READ_A_DISK: &str =
    "busybox mknod /tmp/disk b $0 $1 && echo made; true < /tmp/disk && echo open; true > /dev/null && echo null";

/// The hierarchy as it was before.
struct V2 {
    controllers: String,
    groups: Vec<PathBuf>,
}

impl V2 {
    /// For this thread and what it starts.
    fn enter() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount(c"cgroup2", ROOT, c"cgroup2", MountFlags::empty(), c"").unwrap();
        Self { controllers: controllers(), groups: Vec::new() }
    }
}

fn controllers() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("cgroup.subtree_control")).unwrap()
}

impl Drop for V2 {
    fn drop(&mut self) {
        for group in &self.groups {
            let _ = std::fs::write(group.join("cgroup.kill"), "1");
            for child in std::fs::read_dir(group).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(child.path());
            }
            let _ = std::fs::remove_dir(group);
        }
        for name in controllers().split_whitespace().filter(|name| !self.controllers.contains(name)) {
            let _ = std::fs::write(Path::new(ROOT).join("cgroup.subtree_control"), format!("-{name}"));
        }
    }
}

fn disk() -> [String; 2] {
    let disk = std::fs::read_dir("/sys/block").unwrap().next().unwrap().unwrap().path();
    let numbers = std::fs::read_to_string(disk.join("dev")).unwrap();
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    [major.to_owned(), minor.to_owned()]
}

#[test]
fn on_v2_root_in_a_container_opens_no_disk_of_the_host() {
    let mut v2 = V2::enter();
    // Here, so that its threads are in the namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let host = Host::new().await;
        v2.groups.push(Path::new(ROOT).join(host.cgroup_parent()));
        let [major, minor] = disk();
        let command = ["sh", "-c", READ_A_DISK, &major, &minor];

        let (_, said) = host.run(&command, |_, _| {}).await;
        assert!(said.contains("made") && said.contains("null") && !said.contains("open\n"), "{said}");
        assert!(said.contains("Operation not permitted"), "{said}");
        let id = host.start(&["sleep", "1000"], |_, _| {}).await;
        let (_, exec) = host.exec(&id, &command, |_| {}).await;
        assert!(exec.contains("Operation not permitted") && !exec.contains("open\n"), "{exec}");
        host.engine.kill(&id, "KILL").await.unwrap();
        let (_, asked) = host.run(&command, |_, h| h.device_cgroup_rules = vec![format!("b {major}:{minor} r")]).await;
        assert!(asked.contains("open\n"), "{asked}");
        let (_, privileged) = host.run(&command, |_, h| h.privileged = true).await;
        assert!(privileged.contains("open\n"), "{privileged}");

        // The runtime thinks it put the container into its group, and did not.
        let id = host.create(&["sh", "-c", "echo ran"], |_, _| {}).await;
        let group = Path::new(ROOT).join(host.cgroup_parent()).join(&id);
        std::fs::create_dir_all(&group).unwrap();
        mount_bind("/dev/null", group.join("cgroup.procs")).unwrap();
        let refused = host.engine.start(&id).await.unwrap_err().to_string();
        assert!(refused.contains("failed to limit access to devices"), "{refused}");
        assert!(!host.logs(&id).await.contains("ran"));
        let _ = nix::mount::umount2(&group.join("cgroup.procs"), nix::mount::MntFlags::MNT_DETACH);
    });
}
