//! What the transfers are judged by: ours beside the best of the others, and quantities with a bound of
//! their own.

use super::arm::{Arm, Sample};
use crate::report::{Bar, Report};

/// A property of a contender, by its median.
#[derive(Clone, Copy)]
pub struct Quantity {
    /// With its unit.
    pub name: &'static str,
    pub of: fn(&Arm) -> Option<f64>,
    /// Whether less is better.
    pub is_cost: bool,
}

impl Quantity {
    /// Payload of all leeches.
    pub const RATE: Quantity =
        Quantity { name: "MB/s", of: |arm| arm.rate().map(|rate| rate / 1e6), is_cost: false };
    /// Processor time of all processes.
    pub const CPU: Quantity = Quantity { name: "CPU s/GiB, both", of: Arm::cpu, is_cost: true };
    /// What the machine was busy.
    pub const MACHINE: Quantity = Quantity {
        name: "busy s/GiB, machine",
        of: |arm| arm.median(|sample| sample.machine_per_gib.unwrap_or(f64::NAN)),
        is_cost: true,
    };
    pub const LEECH_CPU: Quantity = Quantity {
        name: "CPU s/GiB, leech",
        of: |arm| arm.median(|sample| sample.leech_cpu_per_gib),
        is_cost: true,
    };
    pub const SEED_CPU: Quantity = Quantity {
        name: "CPU s/GiB, seed",
        of: |arm| arm.median(|sample| sample.seed_cpu_per_gib),
        is_cost: true,
    };
    pub const LEECH_MIB: Quantity = Quantity {
        name: "MiB at the peak, leech",
        of: |arm| arm.median(|sample: &Sample| mib(sample.leech_rss_bytes)),
        is_cost: true,
    };
    pub const SEED_MIB: Quantity = Quantity {
        name: "MiB at the peak, seed",
        of: |arm| arm.median(|sample: &Sample| mib(sample.seed_rss_bytes)),
        is_cost: true,
    };
    pub const RECEIVED_CALLS: Quantity = Quantity {
        name: "system calls per GiB, leech",
        of: |arm| arm.calls.received,
        is_cost: true,
    };
    pub const SENT_CALLS: Quantity =
        Quantity { name: "system calls per GiB, seed", of: |arm| arm.calls.sent, is_cost: true };

    fn found(&self, arm: &Arm) -> Option<f64> {
        (self.of)(arm).filter(|value| value.is_finite())
    }

    /// The best of others at it, of those that are compared with us: neither floor nor roof.
    pub fn best<'a>(&self, arms: &'a [Arm]) -> Option<(f64, &'a str)> {
        let is_peer = |arm: &&Arm| {
            let none = ["ringseed", "TCP pump", "rsync", "fio"];
            !none.iter().any(|name| arm.who.starts_with(name))
        };
        let found = arms.iter().filter(is_peer);
        let found = found.filter_map(|arm| Some((self.found(arm)?, arm.who.as_str())));
        found.min_by(|(a, _), (b, _)| if self.is_cost { a.total_cmp(b) } else { b.total_cmp(a) })
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// Whether it is one of ours.
pub fn is_ours(arm: &Arm) -> bool {
    arm.who.starts_with("ringseed")
}

/// Bars of what was moved in one shape.
pub struct Judge<'a> {
    pub report: &'a mut Report,
    pub arms: &'a [Arm],
    /// What was moved, and how: it tells this bar from those of other workloads.
    pub topic: &'a str,
}

impl Judge<'_> {
    /// Each of ours must be so many times the best of the others, at most or at least.
    pub fn times_best(&mut self, quantity: Quantity, must: f64, stretch: Option<f64>) {
        let Some((peer, who)) = quantity.best(self.arms) else { return };
        for ours in self.arms.iter().filter(|arm| is_ours(arm)) {
            let Some(value) = quantity.found(ours) else { continue };
            let what = format!("{}, {}: {}, times {who}", self.topic, ours.who, quantity.name);
            let bar = bar(quantity, &what, value / peer, must, stretch);
            let topic = format!("{}: {}", self.topic, quantity.name);
            self.push(bar.with(&topic, &ours.who, quantity.name, value, Some((peer, who))));
        }
    }

    /// Each of ours must be within a bound.
    pub fn bound(&mut self, quantity: Quantity, must: f64, stretch: Option<f64>) {
        let peer = quantity.best(self.arms);
        for ours in self.arms.iter().filter(|arm| is_ours(arm)) {
            let Some(value) = quantity.found(ours) else { continue };
            let what = format!("{}, {}: {}", self.topic, ours.who, quantity.name);
            let bar = bar(quantity, &what, value, must, stretch);
            let topic = format!("{}: {}", self.topic, quantity.name);
            self.push(bar.with(&topic, &ours.who, quantity.name, value, peer));
        }
    }

    fn push(&mut self, bar: Bar) {
        self.report.bars.push(bar);
    }
}

fn bar(quantity: Quantity, what: &str, measured: f64, must: f64, stretch: Option<f64>) -> Bar {
    match quantity.is_cost {
        true => Bar::at_most(what, measured, must, stretch),
        false => Bar::at_least(what, measured, must, stretch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::arm::tests::sample;

    fn of(who: &str, seconds: f64) -> Arm {
        let mut arm = Arm::new("a file", who, "1", "");
        arm.samples.push(sample(seconds, seconds));
        arm
    }

    /// Neither the roof nor ourselves are a peer to be beaten.
    #[test]
    fn the_best_is_one_of_the_others() {
        let arms = [
            of("ringseed", 0.1),
            of("TCP pump, thrown away", 0.2),
            of("rsync, on one machine", 0.3),
            of("fio, 1m x 8", 0.3),
            of("aria2", 4.0),
            of("rqbit", 2.0),
            Arm::new("a file", "transmission", "1", ""),
        ];
        assert_eq!(Quantity::RATE.best(&arms).unwrap().1, "rqbit");
        assert_eq!(Quantity::CPU.best(&arms).unwrap().0, 2.0);
        assert!(Quantity::RATE.best(&arms[..4]).is_none());
    }

    #[test]
    fn a_bar_says_what_it_compares() {
        let mut report = Report::new("test");
        let arms = [of("ringseed", 1.0), of("rqbit", 5.0)];
        let mut judge = Judge { report: &mut report, arms: &arms, topic: "a file" };
        judge.times_best(Quantity::CPU, 0.25, None);
        judge.bound(Quantity::LEECH_MIB, 1.0, None);
        let behind = report.bars[0].behind.clone().unwrap();
        assert_eq!((report.bars[0].met, behind.ours, behind.is_ratio), (true, 1.0, true));
        assert_eq!(behind.peer, Some(("rqbit".to_owned(), 5.0)));
        let behind = report.bars[1].behind.clone().unwrap();
        assert_eq!((report.bars[1].met, behind.ours, behind.is_ratio), (false, 2.0, false));
    }
}
