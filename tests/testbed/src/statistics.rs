//! Percentiles of measured values.

/// Measured values, sorted.
#[derive(Clone, Debug, Default)]
pub struct Sorted {
    values: Vec<f64>,
}

impl Sorted {
    /// Sorts the values; those that are no numbers are left out.
    #[must_use]
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        values.sort_by(f64::total_cmp);
        Self { values }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// The smallest value that at least `percent` of all values do not exceed (nearest rank).
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Option<f64> {
        let rank = (self.values.len() * percent.min(100) as usize).div_ceil(100);
        self.values.get(rank.saturating_sub(1)).copied()
    }

    /// The largest value.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        self.values.last().copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let sorted = Sorted::new((1..=200).rev().map(f64::from));
        assert_eq!(sorted.count(), 200);
        assert_eq!(sorted.percentile(50), Some(100.0));
        assert_eq!(sorted.percentile(99), Some(198.0));
        assert_eq!(sorted.percentile(100), sorted.max());
        assert_eq!(Sorted::new([3.0]).percentile(50), Some(3.0));
        assert_eq!(Sorted::new([]).percentile(50), None);
    }
}
