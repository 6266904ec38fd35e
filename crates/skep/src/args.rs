//! The command line. `skep daemon` takes dockerd's flags, so that a unit or harness made for dockerd starts it unchanged.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "skep",
    version,
    about = "Docker Swarm rebuilt: one binary, the stock docker CLI, its own container engine",
    after_help = "Start with `skep lab up` for a swarm on this machine, or `skep daemon` for one host; then use `docker`.",
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the daemon of this host (takes dockerd's flags and daemon.json)
    Daemon(Box<DaemonFlags>),
    /// Many hosts on this machine, joined to one swarm
    #[command(subcommand)]
    Lab(LabCommand),
    /// What a swarm can do beyond `docker swarm`
    Swarm {
        /// The daemon to ask
        #[arg(short = 'H', long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock", global = true)]
        host: String,
        #[command(subcommand)]
        command: SwarmCommand,
    },
    /// What can be asked of a service beyond `docker service`
    Service {
        /// The daemon to ask: of any manager
        #[arg(short = 'H', long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock", global = true)]
        host: String,
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// What can be asked of the network beyond `docker network`
    Network {
        /// The daemon to ask: of any manager
        #[arg(short = 'H', long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock", global = true)]
        host: String,
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// pid 1 of a lab host; started by `skep lab`
    #[command(hide = true)]
    LabHost { spec: String },
    /// Time containers inside the engine, for `cargo xtask bench`
    #[command(hide = true)]
    BenchEngine {
        /// A tar of a root file system with /bin/true
        #[arg(long)]
        image_tar: PathBuf,
        #[arg(long, default_value_t = 50)]
        rounds: usize,
    },
    /// Time the network side of a host, for `cargo xtask bench network`
    #[command(hide = true, subcommand)]
    BenchNetwork(BenchNetworkCommand),
    /// The HTTP server inside the image skep/whoami
    #[command(hide = true)]
    Whoami(WhoamiFlags),
}

#[derive(Subcommand)]
pub(crate) enum BenchNetworkCommand {
    /// A thousand services applied, and one backend changed
    Services,
    /// Backends exchanged under load
    Swaps {
        #[arg(long, default_value_t = 12_000)]
        count: usize,
        /// Through the published port, not the VIP
        #[arg(long)]
        mesh: bool,
    },
    /// The moment at which a name has so many addresses (0: some), and none of these, asked in this network namespace
    Await {
        name: String,
        count: usize,
        #[arg(long)]
        without: Vec<std::net::Ipv4Addr>,
    },
}

#[derive(Subcommand)]
pub(crate) enum SwarmCommand {
    /// Join tokens that end by time or by use
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
    #[command(flatten)]
    Backup(BackupCommand),
}

#[derive(Subcommand)]
pub(crate) enum ServiceCommand {
    /// Say in sentences why a service is not as it was asked for, and what to do
    Explain {
        /// Name or id
        service: String,
        /// `text` or `json`
        #[arg(long, default_value = "text", value_parser = ["text", "json"])]
        format: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum NetworkCommand {
    /// Let every host try every other: ports, sizes of packets, clocks, kernels; say what is wrong and what to do
    Doctor {
        /// `table` or `json`
        #[arg(long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum JoinTokenCommand {
    /// Make a token for `docker swarm join`; it is shown this once
    Create {
        /// What hosts join as: worker or manager
        #[arg(long, value_parser = ["worker", "manager"])]
        role: String,
        /// How long it lives, such as 90s, 30m, 1h or 7d [default: without end]
        #[arg(long, value_parser = crate::swarm::seconds)]
        ttl: Option<u64>,
        /// How many hosts may join with it [default: any number]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
        /// Print the token alone
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the tokens that were made, ended ones too
    Ls,
    /// Remove tokens: nobody joins with them any more
    Rm {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum BackupCommand {
    /// Write the whole state of the swarm to a file, while it runs
    ///
    /// Services, secrets, configs, networks, nodes, join tokens and the root certificate with its key, as of one moment, with
    /// everything that was acknowledged before. The file is sealed with the passphrase; without one, with the unlock key if
    /// managers are locked (docker swarm update --autolock); else it is readable to who has it. Ask any manager.
    Backup {
        /// Where to; `-` is standard output
        file: PathBuf,
        /// Seal with the passphrase in this file
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Make this host the only manager of the swarm in a backup
    ///
    /// The host must be outside a swarm, or with --force its only manager. A file that is truncated, altered or of another
    /// key is refused and changes nothing. What is replaced is kept (swarm.replaced beside swarm in the data root) until the
    /// restored swarm has a leader. Workers that know this host's address come back by themselves; other managers have to
    /// leave the swarm and join again.
    Restore {
        /// Where from; `-` is standard input
        file: PathBuf,
        #[command(flatten)]
        seal: SealArgs,
        /// In place of the swarm this host is the only manager of
        #[arg(long)]
        force: bool,
        /// As of docker swarm init: an address or interface, and its port [default: 0.0.0.0:2377]
        #[arg(long, value_name = "ADDR")]
        listen_addr: Option<String>,
        /// As of docker swarm init: an address or interface, and its port
        #[arg(long, value_name = "ADDR")]
        advertise_addr: Option<String>,
        /// As of docker swarm init: an address or interface
        #[arg(long, value_name = "ADDR")]
        data_path_addr: Option<String>,
    },
}

/// What a backup was sealed with.
#[derive(Args)]
pub(crate) struct SealArgs {
    /// Open with the passphrase in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Open with the unlock key (SWMKEY-1-…) in this file: the one the swarm had when the backup was made
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub(crate) unlock_key_file: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct WhoamiFlags {
    /// Port to listen on
    #[arg(long, env = "WHOAMI_PORT_NUMBER", default_value_t = 80)]
    pub(crate) port: u16,
    /// Text for the line `Name:`
    #[arg(long, env = "WHOAMI_NAME")]
    pub(crate) name: Option<String>,
}

/// dockerd's flags. Those whose meaning exists here are obeyed; the others are taken with a warning, or refused where
/// ignoring them would be unsafe.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DaemonFlags {
    /// Daemon socket(s) to listen on: unix:///path, tcp://host:port, fd://
    #[arg(short = 'H', long = "host", value_name = "LIST")]
    pub(crate) host: Vec<String>,
    /// Root directory of persistent state [default: /var/lib/skep]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_root: Option<PathBuf>,
    /// Root directory for execution state files [default: /run/skep]
    #[arg(long, value_name = "DIR")]
    pub(crate) exec_root: Option<PathBuf>,
    /// Daemon PID file [default: /run/skep.pid]
    #[arg(short = 'p', long, value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,
    /// Daemon configuration file [default: /etc/skep/daemon.json, else /etc/docker/daemon.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,
    /// Set the logging level: debug, info, warn, error, fatal
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Set key=value labels to the daemon
    #[arg(long, value_name = "LIST")]
    pub(crate) label: Vec<String>,
    /// Registries to speak plain HTTP with, or whose certificate is not checked: host, host:port or CIDR
    #[arg(long, value_name = "LIST")]
    pub(crate) insecure_registry: Vec<String>,
    /// Preferred registry mirror for Docker Hub
    #[arg(long, value_name = "LIST")]
    pub(crate) registry_mirror: Vec<String>,
    /// Default address pools for node specific local networks: base=CIDR,size=N
    #[arg(long, value_name = "POOL")]
    pub(crate) default_address_pool: Vec<String>,
    /// Default address or interface for swarm advertised address
    #[arg(long, value_name = "ADDR")]
    pub(crate) swarm_default_advertise_addr: Option<String>,
    /// Keep containers running while the daemon is down (they always do; taken for compatibility)
    #[arg(long)]
    pub(crate) live_restore: bool,
    /// Set parent cgroup for all containers
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
    /// Address and prefix length of the bridge docker0
    #[arg(long, value_name = "CIDR")]
    pub(crate) bip: Option<String>,
    /// DNS servers to use
    #[arg(long, value_name = "LIST")]
    pub(crate) dns: Vec<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long)]
    pub(crate) tls: bool,
    /// Use TLS and verify the remote
    #[arg(long)]
    pub(crate) tlsverify: bool,
    /// Trust certs signed only by this CA
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscert: Option<PathBuf>,
    /// Path to TLS key file
    #[arg(long, value_name = "FILE")]
    pub(crate) tlskey: Option<PathBuf>,
    /// What this host has for services to reserve: KIND=NAME for each piece, or KIND=NUMBER
    #[arg(long, value_name = "LIST")]
    pub(crate) node_generic_resource: Vec<String>,
    /// Group for the unix socket
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Default driver for container logs
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Default log driver options
    #[arg(long, value_name = "MAP")]
    pub(crate) log_opt: Vec<String>,

    // dockerd's flags without a meaning here. They are named, rather than swallowed, so that a misspelt flag is an error.
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) iptables: Option<String>,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) ip6tables: Option<String>,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) ip_forward: Option<String>,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) ip_masq: Option<String>,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) userland_proxy: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) userland_proxy_path: Option<String>,
    #[arg(short = 's', long, hide = true)]
    pub(crate) storage_driver: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) storage_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) exec_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) containerd: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) containerd_namespace: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) experimental: bool,
    #[arg(long, hide = true)]
    pub(crate) max_concurrent_downloads: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) max_concurrent_uploads: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) max_download_attempts: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) shutdown_timeout: Option<i64>,
    #[arg(long, hide = true)]
    pub(crate) metrics_addr: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) oom_score_adjust: Option<i32>,
    #[arg(long, hide = true)]
    pub(crate) selinux_enabled: bool,
    #[arg(long, hide = true)]
    pub(crate) raw_logs: bool,
    #[arg(long, hide = true)]
    pub(crate) feature: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) init: bool,
    #[arg(long, hide = true)]
    pub(crate) init_path: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) add_runtime: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) default_runtime: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) seccomp_profile: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) userns_remap: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) authorization_plugin: Vec<String>,
    #[arg(short = 'b', long, hide = true)]
    pub(crate) bridge: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) default_ulimit: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) mtu: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) ipv6: bool,
}

