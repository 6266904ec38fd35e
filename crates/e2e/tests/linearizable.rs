//! Writes through all managers at once, while the leader is killed, cut off, paused and lost with its host: the history of
//! answers must be one that a single copy could have given.
//!
//! What is claimed and checked:
//! - *Writes are linearizable.* An update names the version it was made from (compare-and-set); of those that were answered,
//!   the successes and the refusals ("update out of sequence") stand in one line in real time, and what the swarm holds in
//!   the end stands at its end. A write without an answer may have happened or not.
//! - *A client that stays with one manager reads its own writes, and never goes back in time.* Reads are answered by the
//!   manager that is asked, from what it has applied: a follower may be behind, so reads at several managers are not
//!   linearizable, by design, and are no part of the line. (A manager that came back has to catch up first: the claim ends
//!   with a broken connection.)

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::linear::{Action, Operation, check};
use skep_e2e::{LATER, Lab, eventually};

const REGISTERS: usize = 2;
const CLIENTS: usize = 4;
/// Longer than a write waits for a leader, shorter than a host's restart.
const PATIENCE: Duration = Duration::from_secs(6);

struct Shared {
    begun: Instant,
    /// The ids of the configs that serve as registers: the value is a label.
    registers: Vec<String>,
    sockets: Vec<String>,
    histories: Vec<Mutex<Vec<Operation>>>,
    next_value: AtomicU32,
    succeeded: AtomicU32,
    stop: AtomicBool,
}

/// Version and value of a register at one manager.
fn read(socket: &str, id: &str) -> Option<(u64, u32)> {
    match call(socket, "GET", &format!("/configs/{id}"), &Value::Null, PATIENCE) {
        Answer::Given(200, config) => {
            Some((config["Version"]["Index"].as_u64()?, config["Spec"]["Labels"]["value"].as_str()?.parse().ok()?))
        }
        _ => None,
    }
}

fn spec(register: usize, value: u32) -> Value {
    json!({ "Name": format!("register{register}"), "Data": "eA==", "Labels": { "value": value.to_string() } })
}

/// One client: reads a register, then swaps what it read for a new value; goes to the next manager when one does not answer.
fn client(shared: &Shared, mut manager: usize) {
    let mut seen = [0; REGISTERS];
    let mut register = manager;
    while !shared.stop.load(Ordering::Relaxed) {
        register = (register + 1) % REGISTERS;
        let (socket, id) = (&shared.sockets[manager], &shared.registers[register]);
        let move_on = |manager: &mut usize, seen: &mut [u64; REGISTERS]| {
            *manager = (*manager + 1) % shared.sockets.len();
            *seen = [0; REGISTERS];
        };
        let Some((version, from)) = read(socket, id) else {
            move_on(&mut manager, &mut seen);
            continue;
        };
        assert!(
            version >= seen[register],
            "manager {} went back from version {} to {version}",
            manager + 1,
            seen[register]
        );
        seen[register] = version;
        let to = shared.next_value.fetch_add(1, Ordering::Relaxed);
        let called_ns = shared.begun.elapsed().as_nanos();
        let path = format!("/configs/{id}/update?version={version}");
        let answer = call(socket, "POST", &path, &spec(register, to), PATIENCE);
        let answered_ns = shared.begun.elapsed().as_nanos();
        let action = match &answer {
            Answer::Given(200, _) => Action::Swapped { from, to },
            Answer::Given(_, body)
                if body["message"].as_str().is_some_and(|m| m.contains("update out of sequence")) =>
            {
                Action::Refused { from }
            }
            Answer::Given(..) | Answer::Lost => Action::Unknown { from, to },
            Answer::Unsent => {
                move_on(&mut manager, &mut seen);
                continue;
            }
        };
        shared.histories[register].lock().expect("no panic holds it").push(Operation {
            called_ns,
            answered_ns,
            action,
        });
        match action {
            Action::Swapped { .. } => {
                seen[register] = version + 1;
                shared.succeeded.fetch_add(1, Ordering::Relaxed);
            }
            Action::Unknown { .. } => move_on(&mut manager, &mut seen),
            _ => {}
        }
    }
}

