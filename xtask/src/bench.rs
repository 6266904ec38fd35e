//! The same operations on skep and on real dockerd, in one run, on the same kind of lab; the ratio is what counts, since
//! absolute times on a shared machine mean little.
//!
//! Each time is from sending the request until the state is seen by polling `/tasks` every 10 ms.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Replica counts for create and remove
    #[arg(long, default_value = "1,10,50", value_delimiter = ',')]
    sizes: Vec<u64>,
    /// The peer's daemon; left out of the run if it is not installed
    #[arg(long, default_value = "dockerd")]
    peer: String,
    /// Rounds on each side, interleaved; the median is printed
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// skep only
    #[arg(long)]
    alone: bool,
}

/// Metric -> value of each round.
type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let skep = skep_binary()?;
    let peer =
        !options.alone && Command::new(&options.peer).arg("--version").output().is_ok_and(|o| o.status.success());
    let (mut ours, mut theirs) = (Figures::new(), Figures::new());
    let tar = ImageTar::make()?;
    engine(&skep, &tar, &mut ours)?;
    for _ in 0..options.rounds {
        measure(&skep, "bench", None, options, &tar, &mut ours)?;
        if peer {
            measure(&skep, "peer", Some(&options.peer), options, &tar, &mut theirs)?;
        }
    }
    print(&ours, &theirs);
    if !peer {
        println!("\n{} is not installed: no peer in this run", options.peer);
    }
    Ok(())
}

fn skep_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKEP_BIN") {
        return Ok(path.into());
    }
    let status = Command::new(env!("CARGO")).args(["build", "--release", "--locked", "--package", "skep"]).status()?;
    if !status.success() {
        bail!("skep does not build");
    }
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec()?;
    let target = metadata.target_directory.into_std_path_buf();
    let mut candidates: Vec<PathBuf> = std::fs::read_dir(&target)?
        .flatten()
        .map(|e| e.path().join("release/skep"))
        .chain([target.join("release/skep")])
        .filter(|p| p.exists())
        .collect();
    candidates.sort_by_key(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
    candidates.pop().context("no skep binary in the target folder")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(ours: &Figures, theirs: &Figures) {
    println!("\n{:<28} {:>10} {:>10} {:>8}", "", "skep", "dockerd", "ratio");
    for (name, values) in ours {
        let mine = median(values);
        match theirs.get(name).map(|v| median(v)) {
            Some(peer) => println!("{name:<28} {mine:>10.3} {peer:>10.3} {:>8.2}", mine / peer),
            None => println!("{name:<28} {mine:>10.3}"),
        }
    }
}

/// Containers inside the engine, without API or swarm: `skep bench-engine` prints milliseconds.
fn engine(skep: &Path, tar: &ImageTar, figures: &mut Figures) -> anyhow::Result<()> {
    let output = Command::new(skep)
        .args(["bench-engine", "--rounds", "50", "--image-tar"])
        .arg(&tar.0)
        .output()
        .context("skep bench-engine")?;
    if !output.status.success() {
        bail!("skep bench-engine: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        if let Some((name, value)) = line.split_once(' ') {
            figures.entry(name.to_owned()).or_default().push(value.trim().parse()?);
        }
    }
    Ok(())
}

/// A lab that goes away with its value.
struct Lab<'a> {
    skep: &'a Path,
    name: &'static str,
    hosts: Vec<(String, String)>,
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.skep).args(["lab", "down", "--name", self.name]).output();
    }
}

