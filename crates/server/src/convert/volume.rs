//! Volumes.

use skep_api::volume as api;
use skep_engine::volume as engine;

pub(crate) fn volume(volume: &engine::Volume) -> api::Volume {
    api::Volume {
        created_at: volume.created_at.into(),
        driver: volume.driver.clone(),
        labels: Some(volume.labels.clone()).filter(|l| !l.is_empty()),
        mountpoint: volume.mountpoint.display().to_string(),
        name: volume.name.clone(),
        options: Some(volume.options.clone()).filter(|o| !o.is_empty()),
        scope: "local".into(),
        usage_data: None,
    }
}
