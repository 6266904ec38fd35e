//! create, start, stop, logs, attach, exec, pause, health, restart, remove.

use std::time::Duration;

use futures_util::StreamExt;
use skep_engine::ErrorKind;
use skep_engine::container::*;
use skep_model::container::{HealthConfig, Ulimit};

use crate::host::{Host, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_and_its_output_and_exit_code_are_kept() {
    let host = Host::new().await;
    let (code, said) = host.sh("echo out; echo err >&2; hostname; pwd; id; exit 3").await;
    assert_eq!(code, 3);
    let mut lines = said.lines().collect::<Vec<_>>();
    lines.sort_unstable();
    assert!(lines.contains(&"out") && lines.contains(&"err") && lines.contains(&"/"), "{said}");
    assert!(said.contains("uid=0(root)"), "{said}");
    let record = &host.engine.list(ListOptions { all: true })[0];
    assert_eq!((record.state.status, record.state.exit_code, record.state.pid), (Status::Exited, 3, 0));
    assert!(said.contains(record.id.short()), "the hostname is the short id: {said}");
    assert!(host.engine.list(ListOptions::default()).is_empty());
    host.engine.remove(record.id.short(), RemoveOptions::default()).await.unwrap();
    let error = host.engine.inspect(record.id.as_str()).unwrap_err();
    assert_eq!(error.to_string(), format!("No such container: {}", record.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_states_and_refusals_are_dockers() {
    let host = Host::new().await;
    let request = |name: &str| CreateRequest {
        name: Some(name.to_owned()),
        config: skep_model::container::ContainerConfig {
            image: "busybox".into(),
            cmd: Some(skep_model::container::StringOrList(vec!["sleep".into(), "1000".into()])),
            ..Default::default()
        },
        host_config: skep_model::container::HostConfig { network_mode: "none".into(), ..Default::default() },
        ..CreateRequest::default()
    };
    let id = host.engine.create(request("/web")).await.unwrap().id;
    let taken = host.engine.create(request("web")).await.unwrap_err();
    assert_eq!(
        taken.to_string(),
        format!(
            "Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
        )
    );
    let mut missing = request("other");
    missing.config.image = "nothing".into();
    let error = host.engine.create(missing).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), ("No such image: nothing:latest", ErrorKind::NotFound));

    assert_eq!(host.engine.stop("web", StopOptions::default()).await.unwrap_err().kind(), ErrorKind::NotModified);
    host.engine.start("web").await.unwrap();
    assert_eq!(host.engine.start("web").await.unwrap_err().kind(), ErrorKind::NotModified);
    let error = host.engine.remove("web", RemoveOptions::default()).await.unwrap_err();
    assert!(error.to_string().starts_with("You cannot remove a running container "), "{error}");
    host.engine.rename("web", "honey").await.unwrap();
    assert_eq!(host.engine.inspect("/honey").unwrap().id, id);

    host.engine.pause("honey").await.unwrap();
    assert_eq!(host.engine.inspect("honey").unwrap().state.status, Status::Paused);
    host.engine.unpause("honey").await.unwrap();
    let top = host.engine.top("honey", "").await.unwrap();
    assert_eq!((top.processes.len(), top.processes[0][7].as_str()), (1, "sleep 1000"));
    let stats = host.engine.stats("honey", true).await.unwrap();
    assert!(stats.current.memory_usage > 0 && stats.current.pids_current == 1, "{stats:?}");

    // busybox's sleep as pid 1 ignores TERM.
    host.engine.stop("honey", StopOptions { timeout_secs: Some(0), signal: None }).await.unwrap();
    let state = host.engine.inspect("honey").unwrap().state.clone();
    assert_eq!((state.status, state.exit_code, state.oom_killed), (Status::Exited, 137, false));
    let error = host.engine.kill("honey", "").await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot kill container: honey: container {id} is not running"));
    host.engine.remove("honey", RemoveOptions { force: true, volumes: true }).await.unwrap();
    let left = format!("/sys/fs/cgroup/pids/{}/{id}", host.cgroup_parent());
    assert!(!std::path::Path::new(&left).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_carries_input_and_output() {
    let host = Host::new().await;
    let id = host
        .create(&["sh", "-c", "read line; echo got $line; cat"], |config, _| {
            config.open_stdin = true;
            config.stdin_once = true;
        })
        .await;
    let request = AttachRequest { stdin: true, stdout: true, stderr: true, logs: false, stream: true };
    let attached = host.engine.attach(&id, request).await.unwrap();
    let mut stdin = attached.stdin.unwrap();
    let writing = tokio::spawn(async move {
        stdin.write_all(b"hello\n").await.unwrap();
        stdin.write_all(b"rest").await.unwrap();
        stdin.close().await.unwrap();
    });
    host.engine.start(&id).await.unwrap();
    let chunks: Vec<_> = tokio::time::timeout(Duration::from_secs(20), attached.output.collect()).await.unwrap();
    writing.await.unwrap();
    let said: String = chunks.into_iter().map(|c| String::from_utf8_lossy(&c.unwrap().data).into_owned()).collect();
    assert_eq!(said, "got hello\nrest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_one_and_can_be_resized() {
    let host = Host::new().await;
    let id = host
        .create(
            &["sh", "-c", "read go; test -t 0 && test -t 1 && echo terminal; stty size; echo $TERM"],
            |config, _| {
                config.tty = true;
                config.open_stdin = true;
            },
        )
        .await;
    let request = AttachRequest { stdin: true, stdout: true, stderr: true, logs: false, stream: true };
    let attached = host.engine.attach(&id, request).await.unwrap();
    assert!(attached.tty);
    host.engine.start(&id).await.unwrap();
    host.engine.resize(&id, 33, 99).await.unwrap();
    attached.stdin.unwrap().write_all(b"go\n").await.unwrap();
    let chunks: Vec<_> = tokio::time::timeout(Duration::from_secs(20), attached.output.collect()).await.unwrap();
    let said: String = chunks.into_iter().map(|c| String::from_utf8_lossy(&c.unwrap().data).into_owned()).collect();
    assert!(said.contains("terminal\r\n33 99\r\nxterm\r\n"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_runs_beside_the_command() {
    let host = Host::new().await;
    let id = host.start(&["sleep", "1000"], |config, _| config.env = vec!["A=1".into()]).await;
    assert_eq!(
        host.exec(&id, &["sh", "-c", "echo $A $B; pwd; exit 7"], |e| e.env = vec!["B=2".into()]).await,
        (7, "1 2\n/\n".into())
    );
    let (code, said) = host.exec(&id, &["id"], |e| e.user = "bee".into()).await;
    assert_eq!((code, said.trim()), (0, "uid=1000(bee) gid=1000(bee) groups=1000(bee),1001(hive)"));
    let (_, said) = host
        .exec(&id, &["sh", "-c", "test -t 1 && echo tty; pwd"], |e| {
            e.tty = true;
            e.working_dir = "/tmp".into();
        })
        .await;
    assert_eq!(said, "tty\r\n/tmp\r\n");
    let exec = ExecConfig { cmd: vec!["nope".into()], attach_stdout: true, ..ExecConfig::default() };
    let exec = host.engine.exec_create(&id, exec).await.unwrap();
    let error = host.engine.exec_start_attached(&exec).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "OCI runtime exec failed: exec failed: unable to start container process: exec: \"nope\": executable file not found in $PATH: unknown"
    );
    assert_eq!(host.engine.exec_inspect(&exec).unwrap().exit_code, Some(127));
    let detached = ExecConfig { cmd: vec!["touch".into(), "/tmp/made".into()], ..ExecConfig::default() };
    let detached = host.engine.exec_create(&id, detached).await.unwrap();
    host.engine.exec_start_detached(&detached).await.unwrap();
    until("detached exec", || host.engine.exec_inspect(&detached).unwrap().exit_code == Some(0)).await;
    assert_eq!(host.exec(&id, &["ls", "/tmp"], |_| {}).await.1, "made\n");
    // Input.
    let exec = ExecConfig { cmd: vec!["cat".into()], attach_stdin: true, attach_stdout: true, ..ExecConfig::default() };
    let exec = host.engine.exec_create(&id, exec).await.unwrap();
    let attached = host.engine.exec_start_attached(&exec).await.unwrap();
    let mut stdin = attached.stdin.unwrap();
    stdin.write_all(b"through").await.unwrap();
    drop(stdin);
    let chunks: Vec<_> = attached.output.collect().await;
    assert_eq!(chunks.into_iter().map(|c| c.unwrap().data).collect::<Vec<_>>().concat(), b"through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_volumes_limits_and_users_are_as_asked_for() {
    let host = Host::new().await;
    let source = host.folder().join("bound");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("file"), "bound\n").unwrap();
    let bind = format!("{}:/data:ro", source.display());
    let script = "cat /data/file; touch /data/x || echo read-only; cat /vol/seed; id -u; pwd; ulimit -n; \
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes; cat /etc/hosts | head -n 1; touch /root-fs || echo ro-root; \
                  mount | grep ' /scratch ' | head -n 1";
    let (code, said) = host
        .run(&["sh", "-c", script], |config, host| {
            config.user = "bee:hive".into();
            config.working_dir = "/made/for/it".into();
            host.binds = vec![bind, "named:/vol".into()];
            host.memory = 64 << 20;
            host.readonly_rootfs = true;
            host.tmpfs.insert("/scratch".into(), "size=1m".into());
            host.ulimits = vec![Ulimit { name: "nofile".into(), soft: 12, hard: 12 }];
        })
        .await;
    assert_eq!(code, 0, "{said}");
    for line in [
        "bound",
        "read-only",
        "from the image",
        "1000",
        "/made/for/it",
        "12",
        "67108864",
        "127.0.0.1\tlocalhost",
        "ro-root",
    ] {
        assert!(said.lines().any(|l| l == line), "{line:?} in {said}");
    }
    assert!(said.contains("size=1024k"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_beyond_the_limit_is_told_as_oom() {
    let host = Host::new().await;
    let id = host
        .start(
            &[
                "sh",
                "-c",
                "dd if=/dev/zero of=/dev/shm/fill bs=1M count=60; x=$(yes | head -c 60000000); echo survived",
            ],
            |_, host| {
                host.memory = 16 << 20;
                host.memory_swap = 16 << 20;
            },
        )
        .await;
    host.engine.wait(&id, WaitCondition::NotRunning).await.unwrap();
    let state = host.engine.inspect(&id).unwrap().state.clone();
    assert!(state.oom_killed, "{state:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_restart_and_stop_ends_them() {
    let host = Host::new().await;
    let id = host
        .start(&["sh", "-c", "echo run; exit 1"], |_, host| {
            host.restart_policy.name = "on-failure".into();
            host.restart_policy.maximum_retry_count = 2;
        })
        .await;
    host.engine.wait(&id, WaitCondition::NotRunning).await.unwrap();
    assert_eq!(host.logs(&id).await, "run\nrun\nrun\n");
    assert_eq!(host.engine.inspect(&id).unwrap().restart_count, 2);
    let always = host.start(&["true"], |_, host| host.restart_policy.name = "always".into()).await;
    until("second run", || host.engine.inspect(&always).unwrap().restart_count >= 2).await;
    let _ = host.engine.stop(&always, StopOptions::default()).await;
    until("stopped for good", || host.engine.inspect(&always).unwrap().state.status == Status::Exited).await;
    let removed = host.create(&["true"], |_, host| host.auto_remove = true).await;
    let engine = host.engine.clone();
    let key = removed.clone();
    let waiting = tokio::spawn(async move { engine.wait(&key, WaitCondition::Removed).await });
    host.engine.start(&removed).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().exit_code, 0);
    assert!(host.engine.inspect(&removed).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_probed() {
    let host = Host::new().await;
    let id = host
        .start(&["sleep", "1000"], |config, _| {
            config.healthcheck = Some(HealthConfig {
                test: vec!["CMD-SHELL".into(), "echo checked; test -e /tmp/well".into()],
                interval: 50_000_000,
                retries: 2,
                ..HealthConfig::default()
            });
        })
        .await;
    let health = || host.engine.inspect(&id).unwrap().state.health.clone().unwrap();
    until("unhealthy", || health().status == HealthStatus::Unhealthy).await;
    assert_eq!((health().log[0].exit_code, health().log[0].output.as_str()), (1, "checked\n"));
    host.exec(&id, &["touch", "/tmp/well"], |_| {}).await;
    until("healthy", || health().status == HealthStatus::Healthy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_followed_to_the_end() {
    let host = Host::new().await;
    let id = host.start(&["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], |_, _| {}).await;
    let request = LogsRequest { stdout: true, follow: true, ..LogsRequest::default() };
    let records = host.engine.logs(&id, request).await.unwrap().collect::<Vec<_>>();
    let records = tokio::time::timeout(Duration::from_secs(20), records).await.unwrap();
    let said: Vec<_> = records.into_iter().map(|r| r.unwrap().data).collect();
    assert_eq!(said.concat(), b"1\n2\n3\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_passes_signals_on_and_reaps() {
    let host = Host::new().await;
    let script = "trap 'exit 6' TERM; (sleep 0.01 &); echo ready; while true; do sleep 0.05; done";
    let id = host.start(&["sh", "-c", script], |_, host| host.init = Some(true)).await;
    let log = host.engine.inspect(&id).unwrap().log_path.clone();
    until("ready", || std::fs::read_to_string(&log).unwrap_or_default().contains("ready")).await;
    let first = host.exec(&id, &["cat", "/proc/1/cmdline"], |_| {}).await.1;
    assert!(first.starts_with("/sbin/docker-init\0init\0--\0sh"), "{first:?}");
    host.engine.stop(&id, StopOptions::default()).await.unwrap();
    assert_eq!(host.engine.inspect(&id).unwrap().state.exit_code, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_never_syncs_its_root_and_can_be_restarted() {
    let host = Host::new().await;
    let request = CreateRequest {
        config: skep_model::container::ContainerConfig {
            image: "busybox".into(),
            cmd: Some(skep_model::container::StringOrList(vec!["sleep".into(), "1000".into()])),
            ..Default::default()
        },
        host_config: skep_model::container::HostConfig { network_mode: "none".into(), ..Default::default() },
        task: Some(TaskExtras {
            task_id: "x".into(),
            files: vec![TaskFile {
                target: "/run/secrets/honey".into(),
                uid: 1000,
                gid: 0,
                mode: 0o440,
                data: skep_model::secret::SecretBytes(b"sweet".to_vec()),
            }],
        }),
        ..CreateRequest::default()
    };
    let id = host.engine.create(request).await.unwrap().id.to_string();
    host.engine.start(&id).await.unwrap();
    let script =
        "mount | grep -c '^overlay on / .*volatile'; ls -ln /run/secrets/honey; cat /run/secrets/honey; touch /made";
    let (_, said) = host.exec(&id, &["sh", "-c", script], |_| {}).await;
    assert!(said.starts_with("1\n-r--r-----") && said.contains(" 1000 ") && said.ends_with("sweet"), "{said}");
    host.engine.restart(&id, StopOptions { timeout_secs: Some(0), signal: None }).await.unwrap();
    let (_, said) = host.exec(&id, &["sh", "-c", "ls /made; cat /run/secrets/honey"], |_| {}).await;
    assert_eq!(said, "/made\nsweet");
    // The secret is nowhere on disk.
    let config = std::fs::read_to_string(host.folder().join("data/containers").join(&id).join("config.json")).unwrap();
    assert!(!config.contains("sweet"));
    host.engine.remove(&id, RemoveOptions { force: true, volumes: false }).await.unwrap();
    assert_eq!(std::fs::read_dir(host.folder().join("run/bundles")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_container_that_never_stops_talking_does_not_starve_the_rest() {
    let host = Host::new().await;
    let id = host.start(&["yes"], |_, host| host.log_config.config = [("max-size".into(), "1m".into())].into()).await;
    let other = host.sh("echo heard");
    let other = tokio::time::timeout(Duration::from_secs(20), other).await.expect("one thread is enough for both");
    assert_eq!(other, (0, "heard\n".into()));
    let removed = host.engine.remove(&id, RemoveOptions { force: true, volumes: true });
    tokio::time::timeout(Duration::from_secs(20), removed).await.expect("and to remove it").unwrap();
}
