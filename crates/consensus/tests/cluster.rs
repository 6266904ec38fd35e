//! Three managers over links that break.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Hub, KEY, config, create, create_with, eventually, has, join, leader_of, leads, names, three};
use skep_consensus::{Error, MemberRole, Notice, Peer, ProposeError, force_new_cluster};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_applies_everyone_applies() {
    let dir = tempfile::tempdir().unwrap();
    let (_hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    one.propose(create("a")).await.unwrap();
    for manager in [&one, &two, &three] {
        has(manager, "a").await;
        assert_eq!(manager.view(), one.view());
    }
    let roles: Vec<_> =
        one.members().iter().map(|member| (member.peer.raft_id, member.role, member.is_leader)).collect();
    assert_eq!(roles, [(1, MemberRole::Voter, true), (2, MemberRole::Voter, false), (3, MemberRole::Voter, false)]);

    // A follower does not write; it says who does.
    let elsewhere = Peer { raft_id: 1, address: "10.0.0.1:2377".to_owned() };
    let error = two.propose(create("b")).await.unwrap_err();
    assert!(matches!(&error, ProposeError::NotLeader { leader: Some(leader) } if *leader == elsewhere), "{error}");
    assert!(
        matches!(two.linearizable_view().await, Err(Error::NotLeader { leader: Some(leader) }) if leader == elsewhere)
    );
    assert!(matches!(one.propose(create("a")).await, Err(ProposeError::Refused(_))));
    // Entries far larger than one message together, while a follower is away: it catches up in several.
    for n in 0..8 {
        one.propose(create_with(&format!("large{n}"), vec![n; 900_000])).await.unwrap();
    }
    has(&three, "large7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_is_replaced_and_follows_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    one.propose(create("before")).await.unwrap();
    let old_term = one.leadership().borrow().term;

    hub.isolate(1);
    let started = Instant::now();
    let leader = leader_of(&[&two, &three]).await;
    leader.propose(create("after")).await.unwrap();
    println!("write succeeds {:?} after the leader was cut off", started.elapsed());
    assert!(leader.leadership().borrow().term > old_term);

    // The old one cannot write, and knows that it may not decide any more.
    eventually("no leadership alone", || async { !one.leadership().borrow().is_leader }).await;
    let lost = one.propose(create("lost")).await.unwrap_err();
    assert!(
        matches!(lost, ProposeError::NoLeader | ProposeError::Timeout | ProposeError::Interrupted { .. }),
        "{lost}"
    );
    assert!(one.propose_as_leader(old_term, create("lost")).await.is_err());
    assert!(matches!(one.linearizable_view().await, Err(Error::NoLeader | Error::Timeout(_))));

    hub.heal();
    has(&one, "after").await;
    assert!(!names(&one).contains("lost"));
    assert_eq!(one.view(), leader.view());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_cut_off_does_not_disturb_the_term() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    let before = one.leadership().borrow().clone();
    hub.isolate(3);
    // Several of its election timeouts.
    let until = Instant::now() + Duration::from_secs(4);
    let mut written = 0;
    while Instant::now() < until {
        one.propose(create(&format!("w{written}"))).await.unwrap();
        written += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    hub.heal();
    has(&three, &format!("w{}", written - 1)).await;
    for manager in [&one, &two, &three] {
        let now = manager.leadership().borrow().clone();
        assert_eq!((now.term, now.leader), (before.term, before.leader.clone()), "on {}", manager.raft_id());
    }
    assert!(one.leadership().borrow().is_leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_a_snapshot_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let few = |config: &mut skep_consensus::Config| {
        (config.snapshot_interval, config.log_entries_for_slow_followers) = (20, 0);
    };
    let (hub, [one, ..]) = three(dir.path(), few).await;
    // More than fits one message.
    for n in 0..60u8 {
        one.propose(create_with(&format!("c{n}"), vec![n; 100_000])).await.unwrap();
    }
    let mut newcomer = config(dir.path(), 4);
    few(&mut newcomer);
    let four = hub.start(newcomer).await;
    let mut events = four.events();
    join(&one, &four).await;
    assert_eq!(four.view(), one.view());
    assert!(matches!(events.next().await, Some(Notice::Resync { .. })));
    one.propose(create("after")).await.unwrap();
    has(&four, "after").await;
    assert!(four.members().iter().all(|member| member.role == MemberRole::Voter));

    // It keeps what it was sent.
    hub.unplug(4);
    four.shutdown().await;
    drop((four, events));
    let mut newcomer = config(dir.path(), 4);
    few(&mut newcomer);
    let four = hub.start(newcomer).await;
    has(&four, "after").await;
    assert_eq!(four.view(), one.view());
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_and_members_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    assert!(matches!(one.transfer_leader(9).await, Err(Error::NoSuchMember { raft_id: 9 })));
    let started = Instant::now();
    one.transfer_leader(2).await.unwrap();
    leads(&two).await;
    println!("leadership handed over in {:?}", started.elapsed());
    eventually("the old leader knows", || async { !one.leadership().borrow().is_leader }).await;
    two.propose(create("a")).await.unwrap();

    two.remove(1).await.unwrap();
    two.remove(1).await.unwrap();
    assert_eq!(two.members().len(), 2);
    hub.unplug(1);
    one.shutdown().await;
    two.propose(create("b")).await.unwrap();
    has(&three, "b").await;

    // A leader may remove itself; the rest goes on.
    two.remove(2).await.unwrap();
    leads(&three).await;
    three.propose(create("c")).await.unwrap();
    assert!(matches!(three.remove(3).await, Err(Error::Refused(_))), "the last one stays");
    assert!(matches!(three.promote(7).await, Err(Error::NoSuchMember { raft_id: 7 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_survivor_starts_a_new_cluster_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    one.propose(create("kept")).await.unwrap();
    has(&three, "kept").await;
    let term = three.leadership().borrow().term;
    for manager in [&one, &two, &three] {
        hub.unplug(manager.raft_id());
        manager.shutdown().await;
    }
    drop((one, two, three));

    let nine = skep_consensus::Config { raft_id: 9, ..config(dir.path(), 3) };
    force_new_cluster(&nine, 3).await.unwrap();
    // A crash right after it repeats it.
    force_new_cluster(&nine, 3).await.unwrap();
    let nine = hub.start(nine).await;
    let led = leads(&nine).await;
    assert!(led.term > term);
    assert!(names(&nine).contains("kept"));
    assert_eq!(nine.members().len(), 1);
    nine.propose(create("more")).await.unwrap();
    let four = hub.start(config(dir.path(), 4)).await;
    join(&nine, &four).await;
    has(&four, "more").await;

    // The others come back, enough of them to elect a leader, and reach the survivor at its old address: nothing moves here.
    hub.plug(3, &nine);
    let (one, two) = (hub.start(config(dir.path(), 1)).await, hub.start(config(dir.path(), 2)).await);
    let other = leader_of(&[&one, &two]).await;
    for n in 0..20 {
        other.propose(create(&format!("elsewhere{n}"))).await.unwrap();
    }
    nine.propose(create("still here")).await.unwrap();
    assert!(names(&nine).iter().all(|name| !name.starts_with("elsewhere")), "{:?}", names(&nine));

    let empty = skep_consensus::Config::new(dir.path().join("empty"), 5, "10.0.0.5:2377", KEY);
    let nothing = force_new_cluster(&empty, 5).await.unwrap_err();
    assert!(matches!(&nothing, Error::Refused(why) if why.contains("no cluster state")), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_from_the_wire_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::default();
    let manager = hub.start(config(dir.path(), 1)).await;
    manager.bootstrap().await.unwrap();
    for message in [&b""[..], b"\x01", b"\x02rest", b"\x01\xff\xff\xff", &[1; 5000]] {
        assert!(!manager.handle_rpc(bytes::Bytes::copy_from_slice(message)).await.is_empty());
    }
    manager.propose(create("fine")).await.unwrap();
}

/// Prints what the machine can do; the bar is kept by `cargo xtask bench`.
#[tokio::test(flavor = "multi_thread")]
async fn throughput_of_three() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (_hub, [one, two, three]) = three(dir.path(), |_| {}).await;
    let started = Instant::now();
    for n in 0..100 {
        one.propose(create(&format!("s{n}"))).await.unwrap();
    }
    println!("sequential: {:.0}/s", 100.0 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    let writers = (0..32u32).map(|writer| {
        let one = one.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                one.propose(create(&format!("w{writer}-{n}"))).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    println!("32 at a time: {:.0}/s", f64::from(32 * 40) / started.elapsed().as_secs_f64());
    for manager in [&two, &three] {
        eventually("all of them", || async { names(manager).len() == 100 + 32 * 40 }).await;
    }
}
