//! One seed: a world, load and faults for a while, then calm; and whether all held.

use std::time::Duration;

use skep_store::View;

use crate::HostId;
use crate::client::any_wish;
use crate::dice::Dice;
use crate::faults::any_fault;
use crate::places::container;
use crate::trace::Detail;
use crate::world::{LogKind, Setup, World};

/// How long after the last fault the world may take to be as users want it.
const BOUND: Duration = Duration::from_secs(90);
/// How long it must then stay so.
const STAYS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub log: LogKind,
    /// Keep every line of what happened.
    pub trace: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Of all that happened: two runs of one seed have the same.
    pub hash: u64,
    pub trace: Vec<String>,
    /// The invariant that did not hold, and how.
    pub violation: Option<String>,
    pub entries: u64,
    pub acknowledged: u64,
    pub simulated: Duration,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> Outcome {
    let mut dice = Dice::new(options.seed ^ 0x5eed);
    let managers = *dice.pick(&[1, 3, 3, 3, 5]).unwrap_or(&3);
    let agents = dice.below(4);
    let setup = Setup {
        seed: options.seed,
        managers,
        agents: agents.max(2usize.saturating_sub(managers)),
        trace: options.trace.then_some(Detail::Step),
        log: options.log,
    };
    let mut world = World::new(&setup);
    world.run_for(Duration::from_secs(2));
    storm(&mut world, &mut dice);
    world.make_calm();
    settle(&mut world);
    Outcome {
        seed: options.seed,
        hash: world.trace.hash(),
        trace: world.trace.take_lines(),
        violation: world.violation.take(),
        entries: world.watch.entries(),
        acknowledged: world.client.acknowledged,
        simulated: world.now,
    }
}

/// Load and faults at once.
fn storm(world: &mut World, dice: &mut Dice) {
    world.calm = false;
    let end = world.now + dice.millis(5_000, 20_000);
    let (wish_gap, fault_gap) = (dice.millis(100, 1_500), dice.millis(200, 4_000));
    let mut next_wish = world.now;
    let mut next_fault = world.now + dice.between(Duration::ZERO, fault_gap * 2);
    while world.now < end && world.violation.is_none() {
        world.run_until(next_wish.min(next_fault).min(end));
        if world.now >= next_wish {
            let managers = world.all_managers();
            let host = world.dice.client.pick(&managers).copied().unwrap_or(HostId(0));
            let view = world.log.view(host);
            let wish = any_wish(&view, world.hosts.len(), &mut world.dice.client);
            world.wish(host, wish);
            toggle(world, &view);
            next_wish = world.now + dice.between(Duration::ZERO, wish_gap * 2);
        }
        if world.now >= next_fault {
            let fault = any_fault(world.hosts.len(), &world.all_managers(), &mut world.dice.faults);
            world.fault(fault);
            next_fault = world.now + dice.between(Duration::ZERO, fault_gap * 2);
        }
    }
}

/// Somebody starts or stops containers, mostly on networks there are.
fn toggle(world: &mut World, view: &View) {
    let networks: Vec<_> = view.networks().filter(|n| !n.spec.ingress).map(|n| n.spec.name.clone()).collect();
    let hosts = world.hosts.len();
    for _ in 0..world.dice.client.below(4) {
        let dice = &mut world.dice.client;
        let network = dice.pick(&networks).cloned().unwrap_or_else(|| "nothing".into());
        let (host, number) = (HostId(dice.below(hosts)), dice.below(2));
        world.toggle(host, container(host, number), network);
    }
}

/// Until all is as it should be, and stays so.
pub(crate) fn settle(world: &mut World) {
    let deadline = world.now + BOUND;
    let mut since = None;
    while world.violation.is_none() {
        world.run_for(LOOK);
        match world.settled() {
            Ok(()) if since.is_some_and(|at| world.now - at >= STAYS) => return,
            Ok(()) => {
                since.get_or_insert(world.now);
            }
            Err(why) if world.now > deadline => {
                let why = format!("{why}, {} s after the faults ended", BOUND.as_secs());
                return world.violated(why);
            }
            Err(_) => since = None,
        }
    }
}
