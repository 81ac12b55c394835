//! Messages that arrive bit by bit: the state of each is parked between two feeds.

use super::batch::{self, Messages, Running};
use super::kernel::Algo;
use super::plan::{self, Plan};
use super::write_digest;

/// A message of a [`LaneSet`] that has been submitted and not yet finished or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    slot: u32,
    generation: u32,
}

/// SHA-1 of messages that arrive bit by bit.
pub type Sha1LaneSet = LaneSet<20>;
/// SHA-256 of messages that arrive bit by bit.
pub type Sha256LaneSet = LaneSet<32>;

/// Ends the chain of feeds of one job.
const NONE: u32 = u32::MAX;

struct Slot {
    /// Counts the jobs that have had this slot, so that a job kept too long is told from the next.
    generation: u32,
    busy: bool,
    running: Running,
    /// Bytes that the feed in progress brings.
    fed_bytes: u64,
    /// The last feed of this job in the feed in progress, or [`NONE`].
    last_feed: u32,
}

/// A bounded set of messages under way, hashed in lanes. `LEN` is the digest's length in bytes: 20
/// for SHA-1, 32 for SHA-256.
///
/// Starting, feeding and finishing interleave freely among jobs. [`LaneSet::feed`] hashes what it is
/// given before it returns, so it borrows nothing; it is the faster the more jobs one call feeds,
/// up to [`LaneSet::width`]. The memory of a job is about 128 bytes, whatever its message's length.
pub struct LaneSet<const LEN: usize> {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Of the feed in progress: the first feed of every job, and for every feed the job's next.
    heads: Vec<u32>,
    next: Vec<u32>,
    /// Instead of the plan in force.
    plan: Option<Plan>,
}

impl<const LEN: usize> LaneSet<LEN> {
    const ALGO: Algo = match LEN {
        20 => Algo::Sha1,
        32 => Algo::Sha256,
        _ => panic!("a digest has 20 or 32 bytes"),
    };

    /// A set of at most `jobs_max` messages under way. All memory is taken here; only a feed of
    /// more chunks than jobs may grow it, once.
    ///
    /// # Panics
    /// When `jobs_max` does not fit `u32`.
    pub fn new(jobs_max: usize) -> LaneSet<LEN> {
        let count = u32::try_from(jobs_max).expect("at most u32::MAX jobs");
        let slot = || Slot {
            generation: 0,
            busy: false,
            running: Running::new(Self::ALGO.start()),
            fed_bytes: 0,
            last_feed: NONE,
        };
        LaneSet {
            slots: std::iter::repeat_with(slot).take(jobs_max).collect(),
            free: (0..count).rev().collect(),
            heads: Vec::with_capacity(jobs_max),
            next: Vec::with_capacity(jobs_max),
            plan: None,
        }
    }

    /// A set that uses `plan` whatever is in force.
    #[cfg(test)]
    pub(super) fn with_plan(jobs_max: usize, plan: Plan) -> LaneSet<LEN> {
        LaneSet { plan: Some(plan), ..LaneSet::new(jobs_max) }
    }

    fn plan(plan: &Option<Plan>) -> &Plan {
        plan.as_ref().unwrap_or_else(|| plan::current(Self::ALGO))
    }

    /// How many jobs a feed must bring for the full rate on this CPU.
    pub fn width(&self) -> usize {
        Self::plan(&self.plan).width
    }

    /// How many jobs are under way.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts a message, or `None` when `jobs_max` are under way: finish one first.
    pub fn try_submit(&mut self) -> Option<Job> {
        let slot = self.free.pop()?;
        let entry = &mut self.slots[slot as usize];
        entry.busy = true;
        entry.running = Running::new(Self::ALGO.start());
        Some(Job { slot, generation: entry.generation })
    }

