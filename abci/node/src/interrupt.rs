//! Ctrl-C and SIGTERM: asked for once, looked at where stopping is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};

/// Whether the process was asked to stop. Clones watch the same signals.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Starts to watch SIGINT and SIGTERM. A second signal of the kind ends the process at once, as
    /// someone who presses Ctrl-C twice wants; nothing of ours needs more than the journal to resume.
    ///
    /// # Errors
    /// [`Code::Io`] when the handlers cannot be set.
    pub fn watch() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            let set = signal_hook::flag::register_conditional_shutdown(
                signal,
                130,
                interrupt.asked.clone(),
            )
            .and_then(|_| signal_hook::flag::register(signal, interrupt.asked.clone()));
            set.map_err(|error| {
                Error::new(Code::Io, "cannot watch for Ctrl-C").why(error.to_string())
            })?;
        }
        Ok(interrupt)
    }

    /// Whether a signal has come.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// What a signal sets, for those who look at nothing else.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }

    /// Asks as a signal would.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Sleeps for `time`, but not past a signal. `false` when a signal has come.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.is_asked() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_when_asked() {
        let interrupt = Interrupt::default();
        assert!(interrupt.sleep(Duration::from_millis(1)));
        interrupt.clone().ask();
        let began = Instant::now();
        assert!(!interrupt.sleep(Duration::from_secs(60)));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}
