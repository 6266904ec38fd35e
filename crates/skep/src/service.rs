//! `skep service …`: what the stock `docker` cannot ask of a service.

use std::process::ExitCode;

use anyhow::Context;
use skep_model::explain::Explanation;

use crate::args::ServiceCommand;
use crate::swarm::ask;

pub(crate) fn run(host: &str, command: ServiceCommand) -> anyhow::Result<ExitCode> {
    let ServiceCommand::Explain { service, format } = command;
    let told = ask(host, "GET", &format!("/skep/services/{}/explain", escaped(&service)), None)?;
    if format == "json" {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    let told: Explanation = serde_json::from_value(told).context("the daemon's answer is no explanation")?;
    println!("{}", told.summary);
    if told.as_asked {
        println!("It is as asked.");
    }
    for finding in &told.findings {
        println!("\n{}", finding.says);
        if !finding.advice.is_empty() {
            println!("  {}", finding.advice);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One segment of a path, whatever was typed.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
