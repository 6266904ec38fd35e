//! Removal and pruning, with moby's rules (`daemon/images/image_delete.go`): names go first, an image goes with its last
//! name, and what containers or other images need stays unless forced.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use skep_model::reference::Reference;

use super::filter::Filter;
use super::id::{DiffId, Digest, ImageId};
use super::layer::Layer;
use super::state::{Image, tag_key};
use super::store::{now, parse_reference};
use super::types::{ContainerUse, Filters, ImagePruneReport, RemoveOptions, RemovedItem};
use super::{ImageError, ImageStore, Result};

const PRUNE_FILTERS: [&str; 4] = ["dangling", "until", "label", "label!"];

/// Which reasons against a deletion count.
#[derive(Clone, Copy)]
struct Guard {
    references: bool,
    stopped: bool,
}

impl ImageStore {
    /// `DELETE /images/{name}`: untags, and deletes what nothing names any more. `in_use` tells an image's containers.
    pub async fn remove(
        &self,
        name_or_id: &str,
        options: RemoveOptions,
        in_use: impl Fn(&ImageId) -> Vec<ContainerUse> + Send,
    ) -> Result<Vec<RemovedItem>> {
        let image = self.image(name_or_id)?;
        let containers = in_use(&image.id);
        let mut items = Vec::new();
        let names = self.names(&image.id);
        let by_id = image.id.hex().starts_with(name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id));
        let mut quiet = false;
        if by_id {
            if is_single(&names) {
                let guard = Guard { references: false, stopped: !options.force };
                self.check(&image, &containers, guard).map_err(Refusal::into_error)?;
                self.untag(&image, &names, &mut items).await?;
            }
        } else {
            if !options.force
                && is_single(&names)
                && let Some(container) = containers.first()
            {
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to remove repository reference {name_or_id:?} (must force) - container {} is using \
                     its referenced image {}",
                    short(&container.container_id),
                    image.id.short()
                )));
            }
            let reference = parse_reference(name_or_id)?;
            let key = match &reference.digest {
                Some(_) => Reference { tag: None, ..reference.clone() },
                None => tag_key(&reference),
            };
            self.untag(&image, std::slice::from_ref(&key), &mut items).await?;
            let left = self.names(&image.id);
            let same_repository = |r: &&Reference| r.domain == key.domain && r.path == key.path;
            if key.digest.is_none() && !left.iter().filter(same_repository).any(|r| r.digest.is_none()) {
                let digests: Vec<Reference> = left.iter().filter(same_repository).cloned().collect();
                self.untag(&image, &digests, &mut items).await?;
            }
            if !self.names(&image.id).is_empty() {
                return Ok(items);
            }
            quiet = true;
        }
        self.delete(image, options, quiet, &in_use, &mut items).await?;
        Ok(items)
    }

    /// Deletes an image, and its nameless parents with it. `quiet`: a name was removed already, so a conflict means only
    /// that the image stays.
    async fn delete(
        &self,
        image: Image,
        options: RemoveOptions,
        mut quiet: bool,
        in_use: &(impl Fn(&ImageId) -> Vec<ContainerUse> + Send),
        items: &mut Vec<RemovedItem>,
    ) -> Result<()> {
        let mut force = options.force;
        let mut next = Some(image);
        while let Some(image) = next.take() {
            let guard = Guard { references: !force, stopped: !force };
            if let Err(refusal) = self.check(&image, &in_use(&image.id), guard) {
                let dangling = self.names(&image.id).is_empty();
                if quiet && (!dangling || refusal.used) {
                    break;
                }
                return Err(refusal.into_error());
            }
            let names = self.names(&image.id);
            self.untag(&image, &names, items).await?;
            self.change(|state| state.delete(&image.id)).await?;
            self.emit_with("delete", image.id.as_str(), image.file.config.labels.clone(), image.id.as_str());
            items.push(RemovedItem::Deleted(image.id.clone()));
            if !options.no_prune {
                next = image.kept.parent.as_ref().and_then(|parent| self.state().image(parent).cloned());
            }
            let gone = self.collect_garbage().await?;
            items.extend(chain_ids(&image.file.rootfs.diff_ids, &gone).into_iter().map(RemovedItem::Deleted));
            (force, quiet) = (false, true);
        }
        Ok(())
    }

    fn names(&self, id: &ImageId) -> Vec<Reference> {
        self.state().names_of(id).cloned().collect()
    }

    async fn untag(&self, image: &Image, names: &[Reference], items: &mut Vec<RemovedItem>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        self.change(|state| names.iter().for_each(|name| drop(state.unname(name)))).await?;
        for name in names {
            self.emit("untag", image.id.as_str(), &image.id, image.id.as_str());
            items.push(RemovedItem::Untagged(name.familiar()));
        }
        Ok(())
    }

    fn check(&self, image: &Image, containers: &[ContainerUse], guard: Guard) -> Result<(), Refusal> {
        let refuse = |hard: bool, used: bool, why: String| {
            let force = if hard { "cannot be forced" } else { "must be forced" };
            let text = format!("conflict: unable to delete {} ({force}) - {why}", image.id.short());
            Err(Refusal { used, text })
        };
        let state = self.state();
        if state.children(&image.id).next().is_some() {
            return refuse(true, false, "image has dependent child images".to_owned());
        }
        if let Some(container) = containers.iter().find(|c| c.running) {
            let id = short(&container.container_id);
            return refuse(true, true, format!("image is being used by running container {id}"));
        }
        if guard.references && state.names_of(&image.id).next().is_some() {
            return refuse(false, false, "image is referenced in multiple repositories".to_owned());
        }
        if guard.stopped
            && let Some(container) = containers.first()
        {
            let id = short(&container.container_id);
            return refuse(false, true, format!("image is being used by stopped container {id}"));
        }
        Ok(())
    }

    /// `POST /images/prune`. Filters: dangling (default true), until, label, label!.
    pub async fn prune(
        &self,
        filters: &Filters,
        in_use: impl Fn(&ImageId) -> Vec<ContainerUse> + Send,
    ) -> Result<ImagePruneReport> {
        let filter = Filter::new(filters, &PRUNE_FILTERS).map_err(ImageError::Invalid)?;
        let dangling_only = filter.flag("dangling", true).map_err(ImageError::Invalid)?;
        let until = filter.until(now()).map_err(ImageError::Invalid)?;
        let candidates: Vec<Image> = {
            let state = self.state();
            let unneeded = |image: &&Image| {
                let nameless = state.names_of(&image.id).next().is_none();
                (nameless || !dangling_only)
                    && !(nameless && state.children(&image.id).next().is_some())
                    && until.is_none_or(|t| image.file.created_at() < t)
                    && filter.labels_match(&image.file.config.labels)
            };
            state.images().filter(unneeded).cloned().collect()
        };
        let before = self.inner.layers.total_bytes();
        let mut report = ImagePruneReport::default();
        for image in candidates {
            if !in_use(&image.id).is_empty() || self.names(&image.id).iter().any(|name| self.is_builtin(name)) {
                continue;
            }
            let names = self.names(&image.id);
            self.untag(&image, &names, &mut report.items).await?;
            let outcome = self.delete(image, RemoveOptions::default(), false, &in_use, &mut report.items).await;
            match outcome {
                Err(ImageError::Conflict(why)) => tracing::debug!(why, "image not pruned"),
                outcome => outcome?,
            }
        }
        report.reclaimed_bytes = before.saturating_sub(self.inner.layers.total_bytes());
        self.emit_prune(report.reclaimed_bytes);
        Ok(report)
    }

    fn emit_prune(&self, reclaimed_bytes: u64) {
        let attributes = std::collections::BTreeMap::from([("reclaimed".to_owned(), reclaimed_bytes.to_string())]);
        let kind = super::event::ObjectKind::Image;
        let event = super::event::ObjectEvent { kind, action: "prune", id: String::new(), attributes };
        (self.config().events)(event);
    }
}

