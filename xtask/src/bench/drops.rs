//! Requests lost while a service is updated, scaled down and moved off a node, at a thousand requests a second on the
//! published port of every host, a connection each.
//!
//! Without the peer: where the kernel has no IPVS, as here, its mesh passes no traffic at all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::lab::Lab;
use super::{Figures, median};

const CLIENTS: u32 = 16;
const PER_SECOND: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;

/// Milliseconds each request took; what was not answered has none.
type Results = Arc<Mutex<Vec<Option<f64>>>>;

struct Load {
    over: Arc<AtomicBool>,
    results: Results,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(hosts: &[SocketAddr]) -> Self {
        let mut load = Self { over: Arc::default(), results: Results::default(), clients: Vec::new() };
        let pace = Duration::from_secs(1) * CLIENTS / PER_SECOND;
        for client in 0..CLIENTS as usize {
            let (over, results, hosts) = (load.over.clone(), load.results.clone(), hosts.to_vec());
            load.clients.push(std::thread::spawn(move || {
                let mut next = Instant::now();
                for turn in client.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    let answered = get(hosts[turn % hosts.len()]).is_ok();
                    let took = answered.then(|| begun.elapsed().as_secs_f64() * 1000.0);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                    // What was late is caught up with.
                    next += pace;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }));
        }
        load
    }

    fn take(&self) -> Vec<Option<f64>> {
        std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

fn get(host: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&host, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.starts_with("HTTP/1.1 200 OK").then_some(()).ok_or_else(|| std::io::Error::other("no answer"))
}

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
    let load = Load::start(&hosts);
    let mut note = |what: &str, begun: Instant| {
        // What is under way belongs to it.
        std::thread::sleep(Duration::from_secs(2));
        let (seconds, results) = (begun.elapsed().as_secs_f64(), load.take());
        let mut answered: Vec<f64> = results.iter().flatten().copied().collect();
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
    let begun = Instant::now();
    let worker = nodes.iter().find(|n| n["Spec"]["Role"] == "worker").context("no worker")?["ID"].clone();
    let path = format!("/nodes/{}", worker.as_str().unwrap_or_default());
    let version = api.call("GET", &path, None)?["Version"]["Index"].clone();
    let drained = json!({ "Role": "worker", "Availability": "drain" });
    api.call("POST", &format!("{path}/update?version={version}"), Some(&drained))?;
    api.until(|api| {
        let tasks = api.tasks(&id)?;
        let running = |t: &&Value| t["Status"]["State"] == "running";
        Ok(tasks.iter().filter(running).count() == 3 && !tasks.iter().filter(running).any(|t| t["NodeID"] == worker))
    })?;
    note("drain", begun);
    Ok(())
}
