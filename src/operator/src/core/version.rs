//! Order of resource versions.

use std::cmp::Ordering;

/// Which of two resource versions is newer.
///
/// The API guarantees that resource versions of one resource are increasing decimal numbers
/// (Kubernetes 1.35; every version before behaved so). `None` if one of them is not such a number
/// and they differ: then their order is not known.
#[must_use]
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    if a == b {
        return Some(Ordering::Equal);
    }
    let (a, b) = (a.parse::<u64>().ok()?, b.parse::<u64>().ok()?);
    Some(a.cmp(&b))
}

/// Whether `a` is known to be older than `b`.
#[must_use]
pub fn is_older(a: &str, b: &str) -> bool {
    compare(a, b) == Some(Ordering::Less)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_not_as_text() {
        assert!(is_older("99", "100"));
        assert!(!is_older("100", "99"));
        assert!(!is_older("100", "100"));
    }

    #[test]
    fn non_numeric_versions_do_not_compare() {
        assert_eq!(compare("a", "1"), None);
        assert_eq!(compare("a", "a"), Some(Ordering::Equal));
        assert!(!is_older("", "1"));
    }
}
