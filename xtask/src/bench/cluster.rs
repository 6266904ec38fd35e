//! Three managers: how long no write succeeds when the leader dies, how soon a dead host's tasks run elsewhere, what three
//! disks and a quorum cost a write, and what a follower costs a read.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::api::Api;
use super::lab::Lab;
use super::services::{ImageTar, give_image, spec};
use super::{Figures, median};

const MANAGERS: usize = 3;
const WORKERS: usize = 2;
const WRITES: usize = 3_000;
const WRITERS: usize = 24;
const READS: usize = 300;
const MANY_TASKS: u64 = 10_000;

pub(super) fn measure(
    skep: &Path,
    name: &'static str,
    daemon: Option<&str>,
    kills: usize,
    tar: &ImageTar,
    out: &mut Figures,
) -> anyhow::Result<()> {
    let lab = Lab::up(skep, name, daemon, MANAGERS, WORKERS)?;
    give_image(&lab, tar)?;
    let mut put = |key: &str, value: f64| out.entry(key.to_owned()).or_default().push(value);
    await_ready(&lab, 0)?;
    put("writes_3_managers_per_s", writes_per_second(&lab)?);
    let (leader_ms, follower_ms) = reads(&lab)?;
    put("read_leader_ms", leader_ms);
    put("read_follower_ms", follower_ms);
    for round in 0..kills {
        put("leader_killed_no_write_s", kill_leader(&lab, round)?);
    }
    for round in 0..kills {
        put("host_killed_5_hosts_s", kill_worker(&lab, round)?);
    }
    Ok(())
}

/// Until `observer` sees all nodes ready and all managers reachable.
fn await_ready(lab: &Lab, observer: usize) -> anyhow::Result<()> {
    lab.api(observer)?.until(|api| {
        let nodes = api.call("GET", "/nodes", None)?;
        let well = |n: &&Value| {
            n["Status"]["State"] == "ready"
                && (n["ManagerStatus"].is_null() || n["ManagerStatus"]["Reachability"] == "reachable")
        };
        Ok(nodes.as_array().into_iter().flatten().filter(well).count() == lab.hosts.len())
    })
}

fn config(name: &str) -> Value {
    json!({ "Name": name, "Data": "eA==" })
}

/// Acknowledged writes of several clients at all managers.
fn writes_per_second(lab: &Lab) -> anyhow::Result<f64> {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let next = &next;
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut api = lab.api(writer % MANAGERS)?;
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= WRITES {
                            return Ok(());
                        }
                        api.call("POST", "/configs/create", Some(&config(&format!("w{i}"))))?;
                    }
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| bail!("a writer panicked")))
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let count = WRITES as f64;
    Ok(count / begun.elapsed().as_secs_f64())
}

/// Medians of listing services at the leader and at a follower, in turn.
fn reads(lab: &Lab) -> anyhow::Result<(f64, f64)> {
    let leader = lab.leader(0)?;
    let mut apis = [lab.api(leader)?, lab.api((leader + 1) % MANAGERS)?];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..READS {
        for (api, times) in apis.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            api.call("GET", "/services", None)?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok((median(&times[0]), median(&times[1])))
}

fn kill(lab: &Lab, host: usize) -> anyhow::Result<Child> {
    let mut command = Command::new(lab.skep);
    command.args(["lab", "kill", "--name", lab.name, &lab.hosts[host].name]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// The longest time between two writes that succeeded, around the kill: an upper bound of how long none could.
fn kill_leader(lab: &Lab, round: usize) -> anyhow::Result<f64> {
    let leader = lab.leader(0)?;
    let observer = (leader + 1) % MANAGERS;
    let mut api = lab.api(observer)?;
    let mut killing = kill(lab, leader)?;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let deadline = last + Duration::from_secs(120);
    for attempt in 0.. {
        let killed = killing.try_wait()?.is_some();
        let written = api.call("POST", "/configs/create", Some(&config(&format!("k{round}-{attempt}"))));
        if written.is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if killed {
                break;
            }
        } else {
            api = lab.api(observer)?;
        }
        if Instant::now() > deadline {
            bail!("no write succeeded within 120 s of the leader's death");
        }
    }
    lab.run("start", &[&lab.hosts[leader].name])?;
    await_ready(lab, observer)?;
    Ok(longest.as_secs_f64())
}

/// From the kill of a worker until as many new tasks run as it had.
fn kill_worker(lab: &Lab, round: usize) -> anyhow::Result<f64> {
    let mut api = lab.api(0)?;
    let id = api.create(&spec(&format!("h{round}"), 10, &[]))?;
    api.await_running(&id, 10, |_| true)?;
    let victim = MANAGERS + round % WORKERS;
    let nodes = api.call("GET", "/nodes", None)?;
    let named = |n: &&Value| n["Description"]["Hostname"] == lab.hosts[victim].name.as_str();
    let node = nodes.as_array().into_iter().flatten().find(named).context("no such node")?["ID"].clone();
    let before = api.tasks(&id)?;
    let lost = before.iter().filter(|t| t["NodeID"] == node).count();
    let known: Vec<&Value> = before.iter().map(|t| &t["ID"]).collect();
    let begun = Instant::now();
    let mut killing = kill(lab, victim)?;
    let fresh =
        |t: &&Value| t["Status"]["State"] == "running" && t["DesiredState"] == "running" && !known.contains(&&t["ID"]);
    api.until(|api| Ok(api.tasks(&id)?.iter().filter(fresh).count() >= lost))?;
    let took = begun.elapsed().as_secs_f64();
    killing.wait()?;
    // First back, then gone: Docker keeps the tasks of a host that is down.
    lab.run("start", &[&lab.hosts[victim].name])?;
    await_ready(lab, 0)?;
    api.remove(&id)?;
    Ok(took)
}

/// A manager with many tasks in its state: from `kill -9` of its daemon until it lists services and takes a write.
pub(super) fn restart(skep: &Path, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "bench", None, 1, 0)?;
    let mut api = lab.api(0)?;
    let mut many = spec("many", MANY_TASKS, &[]);
    many["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.labels.nowhere == true"] });
    let id = api.create(&many)?;
    api.until(|api| Ok(api.tasks(&id)?.len() as u64 == MANY_TASKS))?;
    for round in 0..3 {
        let begun = Instant::now();
        lab.run("exec", &[&lab.hosts[0].name, "--", "sh", "-c", "kill -9 $(cat /run/skep.pid)"])?;
        loop {
            let served = lab.api(0).and_then(|mut api: Api| {
                api.call("GET", "/services", None)?;
                api.call("POST", "/configs/create", Some(&config(&format!("r{round}"))))
            });
            match served {
                Ok(_) => break,
                Err(error) if begun.elapsed() > Duration::from_secs(60) => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        out.entry("restart_10000_tasks_s".into()).or_default().push(begun.elapsed().as_secs_f64());
        if lab.api(0)?.tasks(&id)?.len() as u64 != MANY_TASKS {
            bail!("tasks were lost in a restart");
        }
    }
    Ok(())
}
