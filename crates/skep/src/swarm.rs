//! `skep swarm …`: what the stock `docker` cannot ask for, over the daemon's socket.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use crate::args::{JoinTokenCommand, SwarmCommand};

pub(crate) fn run(host: &str, command: SwarmCommand) -> anyhow::Result<ExitCode> {
    match command {
        SwarmCommand::JoinToken(command) => join_token(host, command)?,
        SwarmCommand::Backup(command) => crate::backup::run(host, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ask(host: &str, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let Some(socket) = host.strip_prefix("unix://") else {
        bail!(
            "{host} is not a unix socket: run this on the manager itself, or give its socket with --host unix:///path"
        );
    };
    skep_lab::call(Path::new(socket), method, path, body).map_err(|error| anyhow!("{error}"))
}

fn join_token(host: &str, command: JoinTokenCommand) -> anyhow::Result<()> {
    match command {
        JoinTokenCommand::Create { role, ttl, uses, quiet } => {
            let body = json!({ "Role": role, "TTLSeconds": ttl.unwrap_or(0), "Uses": uses.unwrap_or(0) });
            let created = ask(host, "POST", "/skep/join-tokens", Some(&body))?;
            let token = created["Token"].as_str().context("the daemon's answer has no token")?;
            if quiet {
                println!("{token}");
                return Ok(());
            }
            // Where to join is where this manager is reached.
            let info = ask(host, "GET", "/info", None)?;
            let own = &info["Swarm"]["NodeID"];
            let managers = info["Swarm"]["RemoteManagers"].as_array().cloned().unwrap_or_default();
            let address = managers.iter().find(|m| m["NodeID"] == *own).and_then(|m| m["Addr"].as_str());
            println!("To add a {role} to this swarm, run the following command:\n");
            println!("    docker swarm join --token {token} {}\n", address.unwrap_or("MANAGER:2377"));
        }
        JoinTokenCommand::Ls => {
            let tokens = ask(host, "GET", "/skep/join-tokens", None)?;
            let mut table = tabwriter::TabWriter::new(std::io::stdout()).padding(3);
            writeln!(table, "ID\tROLE\tUSED\tEXPIRES\tSTATUS")?;
            for token in tokens.as_array().into_iter().flatten() {
                let text = |key: &str| token[key].as_str().unwrap_or_default();
                let used = match token["Uses"].as_u64() {
                    Some(uses) => format!("{}/{uses}", token["Used"]),
                    None => token["Used"].to_string(),
                };
                let expires = Some(text("ExpiresAt")).filter(|t| !t.is_empty()).unwrap_or("never");
                let status = if token["Usable"] == true { "usable" } else { "ended" };
                writeln!(table, "{}\t{}\t{used}\t{expires}\t{status}", text("ID"), text("Role"))?;
            }
            table.flush()?;
        }
        JoinTokenCommand::Rm { ids } => {
            for id in ids {
                ask(host, "DELETE", &format!("/skep/join-tokens/{id}"), None)?;
                println!("{id}");
            }
        }
    }
    Ok(())
}

/// `90s`, `30m`, `1h`, `7d`, and several of them one after the other.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a duration: write 90s, 30m, 1h, 7d or 1h30m");
    let (mut total, mut number) = (0u64, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let unit = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = number.parse().map_err(|_| wrong())?;
        total = count.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or_else(wrong)?;
        number.clear();
    }
    if total == 0 || !number.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!((seconds("90s"), seconds("1h30m"), seconds("7d")), (Ok(90), Ok(5400), Ok(604_800)));
        for bad in ["", "0s", "1", "h", "1w", "-1h", "99999999999999999999h", "1h2"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
