//! `skep network …`: what the stock `docker` cannot ask of the network.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use skep_model::doctor::{Diagnosis, HostChecks, PairChecks};

use crate::args::NetworkCommand;
use crate::swarm::ask;

pub(crate) fn run(host: &str, command: NetworkCommand) -> anyhow::Result<ExitCode> {
    let NetworkCommand::Doctor { format } = command;
    let told = ask(host, "GET", "/skep/network/doctor", None)?;
    let diagnosis: Diagnosis = serde_json::from_value(told.clone()).context("the daemon's answer is no diagnosis")?;
    if format == "json" {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        show(&diagnosis)?;
    }
    Ok(if diagnosis.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(diagnosis: &Diagnosis) -> std::io::Result<()> {
    let mut table = tabwriter::TabWriter::new(std::io::stdout()).padding(3);
    writeln!(table, "HOST\tADDRESS\tCLOCK\tLINK\tMTU\tKERNEL\tCGROUP")?;
    for host in &diagnosis.hosts {
        writeln!(table, "{}", row(host))?;
    }
    table.flush()?;
    println!();
    let ports: std::collections::BTreeSet<&String> =
        diagnosis.pairs.iter().flat_map(|pair| pair.ports.keys()).collect();
    let mut table = tabwriter::TabWriter::new(std::io::stdout()).padding(3);
    let heads: Vec<&str> = ports.iter().map(|port| port.as_str()).collect();
    writeln!(table, "FROM\tTO\t{}\tPACKETS", heads.join("\t").to_uppercase())?;
    for pair in &diagnosis.pairs {
        let cell = |port: &&String| match pair.ports.get(*port).map(String::as_str) {
            None => "-",
            Some("") => "ok",
            Some(why) => why,
        };
        let cells: Vec<&str> = ports.iter().map(cell).collect();
        writeln!(table, "{}\t{}\t{}\t{}", pair.from, pair.to, cells.join("\t"), packets(pair))?;
    }
    table.flush()?;
    for finding in &diagnosis.findings {
        println!("\n{}", finding.says);
        if !finding.advice.is_empty() {
            println!("  {}", finding.advice);
        }
    }
    if diagnosis.healthy {
        println!("\nNothing is wrong.");
    }
    Ok(())
}

fn row(host: &HostChecks) -> String {
    if !host.answered {
        return format!("{}\t{}\tnot asked", host.host, host.address);
    }
    let mtu = host.link_mtu.map(|mtu| mtu.to_string()).unwrap_or_default();
    let (link, kernel) = (&host.link, &host.kernel);
    format!("{}\t{}\t{:+} ms\t{link}\t{mtu}\t{kernel}\tv{}", host.host, host.address, host.clock_ms, host.cgroup)
}

/// How large they may be, out of how large they become.
fn packets(pair: &PairChecks) -> String {
    match pair.packet_bytes {
        None => "-".into(),
        Some(size) if size >= pair.needed_bytes => "ok".into(),
        Some(size) => format!("{size} of {}", pair.needed_bytes),
    }
}
