//! The runtime library's traps, each closed: what a process sees is compared with what Docker gives it.

use skep_engine::container::*;

use crate::host::{Host, until};

/// Docker's 14 capabilities.
const DEFAULT_CAPS: &str = "00000000a80425fb";

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|l| l.strip_prefix(&format!("{name}:"))).unwrap_or_default().trim()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_1_exec_is_confined_like_the_command() {
    let host = Host::new().await;
    let id = host.start(&["sh", "-c", "cat /proc/self/status; sleep 1000"], |_, _| {}).await;
    until("status", || true).await;
    let root = host.exec(&id, &["cat", "/proc/self/status"], |_| {}).await.1;
    let bee = host.exec(&id, &["cat", "/proc/self/status"], |e| e.user = "bee".into()).await.1;
    let init = host.exec(&id, &["cat", "/proc/1/status"], |_| {}).await.1;
    for (who, status) in [("exec", &root), ("exec as bee", &bee), ("init", &init)] {
        assert_eq!(field(status, "Seccomp"), "2", "{who}");
        assert_eq!(field(status, "NoNewPrivs"), "0", "{who}");
        assert_eq!(field(status, "CapBnd"), DEFAULT_CAPS, "{who}");
        assert_eq!(field(status, "CapInh"), "0000000000000000", "{who}");
        assert_eq!(field(status, "CapAmb"), "0000000000000000", "{who}");
    }
    assert_eq!((field(&root, "CapEff"), field(&root, "CapPrm")), (DEFAULT_CAPS, DEFAULT_CAPS));
    assert_eq!((field(&bee, "CapEff"), field(&bee, "CapPrm")), ("0000000000000000", "0000000000000000"));
    // The filter acts, not only shows.
    let (code, said) = host.exec(&id, &["unshare", "-m", "true"], |_| {}).await;
    assert!(code != 0 && said.contains("not permitted"), "{said}");
    let (_, privileged) = host.exec(&id, &["cat", "/proc/self/status"], |e| e.privileged = true).await;
    assert_eq!(field(&privileged, "Seccomp"), "0");
    // One filter, not one an exec on top of the other.
    assert_eq!(field(&root, "Seccomp_filters"), "1", "{root}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_2_limits_cannot_be_raised_from_inside() {
    let host = Host::new().await;
    let (_, said) = host
        .run(
            &["sh", "-c", "for f in memory/memory.limit_in_bytes pids/pids.max; do echo 900000000 > /sys/fs/cgroup/$f && echo raised; done; cat /sys/fs/cgroup/pids/pids.max"],
            |_, host| {
                host.memory = 64 << 20;
                host.pids_limit = Some(10);
            },
        )
        .await;
    assert!(!said.contains("raised") && said.lines().any(|l| l == "10"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_3_the_filter_loads_with_and_without_no_new_privileges() {
    let host = Host::new().await;
    for (option, expected) in [("no-new-privileges", "1"), ("no-new-privileges:false", "0")] {
        let (code, said) = host
            .run(&["cat", "/proc/self/status"], |config, host| {
                host.security_opt = vec![option.into()];
                config.user = "bee".into();
            })
            .await;
        assert_eq!((code, field(&said, "NoNewPrivs"), field(&said, "Seccomp")), (0, expected, "2"), "{option}");
    }
    let (_, said) = host.run(&["cat", "/proc/self/status"], |_, host| host.cap_drop = vec!["ALL".into()]).await;
    assert_eq!((field(&said, "CapBnd"), field(&said, "Seccomp")), ("0000000000000000", "2"));
    let (_, said) = host.run(&["cat", "/proc/self/status"], |_, host| host.privileged = true).await;
    assert_eq!(field(&said, "Seccomp"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_4_an_entry_point_for_root_alone_runs_for_root() {
    let host = Host::new().await;
    assert_eq!(host.run(&["/bin/private"], |_, _| {}).await, (0, "private\n".into()));
    // Looked up in the container's own PATH, also if that is odd.
    let (code, said) = host.run(&["private"], |config, _| config.env = vec!["PATH=/nowhere:/bin".into()]).await;
    assert_eq!((code, said.as_str()), (0, "private\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_5_a_command_that_cannot_be_run_is_told_at_start() {
    let host = Host::new().await;
    let prefix = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create \
                  failed: unable to start container process: ";
    let cases = [
        ("nope", 127, "exec: \"nope\": executable file not found in $PATH: unknown"),
        ("/nope", 127, "exec: \"/nope\": stat /nope: no such file or directory: unknown"),
        ("/etc/passwd", 126, "exec: \"/etc/passwd\": permission denied: unknown"),
        ("/etc", 126, "exec: \"/etc\": is a directory: unknown"),
        ("/bin/broken", 126, "exec /bin/broken: exec format error: unknown"),
    ];
    for (command, code, text) in cases {
        let id = host.create(&[command], |_, _| {}).await;
        let error = host.engine.start(&id).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{prefix}{text}"));
        let state = host.engine.inspect(&id).unwrap().state.clone();
        assert_eq!((state.exit_code, state.status), (code, Status::Created), "{command}");
        let group = format!("/sys/fs/cgroup/pids/{}/{id}", host.cgroup_parent());
        assert!(!std::path::Path::new(&group).exists(), "nothing half-made stays");
    }
    let id = host.create(&["true"], |config, _| config.user = "wasp".into()).await;
    let error = host.engine.start(&id).await.unwrap_err().to_string();
    assert_eq!(error, "unable to find user wasp: no matching entries in passwd file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_6_a_low_file_limit_is_for_the_command_alone() {
    let host = Host::new().await;
    let change = |_: &mut skep_model::container::ContainerConfig, host: &mut skep_model::container::HostConfig| {
        host.ulimits = vec![skep_model::container::Ulimit { name: "nofile".into(), soft: 5, hard: 6 }];
    };
    assert_eq!(host.run(&["sh", "-c", "ulimit -n; ulimit -Hn"], change).await, (0, "5\n6\n".into()));
    let id = host.start(&["sleep", "1000"], change).await;
    assert_eq!(host.exec(&id, &["sh", "-c", "ulimit -n"], |_| {}).await, (0, "5\n".into()), "for exec too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_7_the_cgroup_is_where_it_was_said_to_be() {
    let host = Host::new().await;
    let id = host.start(&["sleep", "1000"], |_, _| {}).await;
    let pid = host.engine.inspect(&id).unwrap().state.pid;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&format!(":/{}/{id}", host.cgroup_parent())), "{groups}");
    assert!(!groups.contains("youki"), "{groups}");
    let adjusted = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(adjusted.trim(), "0", "the supervisor's own -999 is not inherited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_8_devices_are_only_the_usual_ones() {
    let host = Host::new().await;
    let (_, said) = host
        .sh("ls /dev; dd if=/dev/null of=/dev/null count=1 && echo null works; cat /dev/full | head -c 1 | wc -c")
        .await;
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"] {
        assert!(said.lines().any(|l| l == device), "{device}: {said}");
    }
    assert!(said.contains("null works"), "{said}");
    assert!(!said.lines().any(|l| l.starts_with("sd") || l.starts_with("vd") || l == "kmsg"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_9_a_signal_that_is_handled_does_not_mark_it_stopped() {
    let host = Host::new().await;
    let id = host
        .start(
            &["sh", "-c", "trap 'echo hup' HUP; trap 'exit 5' TERM; echo ready; while true; do sleep 0.05; done"],
            |_, _| {},
        )
        .await;
    let log = host.engine.inspect(&id).unwrap().log_path.clone();
    let said = move |text: &str| std::fs::read_to_string(&log).unwrap_or_default().contains(text);
    until("ready", || said("ready")).await;
    host.engine.kill(&id, "HUP").await.unwrap();
    until("hup", || said("hup")).await;
    assert_eq!(host.engine.inspect(&id).unwrap().state.status, Status::Running);
    assert_eq!(host.exec(&id, &["true"], |_| {}).await.0, 0, "still to be entered");
    host.engine.stop(&id, StopOptions::default()).await.unwrap();
    assert_eq!(host.engine.inspect(&id).unwrap().state.exit_code, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_10_execs_leave_nothing_behind() {
    let host = Host::new().await;
    let id = host.start(&["sleep", "1000"], |_, _| {}).await;
    for _ in 0..5 {
        host.exec(&id, &["true"], |_| {}).await;
    }
    host.exec(&id, &["true"], |e| e.tty = true).await;
    let state = host.folder().join("run/supervisor/state");
    let names: Vec<_> = std::fs::read_dir(state.join(&id)).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().starts_with("tenant-")), "{names:?}");
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
    let pid = host.engine.supervisor_pid().unwrap();
    let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    // A zombie would hold up the container's end: all but its init are reaped.
    until("one child", || children().split_whitespace().count() == 1).await;
}
