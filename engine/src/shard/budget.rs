//! What waits for the disks, and what of it goes next: budgets by device and class.
//!
//! A device has a depth and a number of bytes in flight of its own, over all shards, each of which has its part:
//! so nobody who works on one disk waits for a slow one beside it. What waits for a device stands in
//! classes. Whoever is in a lower class goes only when nobody in a higher one waits, but of every few operations
//! one is his all the same: a busy foreground makes a check slow and never stops it. On a device that
//! has to move heads, reads of a class go in the order of the files.

use std::collections::{BTreeMap, VecDeque};

use ringseed_sys::arena::EXTENT_LEN_BYTES;
use ringseed_sys::dir::DeviceId;
use ringseed_sys::probe;

use super::disk::{DiskTask, FileKey, TaskKind};
use crate::api::ListingId;
use crate::offline::ReadOrder;

/// What every shard may have in flight however many there are: one transfer while the next is prepared.
const OPS_IN_FLIGHT_MIN: usize = 2;
/// A class that waits is passed over so often at most: a check beside a foreground that never rests gets a
/// sixteenth of the operations.
const PASSED_OVER_MAX: usize = 15;

/// Who is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Writes of what arrives and reads for peers.
    Foreground,
    /// Hashing what is in doubt or missed while its listing is served: after a read or a sync that failed, leaves
    /// that a peer waits for.
    Repair,
    /// Hashing what lies on disk: at a start, and what nobody waits for.
    Check,
}

impl Class {
    const ALL: [Class; 3] = [Class::Foreground, Class::Repair, Class::Check];

    /// Whether it hashes what lies on disk.
    pub fn is_check(self) -> bool {
        self != Class::Foreground
    }

    /// Operations in flight at most, of those that all classes may have: whoever comes into the foreground waits
    /// for no more than these.
    fn part_of(self, ops_max: usize) -> usize {
        let part = match self {
            Class::Foreground => ops_max,
            Class::Repair => ops_max / 2,
            Class::Check => ops_max / 4,
        };
        part.max(OPS_IN_FLIGHT_MIN)
    }
}

/// The part of every device's budget that one shard has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    ops_max: usize,
    bytes_max: u64,
}

impl Share {
    /// An equal part for each of so many shards.
    pub fn of(device_ops_max: u32, shards: usize) -> Share {
        let ops_max = (device_ops_max as usize / shards).max(OPS_IN_FLIGHT_MIN);
        Share { ops_max, bytes_max: (ops_max * EXTENT_LEN_BYTES) as u64 }
    }
}

/// What an operation in flight takes of its device's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub device: DeviceId,
    pub class: Class,
    pub len_bytes: u64,
}

/// What waits for one device, and what is in flight on it.
#[derive(Debug, Default)]
struct Device {
    in_file_order: bool,
    /// By class.
    waiting: [VecDeque<DiskTask>; 3],
    in_flight: [usize; 3],
    passed_over: [usize; 3],
    bytes_in_flight: u64,
    /// Where the last read in file order ended.
    head: Option<(FileKey, u64)>,
}

/// All devices of one shard.
#[derive(Debug, Default)]
pub(super) struct Devices {
    devices: BTreeMap<DeviceId, Device>,
}

impl Devices {
    /// Lets a task wait for its device.
    pub fn push(&mut self, device: DeviceId, order: ReadOrder, task: DiskTask) {
        let new = || {
            let in_file_order = match order {
                ReadOrder::Auto => probe::is_device_rotational(device) == Some(true),
                ReadOrder::Spread => false,
                ReadOrder::FileOrder => true,
            };
            Device { in_file_order, ..Device::default() }
        };
        let device = self.devices.entry(device).or_insert_with(new);
        device.waiting[task.class as usize].push_back(task);
    }

    /// The next task that a budget has room for, of any device.
    pub fn pop(&mut self, share: Share) -> Option<DiskTask> {
        self.devices.values_mut().find_map(|device| device.pop(share))
    }

