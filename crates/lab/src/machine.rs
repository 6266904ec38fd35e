//! A lab as its user handles it: up, ls, exec, kill, start, pause, partition, loss, heal, down.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Value, json};

use crate::host::HostSpec;
use crate::state::{HostFile, HostPaths, LabFile, Loss, Role};
use crate::{LabError, Result, api, cgroup, disk, file, wire};

/// How long a daemon may take to answer its socket.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
const CLUSTER_PORT: u16 = 2377;

#[derive(Clone, Debug)]
pub struct UpOptions {
    pub managers: u8,
    pub workers: u8,
    /// Gives every host a disk of its own (in memory) of this size for its data root, rather than a folder on this machine's.
    pub disk_bytes: Option<u64>,
    /// Leave the daemons unjoined.
    pub no_swarm: bool,
    /// The daemon's program and first arguments: `skep daemon`, or `dockerd` for hosts to compare with.
    pub daemon: Vec<String>,
    /// More arguments for every daemon.
    pub daemon_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    Running,
    Partitioned,
    /// Its daemon is stopped by a signal.
    Paused,
    Killed,
}

/// One row of `skep lab ls`.
#[derive(Clone, Debug, Serialize)]
pub struct HostInfo {
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
    pub docker_host: String,
    pub state: HostState,
    #[serde(flatten)]
    pub loss: Loss,
    /// Of the disk it has of its own, if it has one.
    pub disk_bytes: Option<u64>,
}

/// A lab that has been made.
pub struct Lab {
    root: PathBuf,
    file: LabFile,
}

