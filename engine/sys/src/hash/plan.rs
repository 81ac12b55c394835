//! Which kernel takes how many messages, and when that is decided.
//!
//! A kernel's time for a block depends on how many lanes it has, hardly on how many are busy. So
//! what is best for three messages is not what is best for sixteen, and where it changes differs
//! between CPU generations. [`Plan`] holds the answer for every count of messages.

use std::sync::OnceLock;

use super::kernel::{Algo, Kernel, LANES_MAX, Rung};

/// Time that a kernel takes for one block in each of `busy` lanes. Only ratios matter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) rung: Rung,
    pub(super) busy: usize,
    pub(super) time: f64,
}

/// What to run when so many messages are at hand: `take` of them by `kernel`, then look again.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) kernel: Kernel,
    pub(super) take: usize,
}

/// The choice of kernels for one hash function.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) algo: Algo,
    /// How many messages to keep in flight: the count with the best rate.
    pub(super) width: usize,
    /// Entry `n - 1` is for `n` messages.
    groups: [Group; LANES_MAX],
    /// The same for messages of which one block is at hand: without [`Rung::Mixed`], which works on
    /// two at a time.
    groups_of_one_block: [Group; LANES_MAX],
}

impl Plan {
    /// The plan with the least time by `costs`, or `None` when no rung in it can run here.
    pub(super) fn from_costs(algo: Algo, costs: &[Cost]) -> Option<Plan> {
        let (groups, width) = Plan::least(algo, costs)?;
        let of_one: Vec<Cost> =
            costs.iter().filter(|cost| cost.rung != Rung::Mixed).copied().collect();
        let groups_of_one_block = Plan::least(algo, &of_one).map_or(groups, |(groups, _)| groups);
        Some(Plan { algo, width, groups, groups_of_one_block })
    }

    /// The groups with the least time for every count of messages, and the count with the best rate.
    fn least(algo: Algo, costs: &[Cost]) -> Option<([Group; LANES_MAX], usize)> {
        let usable: Vec<(Group, f64)> = costs
            .iter()
            .filter(|cost| cost.busy >= 1 && cost.busy <= cost.rung.lanes())
            .filter_map(|cost| {
                let kernel = Kernel::new(algo, cost.rung)?;
                Some((Group { kernel, take: cost.busy }, cost.time))
            })
            .collect();
        // Least time for `n` messages: the best first group plus the least time for the rest.
        let mut least = [0.0; LANES_MAX + 1];
        let mut groups: Vec<Group> = Vec::with_capacity(LANES_MAX);
        for n in 1..=LANES_MAX {
            let (group, time) = usable
                .iter()
                .map(|&(group, time)| {
                    // A kernel measured full runs part full in the same time.
                    let take = group.take.min(n);
                    (Group { take, ..group }, time + least[n - take])
                })
                .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
            least[n] = time;
            groups.push(group);
        }
        let width = (1..=LANES_MAX)
            .min_by(|&a, &b| (least[a] / a as f64).total_cmp(&(least[b] / b as f64)))?;
        Some((groups.try_into().ok()?, width))
    }

    /// A plan that uses one kernel for everything.
    pub(super) fn of_kernel(algo: Algo, kernel: Kernel) -> Plan {
        let lanes = kernel.rung.lanes();
        let groups = std::array::from_fn(|n| Group { kernel, take: lanes.min(n + 1) });
        Plan { algo, width: lanes, groups, groups_of_one_block: groups }
    }

    /// A plan that uses one rung for everything.
    ///
    /// # Errors
    /// [`WishError::RungNotHere`] when this CPU cannot run the rung.
    pub(super) fn of_rung(algo: Algo, rung: Rung) -> Result<Plan, WishError> {
        let kernel = Kernel::new(algo, rung).ok_or(WishError::RungNotHere { rung })?;
        Ok(Plan::of_kernel(algo, kernel))
    }

    /// What to run when `busy` messages are at hand.
    ///
    /// # Panics
    /// When `busy` is 0 or above [`LANES_MAX`].
    #[inline]
    pub(super) fn group(&self, busy: usize) -> &Group {
        &self.groups[busy - 1]
    }

    /// What to run when one block of each of `busy` messages is at hand, and no more comes soon.
    ///
    /// # Panics
    /// When `busy` is 0 or above [`LANES_MAX`].
    #[inline]
    pub(super) fn group_of_one_block(&self, busy: usize) -> &Group {
        &self.groups_of_one_block[busy - 1]
    }
}

