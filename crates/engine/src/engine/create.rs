//! `docker create`: checks, the image's settings merged in, names, volumes, and the record on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use skep_model::ContainerId;
use skep_model::container::{ContainerConfig, HostConfig, MountPoint};
use skep_model::path::clean;

use super::merge::{command, merge};
use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::image::{ImageError, ImageId, check_platform};
use crate::volume::{VolumeError, VolumeSpec};

impl Engine {
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        let CreateRequest { name, mut config, mut host_config, endpoints, mut task, platform } = request;
        if config.image.is_empty() {
            return Err(EngineError::Invalid("no command specified".to_owned()));
        }
        let image_id = self.inner.images.resolve(&config.image).map_err(|e| no_such_image(e, &config.image))?;
        let image = self.inner.images.image_config(&image_id.to_string())?;
        let warning = check_platform(&config.image, &image, &platform)?;
        merge(&mut config, &image.config);
        let (path, args) = command(&config)?;
        let mut warnings = self.validate(&config, &mut host_config)?;
        warnings.extend(warning);
        let asks_for_address = endpoints.iter().any(|e| e.address.is_some() || e.address6.is_some());
        if asks_for_address && is_without_network(&host_config.network_mode) {
            let text = "user specified IP address is supported on user defined networks only";
            return Err(EngineError::Invalid(text.to_owned()));
        }

