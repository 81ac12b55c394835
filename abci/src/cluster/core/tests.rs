//! Four cores under a seeded network that loses, delays and repeats, with crashes at any step.

use std::collections::{BTreeMap, BinaryHeap};

use super::*;
use crate::cluster::certificate::{Validator, VoteKind};

const GENESIS: [u8; 32] = [5; 32];
const HEIGHT: u64 = 1;
/// Virtual milliseconds after which a height must be decided.
const TIME_MAX: u64 = 600_000;

/// splitmix64: every seed is another world.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// How bad a world is, in percent and per mille.
#[derive(Clone, Copy)]
struct Weather {
    loss_percent: u64,
    crash_per_mille: u64,
    /// This node proposes only what nobody may vote for.
    liar: Option<usize>,
}

struct SimNode {
    key: SigningKey,
    core: Core,
    is_up: bool,
    flushed: Vec<LogItem>,
    pending: Vec<LogItem>,
    timers: BTreeMap<(TimerKind, u32), u64>,
    known: Vec<BlockId>,
    decided: Option<BlockId>,
    deferred: Option<u32>,
    is_replaying: bool,
}

#[derive(PartialEq, Eq)]
enum Event {
    Deliver(usize, Message),
    Restart(usize),
}

struct World {
    dice: Dice,
    weather: Weather,
    set: ValidatorSet,
    nodes: Vec<SimNode>,
    now: u64,
    queue: BinaryHeap<std::cmp::Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    /// What each validator ever said: one vote per kind and round.
    said: BTreeMap<([u8; 32], VoteKind, u32), Option<BlockId>>,
    /// Every decision that anybody ever took, crashed since or not.
    decisions: Vec<BlockId>,
    /// The storm ends: a world in which everybody always crashes again decides nothing.
    crashes_left: u32,
    seed: u64,
}

