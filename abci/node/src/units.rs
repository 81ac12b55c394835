//! Sizes, rates and times as people write and read them.

use std::time::Duration;

use crate::error::{Code, Error, Result};

/// Units of bytes, decimal and binary; the longest suffix that fits wins.
const UNITS: &[(&str, u64)] = &[
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
    ("", 1),
];

/// Parses a size in bytes: `512MiB`, `40MB`, `1.5 GiB`, `4096`.
///
/// # Errors
/// [`Code::BadValue`] when it is no number with a unit we know, or does not fit 63 bits.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || {
        Error::new(Code::BadValue, format!("{text:?} is no size"))
            .cure("write a number and a unit: 4096, 512MiB, 1.5GB")
    };
    let trimmed = text.trim();
    let digits_end =
        trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).filter(|n| *n < 1 << 63).ok_or_else(bad);
    }
    let value = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
    if value.is_finite() && value < (1u64 << 53) as f64 { Ok(value as u64) } else { Err(bad()) }
}

/// Parses a rate in bytes per second: `40MB/s`, `100Mbit/s`; bare numbers are bytes per second.
///
/// # Errors
/// [`Code::BadValue`] as [`parse_bytes`], or when it is zero.
pub fn parse_rate(text: &str) -> Result<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let amount = lower.strip_suffix("/s").unwrap_or(&lower);
    let rate = match amount.strip_suffix("bit") {
        Some(bits) => parse_bytes(&format!("{}b", bits.trim()))? / 8,
        None => parse_bytes(amount)?,
    };
    if rate == 0 {
        return Err(Error::new(Code::BadValue, format!("the rate {text:?} is zero"))
            .cure("leave the flag away for no limit, or write 40MB/s"));
    }
    Ok(rate)
}

/// A size with three significant digits: `512 MiB`, `1.25 GiB`, `17 B`.
pub fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{} {unit}", three_digits(value)) }
}

/// A rate: `612 MiB/s`.
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// The mean rate of `count` bytes over `time`, 0 when no time has passed.
pub fn mean_rate(count: u64, time: Duration) -> u64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { (count as f64 / seconds) as u64 } else { 0 }
}

/// A time: `0.4s`, `12s`, `3m05s`, `2h10m`.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A count with its noun: `1 listing`, `16 listings`, `2 addresses`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ if noun.ends_with('s') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

fn three_digits(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first eight hexadecimal digits, enough to tell listings apart on a screen.
pub fn short_hex(bytes: &[u8]) -> String {
    hex(&bytes[..bytes.len().min(4)])
}

/// Parses 64 hexadecimal digits.
///
/// # Errors
/// [`Code::BadValue`] naming `what` it should have been.
pub fn parse_hash(text: &str, what: &str) -> Result<[u8; 32]> {
    parse_hex(text).ok_or_else(|| {
        Error::new(Code::BadValue, format!("{text:?} is no {what}"))
            .why("it has 64 hexadecimal digits")
    })
}

/// Parses exactly `2 * N` hexadecimal digits.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(parse_bytes("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_bytes("40MB").unwrap(), 40_000_000);
        assert_eq!(parse_bytes("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        for bad in ["", "MiB", "-1", "1..5k", "7 parsecs", "99999999999999999999", "9e9TiB"] {
            assert_eq!(parse_bytes(bad).unwrap_err().code, Code::BadValue, "{bad}");
        }
    }

    #[test]
    fn rates_are_bytes_unless_bits_are_named() {
        assert_eq!(parse_rate("40MB/s").unwrap(), 40_000_000);
        assert_eq!(parse_rate("100Mbit/s").unwrap(), 12_500_000);
        assert_eq!(parse_rate("1000").unwrap(), 1000);
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn what_is_printed_is_short() {
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(1023 << 20), "1.00 GiB");
        assert_eq!(time(Duration::from_millis(400)), "0.4s");
        assert_eq!(time(Duration::from_secs(185)), "3m05s");
        assert_eq!(count(1, "listing"), "1 listing");
    }

    #[test]
    fn hashes_have_sixty_four_digits() {
        let hash = [0xa5; 32];
        assert_eq!(parse_hash(&hex(&hash), "hash").unwrap(), hash);
        assert!(parse_hash("a5", "hash").is_err());
        assert!(parse_hash(&"g".repeat(64), "hash").is_err());
        assert!(parse_hash(&"é".repeat(32), "hash").is_err());
    }
}