impl<'a> Lab<'a> {
    fn up(skep: &'a Path, name: &'static str, daemon: Option<&str>) -> anyhow::Result<Self> {
        let _ = Command::new(skep).args(["lab", "down", "--name", name]).output();
        let mut command = Command::new(skep);
        command.args(["lab", "up", "--managers", "1", "--workers", "2", "--name", name]);
        command.args(daemon.iter().flat_map(|d| ["--daemon", d]));
        let output = command.output()?;
        if !output.status.success() {
            bail!("lab up: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut lab = Self { skep, name, hosts: Vec::new() };
        let listed = Command::new(skep).args(["lab", "ls", "--name", name, "--format", "json"]).output()?;
        for host in serde_json::from_slice::<Vec<Value>>(&listed.stdout)? {
            let text = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
            lab.hosts.push((text("name"), text("docker_host").trim_start_matches("unix://").to_owned()));
        }
        Ok(lab)
    }
}

const IMAGE: &str = "bench/busybox:latest";

/// A root file system of one static busybox, as a tar that goes away with the value.
struct ImageTar(PathBuf);

impl Drop for ImageTar {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ImageTar {
    fn make() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("skep-bench-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin"))?;
        std::fs::copy("/bin/busybox", folder.join("bin/busybox"))
            .context("busybox-static is needed for the test image")?;
        for name in ["sh", "sleep", "true"] {
            let link = folder.join("bin").join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink("busybox", link)?;
        }
        let tar = Self(folder.with_extension("tar"));
        let status = Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&tar.0).arg("bin").status()?;
        std::fs::remove_dir_all(&folder)?;
        if !status.success() {
            bail!("tar: {status}");
        }
        Ok(tar)
    }
}

