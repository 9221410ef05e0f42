//! The name that was probably meant.

/// The candidate nearest to what was written, if one is near enough to be worth saying.
///
/// Case and the difference between `-` and `_` do not count. Near enough is a third of the letters (Damerau: two
/// letters swapped are one mistake), or one name that holds the other.
pub(in crate::config) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Longer than any name there is; the distance takes time with the square of the length.
    const LONGEST: usize = 64;
    if written.is_empty() || written.len() > LONGEST {
        return None;
    }
    let written = folded(written);
    let distance = |candidate: &str| {
        let candidate = folded(candidate);
        let edits = strsim::osa_distance(&written, &candidate);
        let longest = written.chars().count().max(candidate.chars().count());
        let holds = written.len() >= 3 && candidate.len() >= 3;
        let holds = holds && (candidate.contains(&written) || written.contains(&candidate));
        (edits <= (longest / 3).max(1) || holds).then_some(edits)
    };
    let near = candidates.into_iter().filter_map(|candidate| Some((distance(candidate)?, candidate)));
    near.min_by_key(|&(edits, _)| edits).map(|(_, candidate)| candidate)
}

fn folded(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 4] = ["address", "weight", "state", "table_size"];

    #[test]
    fn a_mistyped_name_finds_its_own() {
        for (written, meant) in [
            ("wieght", "weight"),
            ("wegiht", "weight"),
            ("Weight", "weight"),
            ("adress", "address"),
            ("table-size", "table_size"),
            ("tablesize", "table_size"),
            ("size", "table_size"),
        ] {
            assert_eq!(nearest(written, KEYS), Some(meant), "{written}");
        }
    }

    #[test]
    fn another_name_finds_nothing() {
        for written in ["priority", "x", "", &"weight".repeat(20)] {
            assert_eq!(nearest(written, KEYS), None, "{written}");
        }
    }
}
