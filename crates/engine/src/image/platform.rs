//! Whether an image is for the platform a container was asked to have.

use super::config::ImageFile;
use super::registry::manifest::{fit, host_platform, parse_platform};
use super::types::Platform;
use super::{ImageError, Result};

/// `wanted` is the API's `os[/arch[/variant]]`, or empty; an image for another platform is then not found, so that a client goes on
/// to pull the right one. Without a wish any image will do (an emulator may be there), and the text to warn with comes back.
pub(crate) fn check_platform(reference: &str, image: &ImageFile, wanted: &str) -> Result<Option<String>> {
    let host = host_platform();
    let actual = Platform {
        architecture: or(&image.architecture, &host.architecture),
        os: or(&image.os, &host.os),
        variant: image.variant.clone(),
        ..Platform::default()
    };
    let platform = parse_platform(Some(wanted))?;
    if fit(&platform, &actual) > 0 {
        return Ok(None);
    }
    let (platform, actual) = (words(&platform), words(&actual));
    if wanted.is_empty() {
        return Ok(Some(format!(
            "The requested image's platform ({actual}) does not match the detected host platform ({platform}) and no specific \
             platform was requested"
        )));
    }
    Err(ImageError::NotFound(format!(
        "image with reference {reference} was found but does not match the specified platform: wanted {platform}, actual: {actual}"
    )))
}

/// An image that does not say is taken for one of this host.
fn or(said: &str, otherwise: &str) -> String {
    if said.is_empty() { otherwise.to_owned() } else { said.to_owned() }
}

fn words(platform: &Platform) -> String {
    let Platform { os, architecture, variant, .. } = platform;
    if variant.is_empty() { format!("{os}/{architecture}") } else { format!("{os}/{architecture}/{variant}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(architecture: &str) -> ImageFile {
        ImageFile { os: "linux".into(), architecture: architecture.into(), ..ImageFile::default() }
    }

    #[test]
    fn an_image_of_another_platform_is_not_found_if_one_was_asked_for_and_warned_of_otherwise() {
        let own = host_platform().architecture;
        let foreign = if own == "s390x" { "amd64" } else { "s390x" };
        for wish in ["", "linux", &own, &format!("linux/{own}")] {
            assert_eq!(check_platform("x", &image(&own), wish).unwrap(), None, "{wish:?}");
        }
        assert_eq!(check_platform("x", &image(foreign), foreign).unwrap(), None);
        let error = check_platform("x:1", &image(&own), &format!("linux/{foreign}")).unwrap_err();
        assert!(matches!(error, ImageError::NotFound(_)));
        let text = format!(
            "x:1 was found but does not match the specified platform: wanted linux/{foreign}, actual: linux/{own}"
        );
        assert!(error.to_string().contains(&text), "{error}");
        let warning = check_platform("x", &image(foreign), "").unwrap().expect("a warning");
        assert!(
            warning.starts_with(&format!("The requested image's platform (linux/{foreign}) does not match")),
            "{warning}"
        );
        assert!(matches!(check_platform("x", &image(&own), "linux//x"), Err(ImageError::Invalid(_))));
    }
}
