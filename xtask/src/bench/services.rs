//! What a user of one swarm does all day: services made, scaled, updated and removed, a host that dies.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::api::Api;
use super::lab::Lab;
use super::{Figures, Options};

pub(super) const IMAGE: &str = "bench/busybox:latest";

/// A root file system of one static busybox, as a tar that goes away with the value.
pub(super) struct ImageTar(pub(super) PathBuf);

impl Drop for ImageTar {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ImageTar {
    pub(super) fn make() -> anyhow::Result<Self> {
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

pub(super) fn give_image(lab: &Lab, tar: &ImageTar) -> anyhow::Result<()> {
    for host in &lab.hosts {
        let host = format!("unix://{}", host.socket);
        let output = Command::new("docker").args(["-H", &host, "import"]).arg(&tar.0).arg(IMAGE).output()?;
        if !output.status.success() {
            bail!("docker import: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

pub(super) fn spec(name: &str, replicas: u64, env: &[&str]) -> Value {
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

pub(super) fn measure(
    skep: &Path,
    name: &'static str,
    daemon: Option<&str>,
    options: &Options,
    tar: &ImageTar,
    out: &mut Figures,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let lab = Lab::up(skep, name, daemon, 1, 2)?;
    let mut put = |key: String, value: f64| out.entry(key).or_default().push(value);
    put("lab_up_3_hosts_s".into(), begun.elapsed().as_secs_f64());
    give_image(&lab, tar)?;
    let mut api = lab.api(0)?;

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

    secrets(&mut api, &mut put)?;

    let id = api.create(&spec("fail", 9, &[]))?;
    api.await_running(&id, 9, |_| true)?;
    let before: Vec<Value> = api.tasks(&id)?.iter().map(|t| t["ID"].clone()).collect();
    let begun = Instant::now();
    lab.run("kill", &[&lab.hosts[2].name])?;
    let fresh =
        |t: &&Value| t["Status"]["State"] == "running" && t["DesiredState"] == "running" && !before.contains(&t["ID"]);
    api.until(|api| Ok(api.tasks(&id)?.iter().filter(fresh).count() >= 3))?;
    put("host_killed_3_of_9_s".into(), begun.elapsed().as_secs_f64());
    Ok(())
}

/// A hundred secrets to fifty tasks, beside fifty tasks of none.
fn secrets(api: &mut Api, put: &mut impl FnMut(String, f64)) -> anyhow::Result<()> {
    let mut references = Vec::new();
    for i in 0..100 {
        let name = format!("s{i}");
        let answer = api.call("POST", "/secrets/create", Some(&json!({ "Name": name, "Data": "c2VjcmV0" })))?;
        let file = json!({ "Name": name, "UID": "0", "GID": "0", "Mode": 0o444 });
        references.push(json!({ "SecretID": answer["ID"], "SecretName": name, "File": file }));
    }
    let mut took = Vec::new();
    for (name, secrets) in [("plain", &[][..]), ("secret", &references[..])] {
        let mut spec = spec(name, 50, &[]);
        spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!(secrets);
        let status = format!("/services?status=true&filters=%7B%22name%22:%7B%22{name}%22:true%7D%7D");
        let begun = Instant::now();
        let id = api.create(&spec)?;
        // Not the tasks themselves: with so many references in each, asking for them would be most of the work.
        api.until(|api| Ok(api.call("GET", &status, None)?[0]["ServiceStatus"]["RunningTasks"] == 50))?;
        took.push(begun.elapsed().as_secs_f64());
        api.remove(&id)?;
    }
    put("create_50_with_100_secrets_s".into(), took[1]);
    put("create_50_with_100_secrets_to_without_ratio".into(), took[1] / took[0]);
    for reference in references {
        api.call("DELETE", &format!("/secrets/{}", reference["SecretID"].as_str().unwrap_or_default()), None)?;
    }
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
    let answer = lab.run("exec", &[&lab.hosts[0].name, "--", "sh", "-c", &script])?;
    let kib: f64 = answer.trim().parse().context("no memory figure")?;
    Ok(kib / 1024.0)
}
