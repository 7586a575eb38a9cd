//! What somebody may have meant.

use super::RawConfig;

/// `LARDER_*` variables that are no settings of `serve`: the client commands', and this one's file.
const OTHER_VARIABLES: [&str; 6] = ["CONFIG", "ENDPOINTS", "OUTPUT", "TIMEOUT", "NODES", "BASE_PORT"];

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

/// Of these names of environment variables, those that begin with `LARDER_` and mean nothing to Larder, each with the
/// nearest that does. At most worth a warning: Kubernetes sets `LARDER_SERVICE_HOST`, `LARDER_PORT` and their like by
/// itself for a service called larder; they are left out.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<(String, String)> {
    let known: Vec<String> = RawConfig::KEYS.iter().map(|key| key.to_uppercase()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).chain(OTHER_VARIABLES).collect();
    let mut unknown = Vec::new();
    for name in names {
        let Some(rest) = name.strip_prefix("LARDER_") else { continue };
        let foreign = rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
        if foreign || known.contains(&rest) {
            continue;
        }
        let lower: Vec<String> = known.iter().map(|k| k.to_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let nearest = format!("LARDER_{}", nearest(rest, &lower).to_uppercase());
        unknown.push((name, nearest));
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found() {
        assert_eq!(nearest("hartbeat_ms", &RawConfig::KEYS), "heartbeat_ms");
        assert_eq!(nearest("client-addr", &RawConfig::KEYS), "client_addr");
        assert_eq!(nearest("Data_dir", &RawConfig::KEYS), "data_dir");
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_variables_that_look_like_ours_and_are_not_are_told() {
        let names = [
            "LARDER_SLOT",
            "LARDER_SLOTT",
            "LARDER_PORT",
            "LARDER_PORT_7400_TCP",
            "LARDER_SERVICE_HOST",
            "PATH",
            "LARDER_ENDPOINTS",
        ];
        assert_eq!(
            unknown_variables(names.map(str::to_owned)),
            [("LARDER_SLOTT".to_owned(), "LARDER_SLOT".to_owned())]
        );
    }
}
