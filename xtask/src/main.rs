//! The project's own tools: `cargo xtask tidy` (the rules no compiler keeps), `bench` (ours against dockerd), `conformance`
//! (the table of what works, from what the end-to-end tests recorded), `sim` (the control plane under simulated faults).

mod bench;
mod conformance;
mod sim;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "The project's own tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the arrows between crates, what pure crates may use, bans, licences and stray files
    Tidy,
    /// Time the same operations on skep and, where dockerd is installed, on real dockerd; print the ratios
    Bench(bench::Options),
    /// Write docs/conformance.md from what the end-to-end tests recorded
    Conformance {
        /// Fail instead of writing if the file is out of date
        #[arg(long)]
        check: bool,
    },
    /// Run the control plane through thousands of simulated bad days, or one of them again by its seed
    #[command(disable_help_flag = true)]
    Sim {
        /// `--seeds N`, `--from SEED`, `--seed SEED --trace`, `--help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Tidy => tidy::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Conformance { check } => conformance::run(check),
        Command::Sim { arguments } => sim::run(&arguments),
    }
}
