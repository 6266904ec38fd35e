//! A throw-away engine with a busybox image, and helpers to run things on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use skep_engine::container::*;
use skep_engine::image::ImportOptions;
use skep_engine::{Engine, EngineConfig, Result, SandboxDriver};
use skep_model::ContainerId;
use skep_model::container::{ContainerConfig, HostConfig, StringOrList};
use skep_model::sandbox::{EndpointInfo, EndpointRequest, Sandbox, SandboxRequest};

/// Every container gets an empty namespace of its own.
struct NoNetwork;

#[async_trait]
impl SandboxDriver for NoNetwork {
    async fn setup(&self, request: &SandboxRequest) -> Result<Sandbox> {
        let hosts_file = format!("127.0.0.1\tlocalhost\n127.0.1.1\t{}\n", request.hostname);
        Ok(Sandbox { hosts_file, resolv_conf: "nameserver 127.0.0.11\n".to_owned(), ..Sandbox::default() })
    }
    async fn teardown(&self, _id: &ContainerId) -> Result<()> {
        Ok(())
    }
    async fn connect(&self, _id: &ContainerId, _request: &EndpointRequest) -> Result<EndpointInfo> {
        unreachable!()
    }
    async fn disconnect(&self, _id: &ContainerId, _network: &str, _force: bool) -> Result<()> {
        unreachable!()
    }
}

pub(crate) struct Host {
    pub(crate) engine: Engine,
    folder: PathBuf,
    tag: String,
}

impl Host {
    pub(crate) async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let tag = format!("t{:x}n{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("skep-engine-{tag}"));
        std::fs::create_dir_all(&folder).unwrap();
        let engine = open(&folder, &tag).await;
        let host = Self { engine, folder, tag };
        let options = ImportOptions { reference: Some("busybox:latest".to_owned()), ..ImportOptions::default() };
        let tar = bytes::Bytes::from(busybox_tar());
        let input = Box::pin(futures_util::stream::once(async move { Ok(tar) }));
        host.engine.images().import(input, options).await.unwrap();
        host
    }

    /// What another daemon on the same roots finds.
    pub(crate) async fn reopen(&mut self) {
        self.engine = open(&self.folder, &self.tag).await;
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        format!("skep-{}", self.tag)
    }

    pub(crate) async fn create(
        &self,
        cmd: &[&str],
        change: impl FnOnce(&mut ContainerConfig, &mut HostConfig),
    ) -> String {
        let mut config = ContainerConfig {
            image: "busybox".to_owned(),
            cmd: Some(StringOrList(cmd.iter().map(|w| (*w).to_owned()).collect())),
            ..ContainerConfig::default()
        };
        let mut host_config = HostConfig { network_mode: "none".to_owned(), ..HostConfig::default() };
        change(&mut config, &mut host_config);
        let request = CreateRequest { config, host_config, ..CreateRequest::default() };
        self.engine.create(request).await.unwrap().id.to_string()
    }

    pub(crate) async fn start(
        &self,
        cmd: &[&str],
        change: impl FnOnce(&mut ContainerConfig, &mut HostConfig),
    ) -> String {
        let id = self.create(cmd, change).await;
        self.engine.start(&id).await.unwrap();
        id
    }

    /// Runs a command to its end: exit code and everything it said.
    pub(crate) async fn run(
        &self,
        cmd: &[&str],
        change: impl FnOnce(&mut ContainerConfig, &mut HostConfig),
    ) -> (i32, String) {
        let id = self.start(cmd, change).await;
        let code = self.engine.wait(&id, WaitCondition::NotRunning).await.unwrap().exit_code;
        let said = self.logs(&id).await;
        (code, said)
    }

    pub(crate) async fn sh(&self, script: &str) -> (i32, String) {
        self.run(&["sh", "-c", script], |_, _| {}).await
    }

    pub(crate) async fn logs(&self, id: &str) -> String {
        let request = LogsRequest { stdout: true, stderr: true, ..LogsRequest::default() };
        let records: Vec<_> = self.engine.logs(id, request).await.unwrap().collect().await;
        records.into_iter().map(|r| String::from_utf8_lossy(&r.unwrap().data).into_owned()).collect()
    }