impl Lab {
    /// Opens a lab by name; [`LabError::NoLab`] if it was never made or is down.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        Ok(Self { root: root.to_owned(), file: LabFile::load(root, name)? })
    }

    /// Every lab on this machine.
    pub fn all(root: &Path) -> Vec<Self> {
        LabFile::all(root).into_iter().map(|file| Self { root: root.to_owned(), file }).collect()
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Makes the hosts, starts their daemons and joins them. What was half made is taken away when a step fails.
    pub fn up(root: &Path, name: &str, options: &UpOptions, program: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=20).contains(&name.len()) || !name.chars().all(fine) {
            return Err(LabError::Name(name.into()));
        }
        if !(1..=7).contains(&options.managers) || usize::from(options.managers) + usize::from(options.workers) > 200 {
            return Err(LabError::Size);
        }
        if LabFile::load(root, name).is_ok() {
            return Err(LabError::Exists(name.into()));
        }
        let taken: Vec<u8> = LabFile::all(root).iter().map(|lab| lab.subnet_index).collect();
        let subnet_index = (0..=255).find(|i| !taken.contains(i) && wire::is_free(*i)).ok_or(LabError::NoSubnet)?;
        let role = |i: u8| if i <= options.managers { Role::Manager } else { Role::Worker };
        let hosts = (1..=options.managers + options.workers)
            .map(|number| HostFile { name: format!("node{number}"), role: role(number), number })
            .collect();
        let file = LabFile {
            name: name.into(),
            subnet_index,
            hosts,
            cut_off: vec![],
            loss: BTreeMap::new(),
            disk_bytes: options.disk_bytes,
            daemon: options.daemon.clone(),
            daemon_args: options.daemon_args.clone(),
        };
        file.save(root)?;
        let lab = Self { root: root.to_owned(), file };
        let made = (|| {
            wire::make_switch(&lab.file)?;
            for host in &lab.file.hosts {
                if let Some(size) = options.disk_bytes {
                    disk::make(&lab.paths(host).data, size)?;
                }
                lab.boot(host, program)?;
            }
            for host in &lab.file.hosts {
                lab.await_daemon(host)?;
            }
            if options.no_swarm { Ok(()) } else { lab.form_swarm() }
        })();
        match made {
            Ok(()) => Ok(lab),
            Err(error) => {
                lab.down();
                Err(error)
            }
        }
    }

    fn paths(&self, host: &HostFile) -> HostPaths {
        HostPaths::new(&self.root, &self.file.name, &host.name)
    }

    fn host(&self, name: &str) -> Result<&HostFile> {
        self.file.hosts.iter().find(|h| h.name == name).ok_or_else(|| LabError::NoHost {
            lab: self.file.name.clone(),
            node: name.into(),
            hosts: self.file.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// pid 1 of a host as this machine numbers it, if the host runs.
    fn init_pid(&self, host: &HostFile) -> Option<i32> {
        let pid: i32 = std::fs::read_to_string(self.paths(host).pid).ok()?.trim().parse().ok()?;
        // A pid may have been given to another process since: ours has the host's namespace.
        let theirs = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        let ours = std::fs::metadata(wire::netns_path(&self.file.name, &host.name)).ok()?;
        use std::os::unix::fs::MetadataExt;
        (theirs.ino() == ours.ino()).then_some(pid)
    }

    fn boot(&self, host: &HostFile, program: &Path) -> Result<()> {
        let paths = self.paths(host);
        // /run is empty after a boot.
        let _ = std::fs::remove_dir_all(&paths.run);
        for folder in [&paths.run, &paths.data] {
            std::fs::create_dir_all(folder).map_err(file("cannot make", folder))?;
        }
        let hostname_file = paths.folder.join("hostname");
        let hosts_file = paths.folder.join("hosts");
        let resolv_conf = paths.folder.join("resolv.conf");
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for other in &self.file.hosts {
            hosts.push_str(&format!("{}\t{}\n", self.file.address(other), other.name));
        }
        std::fs::write(&hostname_file, format!("{}\n", host.name)).map_err(file("cannot write", &hostname_file))?;
        std::fs::write(&hosts_file, hosts).map_err(file("cannot write", &hosts_file))?;
        // There is no way out of a lab: names of the world fail at once rather than after a time-out.
        std::fs::write(&resolv_conf, "# a lab host has no name server\n")
            .map_err(file("cannot write", &resolv_conf))?;

        wire::plug_host(&self.file, host)?;
        if !self.file.cut_off.is_empty() {
            wire::arrange(&self.file)?;
        }
        if self.file.loss.contains_key(&host.name) {
            wire::lose(&self.file)?;
        }
        let address = self.file.address(host).to_string();
        let data = paths.data.to_string_lossy().into_owned();
        let parent = cgroup::parent(&self.file.name, &host.name);
        let mut daemon = self.file.daemon.clone();
        let flags = [
            "--host=unix:///run/docker.sock",
            "--data-root",
            &data,
            "--exec-root=/run/skep",
            "--pidfile=/run/skep.pid",
            "--cgroup-parent",
            &parent,
            "--swarm-default-advertise-addr",
            &address,
        ];
        daemon.extend(flags.map(String::from));
        daemon.extend(self.file.daemon_args.iter().cloned());
        let spec = HostSpec {
            hostname: host.name.clone(),
            netns: wire::netns_path(&self.file.name, &host.name),
            run: paths.run.clone(),
            hostname_file,
            hosts_file,
            resolv_conf,
            pid_file: paths.pid.clone(),
            log_file: paths.log.clone(),
            daemon,
        };
        let spec =
            serde_json::to_string(&spec).map_err(|e| LabError::Io { what: "host spec".into(), source: e.into() })?;
        let output = Command::new(program)
            .args(["lab-host", &spec])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A file and not a pipe: the host inherits it and would hold a pipe open for ever.
            .stderr(std::fs::File::create(paths.folder.join("host.log")).map_err(file("cannot write", &paths.folder))?)
            .status()
            .map_err(file("cannot run", program))?;
        if output.success() {
            return Ok(());
        }
        let said = std::fs::read_to_string(paths.folder.join("host.log")).unwrap_or_default();
        Err(LabError::Api { node: host.name.clone(), call: "start".into(), message: said.trim().to_owned() })
    }

    fn await_daemon(&self, host: &HostFile) -> Result<()> {
        let paths = self.paths(host);
        let deadline = Instant::now() + DAEMON_DEADLINE;
        loop {
            if api::call(&paths.socket, "GET", "/_ping", None).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(&paths.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                return Err(LabError::NoDaemon {
                    node: host.name.clone(),
                    seconds: DAEMON_DEADLINE.as_secs(),
                    log: paths.log,
                    tail: lines[lines.len().saturating_sub(15)..].join("\n"),
                });
            }
            // Polling a socket that nobody announces: a retry interval, not a wait for a guess of a time.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn call(&self, host: &HostFile, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        api::call(&self.paths(host).socket, method, path, body).map_err(|message| LabError::Api {
            node: host.name.clone(),
            call: format!("{method} {path}"),
            message,
        })
    }

    /// `swarm init` on the first host, `swarm join` with its tokens on the others: managers one after another, since each
    /// changes the membership; then all workers at once.
    fn form_swarm(&self) -> Result<()> {
        let first = &self.file.hosts[0];
        let leader = format!("{}:{CLUSTER_PORT}", self.file.address(first));
        let listen = format!("0.0.0.0:{CLUSTER_PORT}");
        self.call(first, "POST", "/swarm/init", Some(&json!({ "ListenAddr": listen, "AdvertiseAddr": leader })))?;
        let tokens = self.call(first, "GET", "/swarm", None)?["JoinTokens"].clone();
        let join = |host: &HostFile| {
            let token = if host.role == Role::Manager { &tokens["Manager"] } else { &tokens["Worker"] };
            let advertise = format!("{}:{CLUSTER_PORT}", self.file.address(host));
            let body = json!({ "ListenAddr": listen, "AdvertiseAddr": advertise, "RemoteAddrs": [leader], "JoinToken": token });
            self.call(host, "POST", "/swarm/join", Some(&body)).map(|_| ())
        };
        let (managers, workers): (Vec<_>, Vec<_>) = self.file.hosts[1..].iter().partition(|h| h.role == Role::Manager);
        managers.into_iter().try_for_each(&join)?;
        std::thread::scope(|scope| {
            let joins: Vec<_> = workers.into_iter().map(|host| scope.spawn(|| join(host))).collect();
            joins.into_iter().try_for_each(|j| j.join().unwrap_or(Err(LabError::Size)))
        })
    }

    /// Every host with its state, in order.
    pub fn hosts(&self) -> Vec<HostInfo> {
        self.file
            .hosts
            .iter()
            .map(|host| HostInfo {
                name: host.name.clone(),
                role: host.role,
                address: self.file.address(host),
                docker_host: format!("unix://{}", self.paths(host).socket.display()),
                loss: self.file.loss.get(&host.name).copied().unwrap_or_default(),
                disk_bytes: self.file.disk_bytes,
                state: match self.init_pid(host) {
                    None => HostState::Killed,
                    Some(pid) if self.daemon_pid(host, pid).is_some_and(is_stopped) => HostState::Paused,
                    Some(_) if self.file.cut_off.contains(&host.name) => HostState::Partitioned,
                    Some(_) => HostState::Running,
                },
            })
            .collect()
    }

    /// Runs a command on a host; returns its exit code.
    pub fn exec(&self, node: &str, command: &[String]) -> Result<i32> {
        let host = self.host(node)?;
        let pid = self.init_pid(host).ok_or_else(|| LabError::NotRunning(node.into()))?;
        crate::host::exec(pid, command)
    }

    fn power_off(&self, host: &HostFile) {
        // First the cable, then the machine: peers must not hear it die.
        let pid = self.init_pid(host);
        wire::unplug_host(&self.file, host);
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            // The kernel ends every process of the PID namespace before pid 1 is gone.
            let deadline = Instant::now() + Duration::from_secs(10);
            while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = std::fs::remove_file(self.paths(host).pid);
        cgroup::remove(&self.file.name, Some(&host.name));
    }

    /// Ends a host as a power failure does.
    pub fn kill(&self, node: &str) -> Result<()> {
        let host = self.host(node)?;
        if self.init_pid(host).is_none() {
            return Err(LabError::NotRunning(node.into()));
        }
        self.power_off(host);
        Ok(())
    }

    /// Starts a killed host with the disk it had, and waits for its daemon.
    pub fn start(&self, node: &str, program: &Path) -> Result<()> {
        let host = self.host(node)?;
        if self.init_pid(host).is_some() {
            return Err(LabError::Running(node.into()));
        }
        self.boot(host, program)?;
        self.await_daemon(host)
    }

    /// Cuts the named hosts off from all others and from this machine; they still reach one another.
    pub fn partition(&mut self, nodes: &[String]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.host(node).map(|_| ()))?;
        self.file.cut_off = nodes.to_vec();
        self.file.save(&self.root)?;
        wire::arrange(&self.file)
    }

    /// Loses packets on the way to and from a host; no loss ends it. All of one direction is a partition of one way.
    pub fn lose(&mut self, node: &str, loss: Loss) -> Result<()> {
        self.host(node)?;
        if let Some(percent) = [loss.to_host_percent, loss.from_host_percent].into_iter().find(|p| *p > 100) {
            return Err(LabError::Percent(percent));
        }
        if loss == Loss::default() {
            self.file.loss.remove(node);
        } else {
            self.file.loss.insert(node.to_owned(), loss);
        }
        self.file.save(&self.root)?;
        wire::lose(&self.file)
    }

    /// Ends the partition and every loss.
    pub fn heal(&mut self) -> Result<()> {
        self.file.loss.clear();
        self.partition(&[])?;
        wire::lose(&self.file)
    }

    /// Stops a host's daemon with SIGSTOP, or lets it go on: it is then late without having died. Containers and whatever else
    /// runs on the host are not touched.
    pub fn pause(&self, node: &str, paused: bool) -> Result<()> {
        let host = self.host(node)?;
        let init = self.init_pid(host).ok_or_else(|| LabError::NotRunning(node.into()))?;
        let daemon = self.daemon_pid(host, init).ok_or_else(|| LabError::NoDaemonProcess(node.into()))?;
        let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(daemon), signal)
            .map_err(|e| LabError::Io { what: format!("cannot signal the daemon of {node}"), source: e.into() })?;
        // It stops when it is next looked at.
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_stopped(daemon) != paused {
            if Instant::now() > deadline {
                let what = format!("the daemon of {node} was signalled and is as it was");
                return Err(LabError::Io { what, source: std::io::ErrorKind::TimedOut.into() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The daemon as this machine numbers it: the child of the host's pid 1 that wrote the pid file.
    fn daemon_pid(&self, host: &HostFile, init: i32) -> Option<i32> {
        let on_host = std::fs::read_to_string(self.paths(host).run.join("skep.pid")).ok()?;
        let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| {
            status_line(*pid, "NSpid:").is_some_and(|pids| pids.split_whitespace().last() == Some(on_host.trim()))
        })
    }

    /// Takes everything away: processes, namespaces, links, mounts, cgroups, files.
    pub fn down(&self) {
        // The kernel takes its time over a namespace's end: all at once.
        std::thread::scope(|scope| {
            for host in &self.file.hosts {
                scope.spawn(|| self.power_off(host));
            }
        });
        for host in &self.file.hosts {
            disk::remove(&self.paths(host).data);
        }
        wire::drop_switch(&self.file);
        cgroup::remove(&self.file.name, None);
        let _ = std::fs::remove_dir_all(self.root.join(&self.file.name));
        let _ = std::fs::remove_dir(&self.root);
    }
}

/// The rest of a line of `/proc/<pid>/status`.
fn status_line(pid: i32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.trim().to_owned())
}

fn is_stopped(pid: i32) -> bool {
    status_line(pid, "State:").is_some_and(|state| state.starts_with('T'))
}