fn is_valid(id: &BlockId) -> bool {
    id.0[0] != 0xff
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let keys: Vec<_> = (1..=4).map(|n| SigningKey::from_seed(&[n; 32])).collect();
        let entry = |key: &SigningKey| Validator { key: key.public().0, power: 1 };
        let set = ValidatorSet::new(keys.iter().map(entry));
        let node = |key: SigningKey| SimNode {
            core: Core::new(GENESIS, key.clone(), HEIGHT, set.clone(), true),
            key,
            is_up: true,
            flushed: Vec::new(),
            pending: Vec::new(),
            timers: BTreeMap::new(),
            known: Vec::new(),
            decided: None,
            deferred: None,
            is_replaying: false,
        };
        let nodes = keys.into_iter().map(node).collect();
        let mut world = Self {
            dice: Dice(seed),
            weather,
            set,
            nodes,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            said: BTreeMap::new(),
            decisions: Vec::new(),
            crashes_left: 40,
            seed,
        };
        for index in 0..world.nodes.len() {
            world.start(index, false);
        }
        world
    }

    fn start(&mut self, index: usize, is_replay: bool) {
        let start = CoreInput::StartHeight { height: HEIGHT, set: self.set.clone(), is_replay };
        self.input(index, start);
    }

    fn post(&mut self, delay: u64, event: Event) {
        self.queue.push(std::cmp::Reverse((self.now + delay, self.next_event)));
        self.events.insert(self.next_event, event);
        self.next_event += 1;
    }

    fn input(&mut self, index: usize, input: CoreInput) {
        let actions = self.nodes[index].core.handle(input);
        let actions = actions.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        for action in actions {
            if !self.nodes[index].is_up {
                return;
            }
            // A crash may come between any two actions. What was not flushed is lost.
            if self.crashes_left > 0 && self.dice.roll(1_000) < self.weather.crash_per_mille {
                self.crashes_left -= 1;
                self.crash(index);
                return;
            }
            self.carry_out(index, action);
        }
    }

    fn carry_out(&mut self, index: usize, action: Action) {
        match action {
            Action::Log(item) => {
                let node = &mut self.nodes[index];
                if !(node.is_replaying && node.flushed.contains(&item)) {
                    node.pending.push(item);
                }
            }
            Action::Publish(message) => {
                let node = &mut self.nodes[index];
                node.flushed.append(&mut node.pending);
                if let Message::Vote(vote) = &message {
                    let key = (vote.key, vote.kind, vote.round);
                    let first = *self.said.entry(key).or_insert(vote.id);
                    assert_eq!(first, vote.id, "seed {}: signed twice {key:?}", self.seed);
                }
                self.send(index, &message);
            }
            Action::GetValue { round, .. } => {
                if self.nodes[index].is_replaying {
                    self.nodes[index].deferred = Some(round);
                } else {
                    self.propose(index, round);
                }
            }
            Action::Schedule { kind, round } => {
                let wait = RoundTimeouts::default().duration(kind, round).as_millis() as u64;
                self.nodes[index].timers.insert((kind, round), self.now + wait);
            }
            Action::Cancel { kind, round } => {
                self.nodes[index].timers.remove(&(kind, round));
            }
            Action::CancelAll => self.nodes[index].timers.clear(),
            Action::Decided(certificate) => {
                let verified =
                    certificate.verify_id(&GENESIS, HEIGHT, &self.set, &certificate.block_id);
                assert_eq!(verified, Ok(()), "seed {}", self.seed);
                self.decisions.push(certificate.block_id);
                self.nodes[index].decided = Some(certificate.block_id);
                self.nodes[index].timers.clear();
            }
            Action::Restream { .. } | Action::Round { .. } | Action::Equivocation(_) => {}
        }
    }

    fn propose(&mut self, index: usize, round: u32) {
        let first = if self.weather.liar == Some(index) { 0xff } else { index as u8 };
        // A restarted proposer makes another block than before: only its log keeps it honest.
        let mut bytes = [self.dice.roll(256) as u8; 32];
        (bytes[0], bytes[1]) = (first, round as u8);
        let id = BlockId(bytes);
        self.nodes[index].known.push(id);
        self.input(index, CoreInput::Propose { height: HEIGHT, round, id });
    }

    fn send(&mut self, from: usize, message: &Message) {
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            if self.dice.roll(100) < self.weather.loss_percent {
                continue;
            }
            let copies = 1 + u64::from(self.dice.roll(20) == 0);
            for _ in 0..copies {
                let delay = 1 + self.dice.roll(60);
                self.post(delay, Event::Deliver(to, message.clone()));
            }
        }
    }

    fn crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.is_up = false;
        node.pending.clear();
        node.timers.clear();
        node.known.clear();
        let delay = 1 + self.dice.roll(2_000);
        self.post(delay, Event::Restart(index));
    }

    fn restart(&mut self, index: usize) {
        let set = self.set.clone();
        let node = &mut self.nodes[index];
        node.core = Core::new(GENESIS, node.key.clone(), HEIGHT, set, true);
        node.is_up = true;
        node.decided = None;
        node.deferred = None;
        let log = node.flushed.clone();
        if log.is_empty() {
            return self.start(index, false);
        }
        let own = node.key.public().0;
        let mut own_rounds = Vec::new();
        let mut inputs = Vec::new();
        for item in log {
            inputs.push(match item {
                LogItem::Message(message) => {
                    if let Message::Proposal(proposal) = &message
                        && proposal.key == own
                    {
                        own_rounds.push(proposal.round);
                    }
                    CoreInput::Message(message)
                }
                LogItem::Timer { kind, round } => CoreInput::Timer { kind, round },
                LogItem::Value { round, id, is_valid } => {
                    node.known.push(id);
                    CoreInput::Value { height: HEIGHT, round, proposer: own, id, is_valid }
                }
            });
        }
        node.core.begin_replay(&inputs);
        node.is_replaying = true;
        self.start(index, true);
        for input in inputs {
            if self.nodes[index].is_up && self.nodes[index].decided.is_none() {
                self.input(index, input);
            }
        }
        let node = &mut self.nodes[index];
        node.core.end_replay();
        node.is_replaying = false;
        if let Some(round) = node.deferred.take()
            && node.is_up
            && node.decided.is_none()
            && node.core.round() == Some(round)
            && !own_rounds.contains(&round)
        {
            self.propose(index, round);
        }
    }

    fn deliver(&mut self, index: usize, message: Message) {
        if !self.nodes[index].is_up || self.nodes[index].decided.is_some() {
            return;
        }
        // The block travels with the proposal; our verdict on it comes first.
        if let Message::Proposal(proposal) = &message
            && !self.nodes[index].known.contains(&proposal.id)
        {
            let (round, id) = (proposal.round, proposal.id);
            self.nodes[index].known.push(id);
            let (proposer, is_valid) = (proposal.key, is_valid(&id));
            let value = CoreInput::Value { height: HEIGHT, round, proposer, id, is_valid };
            self.input(index, value);
        }
        if self.nodes[index].is_up {
            self.input(index, CoreInput::Message(message));
        }
    }

    /// What the node does when nothing moves: says everything that it stands on.
    fn relay(&mut self, index: usize) {
        let node = &self.nodes[index];
        let said: Vec<_> = node.flushed.iter().chain(&node.pending).cloned().collect();
        for item in said {
            if let LogItem::Message(message) = item {
                self.send(index, &message);
            }
        }
    }

    fn step(&mut self) -> bool {
        let due = |node: &SimNode| node.timers.iter().map(|(key, at)| (*at, *key)).min();
        let timers = self.nodes.iter().enumerate();
        let timer = timers.filter_map(|(index, node)| due(node).map(|due| (due, index))).min();
        let event = self.queue.peek().map(|next| next.0);
        match (timer, event) {
            (None, None) => return false,
            (Some(((at, (kind, round)), index)), event) if event.is_none_or(|(e, _)| at <= e) => {
                self.now = at;
                self.nodes[index].timers.remove(&(kind, round));
                self.input(index, CoreInput::Timer { kind, round });
                if kind == TimerKind::Rebroadcast && self.nodes[index].is_up {
                    self.relay(index);
                }
            }
            (_, event) => {
                let (at, id) = event.expect("no timer, so there is an event");
                self.queue.pop();
                self.now = at;
                match self.events.remove(&id).expect("every queued event is there") {
                    Event::Deliver(to, message) => self.deliver(to, message),
                    Event::Restart(index) => self.restart(index),
                }
            }
        }
        true
    }

    fn explain(&self) -> String {
        let node = |node: &SimNode| {
            let round = node.core.round();
            let step = node.core.state.driver.step();
            let timers = &node.timers;
            format!("\nup {} round {round:?} {step:?} timers {timers:?}", node.is_up)
        };
        self.nodes.iter().map(node).collect()
    }

    /// Runs until all have decided. Whoever has decided hands its block on by certificate, which the
    /// sim leaves out, so one decision is the height's.
    fn run(&mut self) -> BlockId {
        while self.decisions.is_empty() {
            assert!(self.step(), "seed {}: nothing moves at {} ms", self.seed, self.now);
            assert!(self.now < TIME_MAX, "seed {}: no decision: {}", self.seed, self.explain());
        }
        // The others may still decide from what is on its way: the same, or not yet.
        let end = self.now + 5_000;
        while self.now < end && self.step() {}
        let id = self.decisions[0];
        assert!(self.decisions.iter().all(|other| *other == id), "seed {}: two blocks", self.seed);
        assert!(is_valid(&id), "seed {}: an invalid block was decided", self.seed);
        id
    }
}

fn for_each_seed(weather: Weather) {
    for seed in 0..120 {
        World::new(seed, weather).run();
    }
}

#[test]
fn a_quiet_world_decides_in_the_first_round() {
    let quiet = Weather { loss_percent: 0, crash_per_mille: 0, liar: None };
    let id = World::new(1, quiet).run();
    assert_eq!(id.0[1], 0, "the first round's block");
}

#[test]
fn lost_messages_cost_time_and_never_agreement() {
    for_each_seed(Weather { loss_percent: 25, crash_per_mille: 0, liar: None });
}

#[test]
fn crashes_between_any_two_steps_make_nobody_sign_twice() {
    for_each_seed(Weather { loss_percent: 10, crash_per_mille: 20, liar: None });
}

/// In the mode in which proposals carry their values the core calls everything valid by itself; a
/// prototype agreed on whatever a proposer sent. Ours asks us.
#[test]
fn a_block_that_we_refuse_is_never_decided() {
    for liar in 0..4 {
        let quiet = Weather { loss_percent: 0, crash_per_mille: 0, liar: Some(liar) };
        World::new(liar as u64, quiet).run();
    }
    for_each_seed(Weather { loss_percent: 10, crash_per_mille: 5, liar: Some(1) });
}
