//! What somebody may have meant.

/// The candidate with the fewest edits to `word`; the first of equals. There is at least one candidate.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> &'a str {
    let word = word.to_lowercase().replace('-', "_");
    candidates.iter().min_by_key(|candidate| distance(&word, candidate)).copied().unwrap_or_default()
}

/// The number of insertions, deletions and replacements between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{super::RawConfig, *};

    #[test]
    fn the_nearest_key_is_found() {
        assert_eq!(nearest("hartbeat_ms", &RawConfig::KEYS), "heartbeat_ms");
        assert_eq!(nearest("client-addr", &RawConfig::KEYS), "client_addr");
        assert_eq!(nearest("Data_dir", &RawConfig::KEYS), "data_dir");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