fn give_image(lab: &Lab, tar: &ImageTar) -> anyhow::Result<()> {
    for (_, socket) in &lab.hosts {
        let host = format!("unix://{socket}");
        let output = Command::new("docker").args(["-H", &host, "import"]).arg(&tar.0).arg(IMAGE).output()?;
        if !output.status.success() {
            bail!("docker import: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// One keep-alive connection to a daemon.
struct Api {
    stream: UnixStream,
}

impl Api {
    fn open(socket: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot reach {socket}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self { stream })
    }

    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            self.stream,
            "{method} /v1.41{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let mut answer = Vec::new();
        if field("transfer-encoding:") == Some("chunked") {
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    self.stream.read_exact(&mut byte)?;
                    line.push(byte[0]);
                }
                let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                answer.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = field("content-length:").and_then(|l| l.parse().ok()) {
            answer.resize(length, 0);
            self.stream.read_exact(&mut answer)?;
        }
        let value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if status >= 300 && status != 304 {
            bail!("{method} {path}: {status} {value}");
        }
        Ok(value)
    }

    fn tasks(&mut self, service: &str) -> anyhow::Result<Vec<Value>> {
        let all = self.call("GET", "/tasks", None)?;
        Ok(all.as_array().into_iter().flatten().filter(|t| t["ServiceID"] == service).cloned().collect())
    }

    /// Waits until exactly `count` tasks run and are wanted and pass `filter`.
    fn await_running(&mut self, service: &str, count: usize, filter: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let runs = |t: &Value| t["Status"]["State"] == "running" && t["DesiredState"] == "running";
        self.until(|api| Ok(api.tasks(service)?.iter().filter(|t| runs(t) && filter(t)).count() == count))
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !done(self)? {
            if Instant::now() > deadline {
                bail!("a state was not reached within 120 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn create(&mut self, spec: &Value) -> anyhow::Result<String> {
        let answer = self.call("POST", "/services/create", Some(spec))?;
        Ok(answer["ID"].as_str().context("no service id")?.to_owned())
    }

    fn update(&mut self, id: &str, spec: &Value) -> anyhow::Result<()> {
        let version = self.call("GET", &format!("/services/{id}"), None)?["Version"]["Index"].clone();
        self.call("POST", &format!("/services/{id}/update?version={version}"), Some(spec)).map(drop)
    }

    fn remove(&mut self, id: &str) -> anyhow::Result<()> {
        self.call("DELETE", &format!("/services/{id}"), None)?;
        self.until(|api| Ok(api.tasks(id)?.is_empty()))
    }
}

fn spec(name: &str, replicas: u64, env: &[&str]) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": { "Image": IMAGE, "Command": ["/bin/sleep", "100000"], "Env": env, "StopGracePeriod": 0 },
            "RestartPolicy": { "Condition": "any", "Delay": 0 },
        },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "UpdateConfig": { "Parallelism": 2, "Delay": 0, "Monitor": 1, "FailureAction": "pause", "Order": "stop-first" },
    })
}

fn measure(
    skep: &Path,
    name: &'static str,
    daemon: Option<&str>,
    options: &Options,
    tar: &ImageTar,
    out: &mut Figures,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let lab = Lab::up(skep, name, daemon)?;
    let mut put = |key: String, value: f64| out.entry(key).or_default().push(value);
    put("lab_up_3_hosts_s".into(), begun.elapsed().as_secs_f64());
    give_image(&lab, tar)?;
    let mut api = Api::open(&lab.hosts[0].1)?;

    for &size in &options.sizes {
        let begun = Instant::now();
        let id = api.create(&spec(&format!("b{size}"), size, &[]))?;
        api.await_running(&id, usize::try_from(size)?, |_| true)?;
        put(format!("create_{size}_s"), begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        api.remove(&id)?;
        put(format!("remove_{size}_s"), begun.elapsed().as_secs_f64());
    }

    let id = api.create(&spec("scale", 5, &[]))?;
    api.await_running(&id, 5, |_| true)?;
    let begun = Instant::now();
    api.update(&id, &spec("scale", 25, &[]))?;
    api.await_running(&id, 25, |_| true)?;
    put("scale_5_25_s".into(), begun.elapsed().as_secs_f64());
    api.remove(&id)?;

    let id = api.create(&spec("roll", 10, &[]))?;
    api.await_running(&id, 10, |_| true)?;
    put("manager_pss_10_tasks_mib".into(), host_memory_mib(&lab, daemon)?);
    let begun = Instant::now();
    api.update(&id, &spec("roll", 10, &["V=2"]))?;
    api.await_running(&id, 10, |t| t["Spec"]["ContainerSpec"]["Env"] == json!(["V=2"]))?;
    put("rolling_update_10_s".into(), begun.elapsed().as_secs_f64());
    api.remove(&id)?;

    let begun = Instant::now();
    let mut configs = Vec::new();
    for i in 0..100 {
        let answer = api.call("POST", "/configs/create", Some(&json!({ "Name": format!("c{i}"), "Data": "eA==" })))?;
        configs.push(answer["ID"].as_str().unwrap_or_default().to_owned());
    }
    put("config_creates_per_s".into(), 100.0 / begun.elapsed().as_secs_f64());
    for id in configs {
        api.call("DELETE", &format!("/configs/{id}"), None)?;
    }

    let id = api.create(&spec("fail", 9, &[]))?;
    api.await_running(&id, 9, |_| true)?;
    let before: Vec<Value> = api.tasks(&id)?.iter().map(|t| t["ID"].clone()).collect();
    let victim = &lab.hosts[2].0;
    let begun = Instant::now();
    let killed = Command::new(skep).args(["lab", "kill", "--name", name, victim]).output()?;
    if !killed.status.success() {
        bail!("lab kill: {}", String::from_utf8_lossy(&killed.stderr));
    }
    let fresh =
        |t: &&Value| t["Status"]["State"] == "running" && t["DesiredState"] == "running" && !before.contains(&t["ID"]);
    api.until(|api| Ok(api.tasks(&id)?.iter().filter(fresh).count() >= 3))?;
    put("host_killed_3_of_9_s".into(), begun.elapsed().as_secs_f64());
    Ok(())
}

/// Proportional memory of the manager host's daemon processes in MiB: everything in its PID namespace that is not inside a
/// container's own.
fn host_memory_mib(lab: &Lab, daemon: Option<&str>) -> anyhow::Result<f64> {
    let pattern =
        if daemon.is_some() { "^(dockerd|containerd|.*/containerd-shim)" } else { "^[^ ]+ (daemon|supervisor) --" };
    let script = format!(
        "t=0; for p in $(pgrep -f '{pattern}'); do k=$(awk '/^Pss:/{{print $2}}' /proc/$p/smaps_rollup 2>/dev/null); t=$((t+${{k:-0}})); done; echo $t"
    );
    let name = &lab.hosts[0].0;
    let output =
        Command::new(lab.skep).args(["lab", "exec", "--name", lab.name, name, "--", "sh", "-c", &script]).output()?;
    let kib: f64 = String::from_utf8(output.stdout)?.trim().parse().context("no memory figure")?;
    Ok(kib / 1024.0)
}