impl DaemonFlags {
    /// Flags given that change nothing here, each with the reason.
    pub(crate) fn without_meaning(&self) -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        let mut say = |given: bool, flag, reason| {
            if given {
                all.push((flag, reason));
            }
        };
        let nft = "skep keeps nftables tables of its own and touches no others";
        say(self.iptables.is_some(), "--iptables", nft);
        say(self.ip6tables.is_some(), "--ip6tables", nft);
        say(self.ip_forward.is_some(), "--ip-forward", "forwarding is switched on where containers need it");
        say(self.ip_masq.is_some(), "--ip-masq", "set com.docker.network.bridge.enable_ip_masquerade on the network");
        say(
            self.userland_proxy.is_some() || self.userland_proxy_path.is_some(),
            "--userland-proxy",
            "ports are published in the kernel",
        );
        say(
            self.storage_driver.as_deref().is_some_and(|d| d != "overlay2"),
            "--storage-driver",
            "images are kept on overlayfs",
        );
        say(!self.storage_opt.is_empty(), "--storage-opt", "images are kept on overlayfs");
        say(!self.exec_opt.is_empty(), "--exec-opt", "cgroups are written directly");
        say(
            self.containerd.is_some() || self.containerd_namespace.is_some(),
            "--containerd",
            "the engine is inside skep",
        );
        say(self.experimental, "--experimental", "there are no experimental features");
        say(
            self.max_concurrent_downloads.is_some()
                || self.max_concurrent_uploads.is_some()
                || self.max_download_attempts.is_some(),
            "--max-concurrent-downloads/-uploads/--max-download-attempts",
            "transfers have fixed limits",
        );
        say(self.shutdown_timeout.is_some(), "--shutdown-timeout", "containers outlive the daemon");
        say(self.metrics_addr.is_some(), "--metrics-addr", "metrics are not there yet");
        say(self.oom_score_adjust.is_some(), "--oom-score-adjust", "the supervisor protects itself");
        say(self.raw_logs, "--raw-logs", "logs have no colour when they are not read by a terminal");
        say(!self.feature.is_empty(), "--feature", "there are no feature switches");
        say(self.init_path.is_some(), "--init-path", "the init is inside skep");
        say(self.mtu.is_some(), "--mtu", "set com.docker.network.driver.mtu on the network");
        all
    }

    /// Flags given that cannot be ignored safely and are not there: starting would promise what is not kept.
    pub(crate) fn refused(&self) -> Option<(&'static str, &'static str)> {
        if self.selinux_enabled {
            return Some(("--selinux-enabled", "SELinux labels are not supported"));
        }
        if self.userns_remap.is_some() {
            return Some(("--userns-remap", "user namespaces are not supported"));
        }
        if !self.authorization_plugin.is_empty() {
            return Some(("--authorization-plugin", "authorization plugins are not supported"));
        }
        if self.seccomp_profile.as_deref().is_some_and(|p| p != "builtin") {
            return Some((
                "--seccomp-profile",
                "only the built-in profile is there; use --security-opt seccomp=FILE a container",
            ));
        }
        if self.default_runtime.as_deref().is_some_and(|r| r != "runc" && r != "skep") || !self.add_runtime.is_empty() {
            return Some(("--default-runtime/--add-runtime", "containers are run by skep itself"));
        }
        if self.bridge.as_deref().is_some_and(|b| b != "docker0") {
            return Some(("--bridge", "the default bridge is docker0; give it an address with --bip"));
        }
        if self.ipv6 {
            return Some(("--ipv6", "IPv6 on the default bridge is not there yet"));
        }
        if self.init {
            return Some(("--init", "a default init is not there yet; use `docker run --init`"));
        }
        if !self.default_ulimit.is_empty() {
            return Some(("--default-ulimit", "default ulimits are not there yet; use `docker run --ulimit`"));
        }
        None
    }
}

