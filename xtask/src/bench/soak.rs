//! How often a node that lives is taken for dead, or out of touch: first in peace, then with every tenth packet lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Figures;
use super::lab::Lab;

const LOSS_PERCENT: &str = "10";

pub(super) fn measure(skep: &Path, minutes: u64, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "soak", None, 3, 2)?;
    let length = Duration::from_secs(minutes * 60);
    watch(&lab, length, "idle", out)?;
    for host in &lab.hosts {
        lab.run("loss", &[&host.name, LOSS_PERCENT])?;
    }
    watch(&lab, length, "10_percent_loss", out)
}

/// Changes of any node from ready to down, and to anything less, as the first manager saw them.
fn watch(lab: &Lab, length: Duration, weather: &str, out: &mut Figures) -> anyhow::Result<()> {
    let mut api = lab.api(0)?;
    let begun = Instant::now();
    let (mut before, mut downs, mut lapses) = (BTreeMap::new(), 0.0, 0.0);
    while begun.elapsed() < length {
        let nodes = api.call("GET", "/nodes", None)?;
        for node in nodes.as_array().into_iter().flatten() {
            let state = node["Status"]["State"].as_str().unwrap_or_default().to_owned();
            let was = before.insert(node["ID"].to_string(), state.clone());
            if was.is_none_or(|was| was == state) || state == "ready" {
                continue;
            }
            println!("{:?}: {} is {}", begun.elapsed(), node["Description"]["Hostname"], node["Status"]);
            if state == "down" {
                downs += 1.0;
            } else {
                lapses += 1.0;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    out.entry(format!("false_downs_{weather}")).or_default().push(downs);
    out.entry(format!("other_lapses_{weather}")).or_default().push(lapses);
    Ok(())
}
