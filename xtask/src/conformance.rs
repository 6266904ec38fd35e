//! docs/conformance.md, made from the claims beside the assertions of the end-to-end tests: a line
//! `// conformance: works | docker run --rm | note` in a test says what that test proves (or `differs`, with what is
//! different; `absent`, with the error that is asserted). A claim without a test cannot be written down this way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail};

const FOLDER: &str = "crates/e2e/tests";
const FILE: &str = "docs/conformance.md";

struct Claim {
    verdict: String,
    note: String,
    test: String,
}

fn claims(root: &Path) -> anyhow::Result<BTreeMap<String, Claim>> {
    let mut all = BTreeMap::new();
    let mut files: Vec<_> = std::fs::read_dir(root.join(FOLDER))?.flatten().map(|e| e.path()).collect();
    files.sort();
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(path)?;
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut test = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("fn ").and_then(|l| l.split('(').next()) {
                name.clone_into(&mut test);
            }
            let Some(claim) = line.strip_prefix("// conformance:") else { continue };
            let parts: Vec<&str> = claim.split('|').map(str::trim).collect();
            let [verdict @ ("works" | "differs" | "absent"), what, ..] = parts[..] else {
                bail!("{}: `{line}` is not `works|differs|absent | what | note`", path.display());
            };
            let note = parts.get(2).copied().unwrap_or_default().to_owned();
            if verdict != "works" && note.is_empty() {
                bail!("{}: `{line}` must say what is different", path.display());
            }
            let claim = Claim { verdict: verdict.into(), note, test: format!("{file}::{test}") };
            if all.insert(what.to_owned(), claim).is_some() {
                bail!("{}: {what} is claimed twice", path.display());
            }
        }
    }
    Ok(all)
}

pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = cargo_metadata::MetadataCommand::new().no_deps().exec()?.workspace_root.into_std_path_buf();
    let claims = claims(&root)?;
    let mut text = String::from(
        "# Conformance\n\nWhat the stock docker CLI can do here, each line asserted by the end-to-end test it names. Made by\n\
         `cargo xtask conformance` from the tests; do not edit.\n\n| what | | note | asserted by |\n|---|---|---|---|\n",
    );
    for (what, claim) in &claims {
        writeln!(text, "| `{what}` | {} | {} | `{}` |", claim.verdict, claim.note, claim.test)?;
    }
    let count = |verdict: &str| claims.values().filter(|c| c.verdict == verdict).count();
    writeln!(text, "\n{} work, {} differ, {} are absent.", count("works"), count("differs"), count("absent"))?;
    let path = root.join(FILE);
    if check {
        let there =
            std::fs::read_to_string(&path).with_context(|| format!("{FILE} is missing: cargo xtask conformance"))?;
        if there != text {
            bail!("{FILE} is out of date: cargo xtask conformance");
        }
        return Ok(());
    }
    std::fs::write(&path, text)?;
    println!("{FILE}: {} lines", claims.len());
    Ok(())
}
