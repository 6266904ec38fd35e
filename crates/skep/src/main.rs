//! `skep`: one binary that is the daemon, the supervisor of its containers, a lab of many hosts, and the image that shows it
//! all works. This crate reads argv and wires the rooms together; it decides nothing else.

mod args;
mod backup;
mod bench;
mod bench_network;
mod client;
mod config_file;
mod daemon;
mod lab;
mod network;
mod service;
mod swarm;
mod whoami;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

fn main() -> ExitCode {
    // The supervisor and a lab's host are processes of one thread: nothing may be started before they are told apart.
    // The two that run beside every container are told apart first, by the engine's own words: they are to stay small.
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("supervisor") => return skep_engine::supervisor::main(words),
        Some("init") => return skep_engine::init::main(words),
        _ => {}
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Daemon(flags) => daemon::run(*flags),
        Command::Lab(command) => lab::run(command),
        Command::Swarm { host, command } => swarm::run(&host, command),
        Command::Service { host, command } => service::run(&host, command),
        Command::Network { host, command } => network::run(&host, command),
        Command::LabHost { spec } => lab::host(&spec),
        Command::Whoami(flags) => whoami::run(&flags),
        Command::BenchEngine { image_tar, rounds } => bench::run(&image_tar, rounds),
        Command::BenchNetwork(command) => bench_network::run(&command),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skep", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("skep: {error:#}");
        ExitCode::FAILURE
    })
}
