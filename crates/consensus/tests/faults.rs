//! Managers under a network and machines that fail at random, in one thread under a simulated clock: what must hold on
//! every day. `SKEP_SEED=n` replays day `n` alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::linear::{Access, Operation, is_linearizable};
use common::net::{FAIR, Net, Weather};
use common::{create, create_with, eventually, has, id_of, leader_of, leads, names, simulate, simulated};
use skep_consensus::{Config, Consensus, Crash, Error, MemberRole, Notice, Peer, ProposeError, SimDisk};
use skep_model::{Labels, Timestamp};
use skep_store::{Batch, Change, View};
use tokio::time::Instant;

const MANAGERS: u64 = 3;
const KEYS: u64 = 3;
const CLIENTS: u64 = 4;
const OPERATIONS_OF_A_CLIENT: u64 = 30;

/// What is learned while a day goes by, and checked as it is learned.
#[derive(Default)]
struct Watched {
    leaders: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, String>,
    histories: BTreeMap<u64, Vec<Operation>>,
}

struct Day {
    seed: u64,
    net: Net,
    disks: Vec<SimDisk>,
    managers: Mutex<BTreeMap<u64, Consensus>>,
    watched: Arc<Mutex<Watched>>,
    started: Instant,
}

fn key_name(key: u64) -> String {
    format!("key{key}")
}

fn value(view: &View, key: u64) -> u64 {
    let labels = view.config(&id_of(&key_name(key))).map(|config| &config.labels);
    labels.and_then(|labels| labels.get("value")).map_or(0, |value| value.parse().unwrap())
}

impl Day {
    async fn begin(seed: u64) -> Arc<Self> {
        let day = Arc::new(Self {
            seed,
            net: Net::new(seed),
            disks: (0..MANAGERS).map(|_| SimDisk::default()).collect(),
            managers: Mutex::default(),
            watched: Arc::default(),
            started: Instant::now(),
        });
        for raft_id in 1..=MANAGERS {
            day.start(raft_id, 0).await;
        }
        let first = day.manager(1);
        first.bootstrap().await.unwrap();
        for raft_id in 2..=MANAGERS {
            first.add_learner(Peer { raft_id, address: format!("10.0.0.{raft_id}:2377") }).await.unwrap();
            first.promote(raft_id).await.unwrap();
        }
        for key in 0..KEYS {
            first.propose(create(&key_name(key))).await.unwrap();
        }
        day
    }

    fn config(&self, raft_id: u64, life: u64) -> Config {
        simulated(raft_id, self.seed + life * 1000, &self.disks[raft_id as usize - 1])
    }

    async fn start(&self, raft_id: u64, life: u64) {
        let manager = self.net.start(self.config(raft_id, life)).await;
        self.watch(&manager);
        self.managers.lock().unwrap().insert(raft_id, manager);
    }

    fn manager(&self, raft_id: u64) -> Consensus {
        self.managers.lock().unwrap()[&raft_id].clone()
    }