        let id = ContainerId::from_bits(random_bits()?);
        let name = self.reserve_name(name, &id)?;
        let dir = self.inner.config.data_root.join("containers").join(id.as_str());
        let made = self.make(&id, &image_id, &dir, &config, &host_config).await;
        let (mounts, volumes) = match made {
            Ok(made) => made,
            Err(error) => {
                self.undo_create(&id, &name, &dir);
                return Err(error);
            }
        };
        if config.hostname.is_empty() {
            config.hostname = default_hostname(&host_config, &id);
        }
        let files = task.as_mut().map(|t| std::mem::take(&mut t.files)).unwrap_or_default();
        let record = ContainerRecord {
            name: name.clone(),
            created_at: crate::sys::clock::now(),
            image_id: image_id.to_string(),
            config,
            host_config,
            endpoints,
            task,
            path,
            args,
            state: ContainerState::default(),
            restart_count: 0,
            manually_stopped: false,
            mounts,
            sandbox: None,
            log_path: dir.join(format!("{id}-json.log")),
            hostname_path: dir.join("hostname"),
            hosts_path: dir.join("hosts"),
            resolv_conf_path: dir.join("resolv.conf"),
            exec_ids: Vec::new(),
            graph: GraphDirs::default(),
            id: id.clone(),
        };
        let saved = {
            let (dir, record) = (dir.clone(), record.clone());
            blocking(move || save(&dir, &record)).await
        };
        if let Err(error) = saved {
            self.undo_create(&id, &name, &dir);
            return Err(error);
        }
        for volume in &volumes {
            self.inner.volumes.reference(volume, id.as_str())?;
        }
        let container = Arc::new(Container::new(dir, record));
        *locked(&container.task_files) = files;
        self.registry_mut().by_id.insert(id.clone(), Arc::clone(&container));
        self.emit(&container.record(), "create", &[]);
        Ok(Created { id, warnings })
    }

    /// What needs the disk: the directory, the hold on the image, the volumes.
    async fn make(
        &self,
        id: &ContainerId,
        image: &ImageId,
        dir: &std::path::Path,
        config: &ContainerConfig,
        host: &HostConfig,
    ) -> Result<(Vec<MountRecord>, Vec<String>)> {
        self.inner.images.hold(id.as_str(), image)?;
        {
            let dir = dir.to_owned();
            blocking(move || std::fs::create_dir_all(&dir).map_err(EngineError::file("failed to create", dir))).await?;
        }
        self.resolve_mounts(config, host).await
    }

    fn undo_create(&self, id: &ContainerId, name: &str, dir: &std::path::Path) {
        self.inner.images.release(id.as_str());
        self.inner.volumes.dereference(id.as_str());
        self.registry_mut().by_name.remove(name);
        let _ = std::fs::remove_dir_all(dir);
    }

    /// The name is taken from here on; the caller gives it back if the creation fails.
    fn reserve_name(&self, name: Option<String>, id: &ContainerId) -> Result<String> {
        let mut registry = self.registry_mut();
        match name.as_deref().map(|n| n.strip_prefix('/').unwrap_or(n)).filter(|n| !n.is_empty()) {
            Some(name) => {
                check_name(name)?;
                if let Some(other) = registry.by_name.get(name) {
                    return Err(EngineError::NameInUse { name: name.to_owned(), id: other.to_string() });
                }
                registry.by_name.insert(name.to_owned(), id.clone());
                Ok(name.to_owned())
            }
            None => {
                let mut bits = u128::from_str_radix(&id.as_str()[..32], 16).unwrap_or_default();
                loop {
                    let name = skep_model::names::invent(bits);
                    if !registry.by_name.contains_key(&name) {
                        registry.by_name.insert(name.clone(), id.clone());
                        return Ok(name);
                    }
                    bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                }
            }
        }
    }

    pub(super) fn change_name(&self, container: &Container, name: &str) -> Result<()> {
        let name = name.strip_prefix('/').unwrap_or(name);
        check_name(name)?;
        let old = container.name();
        if old == name {
            return Err(EngineError::Invalid("Renaming a container with the same name as its current name".to_owned()));
        }
        {
            let mut registry = self.registry_mut();
            if let Some(other) = registry.by_name.get(name) {
                return Err(EngineError::NameInUse { name: name.to_owned(), id: other.to_string() });
            }
            registry.by_name.remove(&old);
            registry.by_name.insert(name.to_owned(), container.id.clone());
        }
        container.update(|record| name.clone_into(&mut record.name)).map(|_| ())
    }

    fn validate(&self, config: &ContainerConfig, host: &mut HostConfig) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        crate::spec::limits::validate(host)?;
        crate::spec::capabilities::resolve(&host.cap_add, &host.cap_drop, host.privileged)?;
        super::security::Options::read(&host.security_opt)?;
        if host.log_config.driver.is_empty() {
            self.inner.config.log_driver.clone_into(&mut host.log_config.driver);
        }
        if host.log_config.driver == self.inner.config.log_driver {
            for (name, value) in &self.inner.config.log_options {
                host.log_config.config.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        crate::logs::check(&host.log_config)?;
        if host.network_mode.is_empty() {
            "default".clone_into(&mut host.network_mode);
        }
        if host.shm_size == 0 {
            host.shm_size = 64 << 20;
        }
        match host.restart_policy.name.as_str() {
            "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
            other => {
                return Err(EngineError::Invalid(format!(
                    "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
                )));
            }
        }
        if host.restart_policy.name != "on-failure" && host.restart_policy.maximum_retry_count != 0 {
            return Err(EngineError::Invalid(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned(),
            ));
        }
        if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
            return Err(EngineError::Invalid("can't create 'AutoRemove' container with restart policy".to_owned()));
        }
        if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
            return Err(EngineError::Invalid(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                config.working_dir
            )));
        }
        unsupported(host)?;
        if let Some(health) = &config.healthcheck {
            super::health::validate(health)?;
        }
        if !config.stop_signal.is_empty() {
            super::lifecycle::parse_signal(&config.stop_signal)?;
        }
        if host.network_mode == "host" && !host.port_bindings.is_empty() {
            warnings.push("Published ports are discarded when using host network mode".to_owned());
        }
        if host.memory > 0 && !self.inner.features.swap_limit {
            warnings.push("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.".to_owned());
        }
        if host.blkio_weight > 0 && !self.inner.features.blkio_weight {
            warnings.push(
                "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
                    .to_owned(),
            );
        }
        Ok(warnings)
    }

    /// Every mount of the container, with the volumes made; also their names.
    async fn resolve_mounts(
        &self,
        config: &ContainerConfig,
        host: &HostConfig,
    ) -> Result<(Vec<MountRecord>, Vec<String>)> {
        let mut mounts: BTreeMap<String, MountRecord> = BTreeMap::new();
        for from in &host.volumes_from {
            let (key, mode) = from.split_once(':').unwrap_or((from, ""));
            for mount in &self.find(key)?.record().mounts {
                let mut mount = mount.clone();
                mount.anonymous = false;
                mount.rw &= mode != "ro";
                mounts.insert(mount.destination.clone(), mount);
            }
        }
        for text in &host.binds {
            let mount = self.bind(text, &host.volume_driver).await?;
            insert_once(&mut mounts, mount)?;
        }
        for point in &host.mounts {
            let mount = self.mount_point(point).await?;
            insert_once(&mut mounts, mount)?;
        }
        for destination in config.volumes.iter().flat_map(BTreeMap::keys) {
            let clean = clean(destination);
            if !mounts.contains_key(&clean) && !host.tmpfs.contains_key(&clean) {
                let mount = self.volume(&VolumeSpec::default(), &clean, "", true).await?;
                mounts.insert(clean, MountRecord { anonymous: true, ..mount });
            }
        }
        let volumes = mounts.values().filter(|m| m.kind == "volume").map(|m| m.name.clone()).collect();
        Ok((mounts.into_values().collect(), volumes))
    }

    /// `source:target[:mode]`; a source that is no path is a volume's name.
    async fn bind(&self, text: &str, driver: &str) -> Result<MountRecord> {
        let invalid = || EngineError::Invalid(format!("invalid volume specification: '{text}'"));
        let mut parts = text.split(':');
        let (source, target, mode) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(source), Some(target), mode, None) => (source, target, mode.unwrap_or("")),
            _ => return Err(invalid()),
        };
        if !target.starts_with('/') {
            return Err(EngineError::Invalid(format!(
                "invalid volume specification: '{text}': invalid mount config for type \"bind\": invalid mount path: '{target}' mount path must be absolute"
            )));
        }
        if clean(target) == "/" {
            return Err(EngineError::Invalid(format!(
                "invalid volume specification: '{text}': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"
            )));
        }
        let options: Vec<&str> = mode.split(',').filter(|o| !o.is_empty()).collect();
        let rw = !options.contains(&"ro");
        let propagation = options
            .iter()
            .find(|o| o.trim_start_matches('r').starts_with("shared") || o.contains("slave") || o.contains("private"));
        if source.starts_with('/') {
            // `-v` makes the directory, `--mount` does not.
            let path = PathBuf::from(source);
            blocking(move || {
                if path.exists() {
                    return Ok(());
                }
                std::fs::create_dir_all(&path)
                    .map_err(EngineError::file("error while creating mount source path", path))
            })
            .await?;
            return Ok(MountRecord {
                kind: "bind".to_owned(),
                source: source.to_owned(),
                destination: clean(target),
                mode: mode.to_owned(),
                rw,
                propagation: propagation.map_or("rprivate", |p| *p).to_owned(),
                ..MountRecord::default()
            });
        }
        let spec = VolumeSpec { name: source.to_owned(), driver: driver.to_owned(), ..VolumeSpec::default() };
        self.volume(&spec, &clean(target), mode, rw).await
    }

    async fn mount_point(&self, point: &MountPoint) -> Result<MountRecord> {
        let invalid =
            |why: &str| EngineError::Invalid(format!("invalid mount config for type {:?}: {why}", point.kind));
        if point.target.is_empty() {
            return Err(invalid("field Target must not be empty"));
        }
        if !point.target.starts_with('/') {
            return Err(invalid(&format!("invalid mount path: '{}' mount path must be absolute", point.target)));
        }
        let target = clean(&point.target);
        if target == "/" {
            return Err(invalid("invalid specification: destination can't be '/'"));
        }
        match point.kind.as_str() {
            "bind" => {
                let options = point.bind_options.clone().unwrap_or_default();
                if point.source.is_empty() {
                    return Err(invalid("field Source must not be empty"));
                }
                if !point.source.starts_with('/') {
                    return Err(invalid(&format!(
                        "invalid mount path: '{}' mount path must be absolute",
                        point.source
                    )));
                }
                if !std::path::Path::new(&point.source).exists() {
                    if !options.create_mountpoint {
                        return Err(invalid(&format!("bind source path does not exist: {}", point.source)));
                    }
                    std::fs::create_dir_all(&point.source)
                        .map_err(EngineError::file("error while creating mount source path", &point.source))?;
                }
                let propagation =
                    if options.propagation.is_empty() { "rprivate".to_owned() } else { options.propagation };
                Ok(MountRecord {
                    kind: "bind".to_owned(),
                    source: point.source.clone(),
                    destination: target,
                    rw: !point.read_only,
                    propagation,
                    non_recursive: options.non_recursive,
                    read_only_non_recursive: options.read_only_non_recursive,
                    ..MountRecord::default()
                })
            }
            "volume" => {
                let options = point.volume_options.clone().unwrap_or_default();
                if options.subpath.starts_with('/') || options.subpath.split('/').any(|part| part == "..") {
                    return Err(invalid("subpath must be a relative path within the volume"));
                }
                let driver = options.driver_config.unwrap_or_default();
                let spec = VolumeSpec {
                    name: point.source.clone(),
                    driver: driver.name,
                    options: driver.options,
                    labels: options.labels,
                };
                let mode = if options.no_copy { "nocopy" } else { "z" };
                let anonymous = point.source.is_empty();
                let volume = self.volume(&spec, &target, mode, !point.read_only).await?;
                Ok(MountRecord { anonymous, subpath: options.subpath, ..volume })
            }
            "tmpfs" if !point.source.is_empty() => Err(invalid("field Source must not be specified")),
            "tmpfs" => Ok(MountRecord {
                kind: "tmpfs".to_owned(),
                destination: target,
                mode: tmpfs_options(point).map_err(|why| invalid(&why))?,
                rw: !point.read_only,
                ..MountRecord::default()
            }),
            other => Err(EngineError::Invalid(format!("mount type {other:?} unknown"))),
        }
    }

    async fn volume(&self, spec: &VolumeSpec, target: &str, mode: &str, rw: bool) -> Result<MountRecord> {
        let volume = self.inner.volumes.create(spec.clone()).await?;
        Ok(MountRecord {
            kind: "volume".to_owned(),
            source: volume.mountpoint.to_string_lossy().into_owned(),
            name: volume.name,
            destination: target.to_owned(),
            driver: volume.driver,
            mode: mode.to_owned(),
            rw,
            ..MountRecord::default()
        })
    }
}