struct Refusal {
    /// Containers are the reason.
    used: bool,
    text: String,
}

impl Refusal {
    fn into_error(self) -> ImageError {
        ImageError::Conflict(self.text)
    }
}

/// moby's `isSingleReference`: at most one tag, and any digests in the same repository.
fn is_single(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest.is_none()).count();
    let mut repositories: Vec<_> = names.iter().map(|name| (&name.domain, &name.path)).collect();
    repositories.dedup();
    names.len() <= 1 || (tags <= 1 && repositories.len() == 1)
}

fn short(container_id: &str) -> &str {
    container_id.get(..12).unwrap_or(container_id)
}

/// What Docker calls the removed layers: the digest of a layer together with all below it (OCI `ChainID`), topmost first.
fn chain_ids(diff_ids: &[DiffId], gone: &[Arc<Layer>]) -> Vec<Digest> {
    let mut chain: Option<Digest> = None;
    let mut removed = Vec::new();
    for diff_id in diff_ids {
        let id = match &chain {
            None => diff_id.clone(),
            Some(below) => Digest::from_hasher(Sha256::new_with_prefix(format!("{below} {diff_id}"))),
        };
        if gone.iter().any(|layer| layer.diff_id == *diff_id) {
            removed.push(id.clone());
        }
        chain = Some(id);
    }
    removed.reverse();
    removed
}
