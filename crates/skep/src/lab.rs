//! `skep lab …`: arguments to [`skep_lab::Lab`], and what people see of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use skep_lab::{DEFAULT_ROOT, HostInfo, HostState, Lab, Loss, Role, UpOptions};

use crate::args::LabCommand;

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

pub(crate) fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    let root = Path::new(DEFAULT_ROOT);
    match command {
        LabCommand::Up { managers, workers, which, disk, no_swarm, daemon, daemon_args } => {
            let begun = Instant::now();
            let program = program()?;
            let daemon = match daemon {
                Some(other) => vec![other],
                None => vec![program.to_string_lossy().into_owned(), "daemon".to_owned()],
            };
            let options = UpOptions { managers, workers, disk_bytes: disk, no_swarm, daemon, daemon_args };
            let lab = Lab::up(root, &which.name, &options, &program)?;
            let hosts = lab.hosts();
            println!("Lab {} is up: {} hosts in {:.2} s", lab.name(), hosts.len(), begun.elapsed().as_secs_f64());
            print_table(&hosts)?;
            println!("\nTo use it:\n\n    export DOCKER_HOST={}\n", hosts[0].docker_host);
        }
        LabCommand::Ls { which, all, format } => {
            let labs = if all { Lab::all(root) } else { vec![Lab::open(root, &which.name)?] };
            let hosts: Vec<HostInfo> = labs.iter().flat_map(Lab::hosts).collect();
            if format == "json" {
                println!("{}", serde_json::to_string_pretty(&hosts)?);
            } else {
                print_table(&hosts)?;
            }
        }
        LabCommand::Exec { which, node, command } => {
            let command = if command.is_empty() { vec!["/bin/sh".to_owned()] } else { command };
            let code = Lab::open(root, &which.name)?.exec(&node, &command)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        LabCommand::Kill { which, nodes } => {
            let lab = Lab::open(root, &which.name)?;
            nodes.iter().try_for_each(|node| lab.kill(node).inspect(|()| println!("{node}")))?;
        }
        LabCommand::Start { which, nodes } => {
            let lab = Lab::open(root, &which.name)?;
            let program = program()?;
            nodes.iter().try_for_each(|node| lab.start(node, &program).inspect(|()| println!("{node}")))?;
        }
        LabCommand::Partition { which, nodes } => {
            Lab::open(root, &which.name)?.partition(&nodes)?;
            println!("{} cut off", nodes.join(", "));
        }
        LabCommand::Loss { which, node, percent, to, from } => {
            let loss = Loss {
                to_host_percent: if from { 0 } else { percent },
                from_host_percent: if to { 0 } else { percent },
            };
            Lab::open(root, &which.name)?.lose(&node, loss)?;
            println!("{node}");
        }
        LabCommand::Pause { which, nodes } => {
            let lab = Lab::open(root, &which.name)?;
            nodes.iter().try_for_each(|node| lab.pause(node, true).inspect(|()| println!("{node}")))?;
        }
        LabCommand::Resume { which, nodes } => {
            let lab = Lab::open(root, &which.name)?;
            nodes.iter().try_for_each(|node| lab.pause(node, false).inspect(|()| println!("{node}")))?;
        }
        LabCommand::Heal { which } => {
            Lab::open(root, &which.name)?.heal()?;
            println!("healed");
        }
        LabCommand::Down { which } => {
            Lab::open(root, &which.name)?.down();
            println!("Lab {} is gone", which.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(hosts: &[HostInfo]) -> std::io::Result<()> {
    let mut table = tabwriter::TabWriter::new(std::io::stdout()).minwidth(8).padding(3);
    writeln!(table, "NAME\tROLE\tADDRESS\tSTATE\tDOCKER_HOST")?;
    for host in hosts {
        let role = match host.role {
            Role::Manager => "manager",
            Role::Worker => "worker",
        };
        let state = match host.state {
            HostState::Running => "running",
            HostState::Partitioned => "partitioned",
            HostState::Paused => "paused",
            HostState::Killed => "killed",
        };
        let mut state = state.to_owned();
        if host.loss != Loss::default() {
            let Loss { to_host_percent, from_host_percent } = host.loss;
            state.push_str(&format!(", loses {to_host_percent}% in, {from_host_percent}% out"));
        }
        if let Some(bytes) = host.disk_bytes {
            state.push_str(&format!(", disk of {} MiB", bytes >> 20));
        }
        writeln!(table, "{}\t{role}\t{}\t{state}\t{}", host.name, host.address, host.docker_host)?;
    }
    table.flush()
}

/// The hidden command that becomes pid 1 of a host.
pub(crate) fn host(spec: &str) -> anyhow::Result<ExitCode> {
    let spec = serde_json::from_str(spec).context("lab-host takes a host's description as JSON")?;
    skep_lab::host::launch(&spec)?;
    Ok(ExitCode::SUCCESS)
}