/// What would otherwise be passed over in silence.
fn unsupported(host: &HostConfig) -> Result<()> {
    match host.runtime.as_str() {
        "" | "runc" | "io.containerd.runc.v2" | "skep" => {}
        other => return Err(EngineError::Invalid(format!("unknown or invalid runtime name: {other}"))),
    }
    let missing = [
        (!matches!(host.userns_mode.as_str(), "" | "host"), "user namespaces"),
        (!host.links.is_empty(), "links (use a network of your own)"),
        (!host.storage_opt.is_empty(), "storage options"),
        (!host.cgroup_parent.is_empty(), "cgroup parents of containers"),
    ];
    match missing.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(EngineError::NotImplemented(format!("{what} are not supported yet"))),
        None => Ok(()),
    }
}

fn insert_once(mounts: &mut BTreeMap<String, MountRecord>, mount: MountRecord) -> Result<()> {
    let target = mount.destination.clone();
    match mounts.insert(target.clone(), mount) {
        Some(old) if !old.anonymous => Err(EngineError::Invalid(format!("Duplicate mount point: {target}"))),
        _ => Ok(()),
    }
}

/// moby `ConvertTmpfsOptions`.
fn tmpfs_options(point: &MountPoint) -> std::result::Result<String, String> {
    let options = point.tmpfs_options.clone().unwrap_or_default();
    let mut words = Vec::new();
    if point.read_only {
        words.push("ro".to_owned());
    }
    if options.size_bytes > 0 {
        words.push(format!("size={}", options.size_bytes));
    }
    if options.mode > 0 {
        words.push(format!("mode={:o}", options.mode));
    }
    for option in &options.options {
        match &option[..] {
            [] | [_, _, _, ..] => return Err("invalid option array length".to_owned()),
            [name, ..] if name != "exec" && name != "noexec" => return Err(format!("invalid option: {name}")),
            parts => words.push(parts.join("=")),
        }
    }
    Ok(words.join(","))
}

