//! Who hashes: our ladder, each of its rungs, and other libraries.

use ringseed_sys::hash::{self, Algo, Rung};
use sha2::Digest as _;

/// Digests of a batch, at most 32 bytes each.
type Digests = Vec<[u8; 32]>;

/// One way to hash a batch of messages.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    run: fn(&[&[u8]], &mut Buffers),
}

/// Where digests go, so that no contender allocates while it is timed.
#[derive(Default)]
pub struct Buffers {
    sha1: Vec<[u8; 20]>,
    sha256: Vec<[u8; 32]>,
}

impl Buffers {
    fn sha1(&mut self, count: usize) -> &mut [[u8; 20]] {
        self.sha1.resize(count, [0; 20]);
        &mut self.sha1
    }

    fn sha256(&mut self, count: usize) -> &mut [[u8; 32]] {
        self.sha256.resize(count, [0; 32]);
        &mut self.sha256
    }
}

impl Contender {
    /// Hashes a batch.
    pub fn hash(&self, messages: &[&[u8]], buffers: &mut Buffers) {
        (self.run)(messages, buffers);
        std::hint::black_box(buffers);
    }

    /// Hashes a batch and gives the digests, zero-filled to 32 bytes.
    fn digests(&self, algo: Algo, messages: &[&[u8]]) -> Digests {
        let mut buffers = Buffers::default();
        self.hash(messages, &mut buffers);
        match algo {
            Algo::Sha1 => buffers.sha1.iter().map(widen).collect(),
            Algo::Sha256 => buffers.sha256,
        }
    }
}

/// Ends the run when the digests of any contender are not those of `sha1_smol` and `sha2`: figures of
/// a wrong result are worth nothing.
pub fn check(contenders: &[Contender], algo: Algo, messages: &[&[u8]]) {
    let expected: Digests = messages
        .iter()
        .map(|message| match algo {
            Algo::Sha1 => widen(&sha1_smol::Sha1::from(message).digest().bytes()),
            Algo::Sha256 => sha2::Sha256::digest(message).into(),
        })
        .collect();
    for contender in contenders {
        let found = contender.digests(algo, messages);
        assert!(found == expected, "{} gives wrong digests", contender.name);
    }
}

fn widen(digest: &[u8; 20]) -> [u8; 32] {
    let mut wide = [0; 32];
    wide[..20].copy_from_slice(digest);
    wide
}

fn each<const LEN: usize>(
    messages: &[&[u8]],
    out: &mut [[u8; LEN]],
    digest: impl Fn(&[u8]) -> [u8; LEN],
) {
    for (message, out) in messages.iter().zip(out) {
        *out = digest(message);
    }
}

/// Hashes by one rung of ours, as a plain function for every rung.
macro_rules! rung {
    (sha1, $rung:ident) => {
        |messages, buffers| {
            let out = buffers.sha1(messages.len());
            hash::sha1_many_by(Rung::$rung, messages, out).expect("only rungs of this CPU run");
        }
    };
    (sha256, $rung:ident) => {
        |messages, buffers| {
            let out = buffers.sha256(messages.len());
            hash::sha256_many_by(Rung::$rung, messages, out).expect("only rungs of this CPU run");
        }
    };
}

/// Our ladder with the plan in force.
pub fn ours(algo: Algo) -> Contender {
    match algo {
        Algo::Sha1 => Contender {
            name: "ringseed",
            run: |messages, buffers| hash::sha1_many(messages, buffers.sha1(messages.len())),
        },
        Algo::Sha256 => Contender {
            name: "ringseed",
            run: |messages, buffers| hash::sha256_many(messages, buffers.sha256(messages.len())),
        },
    }
}

/// The single-stream crate that the bars are measured in.
pub fn yardstick(algo: Algo) -> Contender {
    match algo {
        Algo::Sha1 => Contender {
            name: "sha1 crate",
            run: |messages, buffers| {
                each(messages, buffers.sha1(messages.len()), |m| sha1::Sha1::digest(m).into())
            },
        },
        Algo::Sha256 => Contender {
            name: "sha2 crate",
            run: |messages, buffers| {
                each(messages, buffers.sha256(messages.len()), |m| sha2::Sha256::digest(m).into())
            },
        },
    }
}

