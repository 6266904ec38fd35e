//! Images.

use skep_api::ApiVersion;
use skep_api::container::GraphDriver;
use skep_api::image::{
    DeleteItem, Descriptor, DistributionInspect, HistoryItem, Inspect, Metadata, Platform, RootFs, Summary,
};
use skep_engine::image::{self as engine, RemovedItem};

/// `VirtualSize` is gone since API 1.44.
fn virtual_size(size: u64, version: ApiVersion) -> Option<u64> {
    (version < ApiVersion::new(1, 44)).then_some(size)
}

/// `containers` counts those made from it; -1 is "not counted".
pub(crate) fn summary(image: &engine::ImageSummary, containers: i64, version: ApiVersion) -> Summary {
    let mut repo_tags = image.repo_tags.clone();
    let mut repo_digests = image.repo_digests.clone();
    // Before API 1.43 an image without a name was given these.
    if version < ApiVersion::new(1, 43) && repo_tags.is_empty() && repo_digests.is_empty() {
        repo_tags.push("<none>:<none>".into());
        repo_digests.push("<none>@<none>".into());
    }
    Summary {
        containers,
        created: image.created.0.div_euclid(1_000_000_000),
        id: image.id.to_string(),
        labels: Some(image.labels.clone()).filter(|l| !l.is_empty()),
        parent_id: image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        repo_digests,
        repo_tags,
        shared_size: -1,
        size: image.size_bytes,
        virtual_size: virtual_size(image.size_bytes, version),
    }
}

pub(crate) fn inspect(details: &engine::ImageDetails, version: ApiVersion) -> Inspect {
    let path = |p: &std::path::PathBuf| p.display().to_string();
    let mut data = std::collections::BTreeMap::new();
    if let Some((top, lower)) = details.layer_dirs.split_first() {
        data.insert("UpperDir".to_owned(), path(top));
        if !lower.is_empty() {
            data.insert("LowerDir".to_owned(), lower.iter().map(path).collect::<Vec<_>>().join(":"));
        }
    }
    Inspect {
        id: details.summary.id.to_string(),
        repo_tags: details.summary.repo_tags.clone(),
        repo_digests: details.summary.repo_digests.clone(),
        parent: details.summary.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        comment: details.file.comment.clone(),
        created: details.file.created.clone(),
        docker_version: String::new(),
        author: details.file.author.clone(),
        config: details.raw_config.clone(),
        architecture: details.file.architecture.clone(),
        variant: details.file.variant.clone(),
        os: details.file.os.clone(),
        os_version: details.file.os_version.clone(),
        size: details.summary.size_bytes,
        virtual_size: virtual_size(details.summary.size_bytes, version),
        graph_driver: GraphDriver { name: "overlay2".into(), data },
        root_fs: RootFs {
            kind: "layers".into(),
            layers: details.file.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
        },
        metadata: Metadata { last_tag_time: details.last_tagged.unwrap_or_default().into() },
    }
}

pub(crate) fn history(item: &engine::HistoryItem) -> HistoryItem {
    HistoryItem {
        comment: item.comment.clone(),
        created: item.created.0.div_euclid(1_000_000_000),
        created_by: item.created_by.clone(),
        id: item.id.as_ref().map_or_else(|| "<missing>".to_owned(), ToString::to_string),
        size: item.size_bytes,
        tags: Some(item.tags.clone()).filter(|t| !t.is_empty()),
    }
}

pub(crate) fn removed(item: &RemovedItem) -> DeleteItem {
    match item {
        RemovedItem::Untagged(name) => DeleteItem { untagged: Some(name.clone()), deleted: None },
        RemovedItem::Deleted(id) => DeleteItem { untagged: None, deleted: Some(id.to_string()) },
    }
}

pub(crate) fn distribution(found: &engine::Distribution) -> DistributionInspect {
    DistributionInspect {
        descriptor: Descriptor {
            media_type: found.media_type.clone(),
            digest: found.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            size: found.size,
        },
        platforms: found
            .platforms
            .iter()
            .map(|p| Platform {
                architecture: p.architecture.clone(),
                os: p.os.clone(),
                os_version: p.os_version.clone(),
                os_features: p.os_features.clone(),
                variant: p.variant.clone(),
            })
            .collect(),
    }
}
