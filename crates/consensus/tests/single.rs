//! One manager: what it acknowledged it keeps, whatever happens to it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{NoPeers, alone, config, create, create_with, eventually, names};
use skep_consensus::{Consensus, Error, Notice, ProposeError};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proposed_is_applied_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Consensus::open(config(dir.path(), 1), Arc::new(NoPeers)).await.unwrap();
    assert!(!manager.has_state().await.unwrap());
    manager.bootstrap().await.unwrap();
    assert!(matches!(manager.bootstrap().await, Err(Error::AlreadyBootstrapped)));

    let mut events = manager.events();
    let applied = manager.propose(create("one")).await.unwrap();
    assert_eq!(manager.view().index(), applied.index);
    assert!(
        matches!(events.next().await, Some(Notice::Applied { index, events }) if index == applied.index && events.len() == 1)
    );
    assert_eq!(manager.linearizable_view().await.unwrap().index(), applied.index);

    manager.shutdown().await;
    assert!(events.next().await.is_none(), "the feed ends");
    assert!(names(&manager).contains("one"), "reads go on");
    assert!(matches!(manager.propose(create("two")).await, Err(ProposeError::Unavailable(_))));
    drop(manager);

    let manager = alone(dir.path()).await;
    assert!(manager.has_state().await.unwrap());
    assert!(names(&manager).contains("one"));
    let again = manager.propose(create("two")).await.unwrap();
    assert!(again.index > applied.index && again.term >= applied.term);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_answered_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = alone(dir.path()).await;
    manager.propose(create("one")).await.unwrap();
    let before = manager.view();
    assert!(matches!(manager.propose(create("one")).await, Err(ProposeError::Refused(_))));
    assert_eq!(manager.view(), before);

    let large = create_with("large", vec![0; skep_model::MAX_BATCH_BYTES]);
    assert!(matches!(manager.propose(large).await, Err(ProposeError::TooLarge { .. })));

    let term = manager.leadership().borrow().term;
    manager.propose_as_leader(term, create("mine")).await.unwrap();
    let stale = manager.propose_as_leader(term - 1, create("stale")).await;
    assert!(matches!(stale, Err(ProposeError::TermOver { wanted }) if wanted == term - 1), "{stale:?}");
    manager.propose(create("two")).await.unwrap();
    assert_eq!(names(&manager).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_falls_behind_is_told_to_start_over() {
    let dir = tempfile::tempdir().unwrap();
    let manager = alone(dir.path()).await;
    let mut events = manager.events();
    let writes = (0..1200).map(|n| manager.propose(create(&format!("c{n}"))).into_future());
    let written = futures_util::future::join_all(writes.collect::<Vec<_>>()).await;
    assert!(written.iter().all(Result::is_ok));
    assert!(matches!(events.next().await, Some(Notice::Resync { index }) if index == manager.applied_index()));
    let next = manager.propose(create("next")).await.unwrap();
    assert!(matches!(events.next().await, Some(Notice::Applied { index, .. }) if index == next.index));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_replace_the_log_behind_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path(), 1);
    (settings.snapshot_interval, settings.log_entries_for_slow_followers) = (50, 10);
    let manager = Consensus::open(settings.clone(), Arc::new(NoPeers)).await.unwrap();
    manager.bootstrap().await.unwrap();
    for n in 0..210 {
        manager.propose(create(&format!("c{n}"))).await.unwrap();
    }
    let snapshots = settings.dir.join("snapshots");
    let files = || std::fs::read_dir(&snapshots).unwrap().map(|found| found.unwrap().file_name()).collect::<Vec<_>>();
    eventually("a late snapshot, alone", || async {
        matches!(&files()[..], [one] if !one.to_string_lossy().ends_with("-51.snap"))
    })
    .await;
    manager.shutdown().await;
    drop(manager);

    let manager = Consensus::open(settings.clone(), Arc::new(NoPeers)).await.unwrap();
    common::leads(&manager).await;
    assert_eq!(names(&manager).len(), 210);
    manager.shutdown().await;
    drop(manager);

    // A damaged snapshot is said so; nobody starts empty on it.
    let file = snapshots.join(&files()[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = Consensus::open(settings, Arc::new(NoPeers)).await.err().unwrap();
    assert!(error.to_string().contains(".snap"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_a_wrong_place_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let manager = alone(dir.path()).await;
    let held = Consensus::open(config(dir.path(), 1), Arc::new(NoPeers)).await.err().unwrap();
    assert!(matches!(held, Error::InUse { .. }), "{held}");
    manager.shutdown().await;
    drop(manager);

    let mut other_key = config(dir.path(), 1);
    other_key.storage_key = [43; 32];
    let error = Consensus::open(other_key, Arc::new(NoPeers)).await.err().unwrap();
    assert!(matches!(&error, Error::WrongKey { path } if path.ends_with("raft.db")), "{error}");

    let mut other_id = config(dir.path(), 1);
    other_id.raft_id = 9;
    let error = Consensus::open(other_id, Arc::new(NoPeers)).await.err().unwrap();
    assert!(matches!(error, Error::OtherMember { found: 1, wanted: 9, .. }), "{error}");
    alone(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let manager = alone(dir.path()).await;
    for n in 0..50 {
        manager.propose(create(&format!("c{n}"))).await.unwrap();
    }
    manager.shutdown().await;
    drop(manager);
    let file = config(dir.path(), 1).dir.join("raft.db");
    let whole = std::fs::read(&file).unwrap();

    let noise = |bytes: &mut Vec<u8>, from: usize| bytes[from..].iter_mut().for_each(|byte| *byte = !*byte);
    let mut torn = vec![whole[..whole.len() / 2].to_vec(), whole[..100].to_vec(), b"not a database".to_vec()];
    for from in [0, 64, 4096, whole.len() / 4] {
        let mut bytes = whole.clone();
        noise(&mut bytes, from);
        torn.push(bytes);
    }
    for bytes in torn {
        std::fs::write(&file, &bytes).unwrap();
        // Rubbish in unused pages is fine; anything else must be an error, never a panic or a silent loss.
        match Consensus::open(config(dir.path(), 1), Arc::new(NoPeers)).await {
            Err(error) => assert!(error.to_string().contains("raft.db"), "{error}"),
            Ok(manager) => {
                common::leads(&manager).await;
                assert_eq!(names(&manager).len(), 50);
                manager.shutdown().await;
            }
        }
    }
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(names(&alone(dir.path()).await).len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_manager_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let manager = alone(dir.path()).await;
        assert_eq!(names(&manager).len(), round * 20);
        for n in 0..20 {
            manager.propose(create(&format!("r{round}-{n}"))).await.unwrap();
        }
    }
}

/// A small file system that is gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(dir.path()).status().unwrap();
        assert!(status.success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_proposals_and_keeps_reads() {
    let disk = SmallDisk::mount();
    let manager = alone(disk.0.path()).await;
    let mut kept = 0;
    let error = loop {
        match manager.propose(create_with(&format!("c{kept}"), vec![kept as u8; 100_000])).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, ProposeError::Unavailable(why) if why.contains("raft.db")), "{error}");
    assert!(kept > 3, "{kept}");
    assert_eq!(names(&manager).len(), kept);
    assert!(manager.propose(create("more")).await.is_err());
    eventually("no leadership", || async { !manager.leadership().borrow().is_leader }).await;
    manager.shutdown().await;
}

/// Run by `a_killed_manager_loses_nothing_acknowledged` in a process of its own, which is then killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_writes_until_killed() {
    let Some(dir) = std::env::var_os("SKEP_CONSENSUS_CHILD") else { return };
    let manager = alone(dir.as_ref()).await;
    let mut number = names(&manager).len();
    loop {
        manager.propose(create(&format!("k{number}"))).await.unwrap();
        println!("\nacknowledged {number}");
        std::io::stdout().flush().unwrap();
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(std::process::id());
    let (mut acknowledged, mut slowest_open) = (0, std::time::Duration::ZERO);
    for cycle in 0..25 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wanted = 1 + (seed >> 33) % 60;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_killed", "--nocapture"])
            .env("SKEP_CONSENSUS_CHILD", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let numbers = lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<usize>().ok());
        let mut seen = 0;
        for number in numbers {
            acknowledged = number + 1;
            seen += 1;
            if seen == wanted {
                // Never an error for a child of ours; what it still printed is read on.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "cycle {cycle}: the child ended by itself");
        if cycle % 5 == 4 {
            let started = Instant::now();
            let manager = alone(dir.path()).await;
            slowest_open = slowest_open.max(started.elapsed());
            let held = names(&manager);
            assert!((0..acknowledged).all(|number| held.contains(&format!("k{number}"))), "cycle {cycle}");
            manager.shutdown().await;
        }
    }
    println!("25 kills, {acknowledged} acknowledged, slowest open and election {slowest_open:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let manager = alone(dir.path()).await;
    let (started, count) = (Instant::now(), 500u32);
    for n in 0..count {
        manager.propose(create(&format!("s{n}"))).await.unwrap();
    }
    println!("sequential: {:.0}/s", f64::from(count) / started.elapsed().as_secs_f64());
    let started = Instant::now();
    let writers = (0..64u32).map(|writer| {
        let manager = manager.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                manager.propose(create(&format!("w{writer}-{n}"))).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    println!("64 at a time: {:.0}/s", f64::from(64 * 20) / started.elapsed().as_secs_f64());
    assert_eq!(names(&manager).len(), 500 + 64 * 20);
}

/// The manager's shell may outlive the runtime its consensus ran in, as at the daemon's end.
#[test]
fn nobody_spins_on_a_consensus_whose_runtime_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let manager = runtime.block_on(alone(dir.path()));
    assert!(!manager.has_ended());
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let waited = other.block_on(async { tokio::time::timeout(Duration::from_millis(50), manager.ended()).await });
    assert!(
        waited.is_err() || manager.has_ended(),
        "it returned while nothing had ended: the caller asks again, and again"
    );
}
