//! Disks that crash, fill up, break and dawdle.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::net::Net;
use common::{NoPeers, create, eventually, has, leader_of, leads, names, simulate, simulated};
use skep_consensus::{Config, Consensus, Crash, Error, Fault, Peer, ProposeError, SimDisk, force_new_cluster};
use tokio::time::Instant;

fn few_entries(disk: &SimDisk) -> Config {
    let mut config = simulated(1, 1, disk);
    (config.snapshot_interval, config.log_entries_for_slow_followers) = (4, 0);
    config.timing.propose_timeout = Duration::from_secs(2);
    config
}

/// A short life, with a snapshot, until its end or the disk's. Adds what was acknowledged.
async fn live(disk: &SimDisk, acknowledged: &mut Vec<String>) -> Result<(), Error> {
    let manager = Consensus::open(few_entries(disk), Arc::new(NoPeers)).await?;
    if !manager.has_state().await? {
        manager.bootstrap().await?;
    }
    let first = acknowledged.len();
    for number in first..first + 6 {
        let name = format!("c{number}");
        if manager.propose(create(&name)).await.is_err() {
            break;
        }
        acknowledged.push(name);
    }
    manager.shutdown().await;
    Ok(())
}

/// Every operation of the disk in a short life is the last one once. The manager that comes after has all that was
/// acknowledged, and goes on; its own start is cut short too, now and then.
fn crash_everywhere(how: impl Fn(u64) -> Crash) {
    let whole = SimDisk::default();
    simulate(live(&whole, &mut Vec::new())).unwrap();
    let operations = whole.operations();
    assert!(operations > 60, "{operations}");
    for at in 0..operations {
        let (disk, mut acknowledged) = (SimDisk::default(), Vec::new());
        disk.crash_at(at, how(at));
        simulate(async {
            // How it ended is seen by what is left.
            let _ = live(&disk, &mut acknowledged).await;
            if at % 3 == 0 {
                disk.crash_at(disk.operations() + at % 29, how(at + 1));
                let _ = Consensus::open(few_entries(&disk), Arc::new(NoPeers)).await;
            }
            disk.crash(how(at + 2));
            let lost = |what: &str| panic!("crash at {at} of {operations}, {}: {what}", acknowledged.len());
            let manager = match Consensus::open(few_entries(&disk), Arc::new(NoPeers)).await {
                Ok(manager) => manager,
                Err(error) => lost(&error.to_string()),
            };
            if !manager.has_state().await.unwrap() {
                assert!(acknowledged.is_empty(), "crash at {at}: nothing is left of {acknowledged:?}");
                manager.bootstrap().await.unwrap();
            }
            leads(&manager).await;
            let held = names(&manager);
            if let Some(missing) = acknowledged.iter().find(|name| !held.contains(*name)) {
                lost(missing);
            }
            manager.propose(create("after")).await.unwrap();
            manager.shutdown().await;
        });
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails_at_any_write() {
    crash_everywhere(|_| Crash::Lose);
}

#[test]
fn nothing_acknowledged_is_lost_when_any_write_is_torn() {
    crash_everywhere(Crash::Tear);
}

/// Three voters; the first leads.
async fn three_on(disks: &[SimDisk; 3], net: &Net) -> Vec<Consensus> {
    let mut managers = Vec::new();
    for (raft_id, disk) in (1..).zip(disks) {
        managers.push(net.start(simulated(raft_id, 1, disk)).await);
    }
    managers[0].bootstrap().await.unwrap();
    for raft_id in [2, 3] {
        managers[0].add_learner(Peer { raft_id, address: format!("10.0.0.{raft_id}:2377") }).await.unwrap();
        managers[0].promote(raft_id).await.unwrap();
    }
    managers
}

async fn a_leader_with(fault: Fault) {
    let (disks, net) = (<[SimDisk; 3]>::default(), Net::new(1));
    let managers = three_on(&disks, &net).await;
    managers[0].propose(create("before")).await.unwrap();
    disks[0].set_fault(Some(fault));
    let started = Instant::now();
    // This one may have been written by the two others before the leader noticed.
    let failed = managers[0].propose(create("during")).await;
    let refused = managers[0].propose(create("refused")).await.unwrap_err();
    assert!(matches!(&refused, ProposeError::Unavailable(why) if why.contains("/sim/m1/raft.db")), "{refused}");
    eventually("it leads no more", || async { !managers[0].leadership().borrow().is_leader }).await;
    let next = leader_of(&[&managers[1], &managers[2]]).await;
    next.propose(create("after")).await.unwrap();
    println!("{fault:?}: written by another after {:?}; meanwhile {failed:?}", started.elapsed());
    assert!(names(&managers[0]).contains("before"), "reads go on");

    // Restarted on a disk with room, it has all of it.
    net.unplug(1);
    managers[0].shutdown().await;
    disks[0].set_fault(None);
    let back = net.start(simulated(1, 2, &disks[0])).await;
    has(&back, "after").await;
    assert!(!names(&back).contains("refused"));
    assert_eq!(names(&back).contains("during"), failed.is_ok());
}

#[test]
fn a_leader_whose_disk_is_full_says_so_and_gives_way() {
    simulate(a_leader_with(Fault::Full));
}

#[test]
fn a_leader_whose_disk_is_broken_says_so_and_gives_way() {
    simulate(a_leader_with(Fault::Broken));
}

#[test]
fn a_slow_disk_of_the_leader_does_not_slow_the_others_down() {
    simulate(async {
        let (disks, net) = (<[SimDisk; 3]>::default(), Net::new(1));
        let managers = three_on(&disks, &net).await;
        disks[0].set_latency(Duration::from_secs(1));
        let started = Instant::now();
        for n in 0..20 {
            managers[0].propose(create(&format!("c{n}"))).await.unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(managers[0].leadership().borrow().is_leader);
    });
}

#[test]
fn a_disk_that_hangs_is_named() {
    simulate(async {
        let disk = SimDisk::default();
        let manager = Consensus::open(simulated(1, 1, &disk), Arc::new(NoPeers)).await.unwrap();
        manager.bootstrap().await.unwrap();
        disk.set_latency(Duration::from_secs(7));
        let error = manager.propose(create("late")).await.unwrap_err();
        assert!(
            matches!(&error, ProposeError::DiskStalled { path, stalled_ms } if path.ends_with("m1/raft.db") && *stalled_ms >= 4000),
            "{error}"
        );
        // It was only late, and the manager goes on.
        has(&manager, "late").await;
        disk.set_latency(Duration::ZERO);
        manager.propose(create("next")).await.unwrap();
    });
}

/// 500 writes that each come by themselves, on disks of 100 flushes a second.
async fn many_writes(leader: &Consensus, disks: &[SimDisk], net: &Net) -> Duration {
    disks.iter().for_each(|disk| disk.set_latency(Duration::from_millis(10)));
    let started = Instant::now();
    let writers = (0..50).map(|writer| async move {
        for n in 0..10 {
            tokio::time::sleep(Duration::from_micros(net.draw(0..5000))).await;
            leader.propose(create(&format!("c{writer}-{n}"))).await.unwrap();
        }
    });
    futures_util::future::join_all(writers).await;
    started.elapsed()
}

#[test]
fn writes_made_at_the_same_time_share_a_flush() {
    simulate(async {
        let (disks, net) = (<[SimDisk; 3]>::default(), Net::new(1));
        let managers = three_on(&disks, &net).await;
        let took = many_writes(&managers[0], &disks, &net).await;
        assert!(took < Duration::from_millis(700), "three managers: {took:?}");
    });
    simulate(async {
        let (disk, net) = (SimDisk::default(), Net::new(1));
        let manager = net.start(simulated(1, 1, &disk)).await;
        manager.bootstrap().await.unwrap();
        let took = many_writes(&manager, &[disk], &net).await;
        assert!(took < Duration::from_millis(500), "one manager: {took:?}");
    });
}

/// All power fails while managers write; one disk is left, torn, and the first attempts to go on with it are cut short at
/// each of their writes. True if this one was.
async fn alone_from_a_torn_disk(at: u64) -> bool {
    let (disks, net) = (<[SimDisk; 3]>::default(), Net::new(at));
    let managers = three_on(&disks, &net).await;
    for n in 0..6 {
        managers[0].propose(create(&format!("kept{n}"))).await.unwrap();
    }
    has(&managers[1], "kept5").await;
    for n in 0..5 {
        let leader = managers[0].clone();
        tokio::spawn(async move { leader.propose(create(&format!("on its way {n}"))).await });
        tokio::time::sleep(Duration::from_micros(net.draw(0..1500))).await;
    }
    for raft_id in 1..=3 {
        net.unplug(raft_id);
        disks[raft_id as usize - 1].crash(Crash::Tear(at));
    }
    drop(managers);

    let (disk, nine) = (&disks[1], Config { raft_id: 9, ..simulated(2, 7, &disks[1]) });
    disk.crash_at(disk.operations() + at, Crash::Tear(at));
    let cut_short = force_new_cluster(&nine, 2).await.is_err();
    disk.crash(Crash::Tear(at + 1));
    force_new_cluster(&nine, 2).await.unwrap();
    let alone = net.start(nine).await;
    leads(&alone).await;
    let held = names(&alone);
    assert!((0..6).all(|n| held.contains(&format!("kept{n}"))), "cut short at {at}: {held:?}");
    assert_eq!(alone.members().len(), 1);
    alone.propose(create("goes on")).await.unwrap();
    cut_short
}

#[test]
fn one_torn_disk_is_enough_for_a_new_cluster_whenever_its_making_is_cut_short() {
    let attempts = (0..).take_while(|at| simulate(alone_from_a_torn_disk(*at))).count();
    assert!(attempts > 5, "{attempts} operations");
}
