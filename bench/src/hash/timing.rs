//! How time is taken: contenders in turns, on pinned cores, over memory of a chosen size.

use std::sync::Barrier;
use std::time::Duration;

use ringseed_sys::hash::{Algo, registers};

use super::contenders::{self, Buffers, Contender};
use super::{KIB, MIB};
use crate::machine::{self, Others};
use crate::report::Figure;

/// Where the data lies while it is hashed.
#[derive(Clone, Copy, PartialEq)]
pub enum Place {
    SecondLevel,
    ThirdLevel,
    Memory,
}

impl Place {
    pub const ALL: [Place; 3] = [Place::SecondLevel, Place::ThirdLevel, Place::Memory];

    pub fn name(self) -> &'static str {
        match self {
            Place::SecondLevel => "L2",
            Place::ThirdLevel => "L3",
            Place::Memory => "DRAM",
        }
    }

    /// Bytes that one core goes through again and again: half of a common second-level cache of
    /// 1 MiB, more than it and less than a third-level cache, far more than any cache.
    fn len_bytes(self) -> usize {
        match self {
            Place::SecondLevel => 512 * KIB,
            Place::ThirdLevel => 6 * MIB,
            Place::Memory => 256 * MIB,
        }
    }

    /// Whether a batch of so many bytes fits in.
    pub fn holds(self, len_bytes: usize) -> bool {
        len_bytes <= self.len_bytes()
    }
}

/// The shape of a batch of equal messages.
#[derive(Clone, Copy)]
pub struct Batch {
    pub place: Place,
    pub len_bytes: usize,
    pub count: usize,
}

/// What passes while work is done. One core alone is judged by the time it worked, so that a
/// neighbour that takes it away is not measured; several together by the time on the wall.
#[derive(Clone, Copy)]
pub enum Clock {
    Core,
    /// All threads of this process.
    Process,
    Wall,
}

