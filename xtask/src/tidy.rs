//! What the compiler does not keep: the arrows between the rooms, the purity of the pure ones, banned packages, licences,
//! and small habits of the tree. Everything is read from cargo's own metadata and the files git tracks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// Which rooms a room may use. The table of the architecture, and nothing else, is the architecture.
const ARROWS: &[(&str, &[&str])] = &[
    ("skep-model", &[]),
    ("skep-store", &["skep-model"]),
    ("skep-control", &["skep-store", "skep-model"]),
    ("skep-agent", &["skep-model"]),
    ("skep-consensus", &["skep-store", "skep-model"]),
    ("skep-engine", &["skep-model"]),
    ("skep-net", &["skep-model"]),
    (
        "skep-node",
        &["skep-model", "skep-store", "skep-control", "skep-agent", "skep-consensus", "skep-engine", "skep-net"],
    ),
    ("skep-api", &["skep-model"]),
    ("skep-server", &["skep-api", "skep-node", "skep-engine", "skep-store", "skep-model"]),
    ("skep-lab", &["skep-net"]),
    ("skep", &["skep-model", "skep-engine", "skep-net", "skep-node", "skep-server", "skep-lab"]),
    ("skep-sim", &["skep-store", "skep-control", "skep-agent", "skep-consensus", "skep-model"]),
    ("skep-e2e", &[]),
    ("xtask", &["skep-e2e"]),
];

/// Rooms without clock, file, socket, dice or environment.
const PURE: &[&str] = &["skep-model", "skep-store", "skep-control", "skep-agent", "skep-api"];

/// What a pure room must not even reach.
const IMPURE: &[&str] = &["tokio", "nix", "rustix", "rand", "hyper", "redb", "tracing-subscriber", "mio", "socket2"];

/// Packages that must not be in the lock file at all, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one TLS provider: aws-lc-rs; two make rustls panic"),
    ("openssl-sys", "TLS is rustls"),
    ("openssl", "TLS is rustls"),
    ("serde_yaml", "deprecated"),
    ("native-tls", "TLS is rustls"),
];

/// Licences a dependency may have; of `A OR B` one is enough, of `A AND B` all are needed.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "0BSD",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "BSL-1.0",
    "OpenSSL",
    // Unmodified dependencies only; file-level copyleft that asks nothing of our own files.
    "MPL-2.0",
    "MPL-2.0+",
];

pub(crate) fn run() -> anyhow::Result<()> {
    let metadata = MetadataCommand::new().exec().context("cargo metadata")?;
    let mut faults = Vec::new();
    arrows(&metadata, &mut faults);
    purity(&metadata, &mut faults);
    bans(&mut faults)?;
    licences(&metadata, &mut faults);
    files(metadata.workspace_root.as_std_path(), &mut faults)?;
    for fault in &faults {
        println!("tidy: {fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults", faults.len());
    }
    println!("tidy: {} packages, no faults", metadata.packages.len());
    Ok(())
}

fn ours(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    metadata.workspace_packages().into_iter()
}

