//! A task's secrets and configs as files of its container: on a tmpfs, never on disk, each read-only.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path};

use super::{Preparation, SECRETS};
use crate::container::TaskFile;
use crate::error::{EngineError, Result};
use crate::rootfs::{self, RootDir};
use crate::spec::mounts::SpecMount;

/// Where secrets are in the container, unless their user says otherwise.
const USUAL_FOLDER: &str = "/run/secrets";
/// Those, below [`SECRETS`].
const TOGETHER: &str = "together";

impl Preparation {
    pub(super) fn secret_files(&mut self, root: &RootDir) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let folder = self.engine.bundle(&self.record.id).join(SECRETS);
        rootfs::mount_secrets_tmpfs(&folder).map_err(EngineError::file("failed to mount", &folder))?;
        let together = folder.join(TOGETHER);
        let shared = self.may_be_together(root);
        for (index, file) in self.files.iter().enumerate() {
            let below = file.target.strip_prefix(USUAL_FOLDER).ok().filter(|path| shared && is_plain(path));
            let path = below.map_or_else(|| folder.join(index.to_string()), |below| together.join(below));
            make_folders(&path, &folder)
                .and_then(|()| write(&path, file))
                .map_err(EngineError::file("failed to write", &path))?;
            if below.is_none() {
                self.mounts.push(SpecMount::bind(&file.target, path, "rprivate", true));
            }
        }
        if together.exists() {
            let read_only = self.record.host_config.readonly_rootfs;
            self.mounts.push(SpecMount::bind(USUAL_FOLDER, together, "rprivate", read_only));
            if !read_only {
                self.sealed.push(USUAL_FOLDER.to_owned());
            }
        }
        Ok(())
    }

    /// Whether those in the usual folder come with one mount, in which each is sealed and beside them there is room as on
    /// the root: a mount for each is made by libcontainer, and takes many times as long. Not where the image or the user has
    /// something.
    fn may_be_together(&self, root: &RootDir) -> bool {
        let usual = Path::new(USUAL_FOLDER);
        let tmpfs = self.record.host_config.tmpfs.keys().map(Path::new);
        let mut mounted = self.mounts.iter().map(|m| m.destination.as_path()).chain(tmpfs);
        self.seals && !mounted.any(|m| m.starts_with(usual)) && root.is_vacant(usual)
    }
}

/// Names only: nothing that leads elsewhere.
fn is_plain(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// The directories from `folder` down to `path`, open to all whatever the daemon's umask is.
fn make_folders(path: &Path, folder: &Path) -> std::io::Result<()> {
    for parent in path.ancestors().skip(1).take_while(|parent| *parent != folder) {
        std::fs::create_dir_all(parent)?;
        std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn write(path: &Path, file: &TaskFile) -> std::io::Result<()> {
    std::fs::write(path, &file.data.0)?;
    chown(path, Some(file.uid), Some(file.gid))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode & 0o7777))
}
