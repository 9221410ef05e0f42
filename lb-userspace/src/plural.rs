//! One and many.

/// `1 backend`, `2 backends`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", either(n, "", "s"))
}

/// The word for one, or that for any other number.
pub const fn either(n: u64, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "slot")), ["0 slots", "1 slot", "2 slots"]);
        assert_eq!([0, 1, 2].map(|n| either(n, "is", "are")), ["are", "is", "are"]);
    }
}
