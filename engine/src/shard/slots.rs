//! Operations in flight: slots with generations.
//!
//! A slot remembers what an operation was for. Its id carries the slot's generation, so that a
//! completion that comes twice or late is told apart and dropped instead of being taken for another
//! operation's.

use crate::io::OpId;

/// Slots for values of type `T`, handed out under an [`OpId`] and taken back once.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts a value in flight.
    pub fn insert(&mut self, value: T) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            // Generation 0 is never given out: the id 0 stands for what comes unasked.
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.value = Some(value);
        OpId(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Takes the value back; `None` for a stale or foreign id.
    pub fn take(&mut self, id: OpId) -> Option<T> {
        let index = id.0 as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != id.0 >> 32 {
            return None;
        }
        let value = slot.value.take()?;
        self.free.push(index);
        Some(value)
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_is_told_apart() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.take(first), Some("first"));
        let second = slots.insert("second");
        assert_ne!(first, second, "the slot is used again under another generation");
        assert_eq!(slots.take(first), None);
        assert_eq!(slots.take(OpId(0)), None);
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.take(second), Some("second"));
        assert_eq!(slots.len(), 0);
    }
}