/// A lab is made of hosts called node1, node2…
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum LabCommand {
    /// Make hosts, start a daemon on each and join them to one swarm
    Up {
        /// How many hosts are managers
        #[arg(long, default_value_t = 1)]
        managers: u8,
        /// How many hosts are workers
        #[arg(long, default_value_t = 2)]
        workers: u8,
        #[command(flatten)]
        which: LabName,
        /// Give every host a disk of its own of this size for its data, in memory, which can be filled (64M, 1G)
        #[arg(long, value_name = "SIZE", value_parser = size)]
        disk: Option<u64>,
        /// Start the daemons but form no swarm
        #[arg(long)]
        no_swarm: bool,
        /// Run this daemon on the hosts instead of skep: `dockerd`, to compare
        #[arg(long, value_name = "PROGRAM")]
        daemon: Option<String>,
        /// Arguments for every daemon, after `--`
        #[arg(last = true)]
        daemon_args: Vec<String>,
    },
    /// List the hosts of a lab
    Ls {
        #[command(flatten)]
        which: LabName,
        /// The hosts of every lab
        #[arg(short, long)]
        all: bool,
        /// `table` or `json`
        #[arg(long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
    },
    /// Run a command on a host (a shell if none is given)
    Exec {
        #[command(flatten)]
        which: LabName,
        node: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Kill whole hosts, as a power failure does
    Kill {
        #[command(flatten)]
        which: LabName,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Start killed hosts again, with the disk they had
    Start {
        #[command(flatten)]
        which: LabName,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Cut hosts off from all the others (they still reach one another)
    Partition {
        #[command(flatten)]
        which: LabName,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Lose packets on the way to and from a host (0 ends it; 100 one way is a partition of one way)
    Loss {
        #[command(flatten)]
        which: LabName,
        node: String,
        /// How many of a hundred, by chance
        #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
        /// Only packets on their way to the host
        #[arg(long, conflicts_with = "from")]
        to: bool,
        /// Only packets that come from the host
        #[arg(long)]
        from: bool,
    },
    /// Stop the daemons of hosts with SIGSTOP; their containers go on
    Pause {
        #[command(flatten)]
        which: LabName,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Let paused daemons go on
    Resume {
        #[command(flatten)]
        which: LabName,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// End a partition, and every loss of packets
    Heal {
        #[command(flatten)]
        which: LabName,
    },
    /// Take a lab away, with everything on it
    Down {
        #[command(flatten)]
        which: LabName,
    },
}

/// Bytes, with K, M or G for binary multiples.
fn size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0);
    bytes.ok_or_else(|| "a size is a number of bytes, or one with K, M or G".to_owned())
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LabName {
    /// The lab
    #[arg(long, default_value = "lab", global = true)]
    pub(crate) name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<DaemonFlags, clap::Error> {
        let words = ["skep", "daemon"].into_iter().chain(words.iter().copied());
        match Cli::try_parse_from(words)?.command {
            Command::Daemon(flags) => Ok(*flags),
            _ => unreachable!("the words begin with `daemon`"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_dockerd_command_line_is_taken_as_it_is() {
        let flags = parse(&[
            "-H",
            "unix:///run/docker.sock",
            "--host=tcp://127.0.0.1:2375",
            "--data-root",
            "/d",
            "--exec-root",
            "/e",
            "--pidfile",
            "/p",
            "--storage-driver",
            "overlay2",
            "--iptables=false",
            "--userland-proxy=false",
            "--debug",
            "--label",
            "a=b",
            "--insecure-registry",
            "registry:5000",
            "--live-restore",
        ])
        .unwrap();
        assert_eq!(flags.host.len(), 2);
        assert_eq!(
            flags.without_meaning().iter().map(|(f, _)| *f).collect::<Vec<_>>(),
            ["--iptables", "--userland-proxy"]
        );
        assert!(flags.refused().is_none());
    }

    #[test]
    fn what_would_be_unsafe_to_ignore_is_refused() {
        assert_eq!(parse(&["--userns-remap", "default"]).unwrap().refused().unwrap().0, "--userns-remap");
        assert!(parse(&["--no-such-flag"]).is_err());
    }
}
