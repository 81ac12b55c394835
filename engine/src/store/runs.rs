//! Sets of numbers kept as runs: pieces had, pieces in doubt.

use std::collections::BTreeMap;

/// A set of `u32` kept as disjoint runs that do not touch. A complete listing is one run, whatever
/// its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSet {
    /// First number of a run to the first number behind it.
    runs: BTreeMap<u32, u32>,
}

impl RunSet {
    /// Adds `first .. first + count`.
    pub fn insert(&mut self, first: u32, count: u32) {
        let (mut start, mut end) = (first, first.saturating_add(count));
        if start == end {
            return;
        }
        // Swallow every run that overlaps or touches from the left, then from the right.
        if let Some((&left, &left_end)) = self.runs.range(..=start).next_back()
            && left_end >= start
        {
            start = left;
            end = end.max(left_end);
        }
        while let Some((&right, &right_end)) = self.runs.range(start..=end).next() {
            end = end.max(right_end);
            self.runs.remove(&right);
        }
        self.runs.insert(start, end);
    }

    /// Takes `first .. first + count` out.
    pub fn remove(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let end = first.saturating_add(count);
        if let Some((&left, &left_end)) = self.runs.range(..first).next_back()
            && left_end > first
        {
            self.runs.insert(left, first);
            if left_end > end {
                self.runs.insert(end, left_end);
                return;
            }
        }
        while let Some((&right, &right_end)) = self.runs.range(first..end).next() {
            self.runs.remove(&right);
            if right_end > end {
                self.runs.insert(end, right_end);
            }
        }
    }

    /// Whether the number is in the set.
    pub fn contains(&self, number: u32) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> u32 {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs in order: first number and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.runs.iter().map(|(&start, &end)| (start, end - start))
    }

    /// The numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|(&start, &end)| start..end)
    }
}

impl FromIterator<u32> for RunSet {
    fn from_iter<T: IntoIterator<Item = u32>>(numbers: T) -> Self {
        let mut set = RunSet::default();
        numbers.into_iter().for_each(|number| set.insert(number, 1));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is put in and taken out, it does what a set of numbers does.
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0_u32..80, 0_u32..20), 0..40)) {
            let (mut runs, mut set) = (RunSet::default(), BTreeSet::new());
            for (add, first, count) in steps {
                if add {
                    runs.insert(first, count);
                    set.extend(first..first + count);
                } else {
                    runs.remove(first, count);
                    set.retain(|number| !(first..first + count).contains(number));
                }
                prop_assert_eq!(runs.iter().collect::<BTreeSet<_>>(), set.clone());
                let ends: Vec<_> = runs.runs().map(|(start, count)| (start, start + count)).collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "runs touch");
            }
            prop_assert_eq!(runs.count() as usize, set.len());
            prop_assert!((0..120).all(|number| runs.contains(number) == set.contains(&number)));
        }
    }
}
