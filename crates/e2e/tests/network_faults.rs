//! What breaks, and the network after it: names, balancing and the mesh lead to exactly the tasks there are, and nothing of
//! those that were is left in a kernel. Not run against dockerd where the kernel lacks IPVS.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::Value;
use skep_e2e::{LATER, Lab, eventually};

/// Addresses on the network `back` of a service's running tasks: (host, address).
fn addresses(lab: &Lab, service: &str) -> BTreeSet<(String, String)> {
    let format = "{{.ID}} {{.Node}} {{.CurrentState}}";
    let words = ["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", format, service];
    let listed = lab.docker_words(1, &words).stdout;
    let rows = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (id, host) = (words.next()?, words.next()?);
        let task: Value = serde_json::from_str(&lab.docker_words(1, &["inspect", "--type", "task", id]).stdout).ok()?;
        let on_back = |a: &&Value| a["Network"]["Spec"]["Name"] == "back";
        let attachment = task[0]["NetworksAttachments"].as_array()?.iter().find(on_back)?;
        let address = attachment["Addresses"][0].as_str()?.split('/').next()?;
        (words.next() == Some("Running")).then(|| (host.to_owned(), address.to_owned()))
    });
    rows.collect()
}

fn hostnames(answers: impl Iterator<Item = skep_e2e::Ran>) -> Result<BTreeSet<String>, String> {
    let name = |answer: skep_e2e::Ran| {
        let found = answer.stdout.lines().find_map(|line| line.strip_prefix("Hostname:")).map(|n| n.trim().to_owned());
        found.ok_or_else(|| format!("a request was not answered: {}", answer.stderr))
    };
    answers.map(name).collect()
}

/// What is not as it should be on a host, with so many tasks of `api` and a `client` on each of `hosts`.
fn wrongs(lab: &Lab, hosts: &[usize], tasks: usize) -> Result<(), String> {
    let (api, clients) = (addresses(lab, "api"), addresses(lab, "client"));
    let reached: BTreeSet<String> = hosts.iter().map(|host| format!("node{host}")).collect();
    let at = |set: &BTreeSet<(String, String)>| set.iter().map(|(host, _)| host.clone()).collect::<BTreeSet<_>>();
    if api.len() != tasks || at(&clients) != reached || !at(&api).is_subset(&reached) {
        return Err(format!("tasks {api:?}, clients {clients:?}"));
    }
    let wanted: BTreeSet<&str> = api.iter().map(|(_, address)| address.as_str()).collect();
    for host in hosts {
        let client = lab.docker(*host, "ps -q --filter name=client").stdout.trim().to_owned();
        let run = |command: &str| lab.docker_words(*host, &["exec", &client, "sh", "-c", command]);
        let looked_up = run("nslookup tasks.api 127.0.0.11").stdout;
        let named: BTreeSet<&str> = looked_up
            .lines()
            .filter_map(|line| line.strip_prefix("Address")?.rsplit(' ').next())
            .filter(|address| address.starts_with("10."))
            .collect();
        if named != wanted {
            return Err(format!("node{host} names {named:?}, and there are {wanted:?}"));
        }
        let url = format!("http://{}:8080", lab.address(*host));
        let by_name = hostnames((0..2 * tasks).map(|_| run("timeout 2 wget -qO- http://api")))?;
        let by_port = hostnames((0..2 * tasks).map(|_| lab.curl(&url)))?;
        if by_name.len() != tasks || by_name != by_port {
            return Err(format!("node{host} balances over {by_name:?}, its port over {by_port:?}"));
        }
        let elsewhere: BTreeSet<&str> = api
            .iter()
            .chain(&clients)
            .filter(|(on, _)| *on != format!("node{host}"))
            .map(|(_, address)| address.as_str())
            .collect();
        let entries = lab.on(*host, &["sh", "-c", "for o in /run/skep/netns/ov-*; do nsenter --net=$o ip neigh; done"]);
        // Of the network `back`: the other one is the mesh's, 10.0.0.0/24.
        let entries: BTreeSet<&str> = entries
            .stdout
            .lines()
            .filter(|line| line.contains("PERMANENT"))
            .filter_map(|line| line.split(' ').next())
            .filter(|address| !address.starts_with("10.0.0."))
            .collect();
        // What ran on a host that is not reached may still run there, and keeps its entry until that is known.
        let all_are_reached = hosts.len() == lab.size();
        if !entries.is_superset(&elsewhere) || (all_are_reached && entries != elsewhere) {
            return Err(format!("node{host} has entries for {entries:?}, and elsewhere are {elsewhere:?}"));
        }
    }
    Ok(())
}

#[track_caller]
fn await_right(lab: &Lab, what: &str, hosts: &[usize], tasks: usize) {
    let begun = Instant::now();
    let mut last = String::new();
    while let Err(wrong) = wrongs(lab, hosts, tasks) {
        assert!(begun.elapsed() < 2 * LATER, "{what}: {wrong}");
        if wrong != last {
            eprintln!("{what}: {wrong}");
            last = wrong;
        }
    }
}

#[test]
fn names_balancing_and_mesh_are_right_again_after_every_fault() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker(1, "network create --driver overlay back").ok();
    lab.docker(1, "service create --detach --name api --replicas 4 --network back --publish 8080:80 skep/whoami").ok();
    let client = "service create --stop-grace-period 100ms --detach --name client --mode global --network back";
    lab.docker(1, &format!("{client} busybox sleep 100000")).ok();
    await_right(&lab, "at first", &[1, 2, 3], 4);

    lab.lab(&["kill", "node3"]).ok();
    await_right(&lab, "a host is dead", &[1, 2], 4);
    lab.lab(&["start", "node3"]).ok();
    await_right(&lab, "the host is back", &[1, 2, 3], 4);

    lab.lab(&["partition", "node2"]).ok();
    await_right(&lab, "a host is cut off", &[1, 3], 4);
    lab.docker(1, "service scale --detach api=5").ok();
    await_right(&lab, "something changes meanwhile", &[1, 3], 5);
    lab.lab(&["heal"]).ok();
    await_right(&lab, "the link is restored", &[1, 2, 3], 5);

    for step in 0..3 {
        lab.change(1, &format!("service update --detach --update-parallelism 0 --env-add STEP={step} api"));
        for node in 2..=3 {
            let daemon = lab.on(node, &["cat", "/run/skep.pid"]).ok();
            lab.on(node, &["kill", "-9", &daemon]).ok();
        }
        eventually(LATER, "the daemons are back", || (2..=3).all(|node| lab.docker(node, "ps").code == 0));
    }
    await_right(&lab, "daemons were killed in the middle of changes", &[1, 2, 3], 5);
    lab.await_exact(1, &[("api", 5), ("client", 3)]);

    lab.docker(1, "service rm api client").ok();
    lab.await_exact(1, &[]);
    for node in 1..=3 {
        let left = || lab.on(node, &["sh", "-c", "ls -d /run/skep/netns/ov-* | wc -l"]).ok();
        eventually(LATER, "only the mesh's network is left", || left() == "1");
    }
}