/// Cycles per block step on the CPU this was first measured on (Zen 5 at full width, 3.7 GHz).
/// Sensible elsewhere until [`super::calibrate`] has run: AVX2 alone beats the plain rungs
/// everywhere, and interleaving gains wherever there are SHA instructions. [`Rung::Mixed`] is in no
/// guess: it is the fastest there is on one CPU and a hundred times slower than the others on the next.
fn guessed_costs(algo: Algo) -> Vec<Cost> {
    let table: &[(Rung, usize, f64)] = match algo {
        Algo::Sha1 => &[
            (Rung::Avx512, 16, 375.0),
            (Rung::Avx512X8, 8, 375.0),
            (Rung::Avx2, 8, 552.0),
            (Rung::ShaNiX4, 4, 190.0),
            (Rung::ShaNiX4, 3, 170.0),
            (Rung::ShaNiX2, 2, 138.0),
            (Rung::ShaNi, 1, 122.0),
            (Rung::Crates, 1, 124.0),
            (Rung::Portable, 1, 253.0),
        ],
        Algo::Sha256 => &[
            (Rung::Avx512, 16, 800.0),
            (Rung::Avx512X8, 8, 790.0),
            (Rung::Avx2, 8, 1200.0),
            (Rung::ShaNiX4, 4, 290.0),
            (Rung::ShaNiX4, 3, 235.0),
            (Rung::ShaNiX2, 2, 174.0),
            (Rung::ShaNi, 1, 128.0),
            (Rung::Crates, 1, 130.0),
            (Rung::Portable, 1, 700.0),
        ],
    };
    let cost = |&(rung, busy, time): &(Rung, usize, f64)| Cost { rung, busy, time };
    // Without the SHA instructions the crates have only plain code for one message.
    let has_sha = Rung::ShaNi.is_available() || cfg!(not(target_arch = "x86_64"));
    table.iter().map(cost).filter(|cost| has_sha || cost.rung != Rung::Crates).collect()
}

/// What the environment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `RINGSEED_HASH`: use this rung for everything.
    pub rung: Option<Rung>,
    /// `RINGSEED_HASH_AVX512=off`: leave AVX-512 alone, because older CPUs slow down every program
    /// on the core while it is in use.
    pub spare_avx512: bool,
}

/// Why a wish in the environment cannot be met.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WishError {
    /// No rung has that name.
    #[error("RINGSEED_HASH={name}: no such kernel; there are {}", Rung::ALL.map(Rung::name).join(", "))]
    UnknownRung {
        /// What the variable holds.
        name: String,
    },
    /// The CPU lacks what the rung needs.
    #[error("RINGSEED_HASH={rung}: this CPU cannot run it")]
    RungNotHere {
        /// The rung asked for.
        rung: Rung,
    },
    /// The switch is neither `on` nor `off`.
    #[error("RINGSEED_HASH_AVX512={value}: must be on or off")]
    UnknownSwitch {
        /// What the variable holds.
        value: String,
    },
}

impl Wish {
    /// Reads `RINGSEED_HASH` and `RINGSEED_HASH_AVX512`. A program calls this once at its start and
    /// refuses to run on an error; the hash functions themselves ignore a wish they cannot meet.
    ///
    /// # Errors
    /// [`WishError`] when a value is unknown or the CPU lacks the rung.
    pub fn from_env() -> Result<Wish, WishError> {
        let text = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Wish::parse(text("RINGSEED_HASH"), text("RINGSEED_HASH_AVX512"))
    }

    /// As [`Wish::from_env`], with the values of the two variables given.
    fn parse(rung: Option<String>, avx512: Option<String>) -> Result<Wish, WishError> {
        let rung = match rung.as_deref() {
            None | Some("" | "auto") => None,
            Some(name) => Some(
                name.parse::<Rung>()
                    .map_err(|()| WishError::UnknownRung { name: name.to_owned() })?,
            ),
        };
        if let Some(rung) = rung.filter(|rung| !rung.is_available()) {
            return Err(WishError::RungNotHere { rung });
        }
        let spare_avx512 = match avx512.as_deref() {
            None | Some("" | "on") => false,
            Some("off") => true,
            Some(value) => return Err(WishError::UnknownSwitch { value: value.to_owned() }),
        };
        Ok(Wish { rung, spare_avx512 })
    }

    /// The rungs that may be used: available here, and not spared or excluded.
    pub(super) fn rungs(self) -> Vec<Rung> {
        match self.rung {
            Some(rung) => vec![rung],
            None => Rung::ALL
                .into_iter()
                .filter(|rung| rung.is_available())
                .filter(|rung| !(self.spare_avx512 && rung.is_avx512()))
                .collect(),
        }
    }

    /// The plan under this wish, by `costs` where given and the built-in guess otherwise.
    pub(super) fn plan(self, algo: Algo, costs: Option<&[Cost]>) -> Plan {
        let plain = || Kernel::new(algo, Rung::Portable).expect("needs no CPU feature");
        if let Some(rung) = self.rung {
            return Plan::of_kernel(algo, Kernel::new(algo, rung).unwrap_or_else(plain));
        }
        let guessed;
        let costs = match costs {
            Some(costs) => costs,
            None => {
                guessed = guessed_costs(algo);
                &guessed
            }
        };
        let allowed = self.rungs();
        let costs: Vec<Cost> =
            costs.iter().filter(|cost| allowed.contains(&cost.rung)).copied().collect();
        Plan::from_costs(algo, &costs).unwrap_or_else(|| Plan::of_kernel(algo, plain()))
    }
}

