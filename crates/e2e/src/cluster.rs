//! Swarms of several managers: who leads, and whether what runs is exactly what was asked for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::{LATER, Lab, eventually};

/// What one host has in its kernel and on its disks for containers, by name.
struct HostState {
    /// Entries of `netns/`, `bundles/` and `supervisor/state/` that belong to containers.
    containers: [BTreeSet<String>; 3],
    links: Vec<String>,
    tables: Vec<String>,
    /// The first twelve digits of containers with a link in an overlay's namespace.
    ports: BTreeSet<String>,
}

const WHAT_A_HOST_HAS: &str = "cd /run/skep; for d in netns bundles supervisor/state; do ls $d | sed \"s|^|$d |\"; done; \
    ls /sys/class/net | sed 's/^/link /'; nft list tables; \
    for o in netns/ov-*; do [ -e $o ] && nsenter --net=$o ip -o link | sed -n 's/.* ep-\\([^@:]*\\).*/port \\1/p'; done; true";

impl Lab {
    /// The manager that leads as `through` sees it, if there is one.
    pub fn leader(&self, through: usize) -> Option<usize> {
        let listed = self.docker_words(through, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).stdout;
        let name = listed.lines().find_map(|line| line.strip_suffix(" Leader"))?;
        name.trim_start_matches("node").parse().ok()
    }

    #[track_caller]
    pub fn await_leader(&self, through: usize) -> usize {
        let mut leader = None;
        eventually(LATER, "a leader", || {
            leader = self.leader(through);
            leader.is_some()
        });
        leader.expect("eventually saw one")
    }

    /// A `docker` command that changes something, again as long as it is told to: another change came between its reading and its
    /// writing, or there is no leader for the moment.
    #[track_caller]
    pub fn change(&self, through: usize, line: &str) {
        eventually(LATER, "the change", || {
            let ran = self.docker(through, line);
            let again = ["update out of sequence", "The swarm does not have a leader"];
            assert!(ran.code == 0 || again.iter().any(|words| ran.stderr.contains(words)), "{ran:?}");
            ran.code == 0
        });
    }

    #[track_caller]
    pub fn scale(&self, through: usize, service: &str, replicas: usize) {
        self.change(through, &format!("service scale --detach {service}={replicas}"));
    }

    /// Hosts that run and are reached by the others.
    pub fn reached(&self) -> Vec<usize> {
        let listed = self.lab(&["ls", "--format", "json"]).ok();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("lab ls prints JSON");
        (1..).zip(rows).filter(|(_, row)| row["state"] == "running").map(|(node, _)| node).collect()
    }

