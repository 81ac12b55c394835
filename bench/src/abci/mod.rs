//! The socket shim beside the stock server, and four CometBFT daemons over it beside their own
//! in-process kvstore.

mod daemons;
mod socket;

use std::path::PathBuf;

use clap::Args;

use crate::report::{Bar, Report};
use crate::swarm::child;

/// `ringseed-bench abci`.
#[derive(Args)]
pub struct Options {
    /// Turns of each comparison.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
    /// The CometBFT program; without it the daemons are left out.
    #[arg(long, default_value = "target/tools/cometbft")]
    cometbft: PathBuf,
    /// Seconds that four daemons make blocks in each turn.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// Runs the workload.
pub fn run(options: &Options) -> Report {
    // From here on whoever ends it is shown what was measured.
    child::is_interrupted();
    let mut report = Report::new("abci");
    // Whoever ends it says so below.
    let _ = measure(options, &mut report);
    report.note_interruption();
    report
}

fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    let turns = options.turns as usize;
    let ours = socket::Server::ours();
    let stock = socket::Server::stock();

    let (call, stock_call) = (socket::call_us(&ours, 2_000), socket::call_us(&stock, 60));
    report.note(format!(
        "request + flush, p50: ours on a unix socket {call:.1} us, stock on TCP {stock_call:.0} us"
    ));
    report.bars.push(Bar::at_most("request + flush, p50 us", call, 120.0, None));

    let median = |server: &socket::Server| -> Result<f64, String> {
        let time = |_| child::still_wanted().map(|()| socket::finalize_ms(server));
        Ok(middle((0..turns).map(time).collect::<Result<_, _>>()?))
    };
    let (block, stock_block) = (median(&ours)?, median(&stock)?);
    report.note(format!(
        "FinalizeBlock of 21 MB in 70,000 transactions, sent, decoded and answered by an application \
         that does nothing: ours {block:.1} ms, stock {stock_block:.1} ms"
    ));
    let decode = middle((0..turns).map(|_| socket::decode_ms()).collect());
    report.bars.push(Bar::at_most(
        "FinalizeBlock of 21 MB, decode, ms of one core",
        decode,
        60.0,
        None,
    ));

    child::still_wanted()?;
    let (checks, stock_checks) = (socket::checks_per_second(&ours, 800), {
        // A window takes the stock server 44 ms.
        socket::checks_per_second(&stock, 20)
    });
    report.note(format!(
        "CheckTx of 300 B, window 256, an application that does nothing: ours {checks:.0}/s, stock \
         {stock_checks:.0}/s"
    ));
    report.bars.push(Bar::at_least("CheckTx pipelined, 1/s", checks, 500_000.0, None));

    let signed = socket::signed_checks_per_second();
    report.bars.push(Bar::at_least(
        "CheckTx with signatures, 1/s of one core",
        signed,
        20_000.0,
        None,
    ));

    if options.cometbft.exists() {
        let compared = daemons::compare(&options.cometbft, turns.min(3), options.seconds)?;
        report.note(format!(
            "blocks/s of four daemons on loopback at the smallest timeouts, medians: over the shim \
             {:.1}, their own kvstore in process {:.1}",
            compared.shim, compared.kvstore
        ));
        let share = compared.shim / compared.kvstore;
        report.bars.push(Bar::at_least("blocks/s, share of in-process kvstore", share, 0.9, None));
    } else {
        report.note(format!(
            "no daemon at {}: blocks/s were not measured (GOBIN=$PWD/target/tools go install \
             github.com/cometbft/cometbft/cmd/cometbft@v0.38.25)",
            options.cometbft.display()
        ));
    }
    Ok(())
}

/// The middle value of some.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
