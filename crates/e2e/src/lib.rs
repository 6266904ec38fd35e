//! End-to-end tests: the real binary on the hosts of a lab, driven by the stock docker CLI, as a user drives it.
//!
//! The same tests run against real dockerd, to prove that they assert Docker's behaviour and not ours:
//! `SKEP_E2E_DAEMON=dockerd cargo nextest run -p skep-e2e`. Tests of what only skep has ask [`Lab::is_dockerd`] and return.
//! (Where the kernel lacks IPVS, dockerd's own mesh passes no traffic: tests of the mesh return too.)
//!
//! A test says what it proves with comments of the form `// conformance: works | docker run --rm | note`, from which
//! `cargo xtask conformance` makes docs/conformance.md.

pub mod api;
mod cluster;
pub mod linear;
pub mod load;
pub mod service;
pub mod token;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    line: String,
}

impl Ran {
    fn new(line: String, output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            line,
        }
    }

    /// The trimmed standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.code == 0,
            "`{}` exited {}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.stdout,
            self.stderr
        );
        self.stdout.trim_end().to_owned()
    }

    /// The standard error of a command that must fail, which must hold `text`.
    #[track_caller]
    pub fn fails(self, text: &str) -> String {
        assert!(self.code != 0, "`{}` succeeded: {}", self.line, self.stdout);
        assert!(self.stderr.contains(text), "`{}` said {:?}, expected {text:?} in it", self.line, self.stderr);
        self.stderr
    }
}

/// Polls `done` until it is true; panics after `limit` with `what` did not happen.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ten seconds: far longer than anything takes, far shorter than a hang.
pub const SOON: Duration = Duration::from_secs(10);
/// For what includes a dead host's time-out on either daemon.
pub const LATER: Duration = Duration::from_secs(40);

/// The binary under test: `SKEP_BIN`, or the one built beside this test.
pub fn skep_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SKEP_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a file");
    let beside = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps").join("skep");
    assert!(
        beside.exists(),
        "{} is missing: build it with `cargo build -p skep`, or name another with SKEP_BIN",
        beside.display()
    );
    beside
}

/// The daemon the hosts run, if it is not skep.
fn other_daemon() -> Option<String> {
    std::env::var("SKEP_E2E_DAEMON").ok().filter(|d| !d.is_empty())
}

/// A lab of its own for one test; it goes away with the value, also when the test fails.
pub struct Lab {
    name: String,
    skep: PathBuf,
    /// (name, address, socket path)
    hosts: Vec<(String, String, String)>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, _, socket) in &self.hosts {
                let log = Path::new(socket).parent().and_then(Path::parent).map(|p| p.join("daemon.log"));
                let text = log.and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- the end of {name}'s daemon log\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        let _ = Command::new(&self.skep).args(["lab", "down", "--name", &self.name]).output();
    }
}

impl Lab {
    /// A swarm of `managers` and `workers`.
    pub fn swarm(managers: u8, workers: u8) -> Self {
        Self::up(&["--managers", &managers.to_string(), "--workers", &workers.to_string()])
    }

    /// Hosts that have joined nothing.
    pub fn hosts(count: u8) -> Self {
        Self::up(&["--managers", "1", "--workers", &(count - 1).to_string(), "--no-swarm"])
    }

    /// `skep lab up` with more arguments.
    pub fn up(arguments: &[&str]) -> Self {
        let name = format!("e2e-{}", std::process::id());
        let mut lab = Self { name, skep: skep_binary(), hosts: Vec::new() };
        let mut words = vec!["lab", "up", "--name", &lab.name];
        let other = other_daemon();
        if let Some(daemon) = &other {
            words.extend(["--daemon", daemon]);
        }
        words.extend(arguments);
        let output = Command::new(&lab.skep).args(&words).output().expect("skep runs");
        Ran::new(format!("skep {}", words.join(" ")), output).ok();
        let listed = lab.lab(&["ls", "--format", "json"]).ok();
        let rows: Vec<Value> = serde_json::from_str(&listed).expect("lab ls prints JSON");
        for row in rows {
            let text = |key: &str| row[key].as_str().expect("a text").to_owned();
            lab.hosts.push((
                text("name"),
                text("address"),
                text("docker_host").trim_start_matches("unix://").to_owned(),
            ));
        }
        lab
    }

    pub fn is_dockerd(&self) -> bool {
        other_daemon().is_some()
    }