    /// Appends each chunk to the message of its job, in the order given where a job comes more than
    /// once.
    ///
    /// # Panics
    /// When a job is not under way.
    pub fn feed(&mut self, feeds: &[(Job, &[u8])]) {
        assert!(u32::try_from(feeds.len()).is_ok_and(|count| count < NONE));
        self.heads.clear();
        self.next.clear();
        self.next.resize(feeds.len(), NONE);
        for (at, (job, chunk)) in feeds.iter().enumerate() {
            let slot = self.slot_index(*job);
            let slot = &mut self.slots[slot];
            match slot.last_feed {
                NONE => {
                    slot.fed_bytes = 0;
                    self.heads.push(at as u32);
                }
                last => self.next[last as usize] = at as u32,
            }
            slot.last_feed = at as u32;
            slot.fed_bytes += chunk.len() as u64;
        }
        let mut fed = Fed { feeds, slots: &mut self.slots, heads: &self.heads, next: &self.next };
        batch::run(Self::plan(&self.plan), &mut fed);
    }

    /// Ends the messages of `jobs`, puts their digests into `out` at the same index and frees the
    /// jobs.
    ///
    /// # Panics
    /// When a job is not under way or comes twice, or `out` is not as long as `jobs`.
    pub fn finish(&mut self, jobs: &[Job], out: &mut [[u8; LEN]]) {
        assert_eq!(jobs.len(), out.len(), "one digest per job");
        for job in jobs {
            self.release(*job);
        }
        let mut ended = Ended { jobs, slots: &self.slots, out };
        batch::run(Self::plan(&self.plan), &mut ended);
    }

    /// Forgets a message.
    ///
    /// # Panics
    /// When the job is not under way.
    pub fn cancel(&mut self, job: Job) {
        self.release(job);
    }

    /// Bytes that the job's message has so far.
    ///
    /// # Panics
    /// When the job is not under way.
    pub fn len_bytes(&self, job: Job) -> u64 {
        self.slots[self.slot_index(job)].running.len_bytes
    }

    fn slot_index(&self, job: Job) -> usize {
        let index = job.slot as usize;
        let slot = &self.slots[index];
        assert!(slot.busy && slot.generation == job.generation, "{job:?} is not under way");
        index
    }

    /// Frees the slot of a job; what it holds stays until the next submission.
    fn release(&mut self, job: Job) {
        let index = self.slot_index(job);
        let slot = &mut self.slots[index];
        slot.busy = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(job.slot);
    }
}

/// The chunks of one feed, chained by job.
struct Fed<'a, 'b> {
    feeds: &'b [(Job, &'a [u8])],
    slots: &'b mut [Slot],
    heads: &'b [u32],
    next: &'b [u32],
}

impl Fed<'_, '_> {
    fn slot_index(&self, index: usize) -> usize {
        self.feeds[self.heads[index] as usize].0.slot as usize
    }
}

impl<'a> Messages<'a> for Fed<'a, '_> {
    const ENDS: bool = false;

    fn count(&self) -> usize {
        self.heads.len()
    }

    fn len_bytes(&self, index: usize) -> u64 {
        self.slots[self.slot_index(index)].fed_bytes
    }

    fn part(&self, index: usize, cursor: &mut usize) -> Option<&'a [u8]> {
        // The cursor is one more than the place of the feed taken last.
        let at = match *cursor {
            0 => self.heads[index],
            last => self.next[last - 1],
        };
        if at == NONE {
            return None;
        }
        *cursor = at as usize + 1;
        Some(self.feeds[at as usize].1)
    }

    fn resume(&self, index: usize) -> Option<Running> {
        Some(self.slots[self.slot_index(index)].running)
    }

    fn done(&mut self, index: usize, running: Running) {
        let slot = self.slot_index(index);
        self.slots[slot].running = running;
        self.slots[slot].last_feed = NONE;
    }
}

/// Messages that have all their data and lack the padding.
struct Ended<'b, const LEN: usize> {
    jobs: &'b [Job],
    slots: &'b [Slot],
    out: &'b mut [[u8; LEN]],
}

impl<'a, const LEN: usize> Messages<'a> for Ended<'_, LEN> {
    const ENDS: bool = true;

    fn count(&self) -> usize {
        self.jobs.len()
    }

    fn len_bytes(&self, _index: usize) -> u64 {
        0
    }

    fn part(&self, _index: usize, _cursor: &mut usize) -> Option<&'a [u8]> {
        None
    }

    fn resume(&self, index: usize) -> Option<Running> {
        Some(self.slots[self.jobs[index].slot as usize].running)
    }

    fn done(&mut self, index: usize, running: Running) {
        write_digest(&running.state, &mut self.out[index]);
    }
}
