//! Requests lost while a service is updated, scaled down and moved off a node, at a thousand requests a second on the
//! published port of every host, a connection each.
//!
//! Without the peer: where the kernel has no IPVS, as here, its mesh passes no traffic at all.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use skep_e2e::load::{Load, get};

use super::api::Api;
use super::lab::Lab;
use super::{Figures, median};

const CLIENTS: usize = 16;
const PACE: Duration = Duration::from_millis(16);
const PORT: u16 = 8080;

fn spec(replicas: u64, env: &str, order: &str) -> Value {
    json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": { "Image": "skep/whoami:latest", "Env": [env] } },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "UpdateConfig": { "Parallelism": 2, "Monitor": 1, "Order": order },
        "EndpointSpec": { "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT }] },
    })
}

pub(super) fn measure(skep: &Path, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "drops", None, 1, 2)?;
    let mut api = lab.api(0)?;
    let nodes = api.call("GET", "/nodes", None)?;
    let nodes = nodes.as_array().context("no nodes")?;
    let hosts: Vec<SocketAddr> = nodes
        .iter()
        .map(|n| Ok(format!("{}:{PORT}", n["Status"]["Addr"].as_str().context("no address")?).parse()?))
        .collect::<anyhow::Result<_>>()?;
    let id = api.create(&spec(6, "V=1", "stop-first"))?;
    api.await_running(&id, 6, |_| true)?;
    api.until(|_| Ok(hosts.iter().all(|host| get(*host).is_ok())))?;
    let load = Load::start(CLIENTS, PACE, &hosts, get);
    let mut note = |what: &str, begun: Instant| {
        // What is under way belongs to it.
        std::thread::sleep(Duration::from_secs(2));
        let (seconds, results) = (begun.elapsed().as_secs_f64(), load.take());
        for reason in results.iter().filter_map(|outcome| outcome.as_ref().err()) {
            eprintln!("lost, {what}: {reason}");
        }
        let mut answered: Vec<f64> = results.iter().flatten().map(|took| took.as_secs_f64() * 1000.0).collect();
        answered.sort_by(f64::total_cmp);
        let mut put = |name: &str, value: f64| out.entry(format!("drops_{what}_{name}")).or_default().push(value);
        put("lost", (results.len() - answered.len()) as f64);
        put("requests", results.len() as f64);
        put("requests_per_s", results.len() as f64 / seconds);
        put("median_ms", median(&answered));
        put("p99_ms", answered.get(answered.len() * 99 / 100).copied().unwrap_or(f64::NAN));
    };
    let begun = Instant::now();
    note("quiet", begun);
    for (order, env) in [("stop-first", "V=2"), ("start-first", "V=3")] {
        let begun = Instant::now();
        api.update(&id, &spec(6, env, order))?;
        api.await_running(&id, 6, |t| t["Spec"]["ContainerSpec"]["Env"] == json!([env]))?;
        note(order, begun);
    }
    let begun = Instant::now();
    api.update(&id, &spec(3, "V=3", "start-first"))?;
    api.until(|api| Ok(api.tasks(&id)?.iter().filter(|t| t["Status"]["State"] == "running").count() == 3))?;
    note("scale_down", begun);
    let worker = nodes.iter().find(|n| n["Spec"]["Role"] == "worker").context("no worker")?["ID"].clone();
    let begun = Instant::now();
    availability(&mut api, &worker, "drain")?;
    await_elsewhere(&mut api, &id, &worker, 3)?;
    note("drain", begun);
    // The only one, so that nobody else answers while it moves.
    availability(&mut api, &worker, "active")?;
    let placed = |replicas: u64| {
        let mut spec = spec(replicas, "V=3", "start-first");
        spec["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.role==worker"] });
        spec
    };
    api.update(&id, &placed(1))?;
    let constrained = |t: &Value| t["Spec"]["Placement"]["Constraints"][0].is_string();
    api.await_running(&id, 1, constrained)?;
    api.until(|api| Ok(api.tasks(&id)?.iter().filter(|t| t["Status"]["State"] == "running").count() == 1))?;
    let home = api.tasks(&id)?.iter().find(|t| t["Status"]["State"] == "running").context("no task")?["NodeID"].clone();
    load.take();
    let begun = Instant::now();
    availability(&mut api, &home, "drain")?;
    await_elsewhere(&mut api, &id, &home, 1)?;
    note("drain_of_the_only_one", begun);
    Ok(())
}

fn availability(api: &mut Api, node: &Value, wanted: &str) -> anyhow::Result<()> {
    let path = format!("/nodes/{}", node.as_str().unwrap_or_default());
    let node = api.call("GET", &path, None)?;
    let spec = json!({ "Role": node["Spec"]["Role"], "Availability": wanted });
    api.call("POST", &format!("{path}/update?version={}", node["Version"]["Index"]), Some(&spec)).map(drop)
}

/// Until so many tasks run, and none on that node.
fn await_elsewhere(api: &mut Api, service: &str, node: &Value, count: usize) -> anyhow::Result<()> {
    api.until(|api| {
        let tasks = api.tasks(service)?;
        let running = || tasks.iter().filter(|t| t["Status"]["State"] == "running");
        Ok(running().count() == count && !running().any(|t| t["NodeID"] == *node))
    })
}