    /// Whether CLI and daemon speak this version of the API with one another: Debian 12 has both at 1.41.
    pub fn speaks(&self, minor: u32) -> bool {
        let version = self.docker_words(1, &["version", "--format", "{{.Client.APIVersion}}"]).ok();
        version.strip_prefix("1.").and_then(|v| v.parse().ok()).is_some_and(|spoken: u32| spoken >= minor)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn size(&self) -> usize {
        self.hosts.len()
    }

    /// The address of host `node`, counted from 1.
    pub fn address(&self, node: usize) -> &str {
        &self.hosts[node - 1].1
    }

    pub fn socket(&self, node: usize) -> &str {
        &self.hosts[node - 1].2
    }

    /// A host's `--data-root`, the same path on this machine.
    pub fn data_root(&self, node: usize) -> PathBuf {
        Path::new(self.socket(node)).ancestors().nth(2).expect("<lab>/<node>/run/docker.sock").join("data")
    }

    /// `skep lab VERB --name … arguments`.
    pub fn lab(&self, words: &[&str]) -> Ran {
        let mut all = vec!["lab", words[0], "--name", &self.name];
        all.extend(&words[1..]);
        let output = Command::new(&self.skep).args(&all).stdin(Stdio::null()).output().expect("skep runs");
        Ran::new(format!("skep {}", all.join(" ")), output)
    }

    /// A command on a host.
    pub fn on(&self, node: usize, command: &[&str]) -> Ran {
        let mut words = vec!["exec", self.hosts[node - 1].0.as_str(), "--"];
        words.extend(command);
        self.lab(&words)
    }

    /// A `docker` command line that is not yet run, for those that need a terminal or go on running.
    pub fn docker_command(&self, node: usize, words: &[&str]) -> Command {
        let program = std::env::var("SKEP_E2E_DOCKER").unwrap_or_else(|_| "docker".into());
        let mut command = Command::new(program);
        command.arg("-H").arg(format!("unix://{}", self.socket(node))).args(words);
        command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT").stdin(Stdio::null());
        command
    }

    /// `docker …` against host `node`, counted from 1; words are split at spaces.
    pub fn docker(&self, node: usize, line: &str) -> Ran {
        self.docker_words(node, &line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn docker_words(&self, node: usize, words: &[&str]) -> Ran {
        let output = self.docker_command(node, words).output().expect("the docker CLI is installed");
        Ran::new(format!("docker {}", words.join(" ")), output)
    }

    /// `docker … ` with this standard input.
    pub fn docker_with_input(&self, node: usize, words: &[&str], input: &[u8]) -> Ran {
        use std::io::Write;
        let mut child = self
            .docker_command(node, words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the docker CLI is installed");
        child.stdin.take().expect("piped").write_all(input).expect("docker reads its input");
        Ran::new(format!("docker {}", words.join(" ")), child.wait_with_output().expect("docker ends"))
    }

    /// Gives every host the image `busybox:latest`, made of Debian's busybox-static.
    pub fn give_busybox(&self) {
        let tar = busybox_tar();
        for node in 1..=self.size() {
            self.docker_with_input(node, &["import", "--change", "CMD [\"/bin/sh\"]", "-", "busybox:latest"], &tar)
                .ok();
        }
    }

    /// Gives every host an image of busybox and a program of this machine, with the libraries it is linked to.
    pub fn give_program(&self, image: &str, program: &str) {
        let folder = busybox_folder();
        let linked = Command::new("ldd").arg(program).output().expect("ldd is installed").stdout;
        let linked = String::from_utf8_lossy(&linked).into_owned();
        for file in linked.split_whitespace().filter(|word| word.starts_with('/')).chain([program]) {
            let inside = folder.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(inside.parent().expect("a folder")).expect("a folder");
            std::fs::copy(file, inside).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
        let tar = tar_of(&folder);
        for node in 1..=self.size() {
            self.docker_with_input(node, &["import", "-", image], &tar).ok();
        }
    }

    /// Makes sure every host has `skep/whoami:latest`: skep brings it along, dockerd is given one of the same binary.
    pub fn give_whoami(&self) {
        if !self.is_dockerd() {
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::copy(&self.skep, folder.path().join("skep")).expect("the binary is copied");
        let tar =
            Command::new("tar").arg("-C").arg(folder.path()).args(["-cf", "-", "."]).output().expect("tar runs").stdout;
        for node in 1..=self.size() {
            let entry = "ENTRYPOINT [\"/skep\", \"whoami\"]";
            self.docker_with_input(node, &["import", "--change", entry, "-", "skep/whoami:latest"], &tar).ok();
        }
    }

    /// The tasks of a service that run and are wanted, as `(node, task name)`.
    pub fn running(&self, service: &str) -> Vec<(String, String)> {
        let format = "{{.Node}} {{.Name}} {{.CurrentState}}";
        let listed =
            self.docker_words(1, &["service", "ps", service, "--filter", "desired-state=running", "--format", format]);
        listed
            .stdout
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let row = (words.next()?.to_owned(), words.next()?.to_owned());
                (words.next() == Some("Running")).then_some(row)
            })
            .collect()
    }

    #[track_caller]
    pub fn await_running(&self, service: &str, count: usize) {
        let mut seen = String::new();
        eventually(LATER, &format!("{count} running tasks of {service}"), || {
            let running = self.running(service);
            let done = running.len() == count;
            if !done {
                let now = self.docker(1, &format!("service ps --no-trunc {service}")).stdout;
                if now != seen {
                    eprintln!("{now}");
                    seen = now;
                }
            }
            done
        });
    }

    /// `curl` from this machine.
    pub fn curl(&self, url: &str) -> Ran {
        let words = ["-sS", "--max-time", "5", url];
        Ran::new(format!("curl {url}"), Command::new("curl").args(words).output().expect("curl is installed"))
    }
}

/// A command that goes on running while its output is looked at; ended with the value.
pub struct Following {
    child: std::process::Child,
    seen: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Following {
    pub fn start(mut command: Command) -> Self {
        use std::io::Read;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the command runs");
        let mut stdout = child.stdout.take().expect("piped");
        let seen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let store = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                store.lock().expect("no panic holds it").push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, seen }
    }

    pub fn seen(&self) -> String {
        self.seen.lock().expect("no panic holds it").clone()
    }

    #[track_caller]
    pub fn await_text(&self, text: &str) {
        eventually(SOON, &format!("{text:?} in the output"), || self.seen().contains(text));
    }

    /// Waits for its end by itself; the exit code.
    #[track_caller]
    pub fn await_end(&mut self) -> i32 {
        let mut code = None;
        eventually(SOON, "the command's end", || {
            code = self.child.try_wait().ok().flatten().map(|s| s.code().unwrap_or(-1));
            code.is_some()
        });
        code.unwrap_or(-1)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A root file system with one static busybox and links for its applets.
pub fn busybox_tar() -> Vec<u8> {
    tar_of(&busybox_folder())
}

fn busybox_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bin = folder.path().join("bin");
    for name in ["bin", "etc", "tmp", "root", "var", "usr/bin"] {
        std::fs::create_dir_all(folder.path().join(name)).expect("a folder");
    }
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link");
    }
    std::fs::write(
        folder.path().join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/tmp:/bin/sh\n",
    )
    .expect("a file");
    std::fs::write(folder.path().join("etc/group"), "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n").expect("a file");
    folder
}

fn tar_of(folder: &tempfile::TempDir) -> Vec<u8> {
    let tar =
        Command::new("tar").arg("-C").arg(folder.path()).args(["--owner=0", "--group=0", "-cf", "-", "."]).output();
    tar.expect("tar is installed").stdout
}

/// The first column of a table without its header.
pub fn first_column(table: &str) -> Vec<&str> {
    table.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect()
}

/// Debian's docker-registry on host 1, port 5000; ended with the value.
pub struct Registry {
    child: std::process::Child,
    _folder: tempfile::TempDir,
    storage: PathBuf,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub fn start(lab: &Lab) -> Self {
        Self::run(lab, |_| String::new())
    }

    /// One that is for the user `bee` with the password `honey`.
    pub fn start_private(lab: &Lab) -> Self {
        Self::run(lab, |folder| {
            let users = folder.join("htpasswd");
            std::fs::write(&users, "bee:$2y$05$abcdefghijklmnopqrstuua72UqXIK32CtpAE.WxMIzK71a407mZm\n")
                .expect("a file");
            format!("auth: {{htpasswd: {{realm: hive, path: {}}}}}\n", users.display())
        })
    }

    fn run(lab: &Lab, more: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = folder.path().join("storage");
        let config = folder.path().join("config.yml");
        let text = more(folder.path())
            + &format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \":5000\"}}\n",
                storage.display()
            );
        std::fs::write(&config, text).expect("a file");
        // In the host's network namespace only, so that the process is this test's own child and ends with it.
        let namespace = format!("/run/netns/skep-{}-node1", lab.name());
        let child = Command::new("nsenter")
            .arg(format!("--net={namespace}"))
            .args(["docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter runs");
        let registry = Self { child, _folder: folder, storage };
        eventually(SOON, "the registry answers", || lab.curl(&format!("http://{}:5000/v2/", lab.address(1))).code == 0);
        registry
    }

    /// Where it keeps its blobs.
    pub fn storage(&self) -> &Path {
        &self.storage
    }
}