    /// An operation begins.
    pub fn begin(&mut self, charge: Charge) {
        let device = self.devices.entry(charge.device).or_default();
        device.in_flight[charge.class as usize] += 1;
        device.bytes_in_flight += charge.len_bytes;
    }

    /// It has ended.
    pub fn end(&mut self, charge: Charge) {
        let device = self.devices.get_mut(&charge.device).expect("it began there");
        device.in_flight[charge.class as usize] -= 1;
        device.bytes_in_flight -= charge.len_bytes;
    }

    /// Nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.devices.values().all(|device| {
            device.in_flight == [0; 3] && device.waiting.iter().all(VecDeque::is_empty)
        })
    }

    /// Those that something is in flight on.
    #[cfg(test)]
    pub fn busy(&self) -> impl Iterator<Item = DeviceId> {
        let is_busy = |(_, device): &(&DeviceId, &Device)| device.in_flight != [0; 3];
        self.devices.iter().filter(is_busy).map(|(&id, _)| id)
    }

    /// Takes out what waits for files of a listing.
    pub fn take_all_of(&mut self, listing: ListingId) -> Vec<DiskTask> {
        let mut taken = Vec::new();
        for queue in self.devices.values_mut().flat_map(|device| &mut device.waiting) {
            let (gone, stay): (VecDeque<_>, VecDeque<_>) =
                queue.drain(..).partition(|task| task.key.listing == listing);
            *queue = stay;
            taken.extend(gone);
        }
        taken
    }
}

impl Device {
    fn pop(&mut self, share: Share) -> Option<DiskTask> {
        let ops_in_flight: usize = self.in_flight.iter().sum();
        if ops_in_flight >= share.ops_max || self.bytes_in_flight >= share.bytes_max {
            return None;
        }
        let is_ready = Class::ALL.map(|class| {
            let at = class as usize;
            !self.waiting[at].is_empty() && self.in_flight[at] < class.part_of(share.ops_max)
        });
        let ready = Class::ALL.into_iter().filter(|&class| is_ready[class as usize]);
        let is_overdue = |class: &Class| self.passed_over[*class as usize] >= PASSED_OVER_MAX;
        let class = ready.clone().find(is_overdue).or_else(|| ready.clone().next())?;
        for lower in ready.filter(|&other| other > class) {
            self.passed_over[lower as usize] += 1;
        }
        self.passed_over[class as usize] = 0;
        self.take(class)
    }

    /// The first that waits; where heads move, of reads the next one behind the last, and behind the end of all
    /// files the first one again.
    fn take(&mut self, class: Class) -> Option<DiskTask> {
        let queue = &mut self.waiting[class as usize];
        if !self.in_file_order || queue.front().and_then(read_at).is_none() {
            return queue.pop_front();
        }
        let reads = || queue.iter().enumerate().filter_map(|(at, task)| Some((read_at(task)?, at)));
        let behind = reads().filter(|(place, _)| Some(*place) >= self.head).min();
        let (place, at) = behind.or_else(|| reads().min())?;
        let task = queue.remove(at)?;
        self.head = Some((place.0, place.1 + task.len_bytes()));
        Some(task)
    }
}