/// Of its own.
fn is_without_network(mode: &str) -> bool {
    matches!(mode, "host" | "none") || mode.starts_with("container:")
}

fn default_hostname(host: &HostConfig, id: &ContainerId) -> String {
    if host.network_mode == "host" || host.uts_mode == "host" {
        return nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    }
    id.short().to_owned()
}

fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest: Vec<u8> = bytes.collect();
    if first && !rest.is_empty() && rest.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b)) {
        return Ok(());
    }
    Err(EngineError::Invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

pub(super) fn random_bits() -> Result<[u128; 2]> {
    let mut bytes = [0; 32];
    getrandom(&mut bytes)?;
    let number = |b: &[u8]| b.iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
    Ok([number(&bytes[..16]), number(&bytes[16..])])
}

fn getrandom(bytes: &mut [u8]) -> Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(bytes))
        .map_err(EngineError::file("failed to read", "/dev/urandom"))
}

pub(super) fn no_such_image(error: ImageError, name: &str) -> EngineError {
    match error {
        ImageError::NoSuchImage(_) => EngineError::NoSuchImage(with_tag(name)),
        other => other.into(),
    }
}

/// moby names the tag it looked for.
fn with_tag(name: &str) -> String {
    name.parse::<skep_model::reference::Reference>().map_or_else(|_| name.to_owned(), |r| r.familiar())
}

impl From<ImageError> for EngineError {
    fn from(error: ImageError) -> Self {
        use crate::error::ErrorKind as Kind;
        let text = error.sentence();
        match error.kind() {
            Kind::NotFound => Self::NotFound(text),
            Kind::Conflict => Self::Conflict(text),
            Kind::Invalid => Self::Invalid(text),
            Kind::Forbidden => Self::Forbidden(text),
            Kind::Unavailable => Self::Unavailable(text),
            Kind::NotImplemented => Self::NotImplemented(text),
            Kind::NotModified | Kind::Internal => Self::Internal(text),
        }
    }
}

impl From<VolumeError> for EngineError {
    fn from(error: VolumeError) -> Self {
        let text = error.to_string();
        match error.kind() {
            crate::error::ErrorKind::NotFound => Self::NotFound(text),
            crate::error::ErrorKind::Conflict => Self::Conflict(text),
            crate::error::ErrorKind::Invalid => Self::Invalid(text),
            _ => Self::Internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name("web.1.abc").is_ok() && check_name("a_b-c").is_ok());
        for bad in ["a", "", "-ab", "a b", "ä1", "a/b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(clean("/a//b/../c/."), "/a/c");
    }
}