    /// At most one leader a term; the entry of an index is the same on every manager, in every life of it.
    fn watch(&self, manager: &Consensus) {
        let (raft_id, mut leadership, mut events) = (manager.raft_id(), manager.leadership(), manager.events());
        let (watched, of_events) = (self.watched.clone(), self.watched.clone());
        tokio::spawn(async move {
            loop {
                let now = leadership.borrow_and_update().clone();
                if now.is_leader {
                    let leader = *watched.lock().unwrap().leaders.entry(now.term).or_insert(raft_id);
                    assert_eq!(leader, raft_id, "two leaders in term {}", now.term);
                }
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(notice) = events.next().await {
                if let Notice::Applied { index, events } = notice {
                    let what = format!("{events:?}");
                    let known = of_events.lock().unwrap().applied.entry(index).or_insert(what.clone()).clone();
                    assert_eq!(known, what, "manager {raft_id} applied another entry {index}");
                }
            }
        });
    }

    fn now(&self) -> u128 {
        self.started.elapsed().as_micros()
    }

    /// Writes and reads on any manager, as a client that does not know the leader.
    async fn work(&self, client: u64) {
        for n in 0..OPERATIONS_OF_A_CLIENT {
            tokio::time::sleep(Duration::from_millis(self.net.draw(1..250))).await;
            let (at, key) = (1 + self.net.draw(0..MANAGERS), self.net.draw(0..KEYS));
            let called = self.now();
            let (what, returned) = if self.net.draw(0..2) == 0 {
                let new = client * 1000 + n + 1;
                match self.write(at, key, new).await {
                    Some(known) => (Access::Write(new), known.then(|| self.now())),
                    None => continue,
                }
            } else {
                match self.read(at, key).await {
                    Some(read) => (Access::Read(read), Some(self.now())),
                    None => continue,
                }
            };
            let operation = Operation { called, returned, what };
            self.watched.lock().unwrap().histories.entry(key).or_default().push(operation);
        }
    }

    /// Whether it is known to have taken effect; `None` if it certainly did not.
    async fn write(&self, at: u64, key: u64, new: u64) -> Option<bool> {
        let manager = self.manager(at);
        let labels = Labels::from([("value".to_owned(), new.to_string())]);
        let change = Change::SetConfigLabels { config_id: id_of(&key_name(key)), labels };
        let batch = Batch::new(Timestamp::default(), vec![change]);
        let mut result = manager.propose(batch.clone()).await;
        if let Err(ProposeError::NotLeader { leader: Some(leader) }) = &result {
            let leader = self.manager(leader.raft_id);
            result = leader.propose(batch).await;
        }
        match result {
            Ok(_) => Some(true),
            Err(
                ProposeError::Timeout
                | ProposeError::Interrupted { .. }
                | ProposeError::Unavailable(_)
                | ProposeError::DiskStalled { .. },
            ) => Some(false),
            Err(_) => None,
        }
    }

    async fn read(&self, at: u64, key: u64) -> Option<u64> {
        let manager = self.manager(at);
        let view = match manager.linearizable_view().await {
            Err(Error::NotLeader { leader: Some(leader) }) => self.manager(leader.raft_id).linearizable_view().await,
            result => result,
        };
        Some(value(&view.ok()?, key))
    }

    /// Breaks and mends until cancelled; at most one manager is down at a time.
    async fn trouble(&self) {
        for life in 1.. {
            tokio::time::sleep(Duration::from_millis(self.net.draw(50..800))).await;
            let (any, other) = (1 + self.net.draw(0..MANAGERS), 1 + self.net.draw(0..MANAGERS));
            // The leader's troubles are the ones that matter.
            let leads = |raft_id: &u64| self.manager(*raft_id).leadership().borrow().is_leader;
            let leader = (1..=MANAGERS).find(leads).filter(|_| self.net.draw(0..2) == 0);
            let one = leader.unwrap_or(any);
            match self.net.draw(0..6) {
                0 => self.net.isolate(one),
                1 => self.net.cut(one, other),
                2 => self.net.set_weather(Weather { delay_us: 1000..150_000, lost: 20, repeated: 10 }),
                3 => self.net.set_weather(FAIR),
                4 => {
                    self.net.unplug(one);
                    self.disks[one as usize - 1].crash(Crash::Tear(life));
                    // Its clients' handles are of the old life: what they still ask fails on the dead disk.
                    self.start(one, life).await;
                }
                _ => self.net.heal(),
            }
            if self.net.draw(0..3) == 0 {
                self.net.heal();
            }
        }
    }

    async fn live(self: Arc<Self>) {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let day = self.clone();
                tokio::spawn(async move { day.work(client).await })
            })
            .collect();
        let all = futures_util::future::join_all(clients);
        tokio::select! {
            biased;
            done = all => assert!(done.iter().all(Result::is_ok), "a client failed"),
            () = self.trouble() => {}
        }
        self.net.heal();
        self.net.set_weather(FAIR);
        let managers: Vec<Consensus> = self.managers.lock().unwrap().values().cloned().collect();
        let leader = leader_of(&managers.iter().collect::<Vec<_>>()).await;
        leader.propose(create("evening")).await.unwrap();
        for manager in &managers {
            has(manager, "evening").await;
            assert_eq!(manager.view(), leader.view());
        }
        let watched = self.watched.lock().unwrap();
        let mut known = 0;
        for (key, history) in &watched.histories {
            // The last word of the day belongs to the history.
            let mut history = history.clone();
            let last = Access::Read(value(&leader.view(), *key));
            history.push(Operation { called: u128::MAX - 1, returned: Some(u128::MAX), what: last });
            assert!(is_linearizable(&history), "key {key}: {history:#?}");
            known += history.iter().filter(|operation| operation.returned.is_some()).count();
        }
        let terms: BTreeSet<_> = watched.leaders.values().collect();
        println!("day {}: {known} operations answered, {} terms, leaders {terms:?}", self.seed, watched.leaders.len());
        assert!(known > 20, "nothing was answered: {known}");
    }
}

