//! What is there: lists, inspection, history.

use super::filter::{Filter, glob};
use super::state::{Image, State};
use super::store::now;
use super::types::{Filters, HistoryItem, ImageDetails, ImageSummary, ImageUsage};
use super::{ImageError, ImageStore, Result};
use skep_model::Timestamp;
use skep_model::reference::Reference;

const LIST_FILTERS: [&str; 6] = ["reference", "dangling", "label", "before", "since", "until"];

impl ImageStore {
    /// `GET /images/json`, newest first. `all` shows intermediate images too. Filters: reference, dangling, label, before,
    /// since, until.
    pub fn list(&self, filters: &Filters, all: bool) -> Result<Vec<ImageSummary>> {
        let filter = Filter::new(filters, &LIST_FILTERS).map_err(ImageError::Invalid)?;
        let dangling = filter.flag("dangling", false).map_err(ImageError::Invalid)?;
        let dangling = (!filter.values("dangling").is_empty()).then_some(dangling);
        let created = |key: &str| -> Result<Vec<Timestamp>> {
            filter.values(key).iter().map(|name| Ok(self.image(name)?.file.created_at())).collect()
        };
        let before = created("before")?.into_iter().min();
        let since = created("since")?.into_iter().max();
        let until = filter.until(now()).map_err(ImageError::Invalid)?;

        let state = self.state();
        let mut images = Vec::new();
        for image in state.images() {
            let at = image.file.created_at();
            let mut summary = summary(&state, image);
            let nameless = summary.repo_tags.is_empty();
            let matches = before.is_none_or(|t| at < t)
                && since.is_none_or(|t| at > t)
                && until.is_none_or(|t| at < t)
                && filter.labels_match(&summary.labels)
                && dangling.is_none_or(|wanted| wanted == nameless)
                && (all || !nameless || state.children(&image.id).next().is_none());
            if !matches {
                continue;
            }
            let patterns = filter.values("reference");
            if !patterns.is_empty() {
                let names: Vec<&Reference> =
                    state.names_of(&image.id).filter(|name| matches_any(patterns, name)).collect();
                if names.is_empty() {
                    continue;
                }
                (summary.repo_tags, summary.repo_digests) = shown(names.into_iter());
            }
            images.push(summary);
        }
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// `docker image inspect`.
    pub fn inspect(&self, name_or_id: &str) -> Result<ImageDetails> {
        let image = self.image(name_or_id)?;
        let raw: serde_json::Value = serde_json::from_slice(&self.raw_config(&image.id)?)
            .map_err(|error| ImageError::Internal(format!("the image's config cannot be read: {error}")))?;
        // Its own statement: a guard inside the literal would live to its end, and layers are looked up under the same lock.
        let summary = summary(&self.state(), &image);
        Ok(ImageDetails {
            summary,
            raw_config: raw.get("config").cloned().unwrap_or_default(),
            layer_dirs: self.rootfs_layers(&image.id)?,
            last_tagged: image.kept.last_tagged,
            file: image.file,
        })
    }

    /// Newest first, as `docker history`.
    pub fn history(&self, name_or_id: &str) -> Result<Vec<HistoryItem>> {
        let image = self.image(name_or_id)?;
        let mut diff_ids = image.file.rootfs.diff_ids.iter();
        let mut items = Vec::new();
        for step in &image.file.history {
            let layer = if step.empty_layer { None } else { diff_ids.next() };
            let size_bytes = match layer {
                Some(id) => self.inner.layers.need(id)?.size_bytes,
                None => 0,
            };
            items.push(HistoryItem {
                id: None,
                created: Timestamp::parse_rfc3339(&step.created).unwrap_or(Timestamp::ZERO),
                created_by: step.created_by.clone(),
                tags: Vec::new(),
                size_bytes,
                comment: step.comment.clone(),
            });
        }
        items.reverse();
        if let Some(newest) = items.first_mut() {
            newest.tags = summary(&self.state(), &image).repo_tags;
            newest.id = Some(image.id);
        }
        Ok(items)
    }

    /// What the images take on disk.
    pub fn usage(&self) -> ImageUsage {
        ImageUsage { layers_bytes: self.inner.layers.total_bytes() }
    }
}

pub(super) fn summary(state: &State, image: &Image) -> ImageSummary {
    let (repo_tags, repo_digests) = shown(state.names_of(&image.id));
    ImageSummary {
        id: image.id.clone(),
        parent: image.kept.parent.clone(),
        repo_tags,
        repo_digests,
        created: image.file.created_at(),
        size_bytes: image.size_bytes,
        labels: image.file.config.labels.clone(),
    }
}

fn shown<'a>(names: impl Iterator<Item = &'a Reference>) -> (Vec<String>, Vec<String>) {
    let (tags, digests): (Vec<_>, Vec<_>) = names.partition(|name| name.digest.is_none());
    let familiar = |names: Vec<&Reference>| names.into_iter().map(Reference::familiar).collect();
    (familiar(tags), familiar(digests))
}

/// distribution's `FamiliarMatch`: a pattern may be meant for the name alone or with its tag.
fn matches_any(patterns: &[String], name: &Reference) -> bool {
    patterns.iter().any(|pattern| glob(pattern, &name.familiar()) || glob(pattern, &name.familiar_name()))
}