/// The wish of the environment as it was when first asked for; one that cannot be met counts as
/// none.
pub(super) fn wish() -> Wish {
    static WISH: OnceLock<Wish> = OnceLock::new();
    *WISH.get_or_init(|| Wish::from_env().unwrap_or(Wish { rung: None, spare_avx512: false }))
}

/// The outcome of a calibration.
pub(super) struct Measured {
    pub(super) plans: [Plan; 2],
    pub(super) costs: [Vec<Cost>; 2],
    pub(super) source: super::Source,
}

/// Set by calibration alone.
pub(super) static MEASURED: OnceLock<Measured> = OnceLock::new();

/// The plan in force: the measured one if calibration has run, else the guess by CPU features.
#[inline]
pub(super) fn current(algo: Algo) -> &'static Plan {
    static GUESSED: OnceLock<[Plan; 2]> = OnceLock::new();
    let guess = || GUESSED.get_or_init(|| Algo::ALL.map(|algo| wish().plan(algo, None)));
    let plans = MEASURED.get().map_or_else(guess, |measured| &measured.plans);
    &plans[algo as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_takes_the_least_time_for_every_count() {
        let costs = [
            Cost { rung: Rung::Portable, busy: 1, time: 10.0 },
            Cost { rung: Rung::Crates, busy: 1, time: 4.0 },
        ];
        let plan = Plan::from_costs(Algo::Sha1, &costs).unwrap();
        for busy in 1..=LANES_MAX {
            assert_eq!(plan.group(busy).kernel.rung, Rung::Crates);
            assert_eq!(plan.group(busy).take, 1);
        }
        assert!(Plan::from_costs(Algo::Sha1, &[]).is_none());
    }

    #[test]
    fn wide_kernels_wait_for_enough_messages() {
        if !Rung::Avx512.is_available() || !Rung::ShaNi.is_available() {
            eprintln!("skipped: this CPU has not both AVX-512 and the SHA instructions");
            return;
        }
        let plan = Wish { rung: None, spare_avx512: false }.plan(Algo::Sha1, None);
        assert_eq!(plan.width, 16);
        assert_eq!(plan.group(16).kernel.rung, Rung::Avx512);
        assert_eq!(plan.group(4).kernel.rung, Rung::ShaNiX4);
        assert_eq!(plan.group(1).kernel.rung, Rung::ShaNi);
        let spared = Wish { rung: None, spare_avx512: true }.plan(Algo::Sha1, None);
        assert!((1..=16).all(|busy| !spared.group(busy).kernel.rung.is_avx512()));
        assert_eq!(spared.group(4).kernel.rung, Rung::ShaNiX4);
    }

    /// On a Xeon with AMX `mixed` hashed 17 MB/s, and whatever had not measured it, an engine in another program or
    /// `hash` of a short file, took it by a table that was true on Zen 4.
    #[test]
    fn mixed_is_taken_where_it_was_measured_and_nowhere_else() {
        let wish = Wish { rung: None, spare_avx512: false };
        for algo in Algo::ALL {
            let plan = wish.plan(algo, None);
            assert!((1..=16).all(|busy| plan.group(busy).kernel.rung != Rung::Mixed));
        }
        if !Rung::Mixed.is_available() {
            eprintln!("skipped: this CPU cannot run it");
            return;
        }
        let fast = Cost { rung: Rung::Mixed, busy: 4, time: 1.0 };
        let slow = Cost { rung: Rung::ShaNiX4, busy: 4, time: 2.0 };
        let plan = wish.plan(Algo::Sha256, Some(&[fast, slow]));
        assert_eq!(plan.group(4).kernel.rung, Rung::Mixed);
        assert_eq!(plan.group_of_one_block(4).kernel.rung, Rung::ShaNiX4);
        let plan = wish.plan(Algo::Sha256, Some(&[Cost { time: 100.0, ..fast }, slow]));
        assert_eq!(plan.group(4).kernel.rung, Rung::ShaNiX4);
    }

    #[test]
    fn a_wish_names_a_rung_that_exists_here() {
        let parse = |rung: &str, avx512: &str| Wish::parse(Some(rung.into()), Some(avx512.into()));
        assert_eq!(
            parse("portable", ""),
            Ok(Wish { rung: Some(Rung::Portable), spare_avx512: false })
        );
        assert_eq!(parse("auto", "off"), Ok(Wish { rung: None, spare_avx512: true }));
        assert!(matches!(parse("mmx", ""), Err(WishError::UnknownRung { .. })));
        assert!(matches!(parse("", "maybe"), Err(WishError::UnknownSwitch { .. })));
    }
}