impl Clock {
    pub fn now(self) -> Duration {
        let id = match self {
            Clock::Core => rustix::time::ClockId::ThreadCPUTime,
            Clock::Process => rustix::time::ClockId::ProcessCPUTime,
            Clock::Wall => rustix::time::ClockId::Monotonic,
        };
        let time = rustix::time::clock_gettime(id);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

/// What was done in one turn of one contender.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Bytes per second of the clock in use, over all cores.
    pub rate: f64,
    /// Bytes.
    pub bytes: f64,
}

/// The turns of one contender, and what they cost.
#[derive(Clone, Default)]
pub struct Turns {
    /// Bytes per second, turn by turn.
    pub rates: Vec<f64>,
    bytes: f64,
    /// Seconds: of processor time of this process, and of the whole machine less others.
    process: f64,
    machine: f64,
}

impl Turns {
    /// Medians for the table.
    pub fn figure(&self, shape: &str, who: &str) -> Figure {
        let gib = self.bytes / (1u64 << 30) as f64;
        Figure::new(shape, who, &self.rates).with_cpu(self.process / gib, self.machine / gib)
    }
}

/// How often and how long.
pub struct Timing {
    turns: usize,
    turn: Duration,
    cores: Vec<usize>,
    others: Others,
    /// As much as one core goes through in memory, for each core.
    data: Vec<Vec<u8>>,
}

/// Bytes that do not repeat within any cache (SplitMix64).
pub fn noise(len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = vec![0; len_bytes];
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = (z ^ (z >> 31)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes
}

impl Timing {
    pub fn new(turns: usize, turn_ms: u64) -> Timing {
        let cores = machine::cores_allowed();
        machine::pin_to_core(cores[0]);
        let len_bytes = Place::Memory.len_bytes();
        let data = (0..cores.len()).map(|core| noise(len_bytes, core as u64)).collect();
        let turn = Duration::from_millis(turn_ms.max(1));
        let others = Others::look();
        Timing { turns: turns.max(1), turn, cores, others, data }
    }

    /// What others did before the first turn.
    pub fn others(&self) -> Others {
        self.others
    }

    /// One core, and all of them where there are several.
    pub fn core_counts(&self) -> Vec<usize> {
        let mut counts = vec![1, self.cores.len()];
        counts.dedup();
        counts
    }

    /// How long one turn lasts.
    pub fn turn(&self) -> Duration {
        self.turn
    }

    /// The data of the first core.
    pub fn data(&self) -> &[u8] {
        &self.data[0]
    }

    /// The turns of each contender.
    pub fn hash(
        &self,
        algo: Algo,
        batch: Batch,
        cores: usize,
        contenders: &[Contender],
    ) -> Vec<Turns> {
        let batches: Vec<Vec<Vec<&[u8]>>> =
            (0..cores).map(|core| self.batches(core, batch)).collect();
        contenders::check(contenders, algo, &batches[0][0]);
        self.in_turns(contenders.len(), |who| {
            self.on_cores(cores, |core| {
                registers::clear();
                hash_for(clock_for(cores), &batches[core], &contenders[who], self.turn)
            })
        })
    }

    /// The turns of one contender on one core and on `cores`.
    pub fn scaling(&self, batch: Batch, cores: usize, contender: &Contender) -> Vec<Turns> {
        let batches: Vec<Vec<Vec<&[u8]>>> =
            (0..cores).map(|core| self.batches(core, batch)).collect();
        self.in_turns(2, |who| {
            self.on_cores([1, cores][who], |core| {
                hash_for(Clock::Wall, &batches[core], contender, self.turn)
            })
        })
    }

    /// The turns of reading memory.
    pub fn read(&self, place: Place, cores: usize) -> Turns {
        let mut turns = self.in_turns(1, |_| {
            self.on_cores(cores, |core| {
                let data = &self.data[core][..place.len_bytes()];
                timed(clock_for(cores), self.turn, || {
                    std::hint::black_box(sum(data));
                    data.len()
                })
            })
        });
        turns.remove(0)
    }

    /// Calls `measure` for `0..count` one after another, as many times as there are turns, so that a
    /// change of the clock or a neighbour meets everyone. The first round only warms up.
    pub fn in_turns(&self, count: usize, mut measure: impl FnMut(usize) -> Sample) -> Vec<Turns> {
        let mut turns = vec![Turns::default(); count];
        for turn in 0..=self.turns {
            for (who, turns) in turns.iter_mut().enumerate() {
                let (wall, process) = (Clock::Wall.now(), Clock::Process.now());
                let busy = machine::busy_seconds();
                let sample = measure(who);
                if turn == 0 {
                    continue;
                }
                let busy = machine::busy_seconds() - busy;
                let wall = (Clock::Wall.now() - wall).as_secs_f64();
                turns.rates.push(sample.rate);
                turns.bytes += sample.bytes;
                turns.process += (Clock::Process.now() - process).as_secs_f64();
                turns.machine += self.others.less(busy, wall);
            }
        }
        turns
    }

    /// One contender over given messages, called again and again for one turn.
    pub fn hash_once(&self, contender: &Contender, messages: &[&[u8]]) -> Sample {
        let mut buffers = Buffers::default();
        let len_bytes = messages.iter().map(|message| message.len()).sum();
        timed(Clock::Core, self.turn, || {
            contender.hash(messages, &mut buffers);
            len_bytes
        })
    }

    /// The batches that go once through the memory of a core.
    fn batches(&self, core: usize, batch: Batch) -> Vec<Vec<&[u8]>> {
        let data = &self.data[core][..batch.place.len_bytes()];
        let messages: Vec<&[u8]> = data.chunks_exact(batch.len_bytes).collect();
        messages.chunks_exact(batch.count).map(<[&[u8]]>::to_vec).collect()
    }

    /// Runs `work` on so many cores at once; the sum of what they did.
    fn on_cores(&self, cores: usize, work: impl Fn(usize) -> Sample + Sync) -> Sample {
        if cores == 1 {
            return work(0);
        }
        let start = Barrier::new(cores);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores)
                .map(|core| {
                    let (work, start, place) = (&work, &start, self.cores[core]);
                    scope.spawn(move || {
                        machine::pin_to_core(place);
                        start.wait();
                        work(core)
                    })
                })
                .collect();
            let none = Sample { rate: 0.0, bytes: 0.0 };
            threads.into_iter().map(|thread| thread.join().expect("no panic")).fold(
                none,
                |sum, one| Sample { rate: sum.rate + one.rate, bytes: sum.bytes + one.bytes },
            )
        })
    }
}

/// One core is judged by its own time, several by the time on the wall.
fn clock_for(cores: usize) -> Clock {
    if cores == 1 { Clock::Core } else { Clock::Wall }
}

/// Hashes batch after batch for about `turn`.
fn hash_for(clock: Clock, batches: &[Vec<&[u8]>], contender: &Contender, turn: Duration) -> Sample {
    let mut buffers = Buffers::default();
    let mut at = 0;
    timed(clock, turn, || {
        let batch = &batches[at % batches.len()];
        at += 1;
        contender.hash(batch, &mut buffers);
        batch.iter().map(|message| message.len()).sum()
    })
}

/// Calls `step`, which gives a count of bytes, for about `turn` of `clock`.
pub fn timed(clock: Clock, turn: Duration, mut step: impl FnMut() -> usize) -> Sample {
    let started = clock.now();
    let mut bytes = 0;
    loop {
        bytes += step();
        let took = clock.now() - started;
        if took >= turn {
            let bytes = bytes as f64;
            return Sample { rate: bytes / took.as_secs_f64(), bytes };
        }
    }
}

/// Touches every byte: the sum of all words, in eight chains so that additions do not bound it.
fn sum(data: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    let (lines, _) = data.as_chunks::<64>();
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}
