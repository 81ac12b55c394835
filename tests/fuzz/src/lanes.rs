//! The hash scheduler beside the plain libraries: any lengths, any order, any cuts.

use ringseed_sys::hash::{
    Job, LaneSet, Rung, sha1_many, sha1_many_by, sha1_many_parts, sha256_many, sha256_many_by,
    sha256_many_parts,
};
use sha2::{Digest as _, Sha256};

use crate::source::{Source, noise};

/// Longest message: some blocks, and all places of the padding.
const LEN_MAX: usize = 700;

fn sha1(bytes: &[u8]) -> [u8; 20] {
    sha1_smol::Sha1::from(bytes).digest().bytes()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Every digest is the one that a plain library gives.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.below(4) {
        0 => whole(&mut source),
        1 => in_parts(&mut source),
        2 => lanes::<20>(&mut source, sha1),
        _ => lanes::<32>(&mut source, sha256),
    }
}

fn messages(source: &mut Source<'_>) -> Vec<Vec<u8>> {
    (0..source.below(48)).map(|at| noise(at as u64, source.below(LEN_MAX))).collect()
}

fn whole(source: &mut Source<'_>) {
    let rung = *source.pick(&Rung::ALL);
    let messages = messages(source);
    let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    let (mut short, mut long) = (vec![[0; 20]; slices.len()], vec![[0; 32]; slices.len()]);
    sha1_many(&slices, &mut short);
    sha256_many(&slices, &mut long);
    let check = |short: &[[u8; 20]], long: &[[u8; 32]]| {
        for (at, message) in messages.iter().enumerate() {
            assert_eq!(short[at], sha1(message), "message {at} of {} bytes", message.len());
            assert_eq!(long[at], sha256(message), "message {at} of {} bytes", message.len());
        }
    };
    check(&short, &long);
    // And by one rung, where this CPU has it.
    if sha1_many_by(rung, &slices, &mut short).is_ok()
        && sha256_many_by(rung, &slices, &mut long).is_ok()
    {
        check(&short, &long);
    }
}

fn in_parts(source: &mut Source<'_>) {
    let messages = messages(source);
    let parts: Vec<Vec<&[u8]>> = messages
        .iter()
        .map(|message| {
            let mut rest = &message[..];
            let mut parts = Vec::new();
            while !rest.is_empty() && parts.len() < 8 {
                let (part, behind) = rest.split_at(source.below(130).min(rest.len()));
                parts.push(part);
                rest = behind;
            }
            parts.push(rest);
            parts
        })
        .collect();
    let parts: Vec<&[&[u8]]> = parts.iter().map(Vec::as_slice).collect();
    let (mut short, mut long) = (vec![[0; 20]; parts.len()], vec![[0; 32]; parts.len()]);
    sha1_many_parts(&parts, &mut short);
    sha256_many_parts(&parts, &mut long);
    for (at, message) in messages.iter().enumerate() {
        assert_eq!((short[at], long[at]), (sha1(message), sha256(message)), "message {at}");
    }
}

/// Messages that arrive bit by bit, begun, fed, finished and given up in any order.
fn lanes<const LEN: usize>(source: &mut Source<'_>, plain: fn(&[u8]) -> [u8; LEN]) {
    let mut set = LaneSet::<LEN>::new(1 + source.below(24));
    let mut jobs: Vec<(Job, Vec<u8>)> = Vec::new();
    let junk = noise(9, LEN_MAX);
    while !source.is_empty() {
        match source.below(8) {
            0..=2 => jobs.extend(set.try_submit().map(|job| (job, Vec::new()))),
            3..=5 if !jobs.is_empty() => {
                let mut feeds: Vec<(Job, &[u8])> = Vec::new();
                for _ in 0..1 + source.below(20) {
                    let at = source.below(jobs.len());
                    let len = source.below(200);
                    let start = source.below(junk.len() - len);
                    let chunk = &junk[start..start + len];
                    feeds.push((jobs[at].0, chunk));
                    jobs[at].1.extend_from_slice(chunk);
                }
                set.feed(&feeds);
            }
            6 if !jobs.is_empty() => {
                let count = 1 + source.below(jobs.len());
                let ended: Vec<(Job, Vec<u8>)> = jobs.drain(..count).collect();
                let handles: Vec<Job> = ended.iter().map(|(job, _)| *job).collect();
                let mut out = vec![[0; LEN]; count];
                set.finish(&handles, &mut out);
                for ((_, message), digest) in ended.iter().zip(out) {
                    assert_eq!(digest, plain(message), "a message of {} bytes", message.len());
                }
            }
            _ if !jobs.is_empty() => {
                let (job, message) = jobs.swap_remove(source.below(jobs.len()));
                assert_eq!(set.len_bytes(job), message.len() as u64);
                set.cancel(job);
            }
            _ => {}
        }
        assert_eq!(set.busy(), jobs.len());
    }
}
