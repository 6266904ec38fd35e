//! Manifests and indexes as registries and archives have them: Docker's schema 2 and OCI's, which differ in media types only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::image::compress::Compression;
use crate::image::id::Digest;
use crate::image::types::Platform;
use crate::image::{ImageError, Result};

pub(in crate::image) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(in crate::image) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(in crate::image) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(in crate::image) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(in crate::image) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// What a registry is asked for.
pub(in crate::image) const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::image) struct Descriptor {
    pub(in crate::image) media_type: String,
    pub(in crate::image) size: u64,
    pub(in crate::image) digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::image) urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::image) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::image) platform: Option<Platform>,
}

impl Descriptor {
    pub(in crate::image) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), size, digest, urls: Vec::new(), annotations: None, platform: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::image) struct Manifest {
    pub(in crate::image) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::image) media_type: Option<String>,
    pub(in crate::image) config: Descriptor,
    #[serde(default)]
    pub(in crate::image) layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::image) struct Index {
    pub(in crate::image) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::image) media_type: Option<String>,
    #[serde(default)]
    pub(in crate::image) manifests: Vec<Descriptor>,
}

/// What some bytes under a reference are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
}

impl Document {
    pub(in crate::image) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[derive(Default)]
        struct Shape {
            schema_version: u32,
            media_type: String,
            config: Option<serde::de::IgnoredAny>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let unreadable =
            |error: serde_json::Error| ImageError::Registry(format!("the manifest cannot be read: {error}"));
        let shape: Shape = serde_json::from_slice(bytes).map_err(unreadable)?;
        if shape.schema_version == 1 {
            let text = "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 support is \
                        disabled by default and has been removed. Suggest the author of the image to upgrade it to the OCI \
                        Format or Docker Image manifest version 2, schema 2";
            return Err(ImageError::Registry(text.to_owned()));
        }
        match (shape.config.is_some(), shape.manifests.is_some()) {
            // A document that is both could be verified as the one and used as the other (CVE-2021-41190).
            (true, true) => {
                Err(ImageError::Registry("the manifest is ambiguous: it has config and manifests".to_owned()))
            }
            (true, false) => {
                serde_json::from_slice(bytes).map(|manifest| Self::Manifest(Box::new(manifest))).map_err(unreadable)
            }
            (false, true) => serde_json::from_slice(bytes).map(Self::Index).map_err(unreadable),
            (false, false) => {
                Err(ImageError::Registry(format!("unsupported manifest media type {:?}", shape.media_type)))
            }
        }
    }
}

/// Makes a manifest of an image's blobs: Docker's types where all layers are gzip, OCI's where one is zstd.
pub(in crate::image) fn compose(config: (Digest, u64), layers: &[(Compression, Digest, u64)]) -> Manifest {
    let docker = layers.iter().all(|(compression, ..)| *compression == Compression::Gzip);
    let (manifest_type, config_type) =
        if docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
    let layers = layers.iter().map(|(compression, digest, size)| {
        let media_type = if docker { DOCKER_LAYER.to_owned() } else { layer_type(*compression) };
        Descriptor::new(&media_type, digest.clone(), *size)
    });
    Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.to_owned()),
        config: Descriptor::new(config_type, config.0, config.1),
        layers: layers.collect(),
    }
}

pub(in crate::image) fn layer_type(compression: Compression) -> String {
    match compression {
        Compression::None => OCI_LAYER.to_owned(),
        Compression::Gzip => format!("{OCI_LAYER}+gzip"),
        Compression::Zstd => format!("{OCI_LAYER}+zstd"),
    }
}

/// This host in Go's words.
pub(in crate::image) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "x86" => ("386", ""),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into(), ..Platform::default() }
}

/// `os[/arch[/variant]]`, or an architecture alone.
pub(in crate::image) fn parse_platform(text: Option<&str>) -> Result<Platform> {
    let host = host_platform();
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(host) };
    let architecture = |name: &str| match name {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "armhf" => "arm".to_owned(),
        "i386" => "386".to_owned(),
        name => name.to_owned(),
    };
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3
        || parts.iter().any(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
    {
        return Err(ImageError::Invalid(format!(
            "{text:?}: platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument"
        )));
    }
    let part = |at: usize| parts.get(at).map(|p| p.to_ascii_lowercase());
    Ok(match parts.len() {
        1 if matches!(parts[0], "linux" | "windows" | "darwin" | "freebsd") => {
            Platform { os: part(0).unwrap_or_default(), ..host }
        }
        1 => Platform { architecture: architecture(parts[0]), os: host.os, ..Platform::default() },
        _ => Platform {
            os: part(0).unwrap_or_default(),
            architecture: architecture(&part(1).unwrap_or_default()),
            variant: part(2).unwrap_or_default(),
            ..Platform::default()
        },
    })
}

/// How well what is for `actual` runs on `wanted`: 0 not at all, 3 exactly. One for the same architecture without a variant will
/// do, and an older ARM.
pub(in crate::image) fn fit(wanted: &Platform, actual: &Platform) -> u8 {
    if actual.os != wanted.os || actual.architecture != wanted.architecture {
        return 0;
    }
    match (actual.variant.as_str(), wanted.variant.as_str()) {
        (same, variant) if same == variant => 3,
        ("", _) | ("v8", "") => 2,
        (older, newer) if !newer.is_empty() && older < newer => 1,
        _ => 0,
    }
}

impl Index {
    /// The manifest that fits a platform best.
    pub(in crate::image) fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        let rank = |descriptor: &&Descriptor| descriptor.platform.as_ref().map_or(0, |actual| fit(wanted, actual));
        let mut candidates: Vec<&Descriptor> = self.manifests.iter().filter(|d| rank(d) > 0).collect();
        // Stable: of equals, the first listed wins, as in containerd.
        candidates.sort_by_key(|descriptor| std::cmp::Reverse(rank(descriptor)));
        candidates.first().copied().or_else(|| match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: &str, n: u8) -> Descriptor {
        let platform = Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Platform::default()
        };
        Descriptor { platform: Some(platform), ..Descriptor::new(OCI_MANIFEST, Digest::of(&[n]), 1) }
    }

    #[test]
    fn the_fitting_platform_is_chosen() {
        let manifests = vec![
            entry("unknown", "unknown", "", 0),
            entry("linux", "arm", "v6", 1),
            entry("linux", "arm", "v7", 2),
            entry("linux", "amd64", "", 3),
            entry("linux", "arm64", "v8", 4),
        ];
        let index = Index { schema_version: 2, media_type: None, manifests };
        let chosen = |text: &str| {
            let wanted = parse_platform(Some(text)).unwrap();
            index.choose(&wanted).map(|d| index.manifests.iter().position(|m| m == d).unwrap())
        };
        assert_eq!(chosen("linux/amd64"), Some(3));
        assert_eq!(chosen("linux/arm/v7"), Some(2));
        assert_eq!(chosen("linux/arm64"), Some(4));
        assert_eq!(chosen("arm64"), Some(4));
        assert_eq!(chosen("linux/arm/v6"), Some(1));
        assert_eq!(chosen("linux/s390x"), None);
        assert!(parse_platform(Some("linux//x")).is_err());
    }

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let error = Document::parse(br#"{"schemaVersion":2,"config":{},"manifests":[]}"#).unwrap_err();
        assert!(error.to_string().contains("ambiguous"));
        assert!(Document::parse(br#"{"schemaVersion":1}"#).unwrap_err().to_string().contains("schema 1"));
        assert!(Document::parse(b"<html>").is_err());
    }
}
