//! Scenarios a reader can follow: a few lines of what is done, and the story that follows.
//!
//! ```text
//! managers 3                     first of all: how many of each
//! agents 2
//! create web replicas=3 image=ok:1 port=8080 parallelism=1
//! create db stop-after=3s        one that never runs twice
//! scale web 5 | update web ok:2 | rollback web | remove web | drain n4 | pause n4 | activate n4 | promote n4 | demote leader
//! crash leader 2s | power n4 3s  what ends comes back after so long
//! freeze n4 500ms | isolate leader | cut n1 n2 | heal | full n2 | fix n2
//! run 2s
//! calm                           the faults end, and the world settles
//! ```

use std::time::Duration;

use skep_model::node::{Availability, Role};
use skep_model::service::{EndpointSpec, Mode, PortConfig, UpdateConfig};
use skep_model::validate::STOP_AFTER_LABEL;

use crate::HostId;
use crate::client::{Wish, spec};
use crate::faults::Fault;
use crate::log::{Crash, Disk};
use crate::run::settle;
use crate::trace::Detail;
use crate::world::{LogKind, Setup, World};

/// Plays a script with the real consensus: every line that begins with `> ` is done, and what followed is written below it,
/// in place of what stood there. Other lines before the first of them are kept.
///
/// # Errors
/// A line that is not understood, or an invariant that did not hold.
pub fn play(text: &str) -> Result<String, String> {
    let head = text.lines().take_while(|line| !line.starts_with("> "));
    let mut out: Vec<String> = head.map(str::to_owned).collect();
    let (mut managers, mut agents, mut world) = (3, 0, None);
    for line in text.lines().filter_map(|line| line.strip_prefix("> ")) {
        out.push(format!("> {line}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["managers", count] => managers = number(count)?,
            ["agents", count] => agents = number(count)?,
            _ => {
                let world = world.get_or_insert_with(|| begin(managers, agents));
                act(world, &words).map_err(|why| format!("{line}: {why}"))?;
                out.append(&mut world.trace.take_lines());
                if let Some(violation) = &world.violation {
                    return Err(format!("{line}: {violation}"));
                }
            }
        }
    }
    Ok(out.join("\n") + "\n")
}

fn begin(managers: usize, agents: usize) -> World {
    World::new(&Setup { seed: 1, managers, agents, trace: Some(Detail::Story), log: LogKind::Consensus })
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is not a number"))
}

fn time(word: &str) -> Result<Duration, String> {
    match word.strip_suffix("ms") {
        Some(ms) => number(ms).map(Duration::from_millis),
        None => number(word.trim_end_matches('s')).map(Duration::from_secs),
    }
}

fn host(world: &World, word: &str) -> Result<HostId, String> {
    if word == "leader" {
        let leads = |h: &&crate::host::Host| h.daemon.as_ref().is_some_and(|d| d.leader.is_some());
        return world.hosts.iter().rfind(leads).map(|h| h.id).ok_or_else(|| "nobody leads".into());
    }
    let count: usize = number(word.trim_start_matches('n'))?;
    if (1..=world.hosts.len()).contains(&count) { Ok(HostId(count - 1)) } else { Err(format!("there is no {word}")) }
}

/// Users ask the last manager that is up and knows a leader.
fn wish(world: &mut World, wish: Wish) -> Result<(), String> {
    let serves = |h: &HostId| {
        let up = world.hosts[h.0].daemon.as_ref().is_some_and(|d| !d.log_stopped);
        up && world.log.leader(*h).is_some_and(|leader| world.net.reaches(*h, leader))
    };
    let last = world.all_managers().into_iter().rfind(serves);
    world.wish(last.ok_or("no manager serves")?, wish);
    Ok(())
}

fn act(world: &mut World, words: &[&str]) -> Result<(), String> {
    let name = |text: &str| text.to_owned();
    match *words {
        ["run", for_long] => world.run_for(time(for_long)?),
        ["calm"] => {
            world.make_calm();
            settle(world);
        }
        ["create", service, ref rest @ ..] => {
            let spec = Box::new(service_spec(service, rest)?);
            return wish(world, Wish::Create { name: name(service), spec });
        }
        ["scale", service, replicas] => {
            return wish(world, Wish::Scale { name: name(service), replicas: number(replicas)? });
        }
        ["update", service, image] => return wish(world, Wish::Image { name: name(service), image: name(image) }),
        ["rollback", service] => return wish(world, Wish::Rollback { name: name(service) }),
        ["remove", service] => return wish(world, Wish::Remove { name: name(service) }),
        [word @ ("drain" | "pause" | "activate"), node] => {
            let availability = match word {
                "drain" => Availability::Drain,
                "pause" => Availability::Pause,
                _ => Availability::Active,
            };
            let host = host(world, node)?;
            return wish(world, Wish::Availability { host, availability });
        }
        [word @ ("promote" | "demote"), node] => {
            let role = if word == "promote" { Role::Manager } else { Role::Worker };
            let host = host(world, node)?;
            return wish(world, Wish::Role { host, role });
        }
        ["crash", node, back] => {
            let (host, back_after) = (host(world, node)?, time(back)?);
            world.fault(Fault::Crash { host, how: Crash::Process, back_after });
        }
        ["power", node, back] => {
            let (host, back_after) = (host(world, node)?, time(back)?);
            world.fault(Fault::Crash { host, how: Crash::Power, back_after });
        }
        ["freeze", node, lasting] => {
            let (host, lasting) = (host(world, node)?, time(lasting)?);
            world.fault(Fault::Freeze { host, lasting });
        }
        ["isolate", node] => {
            let host = host(world, node)?;
            world.fault(Fault::Isolate { host });
        }
        ["cut", from, to] => {
            let (from, to) = (host(world, from)?, host(world, to)?);
            world.fault(Fault::OneWay { from, to });
        }
        ["heal"] => world.fault(Fault::Heal),
        ["full", node] => {
            let host = host(world, node)?;
            world.fault(Fault::Disk { host, disk: Disk::Full });
        }
        ["fix", node] => {
            let host = host(world, node)?;
            world.fault(Fault::Disk { host, disk: Disk::Fine });
        }
        _ => return Err("not understood".into()),
    }
    Ok(())
}

fn service_spec(name: &str, settings: &[&str]) -> Result<skep_model::service::ServiceSpec, String> {
    let mut spec = spec(name, "ok:1");
    for setting in settings {
        match setting.split_once('=') {
            Some(("replicas", count)) => spec.mode = Mode::Replicated { replicas: number(count)? },
            Some(("image", image)) => spec.task.container.image = image.into(),
            Some(("parallelism", count)) => {
                let update = spec.update.unwrap_or_default();
                spec.update = Some(UpdateConfig { parallelism: number(count)?, ..update });
            }
            Some(("port", port)) => {
                let port = PortConfig { target_port: 80, published_port: number(port)?, ..PortConfig::default() };
                spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
            }
            Some(("stop-after", after)) => {
                spec.labels.insert(STOP_AFTER_LABEL.into(), after.into());
            }
            None if *setting == "global" => spec.mode = Mode::Global,
            _ => return Err(format!("{setting} is not understood")),
        }
    }
    Ok(spec)
}