    /// Exit code and output of an exec.
    pub(crate) async fn exec(&self, id: &str, cmd: &[&str], change: impl FnOnce(&mut ExecConfig)) -> (i32, String) {
        let mut config = ExecConfig {
            cmd: cmd.iter().map(|w| (*w).to_owned()).collect(),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecConfig::default()
        };
        change(&mut config);
        let exec = self.engine.exec_create(id, config).await.unwrap();
        let attached = self.engine.exec_start_attached(&exec).await.unwrap();
        let chunks: Vec<_> = attached.output.collect().await;
        let said = chunks.into_iter().map(|c| String::from_utf8_lossy(&c.unwrap().data).into_owned()).collect();
        (self.engine.exec_inspect(&exec).unwrap().exit_code.unwrap(), said)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let engine = self.engine.clone();
        // In a runtime of its own: the test's may be unwinding.
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let pid = engine.supervisor_pid();
            // Or it would start another supervisor for the one killed below.
            let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), engine.close()).await });
            pid
        });
        let supervisor = cleaner.join().ok().flatten();
        for container in
            std::fs::read_dir(format!("/sys/fs/cgroup/pids/{}", self.cgroup_parent())).into_iter().flatten().flatten()
        {
            kill_group(&container.path());
        }
        if let Some(pid) = supervisor {
            kill(pid);
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let folder = self.folder.to_string_lossy().into_owned();
        for point in mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| p.starts_with(&folder)) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = hierarchy.path().join(self.cgroup_parent());
            for child in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(child.path());
            }
            let _ = std::fs::remove_dir(parent);
        }
    }
}

fn kill_group(group: &std::path::Path) {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).for_each(kill);
}

pub(crate) fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

pub(crate) async fn open(folder: &std::path::Path, tag: &str) -> Engine {
    Engine::open(config(folder, tag), Arc::new(NoNetwork)).await.unwrap()
}

fn config(folder: &std::path::Path, tag: &str) -> EngineConfig {
    let supervisor = PathBuf::from(env!("CARGO_BIN_EXE_skep-engine-supervisor"));
    EngineConfig {
        init_exe: supervisor.clone(),
        supervisor_exe: supervisor,
        ..EngineConfig::new(folder.join("data"), folder.join("run"), tag)
    }
}

/// Asks until it is so.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn busybox_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let entry = |kind: tar::EntryType, size: u64, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header
    };
    for directory in ["bin/", "etc/", "tmp/", "home/", "home/bee/", "vol/"] {
        tar.append_data(&mut entry(tar::EntryType::Directory, 0, 0o755), directory, std::io::empty()).unwrap();
    }
    let files: [(&str, Vec<u8>, u32); 6] = [
        ("bin/busybox", std::fs::read("/bin/busybox").unwrap(), 0o755),
        ("etc/passwd", b"root:x:0:0::/root:/bin/sh\nbee:x:1000:1000::/home/bee:/bin/sh\n".to_vec(), 0o644),
        ("etc/group", b"root:x:0:\nbee:x:1000:\nhive:x:1001:bee\n".to_vec(), 0o644),
        ("bin/private", b"#!/bin/sh\necho private\n".to_vec(), 0o700),
        ("bin/broken", b"\x7fELF nonsense".to_vec(), 0o755),
        ("vol/seed", b"from the image\n".to_vec(), 0o644),
    ];
    for (path, data, mode) in files {
        let mut header = entry(tar::EntryType::Regular, data.len() as u64, mode);
        tar.append_data(&mut header, path, data.as_slice()).unwrap();
    }
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "ls", "mount", "grep", "env", "true", "false", "hostname", "stty", "trap",
        "dd", "seq", "unshare", "ps", "kill", "head", "yes", "pwd", "wc", "nc", "touch", "test", "ulimit", "mkdir",
        "chroot", "tail",
    ] {
        let mut header = entry(tar::EntryType::Symlink, 0, 0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}