/// Where a read begins.
fn read_at(task: &DiskTask) -> Option<(FileKey, u64)> {
    match task.kind {
        TaskKind::Read { offset_bytes, .. } => Some((task.key, offset_bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ringseed_sys::arena::Arena;

    use super::*;

    const DISK: DeviceId = DeviceId(1);
    const OTHER: DeviceId = DeviceId(2);
    const LEN: usize = EXTENT_LEN_BYTES;
    const OPS: u32 = crate::config::DEVICE_OPS_MAX_DEFAULT;

    /// A disk's queues, with memory for their reads.
    struct Scene {
        arena: Arena,
        devices: Devices,
        order: ReadOrder,
    }

    impl Scene {
        fn new(order: ReadOrder) -> Scene {
            let arena = Arena::new(256 * LEN).unwrap();
            Scene { arena, devices: Devices::default(), order }
        }

        /// A read of the extent `number` of a file waits.
        fn read(&mut self, device: DeviceId, class: Class, file: u32, number: u64) {
            let buf = self.arena.try_take().expect("enough memory");
            let offset_bytes = number * LEN as u64;
            let kind = TaskKind::Read { offset_bytes, buf, start: 0, len: LEN };
            self.push(device, class, file, kind);
        }

        fn push(&mut self, device: DeviceId, class: Class, file: u32, kind: TaskKind) {
            let key = FileKey { listing: ListingId(u64::from(file)), file };
            self.devices.push(device, self.order, DiskTask { key, class, job: 0, kind });
        }

        /// Begins what may begin; classes in that order.
        fn begin(&mut self, device: DeviceId, shards: usize) -> Vec<Class> {
            let mut begun = Vec::new();
            while let Some(task) = self.devices.pop(Share::of(OPS, shards)) {
                let charge = Charge { device, class: task.class, len_bytes: task.len_bytes() };
                self.devices.begin(charge);
                begun.push(task.class);
            }
            begun
        }

        fn end(&mut self, device: DeviceId, class: Class) {
            self.devices.end(Charge { device, class, len_bytes: LEN as u64 });
        }
    }

    /// One budget for all disks let a slow one take every place of it.
    #[test]
    fn a_full_disk_queue_holds_up_nobody_on_another_disk() {
        let mut scene = Scene::new(ReadOrder::Spread);
        (0..40).for_each(|number| scene.read(DISK, Class::Foreground, 1, number));
        assert_eq!(scene.begin(DISK, 1).len(), OPS as usize);
        scene.read(OTHER, Class::Foreground, 2, 0);
        let task = scene.devices.pop(Share::of(OPS, 1)).expect("a place on the other disk");
        assert_eq!(task.key.file, 2);
        assert!(scene.devices.pop(Share::of(OPS, 1)).is_none(), "the first one is still full");
        scene.end(DISK, Class::Foreground);
        assert_eq!(scene.begin(DISK, 1).len(), 1, "until one ends there");
        assert!(!scene.devices.is_idle());
    }

    /// However many shards there are, together they have no more in flight than one would.
    #[test]
    fn shards_share_the_budget_of_a_disk() {
        for shards in [1, 2, 4, 16] {
            let mut scene = Scene::new(ReadOrder::Spread);
            (0..40).for_each(|number| scene.read(DISK, Class::Foreground, 1, number));
            assert_eq!(scene.begin(DISK, shards).len(), OPS as usize / shards, "{shards}");
            // Short ones are bounded by their number, and long ones by their bytes.
            let mut scene = Scene::new(ReadOrder::Spread);
            for number in 0..40 {
                let buf = scene.arena.try_take().expect("enough memory");
                let kind = TaskKind::Read { offset_bytes: number, buf, start: 0, len: 1 };
                scene.push(DISK, Class::Foreground, 1, kind);
            }
            assert_eq!(scene.begin(DISK, shards).len(), OPS as usize / shards, "{shards}");
            // Of all classes together.
            scene.read(DISK, Class::Repair, 1, 0);
            assert!(scene.devices.pop(Share::of(OPS, shards)).is_none(), "{shards}");
            let mut scene = Scene::new(ReadOrder::Spread);
            let (class, len_bytes) = (Class::Foreground, (OPS as usize / shards * LEN) as u64);
            scene.devices.begin(Charge { device: DISK, class, len_bytes });
            scene.read(DISK, Class::Foreground, 1, 0);
            assert!(scene.devices.pop(Share::of(OPS, shards)).is_none(), "{shards}");
        }
        let mut scene = Scene::new(ReadOrder::Spread);
        (0..4).for_each(|number| scene.read(DISK, Class::Check, 1, number));
        assert_eq!(scene.begin(DISK, 64).len(), OPS_IN_FLIGHT_MIN, "nobody is left without");
    }

    #[test]
    fn classes_go_in_order_and_lower_ones_leave_room() {
        let mut scene = Scene::new(ReadOrder::Spread);
        for class in [Class::Check, Class::Repair, Class::Foreground] {
            (0..2).for_each(|number| scene.read(DISK, class, 1, number));
        }
        use Class::{Check, Foreground, Repair};
        assert_eq!(
            scene.begin(DISK, 1),
            [Foreground, Foreground, Repair, Repair, Check, Check],
            "whoever is waited for goes first"
        );
        let mut scene = Scene::new(ReadOrder::Spread);
        (0..40).for_each(|number| scene.read(DISK, Check, 1, number));
        assert_eq!(scene.begin(DISK, 1).len(), OPS as usize / 4);
        (0..40).for_each(|number| scene.read(DISK, Repair, 1, number));
        assert_eq!(scene.begin(DISK, 1).len(), OPS as usize / 2);
        scene.read(DISK, Foreground, 1, 0);
        assert_eq!(scene.begin(DISK, 1), [Foreground], "there is room for it at once");
    }

    /// A check beside a foreground that never rests came to nothing.
    #[test]
    fn a_busy_foreground_does_not_stop_a_check() {
        let mut scene = Scene::new(ReadOrder::Spread);
        for number in 0..40 {
            scene.read(DISK, Class::Check, 1, number);
            scene.read(DISK, Class::Repair, 1, number);
        }
        let mut counts = [0; 3];
        for turn in 0..320 {
            scene.read(DISK, Class::Foreground, 2, turn);
            let task = scene.devices.pop(Share::of(OPS, 1)).expect("there is room");
            counts[task.class as usize] += 1;
        }
        assert!((18..=20).contains(&counts[Class::Check as usize]), "{counts:?}");
        assert!((18..=20).contains(&counts[Class::Repair as usize]), "{counts:?}");
    }

    /// Heads go over a disk once for all that waits, and not to and fro.
    #[test]
    fn a_disk_that_moves_heads_is_read_in_file_order() {
        let asked = [(2, 1), (1, 9), (1, 3), (2, 0), (1, 5)];
        let read = |order| {
            let mut scene = Scene::new(order);
            for (file, number) in asked {
                scene.read(DISK, Class::Foreground, file, number);
            }
            let place = |task: DiskTask| {
                let (key, offset) = read_at(&task).expect("a read");
                (key.file, offset / LEN as u64)
            };
            let first = place(scene.devices.pop(Share::of(OPS, 1)).expect("five wait"));
            // Behind the head: its turn comes before those that it has passed.
            scene.read(DISK, Class::Foreground, 1, 4);
            scene.read(DISK, Class::Foreground, 1, 1);
            let rest = std::iter::from_fn(|| scene.devices.pop(Share::of(OPS, 1)).map(place));
            std::iter::once(first).chain(rest).collect::<Vec<_>>()
        };
        let in_order = [(1, 3), (1, 4), (1, 5), (1, 9), (2, 0), (2, 1), (1, 1)];
        assert_eq!(read(ReadOrder::FileOrder), in_order);
        let as_asked = [(2, 1), (1, 9), (1, 3), (2, 0), (1, 5), (1, 4), (1, 1)];
        assert_eq!(read(ReadOrder::Spread), as_asked);
    }

    #[test]
    fn what_waits_for_a_listing_is_taken_back() {
        let mut scene = Scene::new(ReadOrder::Auto);
        scene.read(DISK, Class::Foreground, 1, 0);
        scene.read(DISK, Class::Check, 1, 1);
        scene.read(OTHER, Class::Repair, 2, 0);
        assert_eq!(scene.devices.take_all_of(ListingId(1)).len(), 2);
        assert_eq!(scene.devices.pop(Share::of(OPS, 1)).map(|task| task.key.file), Some(2));
        assert!(scene.devices.is_idle());
    }
}
