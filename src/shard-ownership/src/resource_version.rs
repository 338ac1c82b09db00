//! The order of resource versions.

/// Whether the object with resource version `a` is known to be older than the one with `b`.
///
/// The API server guarantees that the resource versions of one kind are increasing decimal numbers
/// (Kubernetes KEP-5504; every version before behaved so). Nothing is known of the order of others.
#[must_use]
pub fn is_older(a: &str, b: &str) -> bool {
    match (a.parse::<u128>(), b.parse::<u128>()) {
        (Ok(a), Ok(b)) => a < b,
        (Err(_), _) | (_, Err(_)) => false,
    }
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
        assert!(!is_older("a", "1"));
        assert!(!is_older("1", "a"));
        assert!(!is_older("", "1"));
    }
}
