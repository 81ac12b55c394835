//! Workload `seedleech`: one seed, one leech, each program to itself.

use ringseed_core::geometry::Kind;

use super::arm::{Arm, Sample};
use super::data::{Payload, Plan, kind_name, size_text};
use super::memory::{ARENA_MIB, BEYOND_ARENA_MIB};
use super::peers;
use super::turns::Shape;
use super::{Bench, Options};
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Views of the torrents.
    #[arg(long, value_delimiter = ',', default_values = ["v1", "v2", "hybrid"], value_parser = ["v1", "v2", "hybrid"])]
    pub kinds: Vec<String>,
    /// The caches are dropped before each run, beside a disk job that reads and writes as much.
    #[arg(long)]
    pub cold: bool,
    /// The leech on one core, the seed on another.
    #[arg(long)]
    pub pinned: bool,
}

/// Length of the payload by default, bytes.
pub const SIZE: u64 = 4 << 30;

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("seedleech", &args.common);
    if args.cold {
        match peers::find_fio() {
            Ok(jobs) => bench.who.extend(jobs),
            Err(missing) => bench.report.notes.push(missing.to_owned()),
        }
    }
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    let mut payload: Option<Payload> = None;
    for name in &args.kinds {
        let kind = kind_of(name);
        let made = match payload.take() {
            None => bench.payload(kind, piece, &plans, &args.common, 1),
            Some(found) => found.of_kind(kind, piece, &plans).ok(),
        };
        let Some(made) = made else { break };
        let shape = Shape { is_cold: args.cold, is_pinned: args.pinned, ..Shape::PAIR };
        let what = format!("{} {name}, pieces of {}", size_text(size), size_text(piece));
        let arms = bench.compare(&what, &made, shape);
        bars(&mut bench.report, kind, args, &arms);
        payload = Some(made);
    }
    bench.finish()
}

fn kind_of(name: &str) -> Kind {
    match name {
        "v1" => Kind::V1,
        "v2" => Kind::V2,
        _ => Kind::Hybrid,
    }
}

/// The best of others at something, of those that are compared with us.
pub fn best(arms: &[Arm], of: fn(&Arm) -> Option<f64>, least: bool) -> Option<(f64, String)> {
    let is_peer = |arm: &&Arm| {
        let none = ["ringseed", "TCP pump", "rsync", "fio"];
        !none.iter().any(|name| arm.who.starts_with(name))
    };
    let found = arms.iter().filter(is_peer).filter_map(|arm| Some((of(arm)?, arm.who.clone())));
    found.min_by(|(a, _), (b, _)| if least { a.total_cmp(b) } else { b.total_cmp(a) })
}

/// Whether it is one of ours.
pub fn is_ours(arm: &Arm) -> bool {
    arm.who.starts_with("ringseed")
}

fn leech_mib(sample: &Sample) -> f64 {
    sample.leech_rss_bytes as f64 / 1_048_576.0
}

fn seed_mib(sample: &Sample) -> f64 {
    sample.seed_rss_bytes as f64 / 1_048_576.0
}

