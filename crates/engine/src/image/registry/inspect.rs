//! What a registry has, without fetching it; and whether it takes credentials.

use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Document};
use super::session::Session;
use crate::image::store::{parse_config, parse_reference};
use crate::image::types::{Distribution, Platform};
use crate::image::{ImageError, ImageStore, RegistryAuth, Result};

impl ImageStore {
    /// `GET /distribution/{name}/json`. The image that is part of this binary has no digest in any registry.
    pub async fn distribution_inspect(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<Distribution> {
        let reference = parse_reference(reference)?;
        if self.is_builtin(&reference) {
            let (id, _) = self.remake_builtin(&reference).await?;
            let file = self.image_config(id.as_str())?;
            let platform = Platform {
                architecture: file.architecture.clone(),
                os: file.os.clone(),
                variant: file.variant.clone(),
                ..Platform::default()
            };
            let media_type = DOCKER_MANIFEST.to_owned();
            return Ok(Distribution { media_type, digest: None, size: 0, platforms: vec![platform] });
        }
        let by = reference.digest.clone().or_else(|| reference.tag_or_latest().map(str::to_owned)).unwrap_or_default();
        let (session, top) = Session::find(&self.inner.registries, &reference, auth.as_ref(), &by).await?;
        let (fallback_type, platforms) = match Document::parse(&top.bytes)? {
            Document::Index(index) => {
                (DOCKER_LIST, index.manifests.into_iter().filter_map(|descriptor| descriptor.platform).collect())
            }
            Document::Manifest(manifest) => {
                let file = parse_config(&session.small_blob(&manifest.config.digest).await?)?;
                let platform = Platform {
                    architecture: file.architecture,
                    os: file.os,
                    variant: file.variant,
                    os_version: file.os_version,
                    ..Platform::default()
                };
                (DOCKER_MANIFEST, vec![platform])
            }
        };
        let media_type = if top.media_type.is_empty() { fallback_type.to_owned() } else { top.media_type };
        Ok(Distribution { media_type, digest: Some(top.digest), size: top.bytes.len() as u64, platforms })
    }

    /// `POST /auth`: checks credentials with the registry named in them. Gives Docker's status text.
    pub async fn login(&self, auth: RegistryAuth) -> Result<String> {
        let address = auth.serveraddress.trim_start_matches("https://").trim_start_matches("http://");
        let host = address.split('/').next().unwrap_or_default();
        let domain = if host.is_empty() || host == "index.docker.io" { "docker.io" } else { host };
        if auth.username.is_empty() && auth.identitytoken.is_empty() {
            return Err(ImageError::Invalid("username is empty".to_owned()));
        }
        Session::login(&self.inner.registries, domain, &auth).await?;
        Ok("Login Succeeded".to_owned())
    }
}
