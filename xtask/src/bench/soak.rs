//! How often a node that lives is taken for dead: first in peace, then with every tenth packet lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Figures;
use super::lab::Lab;

const LOSS_PERCENT: &str = "10";

pub(super) fn measure(skep: &Path, minutes: u64, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "soak", None, 3, 2)?;
    let length = Duration::from_secs(minutes * 60);
    out.entry("false_downs_idle".into()).or_default().push(downs(&lab, length)?);
    for host in &lab.hosts {
        lab.run("loss", &[&host.name, LOSS_PERCENT])?;
    }
    out.entry("false_downs_10_percent_loss".into()).or_default().push(downs(&lab, length)?);
    Ok(())
}

/// Changes of any node from ready to anything else, as the first manager saw them.
fn downs(lab: &Lab, length: Duration) -> anyhow::Result<f64> {
    let mut api = lab.api(0)?;
    let begun = Instant::now();
    let (mut before, mut count) = (BTreeMap::new(), 0.0);
    while begun.elapsed() < length {
        let nodes = api.call("GET", "/nodes", None)?;
        for node in nodes.as_array().into_iter().flatten() {
            let ready = node["Status"]["State"] == "ready";
            if before.insert(node["ID"].to_string(), ready) == Some(true) && !ready {
                println!("{:?}: {} is {}", begun.elapsed(), node["Description"]["Hostname"], node["Status"]);
                count += 1.0;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(count)
}