fn arrows(metadata: &Metadata, faults: &mut Vec<String>) {
    let table: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in ours(metadata) {
        let Some(allowed) = table.get(package.name.as_str()) else {
            faults.push(format!(
                "{} has no place in the architecture: add it to ARROWS and to ARCHITECTURE.md",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let inside = dependency.path.is_some();
            if inside && dependency.kind == DependencyKind::Normal && !allowed.contains(&dependency.name.as_str()) {
                faults.push(format!("{} must not use {}", package.name, dependency.name));
            }
            if dependency.kind != DependencyKind::Development && !inside && dependency.req.to_string() == "*" {
                faults.push(format!("{} uses {} without a version", package.name, dependency.name));
            }
        }
    }
}

/// Every package reachable from `root` by normal dependencies.
fn reach<'a>(metadata: &'a Metadata, root: &'a PackageId) -> BTreeSet<&'a PackageId> {
    let Some(resolve) = &metadata.resolve else { return BTreeSet::new() };
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let mut seen = BTreeSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes.get(id).iter().flat_map(|n| &n.deps) {
            if dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen
}

fn purity(metadata: &Metadata, faults: &mut Vec<String>) {
    for package in ours(metadata).filter(|p| PURE.contains(&p.name.as_str())) {
        for id in reach(metadata, &package.id) {
            let name = metadata[id].name.as_str();
            if IMPURE.contains(&name) {
                faults.push(format!("{} is pure and must not reach {name}", package.name));
            }
        }
    }
}

/// `cargo tree` and not the metadata's resolve: the latter lists optional packages that no feature switches on.
fn bans(faults: &mut Vec<String>) -> anyhow::Result<()> {
    let arguments =
        ["tree", "--package", "skep", "--edges", "normal", "--target", "all", "--prefix", "none", "--format", "{p}"];
    let output = Command::new(env!("CARGO")).args(arguments).output().context("cargo tree")?;
    let tree = String::from_utf8(output.stdout)?;
    for (banned, reason) in BANNED {
        if tree.lines().any(|line| line.split(' ').next() == Some(banned)) {
            faults.push(format!("{banned} is banned: {reason}"));
        }
    }
    Ok(())
}

fn licence_is_fine(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace(['(', ')'], " ");
    text.split(" AND ").all(|part| part.split(" OR ").any(|one| LICENCES.contains(&one.trim())))
}

fn licences(metadata: &Metadata, faults: &mut Vec<String>) {
    for package in &metadata.packages {
        match &package.license {
            Some(licence) if licence_is_fine(licence) => {}
            Some(licence) => faults.push(format!("{} has the licence {licence}", package.name)),
            // Its LICENSE file is the MIT licence; the manifest does not say so.
            None if package.name.as_str() == "rust-criu" => {}
            None => faults.push(format!("{} names no licence", package.name)),
        }
        if package.source.as_ref().is_some_and(|s| !s.is_crates_io()) {
            faults.push(format!("{} is not from crates.io", package.name));
        }
    }
}

/// Crates whose `sys` modules may hold unsafe code.
fn may_hold_unsafe(path: &str) -> bool {
    path.contains("/sys/") || path.ends_with("/sys.rs")
}

fn files(root: &Path, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    for path in String::from_utf8(output.stdout)?.lines() {
        if !path.ends_with(".rs") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        let is_test = path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/examples/");
        if !is_test && !path.ends_with("build.rs") && !text.trim_start().starts_with("//!") {
            faults.push(format!("{path} does not open with what it decides (`//!`)"));
        }
        let lines = text.lines().count();
        if lines > 1000 {
            faults.push(format!("{path} has {lines} lines: is it one thing?"));
        }
        for name in ["utils.rs", "helpers.rs", "common.rs", "misc.rs"] {
            if path.ends_with(&format!("/{name}")) {
                faults.push(format!("{path}: name it after what it does"));
            }
        }
        for (number, line) in text.lines().enumerate() {
            let place = format!("{path}:{}", number + 1);
            let code = line.split("//").next().unwrap_or_default();
            if path == "xtask/src/tidy.rs" {
                break; // names what it looks for
            }
            if !may_hold_unsafe(path) && !is_test && (code.contains("unsafe {") || code.contains("unsafe fn")) {
                faults.push(format!("{place}: unsafe code outside a sys module"));
            }
            for word in ["#[ignore", "todo!(", "unimplemented!("] {
                if code.contains(word) {
                    faults.push(format!("{place}: {word}"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_as_spdx_writes_them() {
        assert!(licence_is_fine("MIT OR GPL-3.0"));
        assert!(licence_is_fine("MIT/Apache-2.0"));
        assert!(licence_is_fine("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_is_fine("AGPL-3.0"));
        assert!(!licence_is_fine("MIT AND GPL-2.0"));
    }
}
