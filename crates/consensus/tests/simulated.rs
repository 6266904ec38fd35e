//! Managers in one thread, under a clock, a network and disks that are simulated.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::net::{Net, Weather};
use common::{create, has, leader_of, names, simulate, simulated};
use skep_consensus::{Crash, Peer, SimDisk};

/// Three managers, a leader that is cut off, a follower that crashes with a torn disk, in bad weather.
async fn a_bad_day(seed: u64) -> Vec<String> {
    let net = Net::new(seed);
    let disks: [SimDisk; 3] = Default::default();
    let mut managers = Vec::new();
    for (raft_id, disk) in (1..).zip(&disks) {
        managers.push(net.start(simulated(raft_id, seed, disk)).await);
    }
    managers[0].bootstrap().await.unwrap();
    for raft_id in [2, 3] {
        managers[0].add_learner(Peer { raft_id, address: format!("10.0.0.{raft_id}:2377") }).await.unwrap();
        managers[0].promote(raft_id).await.unwrap();
    }
    net.set_weather(Weather { delay_us: 100..60_000, lost: 3, repeated: 3 });
    let mut acknowledged = Vec::new();
    for round in 0..3u64 {
        for n in 0..20 {
            let leader = leader_of(&managers.iter().collect::<Vec<_>>()).await;
            let name = format!("r{round}-{n}");
            match leader.propose(create(&name)).await {
                Ok(applied) => {
                    net.note(&format!("{name} acknowledged at {}", applied.index));
                    acknowledged.push(name);
                }
                Err(error) => net.note(&format!("{name}: {error}")),
            }
            if n == 10 {
                let leading = leader.raft_id();
                net.isolate(leading);
                tokio::time::sleep(std::time::Duration::from_millis(net.draw(100..2000))).await;
                net.heal();
            }
        }
        let victim = 1 + net.draw(0..3);
        let at = (victim - 1) as usize;
        net.unplug(victim);
        disks[at].crash(Crash::Tear(net.draw(0..u64::MAX)));
        drop(managers.remove(at));
        net.note(&format!("{victim} crashed"));
        managers.insert(at, net.start(simulated(victim, seed + round + 1, &disks[at])).await);
    }
    for manager in &managers {
        for name in &acknowledged {
            has(manager, name).await;
        }
    }
    assert!(acknowledged.len() > 40, "{}", acknowledged.len());
    net.note(&format!("{:?}", names(&managers[0])));
    net.trace()
}

#[test]
fn a_seed_is_a_history() {
    let (first, second) = (simulate(a_bad_day(7)), simulate(a_bad_day(7)));
    for (number, (one, other)) in first.iter().zip(&second).enumerate() {
        assert_eq!(one, other, "line {number}");
    }
    assert_eq!(first.len(), second.len());
    assert!(first.len() > 500, "{} lines", first.len());
    assert_ne!(first, simulate(a_bad_day(8)));
}