/// A panic of a task that only watches must not pass unseen.
fn live_through(seed: u64) {
    println!("day {seed}; again by SKEP_SEED={seed}");
    let failed = Arc::new(Mutex::new(None));
    let (seen, before) = (failed.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        seen.lock().unwrap().get_or_insert(panic.to_string());
        before(panic);
    }));
    simulate(async { Day::begin(seed).await.live().await });
    assert_eq!(failed.lock().unwrap().take(), None, "day {seed}");
}

#[test]
fn bad_days_lose_nothing_and_every_answer_fits_one_order() {
    let only = std::env::var("SKEP_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in only.map_or(0..6, |seed| seed..seed + 1) {
        live_through(seed);
    }
}

#[test]
fn the_checker_tells_histories_apart() {
    let op = |called, returned, what| Operation { called, returned, what };
    let write = |called, returned, value| op(called, returned, Access::Write(value));
    let read = |called, returned, value| op(called, Some(returned), Access::Read(value));
    // Concurrent with the write, either is right, but not back again.
    assert!(is_linearizable(&[write(0, Some(10), 1), read(1, 2, 0), read(3, 4, 1)]));
    assert!(!is_linearizable(&[write(0, Some(10), 1), read(1, 2, 1), read(3, 4, 0)]));
    // Acknowledged and then not read: a stale read.
    assert!(!is_linearizable(&[write(0, Some(1), 1), read(2, 3, 0)]));
    // Unknown: may take effect late, or never, but not twice.
    assert!(is_linearizable(&[write(0, None, 1), read(2, 3, 0), read(4, 5, 1)]));
    assert!(is_linearizable(&[write(0, None, 1), read(2, 3, 0)]));
    assert!(!is_linearizable(&[write(0, None, 1), write(2, Some(3), 2), read(4, 5, 1), read(6, 7, 2)]));
    // Never written.
    assert!(!is_linearizable(&[read(0, 1, 9)]));
}

/// Three voters; the first leads.
async fn three(net: &Net) -> Vec<Consensus> {
    let mut managers = Vec::new();
    for raft_id in 1..=3 {
        managers.push(net.start(simulated(raft_id, 5, &SimDisk::default())).await);
    }
    managers[0].bootstrap().await.unwrap();
    for raft_id in [2, 3] {
        managers[0].add_learner(Peer { raft_id, address: format!("10.0.0.{raft_id}:2377") }).await.unwrap();
        managers[0].promote(raft_id).await.unwrap();
    }
    managers
}

#[test]
fn a_leader_without_its_quorum_stops_before_another_can_be_elected() {
    simulate(async {
        let net = Net::new(1);
        let managers = three(&net).await;
        let mut leadership = managers[0].leadership();
        net.isolate(1);
        let cut = Instant::now();
        leadership.wait_for(|now| !now.is_leader).await.unwrap();
        let timing = skep_consensus::Timing::default();
        assert!(cut.elapsed() <= timing.election_min, "{:?}", cut.elapsed());
        assert!(matches!(managers[0].propose(create("alone")).await, Err(ProposeError::NoLeader)));
    });
}

/// The issue 2080 of openraft: followers that hear a leader who cannot hear them would wait for it for ever.
#[test]
fn a_leader_that_is_heard_but_hears_nothing_is_replaced() {
    simulate(async {
        let net = Net::new(1);
        let managers = three(&net).await;
        net.cut(2, 1);
        net.cut(3, 1);
        let cut = Instant::now();
        let next = leader_of(&[&managers[1], &managers[2]]).await;
        next.propose(create("goes on")).await.unwrap();
        assert!(cut.elapsed() < Duration::from_secs(4), "{:?}", cut.elapsed());
        net.heal();
        has(&managers[0], "goes on").await;
    });
}

