//! Bad luck: what may happen to hosts, wires, disks, clocks and engines, and how all of it is put right again.

use std::time::Duration;

use crate::HostId;
use crate::dice::Dice;
use crate::log::{Crash, Disk};
use crate::net::Weather;
use crate::trace::Detail;
use crate::world::{BEGIN_AGAIN, Event, World};

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Crash {
        host: HostId,
        how: Crash,
        back_after: Duration,
    },
    /// SIGSTOP.
    Freeze {
        host: HostId,
        lasting: Duration,
    },
    /// Both ways, from everybody.
    Isolate {
        host: HostId,
    },
    /// Those named, from all others.
    Split {
        some: Vec<HostId>,
    },
    /// What the first sends does not reach the second.
    OneWay {
        from: HostId,
        to: HostId,
    },
    /// It hears nobody, or nobody hears it.
    Deaf {
        host: HostId,
    },
    Mute {
        host: HostId,
    },
    Weather(Weather),
    Heal,
    Disk {
        host: HostId,
        disk: Disk,
    },
    Clock {
        host: HostId,
        skew_ms: i64,
        drift_ppm: i64,
    },
    Engine {
        trouble: u32,
    },
}

pub(crate) fn any_fault(hosts: usize, managers: &[HostId], dice: &mut Dice) -> Fault {
    let host = HostId(dice.below(hosts));
    let manager = dice.pick(managers).copied().unwrap_or(host);
    match dice.below(100) {
        0..14 => Fault::Crash { host, how: Crash::Process, back_after: dice.millis(0, 4_000) },
        14..24 => Fault::Crash { host, how: Crash::Power, back_after: dice.millis(0, 6_000) },
        24..32 => Fault::Freeze { host, lasting: dice.millis(100, 3_500) },
        32..40 => Fault::Isolate { host },
        40..46 => Fault::Split { some: (0..hosts).map(HostId).filter(|_| dice.percent(50)).collect() },
        46..52 => Fault::OneWay { from: host, to: HostId(dice.below(hosts)) },
        52..56 => Fault::Deaf { host },
        56..60 => Fault::Mute { host },
        60..68 => Fault::Weather(Weather {
            lost: dice.below(30) as u32,
            twice: dice.below(20) as u32,
            jitter: dice.millis(0, 200),
        }),
        68..80 => Fault::Heal,
        80..84 => Fault::Disk { host: manager, disk: Disk::Slow(dice.millis(5, 300)) },
        84..86 => Fault::Disk { host: manager, disk: Disk::Full },
        86..89 => Fault::Disk { host: manager, disk: Disk::Fine },
        89..95 => {
            let skew_ms = dice.below(6_000) as i64 - 3_000;
            let drift_ppm = dice.below(400) as i64 - 200;
            Fault::Clock { host, skew_ms, drift_ppm }
        }
        _ => Fault::Engine { trouble: dice.below(25) as u32 },
    }
}

impl World {
    pub(crate) fn fault(&mut self, fault: Fault) {
        if !matches!(fault, Fault::Crash { .. }) {
            self.tell(Detail::Story, words(&fault));
        }
        let all = self.all_hosts();
        let others = |host: HostId| all.iter().copied().filter(|h| *h != host).collect::<Vec<_>>();
        match fault {
            Fault::Crash { host, how, back_after } => {
                self.crash(host, how);
                self.after(back_after, Event::Start { host });
            }
            Fault::Freeze { host, lasting } => {
                if self.hosts[host.0].daemon.is_some() {
                    self.hosts[host.0].frozen_until = self.now + lasting;
                    self.log.freeze(host, self.now + lasting);
                }
            }
            Fault::Isolate { host } => self.net.cut_between(&[host], &others(host)),
            Fault::Split { some } => {
                let rest: Vec<_> = all.iter().copied().filter(|h| !some.contains(h)).collect();
                self.net.cut_between(&some, &rest);
            }
            Fault::OneWay { from, to } => self.net.cut(from, to),
            Fault::Deaf { host } => others(host).into_iter().for_each(|other| self.net.cut(other, host)),
            Fault::Mute { host } => others(host).into_iter().for_each(|other| self.net.cut(host, other)),
            Fault::Weather(weather) => self.net.weather = weather,
            Fault::Heal => self.net.heal(),
            Fault::Disk { host, disk } => {
                self.set_disk(host, disk);
            }
            Fault::Clock { host, skew_ms, drift_ppm } => {
                (self.hosts[host.0].skew_ms, self.hosts[host.0].drift_ppm) = (skew_ms, drift_ppm);
            }
            Fault::Engine { trouble } => self.engine_trouble = trouble,
        }
    }

    fn set_disk(&mut self, host: HostId, disk: Disk) {
        self.hosts[host.0].disk = disk;
        self.log.disk(host, disk);
    }

    /// Its consensus ended on its disk: it begins again once that takes writes.
    pub(crate) fn begin_again(&mut self, host: HostId) {
        let there = &mut self.hosts[host.0];
        let Some(daemon) = there.daemon.as_mut().filter(|d| d.log_stopped) else { return };
        if there.disk == Disk::Full {
            let life = there.life;
            return self.after(BEGIN_AGAIN, Event::BeginAgain { host, life });
        }
        daemon.log_stopped = false;
        if there.has_log {
            self.log.crash(host, Crash::Process);
            self.log.start(host);
            self.tell(Detail::Story, format!("{host} takes part in consensus again"));
        }
    }

    /// The faults end: everything is up, whole and reachable. Clocks stay as wrong as they are.
    pub(crate) fn make_calm(&mut self) {
        self.tell(Detail::Story, "the faults end".into());
        self.calm = true;
        self.engine_trouble = 0;
        self.net.heal();
        for host in self.all_hosts() {
            self.hosts[host.0].drift_ppm = 0;
            self.set_disk(host, Disk::Fine);
            self.boot(host);
        }
    }
}

fn words(fault: &Fault) -> String {
    match fault {
        Fault::Crash { host, .. } => format!("{host} crashes"),
        Fault::Freeze { host, lasting } => format!("{host} is frozen for {} ms", lasting.as_millis()),
        Fault::Isolate { host } => format!("{host} is cut off"),
        Fault::Split { some } => {
            let names: Vec<String> = some.iter().map(ToString::to_string).collect();
            format!("the network splits: {} from the others", names.join(" "))
        }
        Fault::OneWay { from, to } => format!("{to} no longer hears {from}"),
        Fault::Deaf { host } => format!("{host} hears nobody"),
        Fault::Mute { host } => format!("nobody hears {host}"),
        Fault::Weather(weather) => {
            let Weather { lost, twice, jitter } = weather;
            format!("of 100 messages {lost} are lost, {twice} come twice; delays up to {} ms", jitter.as_millis())
        }
        Fault::Heal => "the network heals".into(),
        Fault::Disk { host, disk: Disk::Fine } => format!("{host}: its disk is fine"),
        Fault::Disk { host, disk: Disk::Full } => format!("{host}: its disk is full"),
        Fault::Disk { host, disk: Disk::Slow(by) } => format!("{host}: its disk takes {} ms a flush", by.as_millis()),
        Fault::Clock { host, skew_ms, drift_ppm } => {
            format!("{host}: its clock is {skew_ms} ms ahead and {drift_ppm} ppm fast")
        }
        Fault::Engine { trouble } => format!("of 100 things the engines do, {trouble} fail"),
    }
}
