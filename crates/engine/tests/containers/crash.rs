//! Daemons that die: what the next one finds.

use std::process::Command;
use std::time::Duration;

use skep_engine::Engine;
use skep_engine::container::*;

use crate::host::{Host, kill, until};

/// A daemon that goes away without a word: its tasks end where they stand. (The process itself is killed in
/// `a_killed_daemon_loses_no_line`.)
async fn vanish(engine: &Engine) {
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_the_daemon_and_are_adopted() {
    let mut host = Host::new().await;
    let script = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done";
    let id = host.start(&["sh", "-c", script], |_, _| {}).await;
    let short = host.start(&["sh", "-c", "sleep 0.3; echo last words; exit 9"], |_, _| {}).await;
    let before = host.engine.inspect(&id).unwrap().state.clone();
    vanish(&host.engine.clone()).await;
    // While no daemon is there, one of them ends.
    let exits = host.folder().join("run/supervisor/exits").join(&short);
    until("exit code on disk", || exits.exists()).await;
    host.reopen().await;
    let after = host.engine.inspect(&id).unwrap().state.clone();
    assert_eq!((after.status, after.pid, after.started_at), (Status::Running, before.pid, before.started_at));
    let ended = host.engine.inspect(&short).unwrap().state.clone();
    assert_eq!((ended.status, ended.exit_code), (Status::Exited, 9));
    assert_eq!(host.logs(&short).await, "last words\n");
    assert_eq!(host.exec(&id, &["echo", "in"], |_| {}).await, (0, "in\n".into()));
    host.engine.kill(&id, "KILL").await.unwrap();
    let said = host.logs(&id).await;
    let numbers: Vec<u32> = said.lines().map(|l| l.parse().unwrap()).collect();
    let expected: Vec<u32> = (1..=u32::try_from(numbers.len()).unwrap()).collect();
    assert!(
        numbers == expected && numbers.len() > 5,
        "lines are lost or doubled around {:?}",
        numbers.iter().zip(&expected).find(|(a, b)| a != b)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_being_started_when_the_daemon_died_runs_with_its_network() {
    let mut host = Host::new().await;
    let id = host.start(&["sleep", "1000"], |_, _| {}).await;
    let before = host.engine.inspect(&id).unwrap();
    vanish(&host.engine.clone()).await;
    // As the record was when the supervisor had been asked, and had not answered yet.
    let file = host.folder().join("data/containers").join(&id).join("config.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["state"]["status"] = "created".into();
    record["state"]["pid"] = 0.into();
    std::fs::write(&file, record.to_string()).unwrap();
    host.reopen().await;
    let after = host.engine.inspect(&id).unwrap();
    assert_eq!((after.state.status, after.state.pid), (Status::Running, before.state.pid));
    assert_eq!(after.sandbox, before.sandbox);
    assert!(after.sandbox.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_upgrades_in_place() {
    let host = Host::new().await;
    let id = host.start(&["sh", "-c", "while test ! -e /go; do sleep 0.02; done; echo went; exit 4"], |_, _| {}).await;
    let pid = host.engine.supervisor_pid().unwrap();
    host.engine.upgrade_supervisor(std::path::Path::new(env!("CARGO_BIN_EXE_skep-engine-supervisor"))).await.unwrap();
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("--resume"), "the same process, another program: {line:?}");
    assert_eq!(host.exec(&id, &["touch", "/go"], |_| {}).await.0, 0);
    let outcome = host.engine.wait(&id, WaitCondition::NotRunning).await.unwrap();
    assert_eq!(outcome.exit_code, 4);
    assert_eq!(host.logs(&id).await, "went\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_lease_is_not_extended_is_killed_without_a_daemon() {
    let mut host = Host::new().await;
    let leased = host.start(&["sleep", "1000"], |_, _| {}).await;
    let free = host.start(&["sleep", "1000"], |_, _| {}).await;
    let short = skep_engine::since_boot() + Duration::from_secs(2);
    host.engine.lease(&leased, short).await.unwrap();
    // Neither another program nor the end of the daemon makes it forget.
    host.engine.upgrade_supervisor(std::path::Path::new(env!("CARGO_BIN_EXE_skep-engine-supervisor"))).await.unwrap();
    vanish(&host.engine.clone()).await;
    let exits = host.folder().join("run/supervisor/exits");
    until("killed", || exits.join(&leased).exists()).await;
    assert!(skep_engine::since_boot() >= short, "too early");
    host.reopen().await;
    let state = |id: &str| host.engine.inspect(id).unwrap().state.clone();
    assert_eq!((state(&leased).status, state(&leased).exit_code), (Status::Exited, 137));
    assert_eq!(state(&free).status, Status::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_supervisor_is_replaced_and_its_containers_are_settled() {
    let host = Host::new().await;
    let id = host.start(&["sleep", "1000"], |_, _| {}).await;
    let (supervisor, init) = (host.engine.supervisor_pid().unwrap(), host.engine.inspect(&id).unwrap().state.pid);
    kill(supervisor);
    until("settled", || host.engine.inspect(&id).unwrap().state.status == Status::Exited).await;
    assert_eq!(host.engine.inspect(&id).unwrap().state.exit_code, 255);
    until("gone", || !std::path::Path::new(&format!("/proc/{init}/root/bin")).exists()).await;
    host.engine.start(&id).await.unwrap();
    assert_ne!(host.engine.supervisor_pid().unwrap(), supervisor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_ends_when_nobody_needs_it() {
    let host = Host::new().await;
    let pid = host.engine.supervisor_pid().unwrap();
    assert_eq!(host.sh("true").await.0, 0);
    host.engine.close().await;
    until("ended", || Command::new("kill").args(["-0", &pid.to_string()]).output().is_ok_and(|o| !o.status.success()))
        .await;
}

const DAEMON_FOLDER: &str = "SKEP_TEST_DAEMON_FOLDER";
const DAEMON_TAG: &str = "SKEP_TEST_DAEMON_TAG";

/// Not a test by itself: what `a_killed_daemon_loses_no_line` starts and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_daemon() {
    let (Ok(folder), Ok(tag)) = (std::env::var(DAEMON_FOLDER), std::env::var(DAEMON_TAG)) else { return };
    let _engine = crate::host::open(std::path::Path::new(&folder), &tag).await;
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_loses_no_line() {
    let mut host = Host::new().await;
    let script = "i=0; while true; do i=$((i+1)); echo line $i; done";
    let id = host.start(&["sh", "-c", script], |_, _| {}).await;
    let log = host.engine.inspect(&id).unwrap().log_path.clone();
    vanish(&host.engine.clone()).await;
    let size = || std::fs::metadata(&log).map_or(0, |m| m.len());
    for round in 0..5 {
        let before = size();
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_daemon", "--nocapture"])
            .env(DAEMON_FOLDER, host.folder())
            .env(DAEMON_TAG, host.tag())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Each time at another place of its life.
        until("the log grows", || size() > before + 50_000 * round).await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    host.reopen().await;
    assert_eq!(host.engine.inspect(&id).unwrap().state.status, Status::Running);
    host.engine.kill(&id, "KILL").await.unwrap();
    let said = host.logs(&id).await;
    let mut expected = 0;
    for line in said.lines() {
        expected += 1;
        // The last one may have been cut by the kill of the container itself.
        assert!(
            line == format!("line {expected}") || said.lines().count() == expected,
            "{line:?} instead of line {expected}"
        );
    }
    assert!(expected > 1000, "{expected}");
}