/// One rung of ours, or `None` where the CPU cannot run it.
pub fn rung(algo: Algo, rung: Rung) -> Option<Contender> {
    if !rung.is_available() {
        eprintln!("skipped: kernel {rung}: not on this CPU");
        return None;
    }
    let run: fn(&[&[u8]], &mut Buffers) = match (algo, rung) {
        (Algo::Sha1, Rung::Avx512) => rung!(sha1, Avx512),
        (Algo::Sha1, Rung::Avx512X8) => rung!(sha1, Avx512X8),
        (Algo::Sha1, Rung::Avx2) => rung!(sha1, Avx2),
        (Algo::Sha1, Rung::Mixed) => rung!(sha1, Mixed),
        (Algo::Sha1, Rung::ShaNiX4) => rung!(sha1, ShaNiX4),
        (Algo::Sha1, Rung::ShaNiX2) => rung!(sha1, ShaNiX2),
        (Algo::Sha1, Rung::ShaNi) => rung!(sha1, ShaNi),
        (Algo::Sha1, Rung::Crates) => rung!(sha1, Crates),
        (Algo::Sha1, Rung::Portable) => rung!(sha1, Portable),
        (Algo::Sha256, Rung::Avx512) => rung!(sha256, Avx512),
        (Algo::Sha256, Rung::Avx512X8) => rung!(sha256, Avx512X8),
        (Algo::Sha256, Rung::Avx2) => rung!(sha256, Avx2),
        (Algo::Sha256, Rung::Mixed) => rung!(sha256, Mixed),
        (Algo::Sha256, Rung::ShaNiX4) => rung!(sha256, ShaNiX4),
        (Algo::Sha256, Rung::ShaNiX2) => rung!(sha256, ShaNiX2),
        (Algo::Sha256, Rung::ShaNi) => rung!(sha256, ShaNi),
        (Algo::Sha256, Rung::Crates) => rung!(sha256, Crates),
        (Algo::Sha256, Rung::Portable) => rung!(sha256, Portable),
    };
    Some(Contender { name: rung.name(), run })
}

/// `tape-sha256`, if built in.
pub fn tape(algo: Algo) -> Option<Contender> {
    #[cfg(feature = "tape")]
    if algo == Algo::Sha256 {
        return Some(Contender {
            name: "tape-sha256",
            run: |messages, buffers| {
                tape_sha256::hash_many(messages, buffers.sha256(messages.len()))
            },
        });
    }
    let _ = algo;
    None
}

/// Everyone for one hash function, ours first.
pub fn all(algo: Algo) -> Vec<Contender> {
    let mut all = vec![ours(algo)];
    all.extend(Rung::ALL.into_iter().filter_map(|name| rung(algo, name)));
    all.push(yardstick(algo));
    if algo == Algo::Sha1 {
        all.push(Contender {
            name: "sha1_smol",
            run: |messages, buffers| {
                each(messages, buffers.sha1(messages.len()), |m| {
                    sha1_smol::Sha1::from(m).digest().bytes()
                })
            },
        });
    }
    all.extend(tape(algo));
    all.extend(in_c(algo));
    all
}

/// The libraries in C that are built in.
fn in_c(algo: Algo) -> Vec<Contender> {
    let mut found: Vec<Contender> = Vec::new();
    #[cfg(feature = "aws-lc")]
    found.push(match algo {
        Algo::Sha1 => Contender {
            name: "aws-lc-rs",
            run: |messages, buffers| {
                each(messages, buffers.sha1(messages.len()), |m| {
                    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
                    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, m);
                    digest.as_ref().try_into().expect("20 bytes")
                })
            },
        },
        Algo::Sha256 => Contender {
            name: "aws-lc-rs",
            run: |messages, buffers| {
                each(messages, buffers.sha256(messages.len()), |m| {
                    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, m);
                    digest.as_ref().try_into().expect("32 bytes")
                })
            },
        },
    });
    #[cfg(feature = "openssl")]
    found.push(match algo {
        Algo::Sha1 => Contender {
            name: "OpenSSL",
            run: |messages, buffers| {
                each(messages, buffers.sha1(messages.len()), openssl::sha::sha1)
            },
        },
        Algo::Sha256 => Contender {
            name: "OpenSSL",
            run: |messages, buffers| {
                each(messages, buffers.sha256(messages.len()), openssl::sha::sha256)
            },
        },
    });
    let _ = (algo, &mut found);
    found
}