fn bars(report: &mut Report, kind: Kind, args: &Args, arms: &[Arm]) {
    let name = kind_name(kind);
    for ours in arms.iter().filter(|arm| is_ours(arm)) {
        let (Some(rate), Some(cpu)) = (ours.rate(), ours.cpu()) else { continue };
        let what = |text: &str| format!("{name}, {}: {text}", ours.who);
        if args.pinned {
            if kind != Kind::Hybrid {
                let (must, stretch) = if kind == Kind::V1 { (1.8, 2.5) } else { (1.4, 2.0) };
                let bar = Bar::at_least(
                    &what("leech on its core, GB/s"),
                    rate / 1e9,
                    must,
                    Some(stretch),
                );
                report.bars.push(bar);
            }
            continue;
        }
        let peer = best(arms, Arm::rate, false);
        if args.cold {
            if let Some((peer, who)) = peer {
                report.bars.push(Bar::at_least(
                    &what(&format!("times {who}")),
                    rate / peer,
                    2.0,
                    None,
                ));
            }
            let jobs = arms.iter().filter(|arm| arm.who.starts_with("fio"));
            if let Some(roof) = jobs.filter_map(Arm::rate).max_by(f64::total_cmp) {
                let bar =
                    Bar::at_least(&what("share of the disk's roof"), rate / roof, 0.85, Some(0.95));
                report.bars.push(bar);
            }
            continue;
        }
        if let Some((peer, who)) = peer.filter(|_| kind != Kind::Hybrid) {
            let bar = Bar::at_least(&what(&format!("times {who}")), rate / peer, 4.0, Some(6.0));
            report.bars.push(bar);
        }
        let (must, stretch) = match kind {
            Kind::V1 => (0.95, 0.75),
            Kind::V2 => (1.1, 0.9),
            Kind::Hybrid => (1.3, 1.0),
        };
        report.bars.push(Bar::at_most(&what("CPU s/GiB of both"), cpu, must, Some(stretch)));
        let machine = ours.median(|sample| sample.machine_per_gib.unwrap_or(f64::NAN));
        if let Some(machine) = machine.filter(|value| value.is_finite()) {
            let bar =
                Bar::at_most(&what("busy s/GiB of the machine"), machine, must, Some(stretch));
            report.bars.push(bar);
        }
        if let Some((peer, who)) = best(arms, Arm::cpu, true) {
            let text = what(&format!("CPU of both, times {who}"));
            report.bars.push(Bar::at_most(&text, cpu / peer, 0.25, None));
        }
        let leech = ours.median(|sample| sample.leech_cpu_per_gib).unwrap_or(f64::NAN);
        let seed = ours.median(|sample| sample.seed_cpu_per_gib).unwrap_or(f64::NAN);
        if kind != Kind::Hybrid {
            report.bars.push(Bar::at_most(
                &what("CPU s/GiB of the leech"),
                leech,
                0.50,
                Some(0.35),
            ));
            report.bars.push(Bar::at_most(&what("CPU s/GiB of the seed"), seed, 0.40, Some(0.30)));
        }
        for (side, of) in [("leech", leech_mib as fn(&Sample) -> f64), ("seed", seed_mib)] {
            if let Some(peak) = ours.median(of) {
                let text = what(&format!("MiB of the {side} beyond its buffers"));
                report.bars.push(Bar::at_most(&text, peak - ARENA_MIB, BEYOND_ARENA_MIB, None));
            }
        }
        if let (Some(received), Some(sent)) = ours.calls {
            report.bars.push(Bar::at_most(
                &what("system calls per GiB received"),
                received,
                1000.0,
                None,
            ));
            report.bars.push(Bar::at_most(&what("system calls per GiB sent"), sent, 800.0, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::arm::tests::sample;

    /// Neither the roof nor ourselves are a peer to be beaten.
    #[test]
    fn the_best_is_one_of_the_others() {
        let of = |who: &str, seconds: f64| {
            let mut arm = Arm::new("a file", who, "1", "");
            arm.samples.push(sample(seconds, seconds));
            arm
        };
        let arms = [
            of("ringseed", 0.1),
            of("TCP pump, thrown away", 0.2),
            of("rsync, on one machine", 0.3),
            of("fio, 1m x 8", 0.3),
            of("aria2", 4.0),
            of("rqbit", 2.0),
            Arm::new("a file", "transmission", "1", ""),
        ];
        assert_eq!(best(&arms, Arm::rate, false).unwrap().1, "rqbit");
        assert_eq!(best(&arms, Arm::cpu, true).unwrap().0, 2.0);
        assert!(best(&arms[..4], Arm::rate, false).is_none());
    }

    #[test]
    fn a_slow_leech_misses_its_bars() {
        let mut report = Report::new("test");
        let args = <Wrapped as clap::Parser>::parse_from(["x"]).args;
        let mut ours = Arm::new("a file", "ringseed", "1", "");
        ours.samples.push(sample(1.0, 0.6));
        let mut other = Arm::new("a file", "rqbit", "1", "");
        other.samples.push(sample(5.0, 3.0));
        bars(&mut report, Kind::V1, &args, &[ours.clone(), other.clone()]);
        assert!(
            report.all_met(),
            "{:?}",
            report.bars.iter().map(|bar| &bar.what).collect::<Vec<_>>()
        );
        ours.samples[0] = sample(2.0, 2.0);
        bars(&mut report, Kind::V1, &args, &[ours, other]);
        assert!(report.bars.iter().filter(|bar| !bar.met).count() >= 4);
    }

    #[derive(clap::Parser)]
    struct Wrapped {
        #[command(flatten)]
        args: Args,
    }
}