/// What it decided while no quorum answered is in its log: it must not decide again without it.
#[test]
fn a_leader_that_leads_on_knows_what_it_proposed_before() {
    simulate(async {
        let net = Net::new(1);
        let managers = three(&net).await;
        let one = &managers[0];
        leads(one).await;
        let before = one.leadership().borrow().clone();
        // Nobody can be elected meanwhile.
        let ways = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
        ways.iter().for_each(|(from, to)| net.cut(*from, *to));
        let deciding = one.clone();
        let decision = tokio::spawn(async move { deciding.propose_as_leader(before.term, create("decided")).await });
        let mut leadership = one.leadership();
        leadership.wait_for(|now| !now.is_leader).await.unwrap();
        assert!(matches!(decision.await.unwrap(), Err(ProposeError::TermOver { .. })), "its time is over");
        net.heal();
        let now = leadership.wait_for(|now| now.is_leader).await.unwrap().clone();
        assert!(now.term == before.term && now.reign > before.reign, "{before:?}, then {now:?}");
        assert!(names(one).contains("decided"));
    });
}

#[test]
fn one_way_cuts_do_not_make_terms_grow() {
    simulate(async {
        let net = Net::new(1);
        let managers = three(&net).await;
        leads(&managers[0]).await;
        let term = managers[0].leadership().borrow().term;
        // 3 is not heard by anyone, 2 hears nothing from 3, 3 hears nothing from the leader.
        for ways in [&[(3, 1), (3, 2)][..], &[(1, 3)], &[(1, 3), (2, 3)], &[(2, 3), (3, 2)]] {
            for (from, to) in ways {
                net.cut(*from, *to);
            }
            tokio::time::sleep(Duration::from_secs(15)).await;
            net.heal();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let now = managers[0].leadership().borrow().clone();
        assert!(now.is_leader && now.term == term, "term {term}, then {now:?}");
        managers[0].propose(create("still")).await.unwrap();
        eventually("all have it", || async { managers.iter().all(|manager| common::names(manager).contains("still")) })
            .await;
    });
}

#[test]
fn a_follower_that_lagged_gets_a_snapshot_in_parts_through_bad_weather() {
    simulate(async {
        let net = Net::new(3);
        let managers = three(&net).await;
        net.isolate(3);
        // More than one part, and far more entries than are kept.
        for n in 0..110u8 {
            managers[0].propose(create_with(&format!("c{n}"), vec![n; 25_000])).await.unwrap();
        }
        let mut events = managers[2].events();
        net.set_weather(Weather { delay_us: 1000..50_000, lost: 10, repeated: 10 });
        net.heal();
        has(&managers[2], "c109").await;
        assert!(matches!(events.next().await, Some(Notice::Resync { .. })), "not entry by entry");
        assert!(managers.iter().all(|manager| manager.view().configs().count() == 110));
    });
}

#[test]
fn a_learner_that_is_not_there_stops_nobody_and_becomes_no_voter() {
    simulate(async {
        let net = Net::new(1);
        let managers = three(&net).await;
        managers[0].add_learner(Peer { raft_id: 4, address: "10.0.0.4:2377".to_owned() }).await.unwrap();
        net.isolate(3);
        managers[0].propose(create("two of three")).await.unwrap();
        assert!(matches!(managers[0].promote(4).await, Err(Error::Timeout(_))));
        let voters = managers[0].members().into_iter().filter(|member| member.role == MemberRole::Voter);
        assert_eq!(voters.map(|member| member.peer.raft_id).collect::<Vec<_>>(), [1, 2, 3]);
        managers[0].remove(4).await.unwrap();
        assert_eq!(managers[0].members().len(), 3);
    });
}

#[test]
fn a_leader_that_restarts_reads_nothing_older_than_what_it_acknowledged() {
    simulate(async {
        let day = Day::begin(4).await;
        for life in 1..4 {
            let managers: Vec<Consensus> = day.managers.lock().unwrap().values().cloned().collect();
            let leader = leader_of(&managers.iter().collect::<Vec<_>>()).await;
            let (raft_id, name) = (leader.raft_id(), format!("acknowledged{life}"));
            leader.propose(create(&name)).await.unwrap();
            day.net.unplug(raft_id);
            day.disks[raft_id as usize - 1].crash(Crash::Lose);
            day.start(raft_id, life).await;
            let (back, until) = (day.manager(raft_id), Instant::now() + Duration::from_secs(1));
            while Instant::now() < until {
                if let Ok(view) = back.linearizable_view().await {
                    assert!(common::names_in(&view).contains(&name), "life {life}: a stale read");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}
