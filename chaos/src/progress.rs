//! Prints progress, one line at a time, each with the seconds since the scenario began.

use std::time::Instant;

/// The progress of one scenario.
#[derive(Clone, Debug)]
pub struct Progress {
    began: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock; `quiet` prints nothing.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self {
            began: Instant::now(),
            quiet,
        }
    }

    /// Prints one line.
    pub fn report(&self, line: impl AsRef<str>) {
        if !self.quiet {
            println!(
                "  [{:5.1} s] {}",
                self.began.elapsed().as_secs_f64(),
                line.as_ref()
            );
        }
    }
}
