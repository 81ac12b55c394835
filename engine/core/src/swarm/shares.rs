//! Who fetches what from the seeds first.
//!
//! Several receivers of one listing would each fetch all of it from its one origin: a star, and the
//! origin sends a copy to each. Instead every receiver takes its own share from the seeds and the rest
//! from the other receivers, who announce it piece by piece. No message is needed: everybody knows
//! the receivers it is connected to, and the rule gives each the same answer.

use crate::wire::handshake::PeerId;

/// The receivers of a listing, as one of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    count: u32,
    own_rank: u32,
}

impl Shares {
    /// The shares among `own` and the other receivers.
    pub(super) fn new(own: PeerId, others: impl Iterator<Item = PeerId>) -> Self {
        let mut shares = Self { count: 1, own_rank: 0 };
        for other in others.filter(|&other| other != own) {
            shares.count += 1;
            shares.own_rank += u32::from(other < own);
        }
        shares
    }

    /// How many receivers there are, this one counted.
    pub(super) fn count(self) -> u32 {
        self.count
    }

    /// Whether a group is this receiver's to fetch first. Of any `count` groups in a row each
    /// receiver has exactly one, so that even three pieces spread over three receivers.
    pub(super) fn is_own(self, group: u32) -> bool {
        let row = mix(u64::from(group / self.count));
        let rank =
            (u64::from(group % self.count) + row % u64::from(self.count)) as u32 % self.count;
        rank == self.own_rank
    }
}

/// The order in which the owner of a share goes through it, the same for all: who takes from the
/// share of another begins at the far end, and meets the owner only when all is done.
pub(super) fn order(group: u32) -> u64 {
    mix(u64::from(group) ^ 0x5eed_5eed_5eed_5eed)
}

/// A well mixed number (the finaliser of SplitMix64).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> PeerId {
        PeerId([number; 20])
    }

    #[test]
    fn every_group_belongs_to_exactly_one_receiver_and_shares_are_even() {
        for count in 1..=7_u8 {
            let all: Vec<_> = (1..=count).map(id).collect();
            let shares: Vec<_> =
                all.iter().map(|&own| Shares::new(own, all.iter().copied())).collect();
            for groups in [1, 3, 40, 500] {
                let owned = |shares: &Shares| (0..groups).filter(|&g| shares.is_own(g)).count();
                let sizes: Vec<_> = shares.iter().map(owned).collect();
                assert_eq!(sizes.iter().sum::<usize>(), groups as usize);
                let (most, least) = (sizes.iter().max().unwrap(), sizes.iter().min().unwrap());
                assert!(most - least <= 1, "{groups} groups, {count} receivers: {sizes:?}");
            }
        }
    }
}