    /// Waits until the swarm, asked at host `through`, has exactly these services with exactly these running tasks on hosts that
    /// are reached, and those hosts have the containers, namespaces, links and tables of these tasks and nothing else.
    #[track_caller]
    pub fn await_exact(&self, through: usize, services: &[(&str, usize)]) {
        let deadline = Instant::now() + LATER * 2;
        loop {
            let wrong = self.wrongs(through, services);
            if wrong.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "after {:?} there is still wrong:\n{}", LATER * 2, wrong.join("\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn wrongs(&self, through: usize, services: &[(&str, usize)]) -> Vec<String> {
        let mut wrong = Vec::new();
        let listed = self.docker_words(through, &["service", "ls", "--format", "{{.Name}}"]);
        let names: BTreeSet<&str> = listed.stdout.lines().collect();
        if listed.code != 0 || names != services.iter().map(|(name, _)| *name).collect() {
            return vec![format!("services: {names:?} {}", listed.stderr)];
        }
        // (host's name, task) that are to run; every task the swarm remembers.
        let (mut wanted, mut known) = (BTreeSet::new(), BTreeSet::new());
        for (service, replicas) in services {
            let format = "{{.ID}}|{{.Name}}|{{.Node}}|{{.DesiredState}}|{{.CurrentState}}";
            let ran = self.docker_words(through, &["service", "ps", "--no-trunc", "--format", format, service]);
            if ran.code != 0 && *replicas > 0 {
                return vec![ran.stderr];
            }
            let mut slots = Vec::new();
            for line in ran.stdout.lines() {
                let &[id, name, host, desired, state] = &line.split('|').collect::<Vec<_>>()[..] else { continue };
                known.insert(id.to_owned());
                if desired == "Running" {
                    slots.push(name.to_owned());
                    if state.starts_with("Running ") {
                        wanted.insert((host.to_owned(), id.to_owned()));
                    } else {
                        wrong.push(format!("task {line}"));
                    }
                }
            }
            let distinct: BTreeSet<&String> = slots.iter().collect();
            if slots.len() != *replicas || distinct.len() != slots.len() {
                wrong.push(format!("{service} is to have {replicas} tasks and has {slots:?}"));
            }
        }
        let reached = self.reached();
        for (host, task) in &wanted {
            if !reached.iter().any(|node| *host == format!("node{node}")) {
                wrong.push(format!("task {task} is said to run on {host}, which is not reached"));
            }
        }
        for node in reached {
            self.wrongs_of_host(node, &wanted, &known, &mut wrong);
        }
        wrong
    }

    fn wrongs_of_host(
        &self,
        node: usize,
        wanted: &BTreeSet<(String, String)>,
        known: &BTreeSet<String>,
        wrong: &mut Vec<String>,
    ) {
        let format = "{{.ID}} {{.State}} {{.Label \"com.docker.swarm.task.id\"}}";
        let listed = self.docker_words(node, &["ps", "-a", "--no-trunc", "--format", format]);
        if listed.code != 0 {
            wrong.push(format!("node{node}: {}", listed.stderr));
            return;
        }
        let rows: Vec<Vec<&str>> = listed.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
        let running: BTreeSet<(String, String)> =
            rows.iter().filter(|r| r[1] == "running").map(|r| (r[0].to_owned(), r[2].to_owned())).collect();
        let tasks: BTreeSet<&str> = running.iter().map(|(_, task)| task.as_str()).collect();
        let here = format!("node{node}");
        let due: BTreeSet<&str> = wanted.iter().filter(|(h, _)| *h == here).map(|(_, task)| task.as_str()).collect();
        if tasks != due || tasks.len() != running.len() {
            wrong.push(format!("{here} runs {tasks:?}, and is to run {due:?}"));
        }
        let unknown: Vec<&&str> = rows.iter().map(|r| &r[2]).filter(|task| !known.contains(**task)).collect();
        if !unknown.is_empty() {
            wrong.push(format!("{here} keeps containers of tasks that the swarm has forgotten: {unknown:?}"));
        }
        if self.is_dockerd() {
            return;
        }
        let containers: BTreeSet<String> = running.into_iter().map(|(id, _)| id).collect();
        let host = self.host_state(node);
        for (place, found) in ["network namespaces", "bundles", "supervised processes"].iter().zip(&host.containers) {
            if *found != containers {
                wrong.push(format!("{here}: {place} of {found:?}, and containers {containers:?}"));
            }
        }
        // A container has one link on its host's side (to docker0 or docker_gwbridge), and one in each overlay.
        let ends = host.links.iter().filter(|link| link.starts_with('v')).count();
        let short: BTreeSet<String> = containers.iter().map(|id| id[..12].to_owned()).collect();
        if ends != containers.len() || !host.ports.is_subset(&short) {
            wrong.push(format!("{here}: {ends} links and ports of {:?} for containers {short:?}", host.ports));
        }
        let strange =
            |link: &&String| !["docker", "eth0", "lo", "ing-", "v"].iter().any(|known| link.starts_with(known));
        let strangers: Vec<&String> = host.links.iter().filter(strange).collect();
        let ours = ["skep-bridge-", "skep-members-", "skep-mesh-"];
        let once = |prefix: &&str| host.tables.iter().filter(|t| t.starts_with(*prefix)).count() == 1;
        if !strangers.is_empty() || !ours.iter().all(once) || host.tables.len() != ours.len() {
            wrong.push(format!("{here}: links {strangers:?}, tables {:?}", host.tables));
        }
    }

    fn host_state(&self, node: usize) -> HostState {
        let listed = self.on(node, &["sh", "-c", WHAT_A_HOST_HAS]).ok();
        let mut state =
            HostState { containers: Default::default(), links: Vec::new(), tables: Vec::new(), ports: BTreeSet::new() };
        for line in listed.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["netns", name] if !name.starts_with("ov-") => drop(state.containers[0].insert(name.to_owned())),
                ["bundles", name] => drop(state.containers[1].insert(name.to_owned())),
                ["supervisor/state", name] => drop(state.containers[2].insert(name.to_owned())),
                ["link", name] => state.links.push(name.to_owned()),
                ["table", _, name] => state.tables.push(name.to_owned()),
                ["port", name] if name != "host" => drop(state.ports.insert(name.to_owned())),
                _ => {}
            }
        }
        state
    }
}
