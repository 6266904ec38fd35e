//! The cgroups of a lab: `/skep-lab/<lab>/<node>` in every hierarchy, handed to the host's daemon as its cgroup parent.

use std::path::{Path, PathBuf};

/// The parent of one host's container cgroups, as `--cgroup-parent` takes it.
pub(crate) fn parent(lab: &str, node: &str) -> String {
    format!("/skep-lab/{lab}/{node}")
}

/// The roots of all hierarchies: each v1 controller's folder, the v2 one, or the one unified tree.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut all = vec![root.to_owned()];
    all.extend(std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
    all
}

fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // rmdir, never remove_dir_all: the files of a cgroup cannot be unlinked and go with the folder.
    let _ = std::fs::remove_dir(folder);
}

/// Removes the (by now empty) cgroups of a host, or of a whole lab when `node` is `None`.
pub(crate) fn remove(lab: &str, node: Option<&str>) {
    for hierarchy in hierarchies() {
        let labs = hierarchy.join("skep-lab");
        let folder = labs.join(lab);
        match node {
            Some(node) => remove_tree(&folder.join(node)),
            None => {
                remove_tree(&folder);
                let _ = std::fs::remove_dir(labs);
            }
        }
    }
}
