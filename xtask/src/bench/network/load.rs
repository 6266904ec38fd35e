//! Servers and clients in network namespaces, and the processor time they take.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::bench::lab::Lab;

/// A namespace as `nsenter --net=` has it.
#[derive(Clone)]
pub(super) struct Namespace(pub(super) PathBuf);

impl Namespace {
    pub(super) fn of_host(lab: &Lab, host: usize) -> anyhow::Result<Self> {
        Ok(Self(format!("/proc/{}/ns/net", init_pid(lab, host)?).into()))
    }

    /// Seen through the mounts of the container's host.
    pub(super) fn of_container(lab: &Lab, host: usize, container: &str) -> anyhow::Result<Self> {
        Ok(Self(format!("/proc/{}/root/run/skep/netns/{container}", init_pid(lab, host)?).into()))
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.0.display())).arg(program).stdin(Stdio::null());
        command
    }

    pub(super) fn shell(&self, script: &str) -> anyhow::Result<()> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        if !output.status.success() {
            bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// pid 1 of a host as this machine numbers it.
fn init_pid(lab: &Lab, host: usize) -> anyhow::Result<u32> {
    let folder = Path::new(&lab.hosts[host].socket).ancestors().nth(2).context("<lab>/<node>/run/docker.sock")?;
    let text = std::fs::read_to_string(folder.join("init.pid")).context("a host's pid")?;
    Ok(text.trim().parse()?)
}

/// A program that ends with its value, and its files.
pub(super) struct Server {
    child: Child,
    files: Vec<PathBuf>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Server {
    fn start(mut command: Command, files: Vec<PathBuf>) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, files })
    }

    fn configured(
        program: &str,
        flags: &[&str],
        namespace: &Namespace,
        text: impl FnOnce(&Path) -> String,
    ) -> anyhow::Result<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("skep-bench-{program}-{}-{number}", std::process::id()));
        let pid_file = file.with_extension("pid");
        std::fs::write(&file, text(&pid_file))?;
        let mut command = namespace.command(program);
        command.args(flags).arg(&file);
        Self::start(command, vec![file, pid_file])
    }

    /// One process, 50 bytes, on these ports. It removes its pid file when it ends: `/dev/null` would be gone.
    pub(super) fn nginx(namespace: &Namespace, ports: &[u16]) -> anyhow::Result<Self> {
        let listen: String = ports.iter().map(|port| format!("listen {port} backlog=4096; ")).collect();
        let text = |pid_file: &Path| {
            format!(
                "daemon off; master_process off; pid {}; error_log /dev/null;\n\
                events {{ worker_connections 4096; }}\n\
                http {{ access_log off; keepalive_requests 1000000000; server {{ {listen}location / {{\n\
                return 200 \"01234567890123456789012345678901234567890123456789\"; }} }} }}\n",
                pid_file.display()
            )
        };
        Self::configured("nginx", &["-c"], namespace, text)
    }

    /// One thread that hands connections on to `to`.
    pub(super) fn haproxy(namespace: &Namespace, port: u16, to: &str) -> anyhow::Result<Self> {
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\nfrontend in\n  bind *:{port}\n  default_backend out\nbackend out\n  server task {to}\n"
        );
        Self::configured("haproxy", &["-db", "-f"], namespace, |_| text)
    }

    pub(super) fn iperf3(namespace: &Namespace) -> anyhow::Result<Self> {
        let mut command = namespace.command("iperf3");
        command.arg("--server");
        Self::start(command, Vec::new())
    }

    fn cpu_seconds(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let of_thread = |path: PathBuf| -> Option<f64> {
            let line = std::fs::read_to_string(path.join("schedstat")).ok()?;
            line.split(' ').next()?.parse().ok()
        };
        threads.into_iter().flatten().flatten().filter_map(|thread| of_thread(thread.path())).sum::<f64>() / 1e9
    }
}

/// Of all children that have ended.
fn cpu_seconds_of_children() -> anyhow::Result<f64> {
    let line = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = line.rsplit_once(") ").context("/proc/self/stat")?;
    let ticks: Vec<f64> = fields.split(' ').skip(13).take(2).map_while(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// What `client` makes of it, and the processor time it and the servers take meanwhile.
fn metered(mut client: Command, servers: &[&Server]) -> anyhow::Result<(String, f64)> {
    let spent = || servers.iter().map(|server| server.cpu_seconds()).sum::<f64>();
    let (servers_before, children_before) = (spent(), cpu_seconds_of_children()?);
    let output = client.output()?;
    let used = spent() - servers_before + cpu_seconds_of_children()? - children_before;
    let said = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!("{:?}: {said}{}", client.get_program(), String::from_utf8_lossy(&output.stderr));
    }
    Ok((said, used))
}

/// Requests a second of processor time, with 16 connections, kept or new for every request.
pub(super) fn requests(
    from: Option<&Namespace>,
    url: &str,
    keep: bool,
    seconds: u64,
    servers: &[&Server],
) -> anyhow::Result<f64> {
    let mut wrk = from.map_or_else(|| Command::new("wrk"), |namespace| namespace.command("wrk"));
    wrk.args(["-t1", "-c16", "--timeout", "10s", &format!("-d{seconds}s")]);
    if !keep {
        wrk.args(["-H", "Connection: close"]);
    }
    wrk.arg(url);
    let (said, used) = metered(wrk, servers)?;
    let made = said.lines().find_map(|line| line.trim().split_once(" requests in")).context("wrk's count")?.0;
    let made: f64 = made.parse()?;
    // A read that ends with the time is none of these.
    let broken = said.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    if made == 0.0 || broken.is_some_and(|line| !line.contains("connect 0,") || !line.contains("timeout 0")) {
        bail!("{url}: {said}");
    }
    Ok(made / used)
}

/// Gbit a second of processor time, one TCP stream.
pub(super) fn stream(from: &Namespace, to: &str, seconds: u64, server: &Server) -> anyhow::Result<f64> {
    let mut iperf3 = from.command("iperf3");
    iperf3.args(["--json", "--time", &seconds.to_string(), "--client", to]);
    let (said, used) = metered(iperf3, &[server])?;
    let said: Value = serde_json::from_str(&said)?;
    Ok(said["end"]["sum_received"]["bytes"].as_f64().context("no throughput")? * 8e-9 / used)
}