/// Ends the run also when a fault could not be made.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn guarded_writes_through_every_manager_stand_in_one_line_whatever_happens_to_the_leader() {
    let lab = Lab::swarm(3, 0);
    if lab.is_dockerd() {
        return; // Its followers do not wait for what they forwarded: the second claim is not theirs.
    }
    let registers =
        (0..REGISTERS).map(|i| match call(lab.socket(1), "POST", "/configs/create", &spec(i, 0), PATIENCE) {
            Answer::Given(201, body) => body["ID"].as_str().expect("an id").to_owned(),
            other => panic!("{other:?}"),
        });
    let shared = Shared {
        begun: Instant::now(),
        registers: registers.collect(),
        sockets: (1..=3).map(|node| lab.socket(node).to_owned()).collect(),
        histories: (0..REGISTERS).map(|_| Mutex::new(Vec::new())).collect(),
        next_value: AtomicU32::new(1),
        succeeded: AtomicU32::new(0),
        stop: AtomicBool::new(false),
    };
    // What the followers have not yet heard of, they cannot be asked for.
    eventually(LATER, "every manager knows the registers", || {
        shared.sockets.iter().all(|socket| shared.registers.iter().all(|id| read(socket, id).is_some()))
    });
    std::thread::scope(|scope| {
        let _stop = Stop(&shared.stop);
        for number in 0..CLIENTS {
            let shared = &shared;
            scope.spawn(move || client(shared, number % 3));
        }
        let progress = |what: &str| {
            let before = shared.succeeded.load(Ordering::Relaxed);
            eventually(LATER, &format!("writes go on {what}"), || {
                shared.succeeded.load(Ordering::Relaxed) >= before + 30
            });
        };
        let leads = |not: usize| {
            let mut leader = None;
            eventually(LATER, "another leads", || {
                leader =
                    (1..=3).filter(|node| *node != not).find_map(|through| lab.leader(through)).filter(|l| *l != not);
                leader.is_some()
            });
            leader.expect("eventually saw one")
        };
        progress("at first");
        let leader = leads(0);
        let pid = lab.on(leader, &["cat", "/run/skep.pid"]).ok();
        lab.on(leader, &["kill", "-9", &pid]).ok();
        progress("after kill -9 of the leading daemon");
        let leader = leads(0);
        lab.lab(&["partition", &format!("node{leader}")]).ok();
        leads(leader);
        progress("while the old leader is cut off");
        lab.lab(&["heal"]).ok();
        let leader = leads(0);
        lab.lab(&["pause", &format!("node{leader}")]).ok();
        leads(leader);
        progress("while the old leader is paused");
        lab.lab(&["resume", &format!("node{leader}")]).ok();
        let leader = leads(0);
        lab.lab(&["loss", &format!("node{leader}"), "100", "--to"]).ok();
        leads(leader);
        progress("while the old leader speaks and does not hear");
        lab.lab(&["heal"]).ok();
        let leader = leads(0);
        lab.lab(&["kill", &format!("node{leader}")]).ok();
        leads(leader);
        progress("while the old leader's host is dead");
        lab.lab(&["start", &format!("node{leader}")]).ok();
        progress("in the end");
    });
    for (register, id) in shared.registers.iter().enumerate() {
        let mut last = None;
        eventually(LATER, "every manager has the same in the end", || {
            let values: Vec<_> = shared.sockets.iter().map(|socket| read(socket, id)).collect();
            last = values[0];
            last.is_some() && values.iter().all(|value| *value == last)
        });
        let (_, value) = last.expect("eventually saw one");
        let mut history = shared.histories[register].lock().expect("no panic holds it").clone();
        let now = shared.begun.elapsed().as_nanos();
        history.push(Operation { called_ns: now, answered_ns: now, action: Action::Read(value) });
        let count = |wanted: fn(&Action) -> bool| history.iter().filter(|o| wanted(&o.action)).count();
        eprintln!(
            "register {register}: {} writes made, {} refused, {} unknown",
            count(|a| matches!(a, Action::Swapped { .. })),
            count(|a| matches!(a, Action::Refused { .. })),
            count(|a| matches!(a, Action::Unknown { .. })),
        );
        if let Err(why) = check(&history) {
            panic!("register {register}: {why}");
        }
    }
}
